"""The readiness probe (`warmer.check`): every exit status from a real cause."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))

from handed import KEYS, Pod

from warmer.handoff import write

WARM, NOT_WARM, CORRUPT, BROKEN = 0, 1, 5, 6


@pytest.fixture
def pod(tmp_path):
    return Pod(tmp_path)


def flip(path):
    """Change one bit, keeping the size."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


# --- the answers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("deep", [(), ("--deep",)], ids=["fast", "deep"])
def test_a_warm_pod_is_warm_by_every_way_to_ask(pod, deep):
    module = [sys.executable, "-m", "warmer", "check"]
    script = [os.path.join(os.path.dirname(sys.executable), "warmer"), "check"]
    answers = {
        pod.check(*deep),
        pod.check(*deep, f"--warm-dir={pod.warm.root}", argv=module),
        pod.check(*deep, "--warm-dir", pod.warm.root, argv=script),
        pod.check(*deep, argv=module, env={"WARMER_WARM_DIR": pod.warm.root}),
    }
    assert len(answers) == 1
    code, out = answers.pop()
    assert code == WARM
    assert out.splitlines() == [f"warm: {kind} {key.short}" for kind, key in KEYS.items()]


def test_the_shape_of_the_json_never_changes(pod):
    os.unlink(pod.generation("weights") / "files" / "001.safetensors")
    code, out = pod.check("--json")
    assert code == NOT_WARM
    missing = f"{pod.generation('weights')}/files/001.safetensors is not there"
    weights, compiled = KEYS["weights"].digest, KEYS["compile"].digest
    assert json.loads(out) == {
        "schema_version": 1,
        "warm": False,
        "code": 1,
        "pieces": [
            {"kind": "weights", "key": weights, "verdict": "absent", "reason": missing},
            {"kind": "compile", "key": compiled, "verdict": "warm", "reason": ""},
        ],
    }
    assert out.count("\n") == 1


def test_pieces_done_without_by_policy_are_cold_and_do_not_fail_the_check(tmp_path):
    pod = Pod(tmp_path, without={"compile": "the engine failed"})
    assert pod.rows("--deep") == (
        WARM,
        {"weights": ("warm", ""), "compile": ("cold", "the engine failed")},
    )
    assert pod.check()[1].splitlines()[1].startswith("cold: compile ")


def link(pod):
    return json.loads(pod.record.read_bytes())["model_path"]


def resize(pod):
    with open(pod.generation("weights") / "files" / "000.safetensors", "ab") as f:
        f.write(b"x")


def other_generation(pod):
    path = pod.warm.restored("compile")
    record = json.loads(Path(path).read_bytes())
    Path(path).write_text(json.dumps(record | {"generation": 2}))


@pytest.mark.parametrize(
    ("damage", "code", "kind", "verdict"),
    [
        pytest.param(lambda p: p.record.unlink(), 1, "handoff", "absent", id="no-handoff"),
        pytest.param(lambda p: shutil.rmtree(p.warm.root + "/models"), 1, "weights", "absent", id="no-link"),
        pytest.param(lambda p: write.link_model(link(p), "/else"), 1, "weights", "stale", id="other-link"),
        pytest.param(lambda p: (os.unlink(link(p)), os.mkdir(link(p))), 1, "weights", "stale", id="directory-for-link"),
        pytest.param(lambda p: os.unlink(p.warm.restored("compile")), 1, "compile", "absent", id="no-record"),
        pytest.param(other_generation, 1, "compile", "stale", id="other-record"),
        pytest.param(lambda p: shutil.rmtree(p.warm.tree("compile")), 1, "compile", "absent", id="no-tree"),
        pytest.param(lambda p: shutil.rmtree(p.generation("weights")), 1, "weights", "absent", id="no-generation"),
        pytest.param(lambda p: shutil.rmtree(p.volume.top), 1, "weights", "absent", id="no-volume"),
        pytest.param(lambda p: p.seal("weights").unlink(), 1, "weights", "absent", id="no-seal"),
        pytest.param(lambda p: p.edit(schema_version=2), 1, "handoff", "foreign", id="newer-handoff"),
        pytest.param(resize, 5, "weights", "corrupt", id="size"),
        pytest.param(lambda p: shutil.copy(p.seal("compile"), p.seal("weights")), 5, "weights", "foreign", id="seal-of-another"),
    ],
)  # fmt: skip
def test_damage_is_found_and_named(pod, damage, code, kind, verdict):
    damage(pod)
    found, rows = pod.rows()
    assert (found, rows[kind][0]) == (code, verdict)
    assert rows[kind][1], "a reason is given"
    assert pod.check()[0] == code


