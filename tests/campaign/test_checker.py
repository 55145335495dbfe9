"""The campaign's checker shares nothing with warmer, and notices each kind of violation when planted."""

import ast
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, os.path.dirname(__file__))

import checker
import truth

VERSION, GPU = "0.32.0", "NVIDIA H200"
TARGET = b"this version and that GPU"
MODEL = {"config.json": b"{}", "model.safetensors": b"weights" * 300}
SECRET = "hf_PLANTEDplantedPLANTEDplanted"
STANDARD = {"dataclasses", "hashlib", "itertools", "json", "os", "re", "stat", "sys"}


def sha(data):
    return hashlib.sha256(data).hexdigest()


TRUTH = truth.Truth(
    models={"org/m": {path: sha(data) for path, data in MODEL.items()}},
    targets={f"{VERSION}\t{GPU}": TARGET.hex()},
    secrets=(SECRET,),
)
FACTORS = {
    "weights": {"name": "org/m", "revision": "0" * 40},
    "jit": {"engine.vllm": VERSION, "hardware.name": GPU},
    "compile": {"engine.vllm": VERSION, "hardware.name": GPU, "model": "org/m"},
}
ARGV = ["--max-model-len", "512", "--port", "8000"]
MODEL_PATH = "/warm/models/org--m"
BUILT = sha(json.dumps([MODEL_PATH, *ARGV[:2]]).encode())
TREES = {
    "jit": {
        "tvm_ffi/op.so": hashlib.shake_256(b"TVM_FFI_CACHE_DIR" + TARGET).digest(5_000),
    },
    "compile": {
        f"vllm/torch_aot_compile/{BUILT}/model": hashlib.shake_256(
            b"aot" + BUILT.encode() + TARGET
        ).digest(40_000),
    },
}


def key(kind):
    text = json.dumps(
        {"factors": FACTORS[kind], "kind": kind}, sort_keys=True, separators=(",", ":")
    )
    return sha(text.encode())


def put(path, data):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def publish(volume, kind, number=1, *, tree=None, nonce=None, needs=None):
    """Write a generation as docs/volume.md tells it."""
    at = Path(volume, "v1/pieces", kind, key(kind), str(number))
    put(at / "key.json", json.dumps({"factors": FACTORS[kind]}).encode())
    if kind == "weights":
        for path, data in (tree or MODEL).items():
            put(at / "files" / path, data)
    else:
        held = tree or TREES[kind]
        listed = [{"path": p, "size": len(d), "sha256": sha(d)} for p, d in held.items()]
        put(at / "manifest.json", json.dumps({"files": listed}).encode())
        put(at / "tree.tar.zst", json.dumps(sorted(held)).encode())
    seal(at, kind, number, nonce or f"{kind}{number}", needs)
    return at


def seal(at, kind, number, nonce, needs=None):
    (at / "seal.json").unlink(missing_ok=True)
    files = [path for path in sorted(at.rglob("*")) if path.is_file()]
    sealed = [
        {
            "path": f.relative_to(at).as_posix(),
            "size": f.stat().st_size,
            "sha256": sha(f.read_bytes()),
        }
        for f in files
    ]
    record = {"schema_version": 1, "kind": kind, "key": key(kind), "generation": number}
    record |= {"nonce": nonce, "files": sealed, "needs": needs or {}}
    put(at / "seal.json", json.dumps(record).encode())


def more(kind):
    """The tree of a kind, grown by a file nobody knows."""
    return TREES[kind] | {"cute/other.bin": b"more"}


@pytest.fixture
def volume(tmp_path):
    """A volume with a piece of three kinds, where nothing is wrong."""
    for kind in ("weights", "jit", "compile"):
        publish(tmp_path / "volume", kind)
    assert judged(tmp_path / "volume") == []
    return tmp_path / "volume"


@pytest.fixture
def warm(volume, tmp_path):
    """A pod that is ready, and rightly so."""
    warm = tmp_path / "warm"
    for kind, tree in TREES.items():
        for path, data in tree.items():
            put(warm / "cache" / kind / path, data)
    env = {"VLLM_CACHE_ROOT": "/warm/cache/compile/vllm"}
    put(warm / "handoff/serve", f"exec vllm serve {MODEL_PATH} {' '.join(ARGV)}".encode())
    put(warm / "handoff/env", "\n".join(f"export {k}={v}" for k, v in env.items()).encode())
    pieces = [
        {
            "kind": kind,
            "key": key(kind),
            "generation": 1,
            "verdict": "sealed",
            "directory": str(place(volume, kind)),
            "seal_sha256": sha((place(volume, kind) / "seal.json").read_bytes()),
        }
        for kind in ("weights", "jit", "compile")
    ]
    record = {"model_path": MODEL_PATH, "argv": ARGV, "env": env, "pieces": pieces}
    put(warm / "handoff/handoff.json", json.dumps(record).encode())
    assert believed(warm) == []
    return warm


