"""What the tests of the volume share: an independent checker, children that die, real filesystems.

`assert_invariants` reads the volume's format from the disk and shares no code with warmer.
"""

import builtins
import contextlib
import gc
import hashlib
import io
import itertools
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import tarfile
import traceback
from pathlib import Path

import zstandard

from warmer.fill import archive, members, publish, stagings
from warmer.fill.locks.file import FileLock
from warmer.fill.locks.record import Owner
from warmer.layout import ARCHIVE, MANIFEST
from warmer.seal import SealedFile
from warmer.trust import ANYBODY

SECRETS = {
    "HF_TOKEN": "hf_PLANTEDplantedPLANTEDplanted",
    "AWS_SECRET_ACCESS_KEY": "PLANTED/aws+secret/planted",
    "VLLM_API_KEY": "sk-planted-api-key",
}
"""What tests put into environments, and what no file may hold."""

FILES = {"files/config.json": b'{"a": 1}', "files/shards/model.safetensors": b"weights" * 3000}

# --- the checker ---------------------------------------------------------------------------------


def assert_invariants(root, *, warm=(), clean=False):
    """Assert what must hold of a volume whatever was killed, and can be seen on a disk.

    Every published generation is whole: all that its seal names is there with the sealed bytes,
    and nothing else. So is every hidden one, which may be put back. No claim has published twice,
    and no number that was moved aside or removed is given again. Every record of use is whole. No
    secret of `SECRETS` lies anywhere, packed or not, nor below the directories of `warm`. With
    `clean`, after a run that ended well, nothing is staged.

    Returns:
        The (kind, key, number) of each published generation.
    """
    pieces = Path(root) / "v1" / "pieces"
    trash = Path(root) / "v1" / "trash"
    aside = _listing(Path(root) / "v1" / "quarantine") + _listing(trash)
    published, nonces = [], {}
    for directory in sorted(pieces.glob("*/*/*")):
        kind, key, number = directory.relative_to(pieces).parts
        assert re.fullmatch("[1-9][0-9]*", number, re.ASCII), f"{directory} is no generation"
        _assert_whole(directory, kind, key, int(number), nonces)
        published.append((kind, key, int(number)))
        reused = [name for name in aside if name.startswith(f"{kind}-{key}-{number}-")]
        assert not reused, f"{directory} has the number of {reused}"
    for name in _listing(trash):
        found = _HIDDEN.fullmatch(name)
        assert found, f"{name} is no hidden generation"
        kind, key, number, going = found.groups()
        if not going and (trash / name / "seal.json").exists():
            _assert_whole(trash / name, kind, key, int(number), nonces)
    _assert_taken(root)
    _assert_uses(Path(root) / "v1" / "uses")
    for top in (root, *warm):
        _assert_no_secret(top)
    if clean:
        assert _listing(Path(root) / "v1" / "staging") == [], "a clean run left what it staged"
    return published


_HIDDEN = re.compile(r"([a-z]+)-([0-9a-f]{64})-([1-9][0-9]*)-[0-9a-f]{8}(\.gone)?", re.ASCII)


def _assert_whole(directory, kind, key, number, nonces):
    seal = json.loads((directory / "seal.json").read_bytes())
    assert seal["schema_version"] == 1
    assert (seal["kind"], seal["key"], seal["generation"]) == (kind, key, number)
    assert nonces.setdefault(seal["nonce"], directory) == directory
    sealed = {file["path"]: (file["size"], file["sha256"]) for file in seal["files"]}
    assert len(sealed) == len(seal["files"]), f"{directory} seals a file twice"
    assert sealed | {"seal.json": None} == read_tree(directory) | {"seal.json": None}
    _assert_key(directory / "key.json", kind=kind, key=key)
    if "tree.tar.zst" in sealed:
        _assert_archive(directory)


def _assert_taken(root):
    """Numbers that are taken for good are names and nothing more; one a key, but for a kill."""
    for path in (Path(root) / "v1" / "taken").glob("*"):
        assert re.fullmatch(r"[a-z]+-[0-9a-f]{64}-[1-9][0-9]*", path.name), path
        assert path.stat().st_size == 0


def _assert_uses(top):
    for name in _listing(top):
        if not name.endswith(".json"):
            continue
        assert re.fullmatch(r"[0-9a-f]{16}\.json", name), f"{name} is no record of use"
        record = json.loads((top / name).read_bytes())
        assert record["schema_version"] == 1
        for piece in record["pieces"]:
            assert set(piece) == {"kind", "key", "generation"}
            assert re.fullmatch("[0-9a-f]{64}", piece["key"])
            assert piece["generation"] >= 0


