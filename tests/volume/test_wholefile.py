"""The file is the old one or the new one, whatever happens, and never a part of either."""

import os
import stat
import sys

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
import volumes

from warmer import wholefile

OLD, NEW = b"serve-args: []\n", b"serve-args: [--cudagraph-capture-sizes, 1, 8]\n"


@pytest.mark.parametrize("torn", [False, True], ids=["before", "torn"])
def test_who_is_killed_anywhere_leaves_a_whole_file(tmp_path, torn):
    path = tmp_path / "warmer.yaml"
    seen = set()

    def prepare():
        path.write_bytes(OLD)
        return str(path)

    def action(name):
        wholefile.put(name, NEW, before=OLD)

    for _, name in volumes.kill_points(action, prepare, torn=torn):
        found = path.read_bytes()
        assert found in (OLD, NEW)
        seen.add(found)
        assert [left for left in os.listdir(tmp_path) if not left.startswith("warmer.yaml")] == []
        assert os.path.samefile(name, path)
    assert path.read_bytes() == NEW
    assert OLD in seen


def test_the_owner_and_the_mode_stay(tmp_path):
    path = tmp_path / "warmer.yaml"
    path.write_bytes(OLD)
    path.chmod(0o604)
    if os.geteuid() == 0:
        os.chown(path, 12345, 23456)
    before = path.stat()
    wholefile.put(str(path), NEW, before=OLD)
    after = path.stat()
    assert (after.st_uid, after.st_gid) == (before.st_uid, before.st_gid)
    assert stat.S_IMODE(after.st_mode) == 0o604


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_full_disk_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    with volumes.tmpfs(str(tmp_path / "disk"), "size=8k"):
        path = tmp_path / "disk" / "warmer.yaml"
        path.write_bytes(OLD)
        with pytest.raises(OSError, match="No space left"):
            wholefile.put(str(path), NEW + b"#" * 20_000, before=OLD)
        assert path.read_bytes() == OLD
        assert os.listdir(path.parent) == ["warmer.yaml"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_read_only_disk_is_said_so(tmp_path):
    with volumes.tmpfs(str(tmp_path / "disk"), "size=64k"):
        path = tmp_path / "disk" / "warmer.yaml"
        path.write_bytes(OLD)
        volumes.make_read_only(str(tmp_path / "disk"))
        with pytest.raises(OSError, match="Read-only"):
            wholefile.put(str(path), NEW, before=OLD)
        assert path.read_bytes() == OLD


def test_what_was_written_meanwhile_stays(tmp_path):
    path = tmp_path / "warmer.yaml"
    path.write_bytes(b"of somebody else")
    with pytest.raises(wholefile.ChangedError):
        wholefile.put(str(path), NEW, before=OLD)
    assert path.read_bytes() == b"of somebody else"
    assert os.listdir(tmp_path) == ["warmer.yaml"]


def test_a_new_file_has_the_mode_that_the_umask_leaves(tmp_path):
    path = tmp_path / "start.html"
    before = os.umask(0o027)
    try:
        wholefile.put(str(path), NEW)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert path.read_bytes() == NEW


def test_a_device_and_a_link_stay_what_they_are(tmp_path):
    target, link, pipe = tmp_path / "target", tmp_path / "link", tmp_path / "pipe"
    link.symlink_to(target)
    wholefile.put(str(link), NEW)
    assert (link.is_symlink(), target.read_bytes()) == (True, NEW)
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    wholefile.put(str(pipe), NEW)
    assert os.read(reader, 99) == NEW
    os.close(reader)
    assert pipe.is_fifo()


def test_a_pipe_that_has_no_name_is_written_to():
    """As /dev/stdout is where the output goes into another program, and what bash makes of `>(…)`."""
    reading, writing = os.pipe()
    with open(reading, "rb") as heard, open(writing, "wb"):
        wholefile.put(f"/dev/fd/{writing}", NEW)
        assert os.read(heard.fileno(), 2 * len(NEW)) == NEW
