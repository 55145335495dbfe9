"""Kernels into the warm dir: whole and recorded, or done again; never a wrong tree believed."""

import ctypes
import hashlib
import io
import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import zstandard

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))

import volumes

from warmer.errors import IntegrityError, TerminatedError, VolumeError
from warmer.fill import kernels, members, restore
from warmer.fill.claim import Claims
from warmer.fill.locks.file import FileLock
from warmer.layout import Volume, WarmDir
from warmer.model import Key
from warmer.observe import inventory
from warmer.trust import ANYBODY

KEY = Key("flashinfer", {"engine.cuda": "13.0"})
COMPILE = Key("compile", {"model.key": "m"})
ONE = {"ops/a.so": b"a" * 3000, "ops/build.ninja": b"rule", "old": b"only in the first"}
TWO = {"ops/a.so": b"A" * 3000, "ops/build.ninja": b"rule", "new": b"only in the second"}
TORN = pytest.mark.parametrize("torn", [False, True], ids=["before", "torn"])


@pytest.fixture
def volume(tmp_path):
    """A volume that holds two generations."""
    volume = Volume(str(tmp_path / "volume"))
    for after, files in enumerate((ONE, TWO)):
        tree = tmp_path / "built"
        for path, data in files.items():
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            (tree / path).write_bytes(data)
        volumes.fill_tree(volume, KEY, tree, after=after)
        shutil.rmtree(tree)
    return volume


@pytest.fixture
def warm(tmp_path):
    return WarmDir(str(tmp_path / "warm"))


def restored(volume, warm):
    return inventory.observe(volume, warm, {KEY.kind: KEY}, trust=ANYBODY).held[KEY.kind].restored


def content(warm):
    """What is unpacked: 1, 2, None for nothing; anything else fails."""
    if not os.path.isdir(warm.tree(KEY.kind)):
        return None
    found = volumes.read_tree(warm.tree(KEY.kind))
    for number, files in enumerate((ONE, TWO), 1):
        if found == {p: (len(d), hashlib.sha256(d).hexdigest()) for p, d in files.items()}:
            return number
    raise AssertionError(f"a tree of neither generation: {found}")


def record(warm):
    return json.loads(Path(warm.restored(KEY.kind)).read_bytes())


def test_a_restored_tree_is_what_was_packed_and_is_recorded(volume, warm):
    manifest = restore.restore(volume, warm, KEY, 2, trust=ANYBODY)
    assert content(warm) == 2
    assert members.scan(warm.tree(KEY.kind), ()) == manifest
    seal = Path(volume.generation(KEY.kind, KEY.digest, 2), "seal.json").read_bytes()
    digest = hashlib.sha256(seal).hexdigest()
    told = {"key": KEY.digest, "generation": 2, "seal_sha256": digest}
    assert record(warm).items() >= told.items()
    assert sorted(os.listdir(warm.cache)) == [KEY.kind, f"{KEY.kind}.restored.json"]


def test_another_generation_replaces_the_whole_tree(volume, warm):
    restore.restore(volume, warm, KEY, 1, trust=ANYBODY)
    Path(warm.tree(KEY.kind), "ops", "left by an engine").write_bytes(b"")
    restore.restore(volume, warm, KEY, 2, trust=ANYBODY)
    assert content(warm) == 2
    assert sorted(os.listdir(warm.cache)) == [KEY.kind, f"{KEY.kind}.restored.json"]


@pytest.fixture
def warm_dirs(tmp_path, volume):
    """Make one warm dir after the other, empty or with the first generation restored."""
    counter = itertools.count()

    def make(*, first):
        warm = WarmDir(str(tmp_path / f"warm-{next(counter)}"))
        if first:
            restore.restore(volume, warm, KEY, 1, trust=ANYBODY)
        return warm

    return make


