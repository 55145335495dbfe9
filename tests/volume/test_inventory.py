"""What a look at the volume says: every verdict, with a real cause."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))

import volumes

from warmer.errors import VolumeError
from warmer.layout import Volume, WarmDir
from warmer.model import Key
from warmer.observe import inventory, numbers
from warmer.trust import ANYBODY

KEY = Key("compile", {"argv.--max-model-len": ["8192"], "engine.vllm": "0.33.0", "model.key": "m"})
DIGEST = "0" * 64


@pytest.fixture
def volume(tmp_path):
    return Volume(str(tmp_path / "volume"))


@pytest.fixture
def warm(tmp_path):
    return WarmDir(str(tmp_path / "warm"))


@pytest.fixture
def look(volume, warm):
    return lambda: inventory.observe(volume, warm, {"compile": KEY}, trust=ANYBODY).held["compile"]


@pytest.fixture
def directory(volume):
    """One published generation's directory."""
    volumes.fill(volume, KEY)
    return Path(volume.generation(KEY.kind, KEY.digest, 1))


def reseal(directory, **changes):
    seal = json.loads((directory / "seal.json").read_bytes())
    (directory / "seal.json").write_text(json.dumps(seal | changes))


def test_nothing_published_is_absent(volume, look):
    held = look()
    assert (held.verdict, held.generation) == ("absent", 0)
    assert numbers.highest_taken(volume, KEY.kind, KEY.digest) == 0
    os.makedirs(volume.key(KEY.kind, KEY.digest))
    assert look().verdict == "absent"


def test_a_whole_generation_is_sealed(directory, look):
    held = look()
    assert (held.verdict, held.generation, held.broken) == ("sealed", 1, ())
    assert held.size == sum(f.stat().st_size for f in directory.rglob("*.*") if f.is_file()) - (
        (directory / "seal.json").stat().st_size
    )


@pytest.mark.parametrize("path", sorted({*volumes.FILES, "key.json"}))
def test_a_file_that_was_deleted_makes_it_partial_and_is_named(directory, look, path):
    (directory / path).unlink()
    held = look()
    assert (held.verdict, held.broken, held.generation) == ("partial", (path,), 1)
    assert path in held.reason


def test_a_directory_that_became_a_file_makes_what_was_below_it_partial(directory, look):
    shutil.rmtree(directory / "files/shards")
    (directory / "files/shards").write_bytes(b"")
    assert (look().verdict, look().broken) == ("partial", ("files/shards/model.safetensors",))


def test_a_seal_that_was_deleted_makes_it_partial(directory, look):
    (directory / "seal.json").unlink()
    held = look()
    assert (held.verdict, held.generation) == ("partial", 1)
    assert "seal" in held.reason


@pytest.mark.parametrize("change", ["grown", "cut", "emptied"])
def test_a_file_of_another_size_makes_it_corrupt_and_is_named(directory, look, change):
    path = directory / "files/config.json"
    size = {"grown": 9, "cut": 7, "emptied": 0}[change]
    os.truncate(path, size)
    held = look()
    assert (held.verdict, held.broken) == ("corrupt", ("files/config.json",))


def test_corrupt_is_graver_than_partial_and_both_files_are_named(directory, look):
    (directory / "files/shards/model.safetensors").unlink()
    os.truncate(directory / "files/config.json", 1)
    held = look()
    assert held.verdict == "corrupt"
    assert set(held.broken) == {"files/shards/model.safetensors", "files/config.json"}


GARBAGE = {
    "empty": b"",
    "zeroes": b"\0" * 500,
    "text": b"sealed, honestly",
    "cut": b'{"schema_version": 1, "kind": "comp',
    "list": b"[]",
    "null": b"null",
    "no version": b"{}",
    "only a version": b'{"schema_version": 1}',
    "latin": b'{"schema_version": "\xe9"}',
    "deep": b"[" * 100_000,
    "long number": b'{"schema_version": ' + b"9" * 5000 + b"}",
}


@pytest.mark.parametrize("data", GARBAGE.values(), ids=GARBAGE)
def test_a_seal_of_garbage_makes_it_corrupt(directory, look, data):
    (directory / "seal.json").write_bytes(data)
    held = look()
    assert (held.verdict, held.generation) == ("corrupt", 1)


LIES = {
    "no files": {"files": None},
    "file is text": {"files": ["files/a"]},
    "path is a number": {"files": [{"path": 1, "size": 1, "sha256": DIGEST}]},
    "path leaves": {"files": [{"path": "../2/x", "size": 1, "sha256": DIGEST}]},
    "path is absolute": {"files": [{"path": "/etc/passwd", "size": 1, "sha256": DIGEST}]},
    "path cannot be": {"files": [{"path": "\ud800", "size": 1, "sha256": DIGEST}]},
    "path is too long": {"files": [{"path": "a" * 300, "size": 1, "sha256": DIGEST}]},
    "size is negative": {"files": [{"path": "a", "size": -1, "sha256": DIGEST}]},
    "size is text": {"files": [{"path": "a", "size": "1", "sha256": DIGEST}]},
    "hash is short": {"files": [{"path": "a", "size": 1, "sha256": "00"}]},
    "hash is no hex": {"files": [{"path": "a", "size": 1, "sha256": "z" * 64}]},
    "generation is text": {"generation": "1"},
    "needs is a list": {"needs": []},
    "seconds is text": {"seconds": "long"},
}