def judged(volume, ledger=None, **how):
    return checker.judge(str(volume), TRUTH, ledger or truth.Ledger(), **how)


def believed(warm, *, gpu=GPU, model="org/m", **how):
    return checker.believed(str(warm), TRUTH, version=VERSION, gpu=gpu, model=model, **how)


def place(volume, kind, number=1):
    return volume / "v1/pieces" / kind / key(kind) / str(number)


def edit(path, **changed):
    path.write_text(json.dumps(json.loads(path.read_bytes()) | changed))


def resealed(volume, kind, path, data):
    put(place(volume, kind) / path, data)
    seal(place(volume, kind), kind, 1, f"{kind}1")


def wrong_kernel(volume):
    shutil.rmtree(place(volume, "jit"))
    publish(volume, "jit", tree={"tvm_ffi/op.so": b"of another GPU"})


def moved(volume, to):
    target = volume / "v1" / to / f"jit-{key('jit')}-1-aaaaaaaa"
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(place(volume, "jit"), target)
    return target


def halved(volume):
    target = moved(volume, "trash")
    shutil.rmtree(place(volume, "jit"))
    (target / "manifest.json").unlink()


PLANTED = {
    "lacks": lambda v: (place(v, "weights") / "files/config.json").unlink(),
    "has more than its seal": lambda v: put(place(v, "weights") / "files/extra", b""),
    "has other bytes": lambda v: put(place(v, "jit") / "tree.tar.zst", b"torn"),
    "is no JSON": lambda v: os.truncate(place(v, "jit") / "seal.json", 40),
    "has the seal of": lambda v: edit(place(v, "jit") / "seal.json", generation=2),
    "is no generation": lambda v: place(v, "jit").rename(place(v, "jit").with_name("01")),
    "is no regular file": lambda v: (place(v, "weights") / "files/up").symlink_to("/"),
    "has factors of another key": lambda v: resealed(v, "jit", "key.json", b'{"factors": {}}'),
    "is not the model": lambda v: resealed(v, "weights", "files/config.json", b"[]"),
    "has a wrong tvm_ffi/op.so": wrong_kernel,
    "are of one claim": lambda v: publish(v, "jit", 2, tree=more("jit"), nonce="jit1"),
    "its number was moved aside": lambda v: moved(v, "quarantine"),
    "in the trash is no generation": lambda v: put(v / "v1/trash/what", b""),
    "is no taken number": lambda v: put(v / f"v1/taken/jit-{key('jit')}-1", b"not empty"),
    "two have published the same": lambda v: publish(v, "weights", 2),
    "compile', '": lambda v: publish(v, "compile", 2),
    "does not grow from": lambda v: publish(v, "jit", 2, tree={"cute/only.bin": b"mine"}),
    "is no record of use": lambda v: put(v / "v1/uses/mine.json", b'{"pieces": []}'),
    "is torn": lambda v: put(
        v / f"v1/uses/{'a' * 16}.json", b'{"schema_version": 1, "pieces": [{"key": "half"}]}'
    ),
    "a secret is in": lambda v: put(v / "v1/staging/note", SECRET.encode()),
    f"/trash/jit-{key('jit')}-1-aaaaaaaa lacks": halved,
}


@pytest.mark.parametrize("sentence", PLANTED)
def test_what_is_wrong_with_a_volume_is_noticed(volume, sentence):
    PLANTED[sentence](volume)
    found = judged(volume)
    assert any(sentence in one for one in found), found


def test_a_generation_that_is_gone_or_given_anew_is_noticed(volume):
    ledger = truth.Ledger()
    assert judged(volume, ledger) == []
    shutil.rmtree(place(volume, "jit"))
    (gone,) = judged(volume, ledger)
    assert "is gone" in gone
    ledger = truth.Ledger()
    publish(volume, "jit")
    assert judged(volume, ledger) == []
    seal(place(volume, "jit"), "jit", 1, "another")
    assert any("given to two claims" in one for one in judged(volume, ledger))


def test_what_a_gc_removed_may_be_gone_while_its_number_stays_known(volume):
    ledger = truth.Ledger()
    assert judged(volume, ledger) == []
    shutil.rmtree(place(volume, "jit"))
    put(volume / f"v1/taken/jit-{key('jit')}-1", b"")
    ledger.collected = True
    assert judged(volume, ledger) == []
    (volume / f"v1/taken/jit-{key('jit')}-1").unlink()
    shutil.rmtree(place(volume, "weights"))
    put(volume / f"v1/taken/jit-{key('jit')}-1", b"")
    (gone,) = judged(volume, ledger)
    assert "'weights'" in gone


