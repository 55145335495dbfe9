"""`warmer.gc.collect` on a real volume: what goes, what stays, and kills at every step."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))

import aging
import runs
import structlog
import volumes

from warmer import gc, trust
from warmer.errors import BusyError, UsageError, VolumeError
from warmer.fill import publish, stagings, uses
from warmer.fill.locks.file import FileLock
from warmer.fill.locks.tickets import Tickets
from warmer.layout import Volume, WarmDir
from warmer.model import Key
from warmer.observe import mount, numbers
from warmer.trust import ANYBODY
from warmer.urls import LockUrl
from warmer.usage import ANY, Piece

USED = Key("weights", {"name": "org/used"})
IDLE = Key("weights", {"name": "org/idle"})
KERNELS = Key("compile", {"model.key": "m"})
ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="mounts filesystems, as root alone may")


def make(top):
    """A volume of 20 days: a used model, an idle one, and everything that is ever left over."""
    volume, warm = Volume(f"{top}/volume"), WarmDir(f"{top}/warm")
    os.makedirs(warm.root)
    volumes.fill(volume, USED)
    volumes.fill(volume, USED, {"files/a": b"second"}, after=1)
    volumes.fill(volume, IDLE)
    volumes.fill(volume, KERNELS, {"files/k": b"kernels"})
    for key in (KERNELS, IDLE):
        volumes.fill(volume, key, {"files/b": b"corrupt"}, after=1)
        publish.quarantine(volume, key, 2)
    staging, _ = volumes.stage(volume, IDLE)
    Path(volume.doctor, "0123abcd").mkdir(parents=True)
    for name in ("gone", "used"):
        os.makedirs(f"{warm.root}/{name}", exist_ok=True)
        pieces = [Piece(k.kind, k.digest, n) for k, n in ((USED, 2), (KERNELS, 1))]
        if name == "gone":
            pieces = [Piece(IDLE.kind, IDLE.digest, 1)]
        uses.record(volume, WarmDir(f"{warm.root}/{name}"), pieces, owner=name)
    Path(f"{volume.use('0' * 16)}.89abcdef").write_bytes(b"half")
    aging.age_all(volume.root, 20)
    uses.record(volume, WarmDir(f"{warm.root}/used"), pieces, owner="used")
    assert staging.path
    return volume


@pytest.fixture
def volume(tmp_path):
    return make(tmp_path)


def collect(volume, **how):
    return gc.collect(volume, LockUrl(), trust=ANYBODY, **{"grace": 0.0, "me": "gc"} | how)


def kept(volume):
    return {(k, d, n) for k, d, n in volumes.assert_invariants(volume.root)}


NEEDED = {("weights", USED.digest, 2), ("compile", KERNELS.digest, 1)}
ALL = NEEDED | {("weights", USED.digest, 1), ("weights", IDLE.digest, 1)}


def assert_tidy(volume):
    """Nothing is left but what is needed, and the numbers that were ever given."""
    assert kept(volume) == NEEDED
    for place in ("trash", "quarantine", "staging", "doctor"):
        assert aging.names(volume.root, place) == [], place
    assert len(aging.records(volume.root)) == 1
    assert len(aging.names(volume.root, "uses")) == 3, "the record, its lock, since"
    assert highest(volume) == [2, 2, 2]


def highest(volume):
    return [numbers.highest_taken(volume, k.kind, k.digest) for k in (USED, IDLE, KERNELS)]


def test_the_first_run_hides_and_the_second_removes(volume):
    first = collect(volume)
    assert kept(volume) == NEEDED
    assert len(aging.names(volume.root, "trash")) == 2
    assert first.skipped == []
    assert aging.names(volume.root, "pieces/weights") == [USED.digest], "an empty key is left"
    assert highest(volume) == [2, 2, 2]
    second = collect(volume)
    assert {step.action for step in second.done} == {"remove"}
    assert second.size("remove") == first.size("hide") > 0
    assert_tidy(volume)
    third = collect(volume)
    assert (third.done, third.skipped) == ([], [])


def test_a_dry_run_says_what_a_run_does_and_changes_nothing(volume):
    before = {p: p.lstat().st_mtime_ns for p in Path(volume.root).rglob("*") if p.is_file()}
    dry = collect(volume, dry=True)
    assert {p: p.lstat().st_mtime_ns for p in Path(volume.root).rglob("*") if p.is_file()} == before
    assert dry.done == []
    wet = collect(volume)
    told = sorted((step.action, step.name, step.size) for step in dry.decision.steps)
    assert told == sorted((step.action, step.name, step.size) for step in wet.done)
    assert dry.size("hide") == wet.size("hide")


def test_a_number_whose_generation_is_gone_is_not_given_again(volume):
    for _ in range(2):
        collect(volume)
    assert numbers.generations(volume, IDLE.kind, IDLE.digest) == []
    after = numbers.highest_taken(volume, IDLE.kind, IDLE.digest)
    assert after == 2
    volumes.fill(volume, IDLE, after=after)
    aging.age_all(volume.root, 20)
    for _ in range(2):
        collect(volume)
    taken = [name for name in aging.names(volume.root, "taken") if IDLE.digest in name]
    assert taken == [f"weights-{IDLE.digest}-3"], "one name a key"


def test_within_the_grace_what_is_hidden_stays_and_comes_back_when_its_key_is_used(
    volume, tmp_path
):
    collect(volume, grace=3600.0)
    for _ in range(2):
        assert collect(volume, grace=3600.0).done == []
    assert len(aging.names(volume.root, "trash")) == 2
    os.mkdir(tmp_path / "new")
    uses.record(volume, WarmDir(f"{tmp_path}/new"), [Piece("weights", IDLE.digest, ANY)], owner="")
    outcome = collect(volume, grace=3600.0)
    assert [step.action for step in outcome.done] == ["put back"]
    assert kept(volume) == NEEDED | {("weights", IDLE.digest, 1)}


def test_what_is_being_filled_is_left_for_the_next_run(volume):
    grant = FileLock(volume, me="a filler").try_acquire(IDLE)
    outcome = collect(volume)
    assert {step.piece.digest for step, why in outcome.skipped if "a filler" in why} == {
        IDLE.digest
    }
    assert ("weights", IDLE.digest, 1) in kept(volume)
    assert len(aging.names(volume.root, "staging")) == 1
    grant.release()
    for _ in range(2):
        collect(volume)
    assert_tidy(volume)


def test_where_locks_exclude_nobody_records_alone_decide_and_no_staging_is_touched(
    volume, monkeypatch
):
    monkeypatch.setattr(gc, "open_lock", lambda *_, **__: Tickets(volume, me="gc"))
    outcome = collect(volume)
    assert kept(volume) == NEEDED
    (skipped,) = outcome.skipped
    assert skipped[0].aside.sort == "staging"
    assert "exclude nobody" in skipped[1]


@pytest.mark.parametrize(
    ("locks", "warned"), [("shared", False), ("node", True), ("unknown", True)]
)
def test_where_servers_of_other_nodes_are_not_seen_the_log_says_so(
    volume, monkeypatch, locks, warned
):
    found = mount.Mount("/models", "nfs", "server:/x", (), locks, "nolock")
    monkeypatch.setattr(mount, "find", lambda _: found)
    with structlog.testing.capture_logs() as said:
        collect(volume, dry=True)
    assert [("14 days" in line["hint"], line["why"]) for line in said] == [
        (True, "nolock")
    ] * warned


def test_a_staging_that_is_written_to_stays(volume):
    staging, _ = volumes.stage(volume, USED)
    collect(volume)
    assert [os.path.basename(staging.path)] == aging.names(volume.root, "staging")
    stagings.discard(staging)


@pytest.mark.parametrize("data", [b"", b'{"schema_version": 9}'], ids=["torn", "newer"])
def test_while_a_record_cannot_be_read_nothing_is_hidden_that_it_may_name(volume, data):
    torn = Path(volume.use("f" * 16))
    torn.write_bytes(data)
    collected = collect(volume)
    assert collected.decision.doubts
    assert torn.exists()
    torn.unlink()  # or the checker would see it
    assert kept(volume) == ALL
    assert aging.names(volume.root, "quarantine") == []
    collect(volume)
    assert kept(volume) == NEEDED


def test_hidden_pieces_are_not_removed_while_a_record_cannot_be_read(volume):
    collect(volume)
    torn = Path(volume.use("f" * 16))
    torn.write_bytes(b"")
    collect(volume)
    assert len(aging.names(volume.root, "trash")) == 2


def test_a_stranger_is_never_touched(volume):
    strangers = [
        f"{volume.pieces}/weights/{'e' * 64}/1/seal.json",
        f"{volume.pieces}/weights/mine/1/file",
        f"{volume.pieces}/weights/{USED.digest}/backup/file",
        f"{volume.pieces}/adapters/{'e' * 64}/1/file",
        f"{volume.trash}/mine/file",
        f"{volume.quarantine}/mine",
        f"{volume.staging}/mine/file",
        f"{volume.uses}/notes.txt",
        f"{volume.root}/file",
    ]
    for path in strangers:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        Path(path).write_text('{"schema_version": 99}')
    aging.age_all(volume.root, 400)
    for _ in range(2):
        collect(volume)
    assert [path for path in strangers if not os.path.exists(path)] == []


def test_links_in_what_is_removed_are_not_followed(volume, tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/file").write_text("mine")
    (staging,) = Path(volume.staging).iterdir()
    os.symlink(tmp_path / "precious", staging / "link")
    aging.age_all(volume.root, 20)
    collect(volume)
    assert not staging.exists()
    assert (tmp_path / "precious/file").read_text() == "mine"


def test_one_gc_at_a_time_works_on_a_volume(volume):
    with gc.alone(volume, me="another"):
        with pytest.raises(BusyError) as caught:
            collect(volume)
        assert caught.value.reason == "gc-busy"
        assert kept(volume) == ALL
        assert collect(volume, dry=True).size("hide") > 0
    collect(volume)
    assert kept(volume) == NEEDED


def test_a_keep_shorter_than_a_start_is_refused(volume):
    with pytest.raises(UsageError):
        collect(volume, keep=86399.0)


@ROOT
def test_a_read_only_volume_is_an_error_of_the_volume_but_can_be_looked_at(volume):
    with runs.read_only(volume.root):
        with pytest.raises(VolumeError) as caught:
            collect(volume)
        assert caught.value.reason == "read-only"
        assert collect(volume, dry=True).size("hide") > 0
    assert kept(volume) == ALL


@ROOT
def test_a_full_volume_is_freed(tmp_path):
    with volumes.Disk(tmp_path / "disk") as disk:
        volume = make(disk.path)
        for unit in ("1M", "1k"):
            filling = ("dd", "if=/dev/zero", f"of={disk.path}/ballast-{unit}", f"bs={unit}")
            assert b"No space" in subprocess.run(filling, capture_output=True).stderr
        for _ in range(2):
            collect(volume)
        assert_tidy(volume)


@pytest.mark.parametrize("run", [1, 2], ids=["hides", "removes"])
def test_a_gc_killed_anywhere_loses_nothing_and_the_next_ones_finish(tmp_path, run):
    original = make(tmp_path / "original")
    for _ in range(run - 1):
        collect(original)
    before = kept(original)

    def prepared():
        top = tmp_path / "copy"
        shutil.rmtree(top, ignore_errors=True)
        shutil.copytree(original.root, top, symlinks=True)
        return Volume(str(top))

    kills, seen = 0, set()
    for _, volume in volumes.kill_points(collect, prepared):
        now = kept(volume)
        assert NEEDED <= now <= before
        seen.add(len(now))
        assert highest(volume) == [2, 2, 2]
        for place in (volume.uses, volume.staging):  # what is half there must be old to go
            aging.age(place, 20)
        for record in aging.records(volume.root):
            if b'"used"' in record.read_bytes():
                os.utime(record)
        for _ in range(3):
            collect(volume)
        assert_tidy(volume)
        kills += 1
    assert kills > 20
    assert len(seen) == (3 if run == 1 else 1)


@ROOT
def test_a_power_cut_during_gc_loses_nothing(tmp_path):
    with volumes.Disk(tmp_path / "disk") as disk:
        original = make(f"{tmp_path}/original")
        cuts = 0

        def prepared():
            volume = Volume(f"{disk.path}/{os.urandom(4).hex()}")
            shutil.copytree(original.root, volume.root, symlinks=True)
            os.sync()
            return volume

        for n, volume in volumes.kill_points(collect, prepared):
            if n % 5 == 0:
                with disk.after_power_cut() as left:
                    after = Volume(os.path.join(left, os.path.basename(volume.root)))
                    assert NEEDED <= kept(after) <= ALL
                    assert highest(after) == [2, 2, 2]
                cuts += 1
            shutil.rmtree(volume.root)
    assert cuts > 3


def test_a_signed_generation_is_not_superseded_by_one_that_nobody_signed(tmp_path):
    trust.generate(str(tmp_path / "key"))
    me = trust.load(str(tmp_path / "key"), None)
    volume, warm = Volume(f"{tmp_path}/volume"), WarmDir(f"{tmp_path}/warm")
    os.makedirs(warm.root)
    volumes.fill(volume, KERNELS, trust=me)
    volumes.fill(volume, KERNELS, {"files/planted": b"code"}, after=1)
    uses.record(volume, warm, [Piece("compile", KERNELS.digest, 2)], owner="a pod")
    aging.age_all(volume.root, 20)
    uses.record(volume, warm, [Piece("compile", KERNELS.digest, 2)], owner="a pod")
    signed = Piece("compile", KERNELS.digest, 1)
    trusting = gc.collect(volume, LockUrl(), trust=me, dry=True)
    assert trusting.decision.steps == ()
    assert "next pod" in trusting.decision.kept[signed][1]
    assert "not warmer's" in trusting.decision.kept[signed._replace(number=2)][1]
    (step,) = gc.collect(volume, LockUrl(), trust=ANYBODY, dry=True).decision.steps
    assert (step.action, step.piece) == ("hide", signed), "who trusts anybody takes the newest"