@TORN
@pytest.mark.parametrize("first", [False, True], ids=["empty", "replacing"])
def test_a_killed_restore_is_never_believed_and_is_done_again(volume, warm_dirs, torn, first):
    states = set()

    def action(warm):
        restore.restore(volume, warm, KEY, 2, trust=ANYBODY)

    for _, warm in volumes.kill_points(action, lambda: warm_dirs(first=first), torn=torn):
        found = content(warm)
        states.add(found)
        if os.path.exists(warm.restored(KEY.kind)):
            assert record(warm)["generation"] == found
        assert restored(volume, warm) == (
            os.path.exists(warm.restored(KEY.kind)) and record(warm)["generation"] == 2
        )
        action(warm)
        assert content(warm) == 2
        assert restored(volume, warm)
    assert states == ({1, 2, None} if first else {2, None}) or torn


def test_what_a_killed_restore_left_is_gone_after_the_next_one(volume, warm_dirs):
    """An init container that is killed for memory is run again and again, in one emptyDir."""
    for _, warm in volumes.kill_points(
        lambda warm: restore.restore(volume, warm, KEY, 2, trust=ANYBODY),
        lambda: warm_dirs(first=True),
    ):
        restore.sweep(warm)
        restore.restore(volume, warm, KEY, 2, trust=ANYBODY)
        assert sorted(os.listdir(warm.cache)) == [KEY.kind, f"{KEY.kind}.restored.json"]


def test_a_sweep_leaves_trees_and_records_alone(volume, warm):
    restore.sweep(warm)  # there is nothing yet
    restore.restore(volume, warm, KEY, 2, trust=ANYBODY)
    before = sorted(os.listdir(warm.cache))
    restore.sweep(warm)
    assert sorted(os.listdir(warm.cache)) == before
    assert content(warm) == 2
    assert restored(volume, warm)


def damage(directory, how):
    packed = directory / "tree.tar.zst"
    data = bytearray(packed.read_bytes())
    if how == "flipped":
        data[len(data) // 2] ^= 1
        packed.write_bytes(data)
    elif how == "cut":
        os.truncate(packed, len(data) // 2)
    elif how == "emptied":
        os.truncate(packed, 0)
    elif how == "another's":
        shutil.copy(directory.with_name("1") / "tree.tar.zst", packed)
    elif how == "manifest":
        shutil.copy(directory.with_name("1") / "manifest.json", directory)
    elif how == "modes":
        listing = (directory / "manifest.json").read_text()
        (directory / "manifest.json").write_text(listing.replace('"mode": 420', '"mode": 511'))
    elif how == "seal":
        (directory / "seal.json").write_bytes(b"{}")
    else:
        (directory / how).unlink()


DAMAGE = ("flipped", "cut", "emptied", "another's", "manifest", "modes", "seal")
GONE = ("tree.tar.zst", "manifest.json", "seal.json")


@pytest.mark.parametrize("how", [*DAMAGE, *GONE])
def test_a_damaged_generation_is_refused_and_the_old_tree_stays(volume, warm, how):
    restore.restore(volume, warm, KEY, 1, trust=ANYBODY)
    damage(Path(volume.generation(KEY.kind, KEY.digest, 2)), how)
    with pytest.raises(IntegrityError if how in DAMAGE else (IntegrityError, VolumeError)):
        restore.restore(volume, warm, KEY, 2, trust=ANYBODY)
    assert (content(warm), record(warm)["generation"]) == (1, 1)
    assert sorted(os.listdir(warm.cache)) == [KEY.kind, f"{KEY.kind}.restored.json"]
    assert not restore.intact(volume, KEY, 2)
    assert restore.intact(volume, KEY, 1)


def test_an_archive_with_other_bytes_than_its_seal_says_is_refused_before_it_is_parsed(
    volume, warm
):
    """A header of 2 GB of zeroes is some 60 kB of archive; parsing it would eat the pod."""
    info = tarfile.TarInfo("header")
    info.type, info.size = tarfile.XHDTYPE, 2 << 30
    bomb = io.BytesIO()
    with zstandard.ZstdCompressor().stream_writer(bomb, closefd=False) as out:
        out.write(info.tobuf(tarfile.USTAR_FORMAT))
        for _ in range(64):
            out.write(bytes(32 << 20))
    packed = Path(volume.generation(KEY.kind, KEY.digest, 2), "tree.tar.zst")
    packed.write_bytes(bomb.getvalue())

    def restores():
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (512 << 20), used + (512 << 20)))
        with pytest.raises(IntegrityError):
            restore.restore(volume, warm, KEY, 2, trust=ANYBODY)

    assert not volumes.run_child(restores)