def _listing(path):
    return sorted(os.listdir(path)) if os.path.isdir(path) else []


def _assert_no_secret(top):
    for directory, names, files in os.walk(top):
        for name in (*names, *files):
            path = os.path.join(directory, name)
            said = [os.fsencode(path)]
            mode = os.lstat(path).st_mode
            if stat.S_ISLNK(mode):
                said.append(os.fsencode(os.readlink(path)))
            elif stat.S_ISREG(mode):
                said.append(Path(path).read_bytes())
            for secret in SECRETS.values():
                assert not any(secret.encode() in data for data in said), f"a secret is in {path}"


def read_tree(top):
    """Every file under a directory: path → (size, sha256). Anything else there is an error."""
    found = {}
    for path in sorted(Path(top).rglob("*")):
        mode = path.lstat().st_mode
        if stat.S_ISDIR(mode):
            continue
        assert stat.S_ISREG(mode), f"{path} is no regular file"
        data = path.read_bytes()
        found[path.relative_to(top).as_posix()] = (len(data), hashlib.sha256(data).hexdigest())
    return found


def _assert_key(path, *, kind, key):
    factors = json.loads(path.read_bytes())["factors"]
    text = json.dumps({"factors": factors, "kind": kind}, sort_keys=True, separators=(",", ":"))
    assert hashlib.sha256(text.encode()).hexdigest() == key, f"{path} makes another key"


def _assert_archive(directory):
    listed = json.loads((directory / "manifest.json").read_bytes())["files"]
    packed = {}
    for path in sorted(directory.glob("tree*.tar.zst")):
        with path.open("rb") as raw:
            reader = zstandard.ZstdDecompressor().stream_reader(raw)
            with tarfile.open(fileobj=reader, mode="r|") as tar:
                for member in tar:
                    assert member.name not in packed, f"{directory} packs {member.name} twice"
                    data = tar.extractfile(member).read()
                    for secret in SECRETS.values():
                        assert secret.encode() not in data, f"a secret is packed in {directory}"
                    packed[member.name] = (len(data), hashlib.sha256(data).hexdigest())
    assert packed == {file["path"]: (file["size"], file["sha256"]) for file in listed}


# --- filling -------------------------------------------------------------------------------------


class Granted:
    """A grant that holds for ever, for tests of what a lock does not protect from."""

    epoch = 1
    exclusive = True
    took_over = False

    def still_mine(self):
        return True

    def note(self, phase, done=0, total=0):
        pass

    def release(self):
        pass


def begin(volume, key):
    """Make the staging directory of a claim."""
    staging = stagings.name(volume, key)
    stagings.make(staging)
    return staging


def stage(volume, key, files=FILES):
    """Begin a claim and put files into its staging; returns it and what `publish` seals."""
    staging = begin(volume, key)
    sealed = []
    for path, data in files.items():
        target = os.path.join(staging.path, path)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(target, "wb") as f:
            f.write(data)
        sealed.append(SealedFile(path, len(data), hashlib.sha256(data).hexdigest()))
    return staging, sealed


def commit(volume, staging, sealed, *, grant=None, after=0, needs=None, trust=ANYBODY, seconds=1.5):
    """Publish with the arguments that no test cares about."""
    how = {"grant": grant or Granted(), "after": after, "source": "a test", "seconds": seconds}
    return publish.publish(volume, staging, files=sealed, needs=needs, trust=trust, **how)


def fill(volume, key, files=FILES, **more):
    """Lock, stage, publish, unlock: what every filler does."""
    grant = FileLock(volume, me="a test").try_acquire(key)
    assert not isinstance(grant, Owner), "somebody holds the lock"
    try:
        staging, sealed = stage(volume, key, files)
        return commit(volume, staging, sealed, grant=grant, **more)
    finally:
        grant.release()


def fill_tree(volume, key, tree, **more):
    """Publish a tree as a kernel piece."""
    work = Path(volume.root).parent / "packing"
    work.mkdir()
    manifest = members.scan(str(tree), ())
    archive.pack(str(tree), manifest, str(work / ARCHIVE))
    (work / MANIFEST).write_bytes(members.encode(manifest))
    files = {name: (work / name).read_bytes() for name in (ARCHIVE, MANIFEST)}
    shutil.rmtree(work)
    return fill(volume, key, files, **more)


# --- children that die ---------------------------------------------------------------------------

