"""A record that somebody else wrote is a value or its one error; what warmer writes it reads."""

import contextlib
import dataclasses
import hashlib
import json
import os
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

sys.path.insert(0, os.path.dirname(__file__))
from hostile import TEXTS, documents, examples

from warmer import check, seal, tally, usage
from warmer.collect import removal
from warmer.errors import IntegrityError
from warmer.fill import members, revision
from warmer.fill.locks import record as owners
from warmer.layout import Volume, WarmDir
from warmer.model import KINDS, Key, ModelRef
from warmer.observe import inventory
from warmer.sidecar import handed
from warmer.trust import ANYBODY

DIGEST = "ab" * 32
PATHS = st.text(min_size=1, max_size=20).filter(seal.safe_path)
COUNTS = st.integers(0, (1 << 63) - 1)

# --- seals


FILES = st.builds(seal.SealedFile, PATHS, COUNTS, st.just(DIGEST))
SEALS = st.builds(
    seal.Seal,
    kind=TEXTS,
    key=TEXTS,
    generation=COUNTS,
    nonce=TEXTS,
    created=TEXTS,
    by=TEXTS,
    source=TEXTS,
    seconds=st.floats(0, 1e9).map(lambda s: round(s, 3)),
    files=st.lists(FILES, max_size=3).map(tuple),
    needs=st.dictionaries(TEXTS, COUNTS, max_size=2),
    signatures=st.dictionaries(TEXTS, TEXTS, max_size=2),
)
SEAL = seal.Seal(
    "compile", DIGEST, 3, "n", "2026-01-01T00:00:00+00:00", "warmer", "engine run", 1.5,
    (seal.SealedFile("tree.tar.zst", 10, DIGEST),), {"flashinfer": 2}, {"ab" * 8: "AAAA"},
)  # fmt: skip


@examples(60)
@given(SEALS)
def test_a_seal_is_read_as_it_was_written(one):
    assert seal.parse(seal.encode(one), where="x") == one


@examples(250)
@given(documents(json.loads(seal.encode(SEAL))))
def test_a_hostile_seal_is_a_seal_or_corrupt_or_foreign(data):
    try:
        found = seal.parse(data, where="x")
    except (IntegrityError, seal.ForeignSealError):
        return
    assert all(seal.safe_path(file.path) and file.size >= 0 for file in found.files)
    assert isinstance(seal.statement(found), bytes)
    assert seal.parse(seal.encode(found), where="x").files == found.files


@pytest.mark.parametrize("levels", range(940, 1000, 3))
def test_a_seal_that_is_as_deep_as_can_be_read_is_no_bug(levels):
    deep = "[" * levels + "]" * levels
    for name in ("schema_version", "kind"):
        text = seal.encode(SEAL).decode().replace(f'"{name}": ', f'"{name}": {deep}, "x": ', 1)
        with pytest.raises((IntegrityError, seal.ForeignSealError)):
            seal.parse(text.encode(), where="x")


# --- manifests


MEMBERS = st.builds(
    members.Member, PATHS, COUNTS, st.just(DIGEST), st.integers(0, 0o777), st.integers()
)


@examples(60)
@given(st.lists(MEMBERS, max_size=3), st.lists(PATHS, max_size=2))
def test_a_manifest_is_read_as_it_was_written(files, empty):
    one = members.Manifest({m.path: m for m in files}, tuple(empty))
    assert members.parse(members.encode(one), where="x") == one


@examples(200)
@given(
    documents(
        json.loads(
            members.encode(
                members.Manifest({"a/b": members.Member("a/b", 1, DIGEST, 0o644, 5)}, ("c",))
            )
        )
    )
)
def test_a_hostile_manifest_is_refused_or_stays_inside_its_tree(data):
    with contextlib.suppress(IntegrityError):
        found = members.parse(data, where="x")
        assert all(seal.safe_path(path) for path in (*found.members, *found.empty))
        assert all(0 <= member.mode <= 0o777 for member in found.members.values())
        assert members.parse(members.encode(found), where="x") == found


# --- owners of locks


OWNERS = st.builds(
    owners.Owner,
    epoch=st.integers(0, (1 << 31) - 2),
    name=TEXTS,
    nonce=TEXTS,
    node=TEXTS,
    beat=st.integers(0, 1 << 40),
    lease=st.floats(3, 600),
    phase=TEXTS,
    done=COUNTS,
    total=COUNTS,
)


