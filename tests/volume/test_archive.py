"""Kernel archives: what goes in, what comes out, and that equal trees are equal bytes."""

import hashlib
import os
import socket
import stat
import sys
import threading
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))

import volumes

from warmer.errors import IntegrityError
from warmer.families import EXCLUDED
from warmer.fill import archive, members

TREE = {
    "vllm/torch_compile_cache/rank_0/model": b"aot" * 5000,
    "inductor/ab/cabc.py": b"def kernel(): ...",
    "flashinfer/build.ninja": b"rule nvcc",
    "empty": b"",
    "z/y/x/w/v/u/" + "t" * 120: b"deep and long",
    "with space & ünïcode/Ω": b"\xce\xa9",
    "new\nline": b"\n",
}
MTIME = 1_700_000_000_123_456_789


def make(top, files, *, mode=0o644):
    for number, (path, data) in enumerate(files.items()):
        target = Path(top, path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        target.chmod(mode)
        os.utime(target, ns=(0, MTIME + number))
    return Path(top)


def pack(tree, target, *, excluded=()):
    manifest = members.scan(str(tree), excluded)
    (packed,) = archive.pack(str(tree), manifest, str(target))
    return manifest, packed


def names(tree):
    return {path.relative_to(tree).as_posix() for path in tree.rglob("*")}


def test_a_tree_comes_back_with_its_bytes_modes_and_times_to_the_nanosecond(tmp_path):
    tree = make(tmp_path / "tree", TREE)
    modes = (0o600, 0o755, 0o444, 0o400, 0o640, 0o777, 0o000)
    times = (0, 1, -1_000_000_001, MTIME, 2**33 * 10**9 + 7, 999_999_999, 10**9)
    for path, mode, time in zip(sorted(TREE), modes, times, strict=True):
        os.utime(tree / path, ns=(5, time))
        (tree / path).chmod(mode)
    manifest, _ = pack(tree, tmp_path / "a")
    archive.unpack([str(tmp_path / "a")], manifest, str(tmp_path / "back"))
    assert volumes.read_tree(tmp_path / "back") == volumes.read_tree(tree)
    for path in TREE:
        was, now = (tree / path).stat(), (tmp_path / "back" / path).stat()
        assert (now.st_mtime_ns, now.st_mode) == (was.st_mtime_ns, was.st_mode), path
    assert members.scan(str(tmp_path / "back"), ()) == manifest


def test_a_manifest_survives_being_written_and_read(tmp_path):
    tree = make(tmp_path / "tree", TREE)
    (tree / "nothing/in/here").mkdir(parents=True)
    os.utime(make(tmp_path / "tree", {"old": b""}) / "old", ns=(0, -5))
    manifest = members.scan(str(tree), ())
    assert members.parse(members.encode(manifest), where="here") == manifest
    assert manifest.empty == ("nothing/in/here",)


def test_trees_made_in_another_order_by_another_owner_elsewhere_are_equal_bytes(tmp_path):
    with (
        volumes.tmpfs(tmp_path / "1") as here,  # lists a directory in the order it was filled
        volumes.tmpfs(tmp_path / "2") as elsewhere,
    ):
        one, two = make(f"{here}/one", TREE), make(f"{elsewhere}/two", dict(reversed(TREE.items())))
        assert os.listdir(one) != os.listdir(two)
        for path in TREE:
            info = (one / path).stat()
            os.utime(two / path, ns=(77, info.st_mtime_ns))
            os.chown(two / path, 1234, 4321)
        first, a = pack(one, tmp_path / "tree.tar.zst")
        second, b = pack(two, f"{elsewhere}/tree.tar.zst")
        data = (tmp_path / "tree.tar.zst").read_bytes()
        assert data == Path(elsewhere, "tree.tar.zst").read_bytes()
    assert members.encode(first) == members.encode(second)
    assert a == b
    assert (a.path, a.size) == ("tree.tar.zst", len(data))
    assert a.sha256 == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("change", ["bytes", "name", "mode", "time"])
def test_another_tree_is_other_bytes_or_another_manifest(tmp_path, change):
    one, two = make(tmp_path / "one", TREE), make(tmp_path / "two", TREE)
    if change == "bytes":
        info = (two / "empty").stat()
        (two / "inductor/ab/cabc.py").write_bytes(b"def kernel(): ..!")
        os.utime(two / "inductor/ab/cabc.py", ns=(0, info.st_mtime_ns))
    elif change == "name":
        (two / "empty").rename(two / "emptier")
    elif change == "mode":
        (two / "empty").chmod(0o600)
    else:
        os.utime(two / "empty", ns=(0, MTIME + 100))
    (first, _), (second, _) = pack(one, tmp_path / "a"), pack(two, tmp_path / "b")
    assert members.encode(first) != members.encode(second)


def test_what_is_excluded_stays_out_and_its_look_alikes_stay_in(tmp_path):
    kept = {
        "vllm/lock",
        "vllm/kernel.lock.py",
        "triton/TMPABC/kernel.cubin",
        "inductor/tm/ctm.py",
        "tmpfile",
        "vllm/tmp",
        "vllm/usage_stats.json.py",
        "a.lock/kept",
    }
    left_out = {
        "vllm/torch.lock",
        "inductor/x.tmp",
        "inductor/x.tmp.1234",
        "flashinfer/cached_ops/tmp/op/half.o",
        "inductor/tmp_build_1/half.o",
        "inductor/locks/abc",
        "vllm/gpu_p2p_access_cache_for_0,1.json",
        "vllm/usage_stats.json",
        "vllm/torch_compile_cache/abc/cache_key_factors.json",
    }
    tree = make(tmp_path / "tree", dict.fromkeys(kept | left_out, b"x"))
    manifest, _ = pack(tree, tmp_path / "a", excluded=EXCLUDED)
    assert set(manifest.members) == kept
    archive.unpack([str(tmp_path / "a")], manifest, str(tmp_path / "back"))
    assert volumes.read_tree(tmp_path / "back").keys() == kept


def test_links_sockets_and_devices_are_left_out_and_not_followed(tmp_path):
    tree = make(tmp_path / "tree", {"real": b"x"})
    secret = make(tmp_path / "secret", {"token": b"not for the archive"})
    (tree / "link").symlink_to("real")
    (tree / "dangling").symlink_to("nowhere")
    (tree / "loop").symlink_to("loop")
    (tree / "directory").symlink_to(secret, target_is_directory=True)
    os.mkfifo(tree / "fifo")
    os.mknod(tree / "device", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tree / "socket"))
        manifest, _ = pack(tree, tmp_path / "a")
    assert set(manifest.members) == {"real"}
    archive.unpack([str(tmp_path / "a")], manifest, str(tmp_path / "back"))
    assert names(tmp_path / "back") == {"real"}