@pytest.mark.parametrize("fault", ["no-space", "read-only"])
def test_a_warm_dir_that_fails_keeps_the_old_tree(volume, tmp_path, fault):
    with volumes.tmpfs(tmp_path / "small", "size=48k") as path:
        warm = WarmDir(path)
        restore.restore(volume, warm, KEY, 1, trust=ANYBODY)
        if fault == "no-space":
            room = os.statvfs(path).f_bavail * os.statvfs(path).f_bsize
            Path(path, "ballast").write_bytes(bytes(room))
        else:
            volumes.make_read_only(path)
        with pytest.raises(VolumeError) as failed:
            restore.restore(volume, warm, KEY, 2, trust=ANYBODY)
        assert failed.value.reason == fault
        with pytest.raises(VolumeError):  # which says nothing against the piece
            restore.unpacks(volume, warm, KEY, 2, trust=ANYBODY)
        assert (content(warm), record(warm)["generation"]) == (1, 1)
        assert sorted(os.listdir(warm.cache)) == [KEY.kind, f"{KEY.kind}.restored.json"]


def test_a_tree_that_is_a_link_is_replaced_and_what_it_leads_to_is_left_alone(
    volume, warm, tmp_path
):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/precious").write_bytes(b"x")
    os.makedirs(warm.cache)
    os.symlink(tmp_path / "elsewhere", warm.tree(KEY.kind))
    restore.restore(volume, warm, KEY, 2, trust=ANYBODY)
    assert not os.path.islink(warm.tree(KEY.kind))
    assert content(warm) == 2
    assert (tmp_path / "elsewhere/precious").read_bytes() == b"x"


def pretend_another_boot(path):
    """Give this process, a child, the boot id that it would see after a reboot."""
    assert ctypes.CDLL(None, use_errno=True).unshare(0x20000) == 0  # CLONE_NEWNS
    path.write_text("00000000-0000-4000-8000-000000000000\n")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "--bind", path, "/proc/sys/kernel/random/boot_id"], check=True)


def test_after_a_power_cut_a_recorded_tree_is_whole(volume, tmp_path):
    """An emptyDir outlives its node's reboot; the handoff's fsync makes the record durable."""
    with volumes.Disk(tmp_path / "disk") as disk:
        warm = WarmDir(disk.path)
        restore.restore(volume, warm, KEY, 2, trust=ANYBODY)
        restore.record(warm, KEY, 2, record(warm)["seal_sha256"])  # as a publish here does
        with open(os.path.join(disk.path, "handoff.json"), "wb") as f:
            os.fsync(f.fileno())
        with disk.after_power_cut() as root:
            left = WarmDir(root)

            def boots():
                pretend_another_boot(tmp_path / "boot_id")
                if restored(volume, left):
                    assert content(left) == 2

            assert not volumes.run_child(boots)