@pytest.mark.parametrize("change", LIES.values(), ids=LIES)
def test_a_seal_that_makes_no_sense_makes_it_corrupt_or_partial(directory, look, change):
    reseal(directory, **change)
    assert look().verdict in ("corrupt", "partial")


@pytest.mark.parametrize("name", ["a directory", "a loop"])
def test_a_seal_that_is_no_file_makes_it_corrupt_or_foreign(directory, look, name):
    (directory / "seal.json").unlink()
    if name == "a loop":
        (directory / "seal.json").symlink_to("seal.json")
    else:
        (directory / "seal.json").mkdir()
    assert look().verdict in ("corrupt", "foreign")


@pytest.mark.parametrize("version", [0, 2, 99, "1", None])
def test_a_seal_of_another_format_is_foreign(directory, look, version):
    reseal(directory, schema_version=version)
    assert look().verdict == "foreign"


def test_a_seal_with_fields_of_a_later_release_is_still_sealed(directory, look):
    reseal(directory, signature={"by": "somebody"}, schema_minor=7)
    assert look().verdict == "sealed"


@pytest.mark.parametrize("change", [{"key": "f" * 64}, {"kind": "jit"}])
def test_a_seal_of_another_piece_is_foreign(directory, look, change):
    reseal(directory, **change)
    assert look().verdict == "foreign"


def test_a_seal_copied_from_another_key_is_foreign(volume, directory, look):
    other = Key("compile", {"model.key": "another"})
    volumes.fill(volume, other)
    shutil.copy(Path(volume.generation(other.kind, other.digest, 1), "seal.json"), directory)
    assert look().verdict == "foreign"


def test_a_generation_copied_to_another_number_is_not_sealed(directory, look, volume):
    """The probe calls it corrupt; were it sealed here, prefill would hand it off for ever."""
    shutil.copytree(directory, directory.with_name("2"))
    held = look()
    assert (held.verdict, held.generation) == ("sealed", 1)
    assert numbers.highest_taken(volume, KEY.kind, KEY.digest) == 2


def test_a_broken_newest_generation_falls_back_to_the_newest_whole_one(volume, directory, look):
    for number in (2, 3):
        volumes.fill(volume, KEY, after=number - 1)
    (directory.with_name("3") / "seal.json").unlink()
    assert (look().verdict, look().generation) == ("sealed", 2)
    assert numbers.highest_taken(volume, KEY.kind, KEY.digest) == 3


def test_generations_sort_by_number(volume, look):
    for number in range(1, 12):
        volumes.fill(volume, KEY, after=number - 1)
    assert numbers.generations(volume, KEY.kind, KEY.digest) == list(range(11, 0, -1))
    assert look().generation == 11
    assert numbers.highest_taken(volume, KEY.kind, KEY.digest) == 11
    assert len(volumes.assert_invariants(volume.root)) == 11


STRANGE = ["0", "01", "-1", "+2", "1.5", "2 ", "x", ".nfs0001", "1e3", "2_0", "\u0663", "\u00b2"]


def test_names_that_are_no_generation_are_ignored(directory, look, volume):
    for name in STRANGE:
        directory.with_name(name).mkdir()
    assert numbers.generations(volume, KEY.kind, KEY.digest) == [1]
    assert look().verdict == "sealed"
    assert numbers.highest_taken(volume, KEY.kind, KEY.digest) == 1


def test_a_file_where_a_generation_should_be_does_not_stop_the_look(directory, look, volume):
    directory.with_name("2").write_bytes(b"somebody's note")
    assert (look().verdict, look().generation) == ("sealed", 1)
    assert numbers.highest_taken(volume, KEY.kind, KEY.digest) == 2, "its name is taken"


@pytest.mark.parametrize("name", [".DS_Store", "0" * 64])
def test_a_stray_file_among_the_keys_does_not_stop_the_look(volume, look, name):
    os.makedirs(volume.kind(KEY.kind))
    Path(volume.kind(KEY.kind), name).write_bytes(b"")
    assert look().verdict == "absent"


def test_a_volume_that_is_no_directory_is_a_failure_and_not_absent(tmp_path, warm):
    (tmp_path / "volume").write_bytes(b"")
    for root in ("volume", "nowhere"):
        with pytest.raises(VolumeError) as failed:
            inventory.require(Volume(str(tmp_path / root)))
        assert failed.value.reason == "missing"
    with pytest.raises(VolumeError):
        inventory.observe(Volume(str(tmp_path / "volume")), warm, {"compile": KEY}, trust=ANYBODY)