# Every call of os by which warmer changes a disk; os.open and open count when they may write.
_DURABLE = (
    *("mkdir", "rmdir", "rename", "replace", "link", "symlink", "unlink", "remove", "write"),
    *("pwrite", "ftruncate", "truncate", "fsync", "fdatasync", "utime", "chmod", "fchmod"),
)


def forked(work) -> int:
    """Do some work in a child, which ends with 0 if all went well; its number."""
    pid = os.fork()
    if pid == 0:
        gc.freeze()  # or the first collection would copy all that the parent knows
        status = 1
        try:
            work()
            status = 0
        except BaseException:  # noqa: BLE001 - a child must not return
            traceback.print_exc()
        finally:
            os._exit(status)
    return pid


def run_child(action, *, kill_before=0, torn=False):
    """Fork, run `action`, and kill -9 the child before its nth durable operation.

    With `torn` only writes count, and the nth is cut in half. Returns whether it was killed.
    """

    def armed():
        if kill_before:
            _arm(kill_before, torn=torn)
        action()

    _, status = os.waitpid(forked(armed), 0)
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    assert killed or status == 0, "the child failed; see its traceback"
    return killed


def kill_points(action, prepare, *, torn=False):
    """Kill `action` before each of its durable operations in turn, each time from `prepare()`.

    Yields (n, what `prepare` returned) after each kill. `action` is called with that value.
    """
    for n in itertools.count(1):
        state = prepare()
        if not run_child(lambda state=state: action(state), kill_before=n, torn=torn):
            assert n > 1, "nothing was ever killed"
            return
        yield n, state


def _arm(last, *, torn, by=signal.SIGKILL):
    counter = itertools.count(1)

    def step():
        if not torn and next(counter) == last:
            os.kill(os.getpid(), by)

    def write(real, data):
        if torn and next(counter) == last:
            real(bytes(data)[: len(data) // 2])
            os.kill(os.getpid(), by)
        step()
        return real(data)

    class Raw(io.FileIO):
        def write(self, data):
            return write(super().write, data)

    real_open, real_os_open, real_pwrite = builtins.open, os.open, os.pwrite

    def opened(file, mode="r", *args, **more):
        if not set(mode) & set("wax+"):
            return real_open(file, mode, *args, **more)
        step()
        encoding = more.pop("encoding", None)
        buffered = io.BufferedWriter(Raw(file, mode.replace("b", "").replace("t", ""), **more))
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding)

    def os_opened(path, flags, *args, **more):
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            step()
        return real_os_open(path, flags, *args, **more)

    def counted(real):
        def call(*args, **more):
            step()
            return real(*args, **more)

        return call

    for name in _DURABLE:
        setattr(os, name, counted(getattr(os, name)))
    os.pwrite = lambda fd, data, at: write(lambda part: real_pwrite(fd, part, at), data)
    os.open, builtins.open = os_opened, opened


# --- real filesystems ----------------------------------------------------------------------------


@contextlib.contextmanager
def tmpfs(path, *options):
    """Mount a tmpfs with options such as ``size=64k`` at a new directory; yields the path."""
    os.makedirs(path)
    _run("mount", "-t", "tmpfs", "-o", ",".join(("rw", *options)), "tmpfs", path)
    try:
        yield str(path)
    finally:
        _run("umount", "-l", path)


def make_read_only(path):
    """Remount a filesystem read-only; nothing on it may be open for writing."""
    _run("mount", "-o", "remount,ro", path)


class Disk:
    """An ext4 filesystem in a file, whose power can be cut: what is not durable yet is gone.

    The kernel writes to the file only what it would have sent to a disk, so a copy of the file
    is the disk after a power cut at that moment; mounting the copy replays its journal.
    """

    def __init__(self, path):
        self._image, self.path = f"{path}.img", str(path)

    def __enter__(self):
        _run("truncate", "-s", "32M", self._image)
        _run("mkfs.ext4", "-qF", self._image)
        os.makedirs(self.path)
        _run("mount", "-o", "loop", self._image, self.path)
        return self

    def __exit__(self, *_):
        _run("umount", "-l", self.path)
        os.unlink(self._image)

    @contextlib.contextmanager
    def after_power_cut(self):
        """Mount what a power cut now would leave; yields its path."""
        copy, place = f"{self._image}.cut", f"{self.path}.cut"
        _run("cp", "--sparse=always", self._image, copy)
        os.makedirs(place, exist_ok=True)
        _run("mount", "-o", "loop", copy, place)
        try:
            yield place
        finally:
            _run("umount", place)
            os.unlink(copy)


def _run(*command):
    subprocess.run([str(word) for word in command], check=True, timeout=60)
