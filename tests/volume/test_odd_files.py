"""Pipes, devices, links and files without end in the place of records: told apart, never waited for."""

import json
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))

import handed
import volumes

from warmer import check, regular, seal
from warmer.collect import census
from warmer.errors import IntegrityError, VolumeError
from warmer.fill import members, partial, restore, revision, uses
from warmer.fill.locks.file import FileLock
from warmer.fill.locks.tickets import Tickets
from warmer.fill.sources import SourceFile, TransientSourceError
from warmer.layout import ARCHIVE, KEY, MANIFEST, SEAL, Volume, WarmDir
from warmer.model import Key, ModelRef
from warmer.observe import inventory
from warmer.trust import ANYBODY
from warmer.usage import Piece

pytestmark = pytest.mark.timeout(60)

COMPILE = Key("compile", {"of": "these tests"})
WEIGHTS = Key("weights", {"of": "these tests"})
HUGE = 1 << 42
"""Bytes of a file that takes no room, and hours to read."""


def pipe(path):
    os.mkfifo(path)


def zeroes(path):
    """A device that can be read for ever."""
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("only root makes devices")


def link_to_zeroes(path):
    os.symlink("/dev/zero", path)


def link_to_the_real_one(path):
    os.symlink(f"{path}.real", path)


def unix_socket(path):
    here = os.getcwd()
    os.chdir(os.path.dirname(path))  # such a name is short
    try:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(os.path.basename(path))
    finally:
        os.chdir(here)


def link_to_itself(path):
    os.symlink(os.path.basename(path), path)


def endless(path):
    with open(path, "wb") as f:
        f.truncate(HUGE)


ODD = [pipe, zeroes, link_to_zeroes, link_to_the_real_one, link_to_itself, unix_socket, endless]
odd = pytest.mark.parametrize("plant", ODD, ids=lambda plant: plant.__name__)


def put(plant, path):
    """Put something odd where a file is; the file stays beside it."""
    path = os.fspath(path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if os.path.exists(path):
        os.rename(path, f"{path}.real")
    plant(path)


@pytest.fixture
def volume(tmp_path):
    return Volume(str(tmp_path / "volume"))


@pytest.fixture
def warm(tmp_path):
    return WarmDir(str(tmp_path / "warm"))


@pytest.fixture
def kernels(volume, tmp_path):
    """The directory of a kernel piece's generation."""
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "artifact").write_bytes(b"compiled" * 1000)
    volumes.fill_tree(volume, COMPILE, tmp_path / "tree")
    return Path(volume.generation("compile", COMPILE.digest, 1))


@pytest.fixture
def weights(volume):
    volumes.fill(volume, WEIGHTS)
    return Path(volume.generation("weights", WEIGHTS.digest, 1))


def look(volume, warm, key):
    return inventory.observe(volume, warm, {key.kind: key}, trust=ANYBODY).held[key.kind]


@odd
def test_an_odd_seal_is_corrupt_for_a_look_and_for_gc(volume, warm, kernels, weights, plant):
    for directory, key in ((kernels, COMPILE), (weights, WEIGHTS)):
        put(plant, directory / SEAL)
        assert look(volume, warm, key).verdict == "corrupt"
        assert (
            census.published(volume, Piece(key.kind, key.digest, 1), trust=ANYBODY).state
            == "broken"
        )


@odd
def test_an_odd_archive_or_manifest_is_corrupt_or_refused(volume, warm, kernels, plant):
    for name in (ARCHIVE, MANIFEST):
        put(plant, kernels / name)
        assert look(volume, warm, COMPILE).verdict == "corrupt"
        with pytest.raises(IntegrityError) as refused:
            restore.restore(volume, warm, COMPILE, 1, trust=ANYBODY)
        assert refused.value.exit_code == 5
        assert not restore.intact(volume, COMPILE, 1)
        assert not os.path.exists(warm.tree("compile"))
        os.unlink(kernels / name)
        os.rename(kernels / f"{name}.real", kernels / name)
    restore.restore(volume, warm, COMPILE, 1, trust=ANYBODY)


@odd
def test_an_odd_file_of_weights_is_corrupt(volume, warm, weights, plant):
    put(plant, weights / "files/config.json")
    held = look(volume, warm, WEIGHTS)
    assert (held.verdict, held.broken) == ("corrupt", ("files/config.json",))


def test_weights_that_are_hard_links_are_sealed(volume, warm, weights):
    os.link(weights / "files/config.json", weights.parent / "another name")
    assert look(volume, warm, WEIGHTS).verdict == "sealed"


@odd
def test_a_neighbour_with_an_odd_key_is_no_neighbour(volume, warm, kernels, plant):
    put(plant, kernels / KEY)
    other = Key("compile", {"of": "another pod"})
    seen = inventory.observe(volume, warm, {"compile": other}, trust=ANYBODY)
    assert (seen.held["compile"].verdict, dict(seen.nearest)) == ("absent", {})


@odd
def test_an_odd_record_of_use_may_name_anything(volume, plant):
    uses.begin(volume)
    put(plant, volume.use("0123456789abcdef"))
    (use,) = uses.read_all(volume)
    assert use.pieces is None
    assert use.why


@odd
def test_an_odd_lock_of_a_server_is_not_waited_for(volume, warm, plant):
    os.makedirs(warm.root)
    uses.record(volume, warm, [Piece("weights", WEIGHTS.digest, 1)], owner="a pod")
    live = volume.live(uses.name_of(warm))
    os.unlink(live)
    put(plant, live)
    (use,) = uses.read_all(volume)
    assert use.pieces == {Piece("weights", WEIGHTS.digest, 1)}
    uses.record(volume, warm, [Piece("weights", WEIGHTS.digest, 2)], owner="a pod")
    os.unlink(volume.use(uses.name_of(warm)))
    assert len(uses.read_all(volume)) <= 1, "a lock without its record"