@examples(60)
@given(OWNERS)
def test_an_owner_is_read_as_it_was_written(one):
    assert owners.parse(owners.encode(one)) == one


@examples(60)
@given(OWNERS, st.text(max_size=2000), st.text(max_size=2000), st.integers(0, owners.SIZE))
def test_a_long_name_is_cut_and_a_torn_record_has_its_epoch_or_none(one, name, phase, cut):
    one = dataclasses.replace(one, name=name, phase=phase)
    data = owners.encode(one)
    assert len(data) == owners.SIZE
    assert owners.parse(data).epoch == one.epoch
    assert owners.parse(data[:cut]).epoch in (0, one.epoch)


@examples(200)
@given(
    documents(json.loads(owners.encode(owners.Owner(5, "pod", "n", "boot", 3, 30.0, "x", 1, 2))))
)
def test_a_hostile_owner_never_has_a_lease_without_end_nor_a_last_epoch(data):
    found = owners.parse(data)
    assert 0 <= found.lease <= 600
    assert 0 <= found.epoch < (1 << 31) - 1
    assert len(owners.encode(dataclasses.replace(found, nonce="", node=""))) >= owners.SIZE


# --- records of use, and what a prefill did


@examples(120)
@given(
    documents(
        {"schema_version": 1, "by": "w", "owner": "o", "warm_dir": "/warm"}
        | {"pieces": [{"kind": "jit", "key": DIGEST, "generation": 1}]}
    )
)
@example(b'{"owner": "o", "pieces": [], "schema_version": ' + b"[" * 970 + b"]" * 970 + b"}")
def test_a_hostile_record_of_use_names_pieces_or_is_none(data):
    with contextlib.suppress(ValueError):
        pieces, owner = usage.parse(data)
        assert all(p.kind in KINDS and p.number >= usage.ANY for p in pieces)
        assert isinstance(owner, str)


TALLY = {
    "schema_version": 1, "source": "hf", "filled_seconds": {"weights": 1.0}, "fetched_bytes": 5,
    "restored_seconds": {"compile": 2}, "without": {"jit": "why"}, "retries": {"429": 2},
    "throttled_seconds": 0.5, "lock_wait_seconds": 1, "lock_takeovers": 0,
    "pulled_bytes": {"compile": 7},
}  # fmt: skip


@examples(120)
@given(documents(TALLY))
def test_a_hostile_record_of_a_prefill_is_a_value_or_none(data):
    with contextlib.suppress(ValueError):
        tally.parse(data)


# --- what the volume and the warm dir hold beside


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    top = tmp_path_factory.mktemp("place")
    volume, warm = Volume(f"{top}/volume"), WarmDir(f"{top}/warm")
    model = ModelRef("hf", "org/name", "main")
    neighbour = volume.generation("compile", DIGEST, 1)
    for directory in (neighbour, os.path.dirname(volume.ref(model.slug)), warm.handoff):
        os.makedirs(directory)
    return volume, warm, model, neighbour


def write(path, data):
    with open(path, "wb") as f:
        f.write(data)


@examples(80)
@given(data=documents({"schema_version": 1, "removed_bytes": 5}))
@example(data=b'{"removed_bytes": Infinity}')
@example(data=b'{"removed_bytes": ' + b"9" * 4300 + b"}")
@example(data=b"[" * 100_000)
def test_a_hostile_count_of_what_gc_removed_is_gone_on_from(place, data):
    volume = place[0]
    write(volume.collected, data)
    before = removal.counted(volume)
    removal.count(volume, 7)
    assert removal.counted(volume) == before + 7


@examples(80)
@given(data=documents({"main": "a" * 40, "v1": "b" * 40}))
@example(data=b'{"other": ' + b"[" * 900 + b"]" * 900 + b"}")
def test_a_hostile_note_of_a_branch_is_a_commit_or_nothing_and_is_written_anew(place, data):
    volume, _, model, _ = place
    write(volume.ref(model.slug), data)
    found = revision._read(volume, model)
    assert found is None or dataclasses.replace(model, revision=found).pinned
    revision._remember(volume, model, "c" * 40)
    assert revision._read(volume, model) == "c" * 40