def test_hard_links_come_back_as_files(tmp_path):
    tree = make(tmp_path / "tree", {"a": b"shared"})
    os.link(tree / "a", tree / "b")
    manifest, _ = pack(tree, tmp_path / "a")
    archive.unpack([str(tmp_path / "a")], manifest, str(tmp_path / "back"))
    assert volumes.read_tree(tmp_path / "back").keys() == {"a", "b"}


def test_a_name_that_is_no_utf_8_comes_back(tmp_path):
    tree = make(tmp_path / "tree", {"plain": b"x"})
    Path(os.fsdecode(os.fsencode(tree) + b"/caf\xe9")).write_bytes(b"latin")
    manifest, _ = pack(tree, tmp_path / "a")
    manifest = members.parse(members.encode(manifest), where="here")
    archive.unpack([str(tmp_path / "a")], manifest, str(tmp_path / "back"))
    assert sorted(os.listdir(os.fsencode(tmp_path / "back"))) == [b"caf\xe9", b"plain"]


@pytest.mark.parametrize("tree", ["missing", "empty", "only empty directories"])
def test_a_tree_without_files_is_an_archive_too(tmp_path, tree):
    top = tmp_path / "tree"
    if tree != "missing":
        top.mkdir()
    if tree == "only empty directories":
        (top / "a/b").mkdir(parents=True)
    manifest, _ = pack(top, tmp_path / "a")
    archive.unpack([str(tmp_path / "a")], manifest, str(tmp_path / "back"))
    assert names(tmp_path / "back") == (names(top) if top.exists() else set())