@pytest.mark.parametrize("plant", ODD[:-1], ids=lambda plant: plant.__name__)
def test_an_odd_lock_file_is_an_error_of_the_volume_and_is_not_written_to(volume, tmp_path, plant):
    path = volume.lock("weights", WEIGHTS.digest)
    put(plant, path)
    (Path(f"{path}.real")).write_bytes(b"somebody's")
    with pytest.raises(VolumeError) as refused:
        FileLock(volume, me="me").try_acquire(WEIGHTS)
    assert (refused.value.reason, refused.value.exit_code) == ("odd-lock", 6)
    assert Path(f"{path}.real").read_bytes() == b"somebody's"


def test_a_lock_file_without_end_is_a_lock_file(volume):
    put(endless, volume.lock("weights", WEIGHTS.digest))
    FileLock(volume, me="me").try_acquire(WEIGHTS).release()
    assert os.stat(volume.lock("weights", WEIGHTS.digest)).st_size < HUGE


@pytest.mark.parametrize("plant", ODD[:-2], ids=lambda plant: plant.__name__)
def test_a_lock_whose_file_became_odd_is_lost(volume, plant):
    grant = FileLock(volume, me="me").try_acquire(WEIGHTS)
    assert grant.still_mine()
    put(plant, volume.lock("weights", WEIGHTS.digest))
    os.unlink(f"{volume.lock('weights', WEIGHTS.digest)}.real")
    assert not grant.still_mine()
    grant.release()


@odd
def test_an_odd_ticket_is_nobodys(volume, plant):
    put(plant, f"{volume.lock('weights', WEIGHTS.digest)}.tickets/0123456789abcdef")
    tickets = Tickets(volume, me="me")
    assert tickets.try_acquire(WEIGHTS).name == "tickets of other pods", "its own is too young yet"
    tickets.leave(WEIGHTS)


@odd
def test_an_odd_journal_promises_no_parts(tmp_path, plant):
    file = SourceFile("model.safetensors", 100, {})
    put(plant, f"{partial.place(str(tmp_path), file.path)}.parts")
    assert partial.spans(str(tmp_path), file) == ()


class Away:
    """A source that is down."""

    def resolve(self):
        raise TransientSourceError("away", reason="unreachable")


@odd
def test_an_odd_note_of_a_branch_is_no_answer(volume, plant):
    model = ModelRef("hf", "org/model", "main")
    put(plant, volume.ref(model.slug))
    with pytest.raises(TransientSourceError):
        revision.resolve(model, Away(), volume, retry=0)


@odd
@pytest.mark.parametrize("name", [SEAL, "files/000.safetensors"])
def test_the_probe_says_that_an_odd_file_is_corrupt(tmp_path, plant, name):
    pod = handed.Pod(tmp_path)
    put(plant, pod.generation("weights") / name)
    for options in ((), ("--deep",)):
        done = subprocess.run(
            [sys.executable, "-IS", str(pod.probe), "--json", *options],
            capture_output=True,
            timeout=30,
            env={},
        )
        said = json.loads(done.stdout)
        assert said["code"] in ({5, 6} if plant in (unix_socket, link_to_itself) else {5}), said


@odd
def test_the_probe_is_not_held_up_before_the_handoff_either(tmp_path, plant):
    pod = handed.Pod(tmp_path, warm=False)
    put(plant, pod.volume.lock("weights", handed.KEYS["weights"].digest))
    code, rows = pod.rows()
    assert (code, rows["weights"][0]) == (1, "absent")


@odd
def test_the_server_is_started_beside_an_odd_lock(tmp_path, plant):
    pod = handed.Pod(tmp_path)
    uses.record(pod.volume, pod.warm, [Piece("weights", WEIGHTS.digest, 1)], owner="a pod")
    live = pod.volume.live(uses.name_of(pod.warm))
    os.unlink(live)
    put(plant, live)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/vllm").write_text("#!/bin/sh\necho started\n")
    (tmp_path / "bin/vllm").chmod(0o755)
    done = subprocess.run(
        [f"{pod.warm.handoff}/serve"],
        env={"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"},
        capture_output=True,
        timeout=30,
        text=True,
    )
    assert done.stdout == "started\n", done.stderr


def test_the_probe_reads_records_as_long_as_warmer_does():
    assert check._LONGEST == seal.LONGEST


def test_a_record_may_be_as_long_as_it_may_be(tmp_path):
    path = tmp_path / "record"
    path.write_bytes(b"x" * 1000)
    assert regular.read(str(path), most=1000) == b"x" * 1000
    with pytest.raises(regular.OddFileError, match="999 bytes"):
        regular.read(str(path), most=999)
    with pytest.raises(IsADirectoryError):
        regular.read(str(tmp_path))


def test_a_seal_that_nobody_could_read_is_not_published(volume, warm, monkeypatch):
    monkeypatch.setattr(seal, "LONGEST", 300)
    with pytest.raises(VolumeError) as refused:
        volumes.fill(volume, WEIGHTS)
    assert refused.value.reason == "too-many-files"
    assert look(volume, warm, WEIGHTS).verdict == "absent"


def test_a_manifest_has_room_for_the_files_that_it_may_name():
    entry = members.encode(
        members.Manifest({"x": members.Member("x" * 80, 1 << 30, "0" * 64, 0o644, 1 << 60)})
    )
    assert len(entry) * members.MOST / 2 < members.LONGEST