def test_a_stop_is_not_lost_where_what_the_engine_left_cannot_be_removed(volume, warm, tmp_path):
    """It would be taken for a failure, and the start would go on."""
    script = tmp_path / "engine.py"
    script.write_text("import time\ntime.sleep(60)\n")
    keys = {"compile": COMPILE, KEY.kind: KEY}
    tree = warm.tree("compile")

    def stop(_line):
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", tree], check=True)  # it cannot be moved
        raise TerminatedError(signal.SIGTERM)

    held = inventory.observe(volume, warm, keys, trust=ANYBODY).held
    builder = kernels.Builder(
        [sys.executable, str(script)],
        sys.executable,
        "/model",
        [],
        os.environ,
        60,
        trust=ANYBODY,
        secrets={},
    )
    lock = FileLock(volume, me="me")
    how = {"builder": builder, "claims": Claims(lambda: lock), "wait": 1, "tick": stop}
    try:
        with pytest.raises(TerminatedError):
            kernels.build(volume, warm, keys, held, after=0, grant=lock.try_acquire(COMPILE), **how)
    finally:
        subprocess.run(["umount", tree], check=True)
    assert not restored(volume, warm)
    assert not os.path.exists(warm.tree(KEY.kind)), "one that could be removed was not"


def test_an_engine_killed_while_it_builds_leaves_no_record_of_a_restored_tree(
    volume, warm, tmp_path
):
    script = tmp_path / "engine.py"
    script.write_text(
        f"import os, signal\n"
        f"open({os.path.join(warm.tree(KEY.kind), 'ops/a.so')!r}, 'wb').write(b'half')\n"
        f"os.kill({{parent}}, signal.SIGKILL)\n"
        f"signal.pause()\n"
    )
    keys = {"compile": COMPILE, KEY.kind: KEY}

    def prefill():
        restore.restore(volume, warm, KEY, 2, trust=ANYBODY)
        script.write_text(script.read_text().format(parent=os.getpid()))
        held = inventory.observe(volume, warm, keys, trust=ANYBODY).held
        builder = kernels.Builder(
            [sys.executable, str(script)],
            sys.executable,
            "/model",
            [],
            os.environ,
            60,
            trust=ANYBODY,
            secrets={},
        )
        lock = FileLock(volume, me="me")
        claims = Claims(lambda: lock)
        how = {"builder": builder, "claims": claims, "grant": lock.try_acquire(COMPILE), "wait": 1}
        kernels.build(volume, warm, keys, held, after=0, tick=print, **how)

    assert volumes.run_child(prefill), "the build outlived its engine's kill"
    assert (Path(warm.tree(KEY.kind)) / "ops/a.so").read_bytes() == b"half"
    assert not restored(volume, warm)


UNFIT = {
    "no archive": {"tree.tar.zst": b"written by something else"},
    "an archive of other files": {"tree.tar.zst": ONE},
    "no manifest": {"manifest.json": None},
    "a manifest of another version": {"manifest.json": b'{"schema_version": 2}'},
    "archives under another name": {"tree.tar.zst": None, "tree.tar": b"?"},
}


@pytest.mark.parametrize("how", UNFIT)
def test_what_was_sealed_so_that_nobody_can_unpack_it_is_known_from_what_failed_here(
    volume, warm, how
):
    (first, second) = (Path(volume.generation(KEY.kind, KEY.digest, n)) for n in (1, 2))
    files = {name: (second / name).read_bytes() for name in ("tree.tar.zst", "manifest.json")}
    files |= {
        name: (first / name).read_bytes() if data is ONE else data
        for name, data in UNFIT[how].items()
    }
    files = {name: data for name, data in files.items() if data is not None}
    number = volumes.fill(volume, KEY, files, after=2)
    assert restore.intact(volume, KEY, number), "its hashes are right"
    restore.restore(volume, warm, KEY, 1, trust=ANYBODY)
    assert not restore.unpacks(volume, warm, KEY, number, trust=ANYBODY)
    assert restore.unpacks(volume, warm, KEY, 2, trust=ANYBODY)
    assert content(warm) == 1, "the tree is left alone"
    assert restored(volume, warm) is False
    assert sorted(os.listdir(warm.cache)) == [KEY.kind, f"{KEY.kind}.restored.json"]
