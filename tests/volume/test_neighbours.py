"""What a look says beyond one piece: the nearest key, what it was built beside, what is unpacked."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))

import volumes

from warmer import trust
from warmer.fill import publish, restore
from warmer.layout import Volume, WarmDir
from warmer.model import Difference, Key
from warmer.observe import inventory
from warmer.trust import ANYBODY

FACTORS = {"argv.--max-model-len": ["8192"], "engine.vllm": "0.33.0", "model.key": "m"}
WANTED = Key("compile", FACTORS)
SHARED = Key("flashinfer", {"engine.cuda": "13.0"})
WEIGHTS = Key("weights", {"name": "org/model"})


@pytest.fixture
def volume(tmp_path):
    return Volume(str(tmp_path / "volume"))


@pytest.fixture
def warm(tmp_path):
    return WarmDir(str(tmp_path / "warm"))


@pytest.fixture
def look(volume, warm):
    return lambda *keys: inventory.observe(
        volume, warm, {key.kind: key for key in keys}, trust=ANYBODY
    )


@pytest.fixture
def tree(tmp_path):
    top = tmp_path / "built"
    (top / "vllm").mkdir(parents=True)
    (top / "vllm/model").write_bytes(b"aot")
    (top / "kernel.so").write_bytes(b"elf")
    return top


def test_the_nearest_key_is_the_one_with_the_fewest_differences_each_named(volume, look):
    far = Key("compile", FACTORS | {"engine.vllm": "0.20.0", "model.key": "n"})
    near = Key("compile", FACTORS | {"argv.--max-model-len": ["4096"], "argv.--seed": ["7"]})
    nearer = Key("compile", FACTORS | {"argv.--max-model-len": ["4096"]})
    for key in (far, near, nearer, Key("jit", FACTORS)):
        volumes.fill(volume, key)
    found = look(WANTED).nearest["compile"]
    assert found.digest == nearer.digest
    assert found.differences == (Difference("argv.--max-model-len", ["8192"], ["4096"]),)


def test_of_equally_near_keys_the_smaller_digest_is_named(volume, look):
    keys = [Key("compile", FACTORS | {"engine.vllm": version}) for version in "abcd"]
    for key in keys:
        volumes.fill(volume, key)
    assert look(WANTED).nearest["compile"].digest == min(key.digest for key in keys)


def test_a_broken_piece_is_not_its_own_nearest(volume, look):
    other = Key("compile", FACTORS | {"engine.vllm": "x"})
    for key in (WANTED, other):
        volumes.fill(volume, key)
    Path(volume.generation("compile", WANTED.digest, 1), "seal.json").unlink()
    assert look(WANTED).nearest["compile"].digest == other.digest


def test_there_is_no_nearest_of_what_is_sealed_or_where_nothing_else_is(volume, look):
    assert look(WANTED).nearest == {}
    volumes.fill(volume, WANTED)
    volumes.fill(volume, Key("compile", FACTORS | {"engine.vllm": "x"}))
    assert look(WANTED).nearest == {}


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{}", b'{"factors": 7}', b"\xff", None, b"[" * 10**5]
)
def test_a_neighbour_that_cannot_be_read_is_passed_over(volume, look, data):
    bad, good = (Key("compile", FACTORS | {"engine.vllm": version}) for version in "ab")
    for key in (bad, good):
        volumes.fill(volume, key)
    path = Path(volume.generation("compile", bad.digest, 1), "key.json")
    path.unlink()
    if data is not None:
        path.write_bytes(data)
    assert look(WANTED).nearest["compile"].digest == good.digest


def test_what_earlier_fills_took_is_the_rate_of_the_next(volume, look):
    for name in ("org/one", "org/two"):
        volumes.fill(volume, Key("weights", {"name": name}), {"files/a": b"x" * 15_000})
    volumes.fill(volume, Key("compile", {"model.key": "n"}))
    rates = look(WANTED, WEIGHTS).rates
    assert rates["compile"] == 1.5
    assert 10_000 < rates["weights"] < 11_000  # the files and key.json in 1.5 s


def test_seals_that_nobody_vouches_for_predict_nothing(volume, warm, tmp_path):
    trust.generate(str(tmp_path / "key"))
    me = trust.load(str(tmp_path / "key"), None)
    for name, took, by in (("planted", 1e9, ANYBODY), ("mine", 7.0, me)):
        key = Key("compile", {"model.key": name})
        volumes.fill(volume, key, seconds=took, trust=by)
    keys = {"compile": WANTED}
    seen = inventory.observe(volume, warm, keys, trust=me)
    assert seen.rates["compile"] == 7.0
    assert len(list(Path(volume.kind("compile")).iterdir())) == 2
    stray = Path(volume.kind("compile"), "0" * 64)
    shutil.copytree(Path(volume.key("compile", key.digest)), stray)
    seal = json.loads((stray / "1/seal.json").read_bytes())
    (stray / "1/seal.json").write_text(json.dumps(seal | {"seconds": 1e9}))
    seen = inventory.observe(volume, warm, keys, trust=me)
    assert seen.rates["compile"] == 7.0, "the seal of another place says nothing"


def test_a_piece_built_beside_a_generation_that_is_gone_is_stale(volume, look):
    for number in (1, 2):
        volumes.fill(volume, SHARED, after=number - 1)
    volumes.fill(volume, WANTED, needs={"flashinfer": 2})
    assert look(WANTED, SHARED).held["compile"].verdict == "sealed"
    volumes.fill(volume, SHARED, after=2)
    assert look(WANTED, SHARED).held["compile"].verdict == "sealed", "a newer one serves as well"
    for number in (3, 2):
        publish.quarantine(volume, SHARED, number)
    held = look(WANTED, SHARED).held
    assert (held["compile"].verdict, held["flashinfer"].verdict) == ("stale", "sealed")
    assert "flashinfer generation 2" in held["compile"].reason


def test_a_piece_is_not_stale_beside_itself(volume, look):
    """What a seal needs is not signed: whoever can write may edit it."""
    volumes.fill(volume, WANTED, needs={"compile": 99})
    assert look(WANTED).held["compile"].verdict == "sealed"


def test_a_piece_whose_neighbour_is_not_asked_for_is_not_stale(volume, look):
    volumes.fill(volume, WANTED, needs={"flashinfer": 2})
    assert look(WANTED).held["compile"].verdict == "sealed"


def test_the_tree_is_restored_when_its_record_names_the_sealed_generation(volume, warm, look, tree):
    volumes.fill_tree(volume, WANTED, tree)
    assert not look(WANTED).held["compile"].restored
    restore.restore(volume, warm, WANTED, 1, trust=ANYBODY)
    assert look(WANTED).held["compile"].restored
    volumes.fill_tree(volume, WANTED, tree, after=1)
    assert not look(WANTED).held["compile"].restored, "a newer generation is there now"
    restore.restore(volume, warm, WANTED, 2, trust=ANYBODY)
    assert look(WANTED).held["compile"].restored


@pytest.mark.parametrize(
    "change",
    [
        *({"key": "0" * 64}, {"generation": 2}, {"generation": "1"}, {"seal_sha256": "0" * 64}),
        *(b"", b"null", b"[]", b"{}", b'{"key": ', b"\xff\xfe", b"[" * 10**5, None),
    ],
    ids=range(12),
)
def test_a_record_that_does_not_match_is_not_believed(volume, warm, look, tree, change):
    volumes.fill_tree(volume, WANTED, tree)
    restore.restore(volume, warm, WANTED, 1, trust=ANYBODY)
    path = Path(warm.restored("compile"))
    record = json.loads(path.read_bytes())
    if change is None:
        path.unlink()
    else:
        data = json.dumps(record | change).encode() if isinstance(change, dict) else change
        path.write_bytes(data)
    assert not look(WANTED).held["compile"].restored
    restore.restore(volume, warm, WANTED, 1, trust=ANYBODY)
    assert look(WANTED).held["compile"].restored


def test_a_tree_that_is_gone_is_not_restored(volume, warm, look, tree):
    volumes.fill_tree(volume, WANTED, tree)
    restore.restore(volume, warm, WANTED, 1, trust=ANYBODY)
    shutil.rmtree(warm.tree("compile"))
    assert not look(WANTED).held["compile"].restored


def test_a_resealed_generation_of_the_same_number_is_not_restored(volume, warm, look, tree):
    volumes.fill_tree(volume, WANTED, tree)
    restore.restore(volume, warm, WANTED, 1, trust=ANYBODY)
    publish.quarantine(volume, WANTED, 1)
    volumes.fill_tree(volume, WANTED, tree)
    assert not look(WANTED).held["compile"].restored


def test_weights_are_never_restored(volume, warm, look):
    volumes.fill(volume, WEIGHTS)
    os.makedirs(warm.tree("weights"))
    seal = look(WEIGHTS).held["weights"].seal_sha256
    record = {"key": WEIGHTS.digest, "generation": 1, "seal_sha256": seal}
    Path(warm.restored("weights")).write_text(json.dumps(record))
    assert not look(WEIGHTS).held["weights"].restored