@examples(80)
@given(data=documents({"kind": "compile", "factors": {"argv.--x": [["1"]], "engine.vllm": "1"}}))
@example(data=b'{"factors": {"argv.--x": ' + b"[" * 900 + b"]" * 900 + b"}}")
def test_hostile_factors_of_a_neighbour_can_be_compared_and_written(place, data):
    volume, warm, _, neighbour = place
    write(f"{neighbour}/key.json", data)
    wanted = Key("compile", {"argv.--x": [["2"]], "engine.vllm": "1"})
    look = inventory.observe(volume, warm, {"compile": wanted}, trust=ANYBODY)
    for near in look.nearest.values():
        json.dumps([dataclasses.asdict(d) for d in near.differences], indent=2)


# --- the handoff, as the probe and the sidecar read it


def handoff(top):
    piece = {
        "kind": "compile", "key": DIGEST, "generation": 1, "verdict": "sealed", "reason": "",
        "directory": f"{top}/none", "seal_sha256": DIGEST, "restored": f"{top}/x.restored.json",
    }  # fmt: skip
    return {
        "schema_version": 1, "pieces": [piece, dict(piece, kind="weights")], "crashed": f"{top}/c",
        "model_path": f"{top}/m", "model_files": f"{top}/f", "env": {"A": "b"}, "argv": ["--x"],
    }  # fmt: skip


@examples(250)
@given(data=documents(handoff("/nonexistent")), deep=st.booleans())
def test_a_hostile_handoff_is_a_verdict_and_no_traceback(place, data, deep):
    warm = place[1]
    write(f"{warm.handoff}/handoff.json", data)
    rows, code = check.check(warm.root, deep)
    assert code in (0, 1, 3, 5, 6)
    for row in rows:
        assert set(row) == {"kind", "key", "verdict", "reason"}
        assert all(isinstance(row[name], str) for name in ("kind", "key", "verdict"))
        json.dumps(row)


PLANNED = {"kind": "jit", "key": DIGEST, "directory": "/nonexistent", "lock": "/nonexistent.lock"}


@examples(120)
@given(data=documents({"schema_version": 1, "pieces": [PLANNED]}))
@example(data=json.dumps({"pieces": [PLANNED | {"directory": "a\0b"}]}).encode())
@example(data=json.dumps({"pieces": [PLANNED | {"key": 5}]}).encode())
def test_a_hostile_note_of_what_is_wanted_is_a_verdict_and_no_traceback(place, data):
    warm = place[1]
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"{warm.handoff}/handoff.json")
    write(warm.plan, data)
    assert check.main([f"--warm-dir={warm.root}"], {}) in (1, 3)


KEYS = {
    "schema_version": 1, "forbidden": "", "keys": {"compile": {"engine.vllm": "1"}},
    "command": "/bin/vllm", "interpreter": "/bin/py", "trusted": [],
}  # fmt: skip


@examples(200)
@given(pair=documents([handoff("/nonexistent"), KEYS]))
@example(pair=json.dumps([dict(handoff("/"), env=[[1, 2]]), KEYS]).encode())
def test_a_hostile_handoff_is_a_job_for_the_sidecar_or_a_reason(place, pair):
    warm = place[1]
    with contextlib.suppress(ValueError, TypeError, RecursionError):
        first, second = json.loads(pair)
        # Who can write the two can also make them fit each other.
        identity = hashlib.sha256(json.dumps([first, second]).encode()).hexdigest()
        write(f"{warm.handoff}/handoff.json", json.dumps(first).encode())
        write(warm.keys, json.dumps(dict(second, handoff=identity)).encode())
    found = handed.read(warm)
    if not isinstance(found, str):
        assert all(isinstance(word, str) for word in (*found.argv, *found.env, *found.env.values()))
        assert found.source


def test_a_generation_without_end_is_no_bug_of_the_sidecar(place):
    warm = place[1]
    first = handoff("/")
    first["pieces"][0]["generation"] = float("inf")
    identity = hashlib.sha256(json.dumps([first, KEYS]).encode()).hexdigest()
    write(f"{warm.handoff}/handoff.json", json.dumps(first).encode())
    write(warm.keys, json.dumps(dict(KEYS, handoff=identity)).encode())
    assert handed.read(warm) == "the handoff cannot be read: OverflowError"