def test_twenty_thousand_files_come_back(tmp_path):
    with volumes.tmpfs(tmp_path / "memory") as top:
        tree = Path(top, "tree")
        for directory in range(20):
            (tree / str(directory)).mkdir(parents=True)
            for name in range(1000):
                descriptor = os.open(f"{tree}/{directory}/{name}", os.O_CREAT | os.O_WRONLY)
                os.write(descriptor, b"%d" % name)
                os.close(descriptor)
        manifest = members.scan(str(tree), ())
        packed = archive.pack(str(tree), manifest, f"{top}/tree.tar.zst")
        assert [file.path for file in packed][:2] == ["tree.tar.zst", "tree.1.tar.zst"]
        assert len(packed) == 8
        manifest = members.parse(members.encode(manifest), where="here")
        assert len(manifest.members) == 20_000
        archive.unpack([f"{top}/{file.path}" for file in packed], manifest, f"{top}/back")
        assert members.scan(f"{top}/back", ()) == manifest


@pytest.fixture
def large(tmp_path):
    """A tree that is worth several archives, packed: (directory, its manifest, the archives)."""
    tree = make(tmp_path / "tree", {f"d/{n}": os.urandom(8 << 20) for n in range(12)})
    manifest = members.scan(str(tree), ())
    return tmp_path, manifest, archive.pack(str(tree), manifest, f"{tmp_path}/tree.tar.zst")


def test_a_large_tree_is_dealt_out_evenly_and_alike_every_time(large):
    top, manifest, packed = large
    assert [file.path for file in packed] == ["tree.tar.zst", "tree.1.tar.zst", "tree.2.tar.zst"]
    assert max(f.size for f in packed) - min(f.size for f in packed) <= 8 << 20
    again = archive.pack(f"{top}/tree", manifest, f"{top}/other.tar.zst")
    assert [file.sha256 for file in again] == [file.sha256 for file in packed]


def test_a_large_tree_comes_back_only_from_all_its_archives(large):
    top, manifest, packed = large
    paths = [f"{top}/{file.path}" for file in packed]
    archive.unpack(paths, manifest, f"{top}/back")
    assert members.scan(f"{top}/back", ()) == manifest
    with pytest.raises(IntegrityError, match="files are missing"):
        archive.unpack(paths[1:], manifest, f"{top}/some")
    with pytest.raises(IntegrityError, match="refused"):
        archive.unpack([*paths, paths[0]], manifest, f"{top}/twice")


def test_one_bad_archive_of_several_ends_all(large):
    top, manifest, packed = large
    bad = Path(top, packed[1].path)
    bad.write_bytes(bad.read_bytes()[:-100_000])
    with pytest.raises(IntegrityError):
        archive.unpack([f"{top}/{file.path}" for file in packed], manifest, f"{top}/back")
    assert not [t for t in threading.enumerate() if t.name.startswith("ThreadPool")]


@pytest.mark.parametrize("change", ["shrinks", "grows", "is emptied", "keeps its size"])
def test_a_file_that_changes_between_scan_and_pack_is_refused(tmp_path, change):
    tree = make(tmp_path / "tree", {"a": b"0123456789", "b": b"x"})
    manifest = members.scan(str(tree), ())
    data = {"shrinks": b"01234", "grows": b"0123456789ab", "is emptied": b""}
    (tree / "a").write_bytes(data.get(change, b"9876543210"))
    with pytest.raises(IntegrityError) as refused:
        archive.pack(str(tree), manifest, str(tmp_path / "archive"))
    assert "a refused" in refused.value.message


@pytest.mark.parametrize("change", ["goes", "becomes a directory"])
def test_a_file_that_is_gone_between_scan_and_pack_fails(tmp_path, change):
    tree = make(tmp_path / "tree", {"a": b"0123456789", "b": b"x"})
    manifest = members.scan(str(tree), ())
    (tree / "a").unlink()
    if change == "becomes a directory":
        (tree / "a").mkdir()
    with pytest.raises(OSError):
        archive.pack(str(tree), manifest, str(tmp_path / "archive"))
