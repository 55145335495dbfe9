"""The tools of these tests can fail: the checker sees damage, kills tear, power cuts lose."""

import hashlib
import itertools
import json
import os
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))

import volumes

from warmer.layout import Volume
from warmer.model import Key

KEY = Key("jit", {"engine.vllm": "0.33.0"})


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/kernel.so").write_bytes(b"elf" * 100)
    volume = Volume(str(tmp_path / "volume"))
    volumes.fill_tree(volume, KEY, tmp_path / "tree")
    assert volumes.assert_invariants(volume.root) == [("jit", KEY.digest, 1)]
    return Path(volume.generation("jit", KEY.digest, 1))


def reseal(directory, name, data):
    """Change a file and make the seal agree with it."""
    (directory / name).write_bytes(data)
    seal = json.loads((directory / "seal.json").read_bytes())
    for file in seal["files"]:
        if file["path"] == name:
            file |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (directory / "seal.json").write_text(json.dumps(seal))


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def relabel(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_bytes()) | changes))


def tell(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("by a pod whose token is " + volumes.SECRETS["HF_TOKEN"])


def hide(at):
    """Move the generation into the trash; returns where it is."""
    target = at.parents[3] / f"trash/jit-{KEY.digest}-1-aaaaaaaa"
    target.parent.mkdir()
    return at.rename(target)


def put(path, data=b""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


DAMAGE = {
    "a flipped bit": lambda at: flip(at / "tree.tar.zst"),
    "a file cut": lambda at: os.truncate(at / "manifest.json", 5),
    "a file gone": lambda at: (at / "manifest.json").unlink(),
    "a file too many": lambda at: (at / "extra").write_bytes(b""),
    "a link": lambda at: (at / "extra").symlink_to("seal.json"),
    "no seal": lambda at: (at / "seal.json").unlink(),
    "a seal cut": lambda at: os.truncate(at / "seal.json", 100),
    "another number": lambda at: at.rename(at.with_name("2")),
    "no number": lambda at: at.rename(at.with_name("01")),
    "a copy": lambda at: shutil.copytree(at, at.with_name("2")),
    "another key": lambda at: relabel(at / "seal.json", key="0" * 64),
    "another kind": lambda at: relabel(at / "seal.json", kind="compile"),
    "other factors": lambda at: reseal(at, "key.json", b'{"factors": {}}'),
    "a secret in a name": lambda at: (at.parents[4] / volumes.SECRETS["HF_TOKEN"]).mkdir(),
    "a secret in a lock": lambda at: tell(at.parents[3] / "locks/owner.lock"),
    "a secret in a staging": lambda at: tell(at.parents[3] / "staging/x/files/a"),
    "a number used again": lambda at: shutil.copytree(
        at, at.parents[3] / f"quarantine/jit-{KEY.digest}-1-aaaaaaaa"
    ),
    "a hidden number used again": lambda at: shutil.copytree(
        at, at.parents[3] / f"trash/jit-{KEY.digest}-1-aaaaaaaa"
    ),
    "a hidden one with a flipped bit": lambda at: flip(hide(at) / "tree.tar.zst"),
    "a hidden one with a file gone": lambda at: (hide(at) / "key.json").unlink(),
    "a stranger in the trash": lambda at: put(at.parents[3] / "trash/x"),
    "a taken number that holds something": lambda at: put(
        at.parents[3] / f"taken/jit-{KEY.digest}-1", b"x"
    ),
    "a taken number without a number": lambda at: put(at.parents[3] / f"taken/jit-{KEY.digest}"),
    "a torn record of use": lambda at: put(at.parents[3] / f"uses/{'a' * 16}.json", b'{"sch'),
    "a record of use by another name": lambda at: put(at.parents[3] / "uses/x.json", b"{}"),
    "another manifest": lambda at: reseal(at, "manifest.json", b'{"files": []}'),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_the_checker_sees(directory, damage):
    damage(directory)
    with pytest.raises((AssertionError, OSError, ValueError)):
        volumes.assert_invariants(directory.parents[4])


def test_a_hidden_generation_whose_removal_has_begun_may_lack_anything(directory):
    hidden = hide(directory)
    assert volumes.assert_invariants(directory.parents[4]) == []
    going = hidden.rename(f"{hidden}.gone")
    (going / "key.json").unlink()
    assert volumes.assert_invariants(directory.parents[4]) == []


def test_the_checker_sees_a_secret_that_is_packed(tmp_path):
    (tmp_path / "tree").mkdir()
    tell(tmp_path / "tree/kernel.json")
    volume = Volume(str(tmp_path / "volume"))
    volumes.fill_tree(volume, KEY, tmp_path / "tree")
    with pytest.raises(AssertionError, match="secret"):
        volumes.assert_invariants(volume.root)


def test_the_checker_sees_what_should_be_gone_after_a_clean_run(directory, tmp_path):
    root = directory.parents[4]
    volumes.assert_invariants(root, clean=True)
    tell(tmp_path / "warm/handoff/env")
    with pytest.raises(AssertionError, match="secret"):
        volumes.assert_invariants(root, warm=[tmp_path / "warm"], clean=True)
    (root / "v1/staging/jit-0-0").mkdir(parents=True)
    volumes.assert_invariants(root)
    with pytest.raises(AssertionError, match="staged"):
        volumes.assert_invariants(root, clean=True)


def write_in_place(path, *, flush):
    """A careless writer: two files at their final names, the second says that the first is whole."""
    path.mkdir()
    for name in ("data", "done"):
        with open(path / name, "wb") as f:
            f.write(b"x" * 50_000)
            if flush:
                f.flush()
                os.fsync(f.fileno())


@pytest.mark.parametrize("torn", [False, True], ids=["before", "torn"])
def test_kills_show_every_state_a_careless_writer_passes_through(tmp_path, torn):
    counter = itertools.count()
    seen = set()
    for _, path in volumes.kill_points(
        lambda path: write_in_place(path, flush=True),
        lambda: tmp_path / str(next(counter)),
        torn=torn,
    ):
        sizes = {p.name: p.stat().st_size for p in path.iterdir()} if path.exists() else {}
        seen.add((sizes.get("data"), sizes.get("done")))
    whole = 50_000
    if torn:
        assert seen == {(whole // 2, None), (whole, whole // 2)}
    else:
        assert {(None, None), (0, None), (whole, None), (whole, 0), (whole, whole)} == seen


@pytest.mark.parametrize("flush", [False, True])
def test_a_power_cut_loses_what_was_not_flushed_and_keeps_the_rest(tmp_path, flush):
    with volumes.Disk(tmp_path / "disk") as disk:
        write_in_place(Path(disk.path, "here"), flush=flush)
        with disk.after_power_cut() as root:
            left = Path(root, "here/done")
            assert (left.exists() and left.stat().st_size == 50_000) == flush


def test_a_child_that_fails_is_a_failure(capfd):
    with pytest.raises(AssertionError):
        volumes.run_child(lambda: 1 / 0)
    assert "ZeroDivisionError" in capfd.readouterr().err
    with pytest.raises(AssertionError):
        list(volumes.kill_points(lambda _: None, lambda: None))