def test_what_grows_is_moved_aside_or_is_built_beside_something_new_is_right(volume):
    ledger = truth.Ledger()
    publish(volume, "jit", 2, tree=more("jit"))
    assert judged(volume, ledger) == []
    moved(volume, "trash")
    shutil.rmtree(place(volume, "jit"))
    assert judged(volume, ledger) == []
    shutil.rmtree(place(volume, "compile"))
    for number, beside in ((1, 1), (2, 2)):
        publish(volume, "compile", number, needs={"jit": beside})
    assert judged(volume) == []


def other_tree(warm):
    put(warm / "cache/jit/tvm_ffi/op.so", b"half")


def other_kernels(warm):
    """Rightly restored and sealed, and of another GPU."""
    given_anew(warm, {"tvm_ffi/op.so": b"of another"})
    put(warm / "cache/jit/tvm_ffi/op.so", b"of another")


def given_anew(warm, tree):
    """Something removed the generation and all that told of its number; another has it now."""
    directory = Path(pieces(warm)[1]["directory"])
    shutil.rmtree(directory)
    publish(directory.parents[4], "jit", tree=tree)


def pieces(warm):
    return json.loads((warm / "handoff/handoff.json").read_bytes())["pieces"]


HANDED = {
    "serve is of another handoff": lambda w: put(w / "handoff/serve", b"exec vllm serve other"),
    "env is of another handoff": lambda w: put(w / "handoff/env", b""),
    "are not those of org/m": lambda w: put(Path(pieces(w)[0]["directory"], "files/x"), b"more"),
    "the tree of jit is torn": other_tree,
    "is not what this pod's engine makes": other_kernels,
    "not those its kernels were built with": lambda w: edit(
        w / "handoff/handoff.json", argv=["--max-model-len", "1024"]
    ),
    "is no JSON": lambda w: os.truncate(w / "handoff/handoff.json", 30),
}


@pytest.mark.parametrize("sentence", HANDED)
def test_what_is_wrong_with_a_pod_that_calls_itself_ready_is_noticed(warm, sentence):
    HANDED[sentence](warm)
    found = believed(warm)
    assert any(sentence in one for one in found), found


def test_kernels_of_another_gpu_and_another_models_weights_are_noticed(warm):
    TRUTH.targets["0.32.0\tNVIDIA L40S"] = TARGET.hex()
    assert any("is handed to a pod" in one for one in believed(warm, gpu="NVIDIA L40S"))
    TRUTH.models["org/other"] = {}
    assert any("are not those of org/other" in one for one in believed(warm, model="org/other"))


def test_kernels_whose_generation_is_collected_are_still_compared(warm):
    shutil.rmtree(pieces(warm)[1]["directory"])
    assert believed(warm) == []
    other_tree(warm)
    assert any("is not what this pod's engine makes" in one for one in believed(warm))
    shutil.rmtree(pieces(warm)[0]["directory"])
    assert any("are not those of org/m" in one for one in believed(warm))


def test_kernels_whose_number_was_given_anew_are_still_compared_though_not_with_its_manifest(warm):
    given_anew(warm, {"cute/other.bin": b"of another model"})
    assert believed(warm, gone=True) == []
    assert any("the tree of jit is torn" in one for one in believed(warm)), "who gave it anew?"
    other_tree(warm)
    assert any("is not what this pod's engine makes" in one for one in believed(warm, gone=True))


def test_what_is_broken_is_found_among_what_a_gc_has_hidden_too(volume):
    assert checker.broken(str(volume)) == set()
    halved(volume)
    assert checker.broken(str(volume)) == {("jit", key("jit"), 1)}
    (place(volume, "weights") / "files/config.json").unlink()
    assert checker.broken(str(volume)) == {(k, key(k), 1) for k in ("jit", "weights")}


def test_a_secret_in_a_warm_dir_is_noticed(volume, warm):
    put(warm / "logs/engine.log", b"token=" + SECRET.encode())
    assert any("a secret is in" in one for one in judged(volume, warm=[warm]))


def test_the_checker_imports_the_standard_library_alone_and_nothing_of_warmer_or_the_tests():
    named, text = set(), ""
    for source in (checker.__file__, truth.__file__):
        text += Path(source).read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(Path(source).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                named |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                named.add(node.module)
    assert named == STANDARD | {"truth"}
    assert "importlib" not in text and "__import__" not in text


def test_as_a_program_it_needs_no_warmer_and_tells_by_its_status(volume):
    run = [sys.executable, "-IS", checker.__file__, str(volume)]
    assert subprocess.run(run, capture_output=True, text=True).returncode == 0
    put(place(volume, "jit") / "tree.tar.zst", b"torn")
    found = subprocess.run(run, capture_output=True, text=True)
    assert (found.returncode, "other bytes" in found.stdout) == (1, True)