@pytest.mark.parametrize("name", ["files/000.safetensors", "key.json"])
def test_a_flipped_bit_is_found_by_a_deep_check_alone(pod, name):
    flip(pod.generation("weights") / name)
    assert pod.rows()[0] == WARM
    code, rows = pod.rows("--deep")
    assert (code, rows["weights"][0]) == (CORRUPT, "corrupt")
    assert name in rows["weights"][1]
    assert rows["compile"] == ("warm", "")


def test_a_seal_that_was_written_again_is_found_by_a_deep_check(pod):
    path = pod.seal("compile")
    path.write_text(json.dumps(json.loads(path.read_bytes()), indent=2))
    assert pod.rows()[0] == WARM
    assert pod.rows("--deep")[1]["compile"][0] == "corrupt"


GARBAGE = {
    "empty": b"",
    "cut": b'{"schema_version": 1, "pie',
    "zeros": bytes(100),
    "not-utf-8": b"\xff\xfe",
    "list": b"[]",
    "null": b"null",
    "no-fields": b"{}",
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
@pytest.mark.parametrize("place", ["handoff", "seal"])
def test_garbage_is_corrupt_and_never_a_traceback(pod, place, garbage):
    (pod.record if place == "handoff" else pod.seal("weights")).write_bytes(garbage)
    code, rows = pod.rows()
    assert code == CORRUPT
    assert rows["handoff" if place == "handoff" else "weights"][0] == "corrupt"


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"pieces": None}, id="pieces-null"),
        pytest.param({"pieces": ["a"]}, id="pieces-text"),
        pytest.param({"pieces": [{}]}, id="piece-empty"),
        pytest.param({"pieces": [{"kind": "jit", "key": 5, "verdict": "absent", "reason": ""}]}, id="key-number"),
        pytest.param({"model_path": None}, id="model-null"),
        pytest.param({"model_path": "/a\0b"}, id="model-with-nul"),
    ],
)  # fmt: skip
def test_a_malformed_handoff_is_corrupt_however_it_is_asked(pod, changed):
    pod.edit(**changed)
    assert pod.check()[0] == CORRUPT
    assert pod.rows()[0] == CORRUPT


@pytest.mark.parametrize(
    "file",
    [{"path": "a\0b", "size": 1, "sha256": ""}, {"path": 1, "size": 1, "sha256": ""}, {}, None],
    ids=["nul", "number", "empty", "null"],
)
def test_a_seal_with_a_malformed_file_is_corrupt(pod, file):
    record = json.loads(pod.seal("weights").read_bytes())
    pod.seal("weights").write_text(json.dumps(record | {"files": [file]}))
    assert pod.rows()[0] == CORRUPT


def test_the_gravest_finding_is_the_status(pod):
    other_generation(pod)
    assert pod.rows()[0] == NOT_WARM
    resize(pod)
    assert pod.rows()[0] == CORRUPT
    os.unlink(pod.warm.restored("compile"))
    os.symlink("/proc/self/mem", pod.warm.restored("compile"))
    code, rows = pod.rows()
    assert code == BROKEN
    assert rows["weights"][0] == "corrupt"
