"""The one door (`warmer.fill.publish`): what is published, in which order, and what never is."""

import errno
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))

import volumes

from warmer.errors import VolumeError
from warmer.fill import publish, stagings
from warmer.fill.locks import LostGrantError
from warmer.fill.locks.file import FileLock
from warmer.layout import Volume, WarmDir
from warmer.model import Key
from warmer.observe import inventory, numbers
from warmer.trust import ANYBODY

KEY = Key("weights", {"name": "org/model", "revision": "1"})
OTHER = Key("weights", {"name": "org/model", "revision": "2"})
MINE = {"files/a": b"mine"}
THEIRS = {"files/a": b"theirs", "files/b": b"more of theirs"}


@pytest.fixture
def volume(tmp_path):
    return Volume(str(tmp_path / "volume"))


def published(volume):
    return [number for _, _, number in volumes.assert_invariants(volume.root)]


def verdict(volume, key=KEY):
    seen = inventory.observe(volume, WarmDir("/nowhere"), {key.kind: key}, trust=ANYBODY)
    return seen.held[key.kind].verdict


def read(volume, number, path):
    return Path(volume.generation(KEY.kind, KEY.digest, number), path).read_bytes()


def test_what_was_staged_is_published_whole_and_staging_is_empty(volume):
    assert volumes.fill(volume, KEY) == 1
    assert volumes.assert_invariants(volume.root) == [(KEY.kind, KEY.digest, 1)]
    assert read(volume, 1, "files/config.json") == volumes.FILES["files/config.json"]
    assert os.listdir(volume.staging) == []
    assert verdict(volume) == "sealed"


def test_generations_follow_each_other_and_older_ones_stay(volume):
    volumes.fill(volume, KEY)
    before = volumes.read_tree(volume.generation(KEY.kind, KEY.digest, 1))
    assert volumes.fill(volume, KEY, THEIRS, after=1) == 2
    assert published(volume) == [1, 2]
    assert volumes.read_tree(volume.generation(KEY.kind, KEY.digest, 1)) == before


def test_the_grant_is_asked_when_all_is_staged_and_durable_and_nothing_is_published(tmp_path):
    seen = []

    class Asked(volumes.Granted):
        def still_mine(self):
            target = volume.generation(KEY.kind, KEY.digest, 1)
            seen.append((os.path.lexists(staging.path), os.path.lexists(target)))
            with disk.after_power_cut() as root:
                os.rename(root + staging.path.removeprefix(disk.path), root + "/rescued")
                place = Path(root + target.removeprefix(disk.path))
                Path(root, "rescued").rename(place)  # as the rename that would have followed
                seen.append(volumes.assert_invariants(root))
            return True

    with volumes.Disk(tmp_path / "disk") as disk:
        volume = Volume(disk.path)
        staging, sealed = volumes.stage(volume, KEY)
        volumes.commit(volume, staging, sealed, grant=Asked())
    assert seen == [(True, False), [(KEY.kind, KEY.digest, 1)]]


def test_every_file_and_directory_is_flushed_first_and_the_parent_after(volume, monkeypatch):
    """ext4 flushes a new file's directories along with it; not every filesystem does."""
    real, flushed = os.fsync, []

    def fsync(descriptor):
        flushed.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        real(descriptor)

    class Asked(volumes.Granted):
        def still_mine(self):
            below = {str(path) for path in Path(staging.path).rglob("*")}
            assert below | {staging.path} <= set(flushed), "asked before all was flushed"
            parents = set(map(str, Path(target).parents)) & set(flushed)
            assert {volume.root, volume.top, volume.pieces, volume.kind(KEY.kind)} <= parents
            flushed.clear()
            return True

    staging, sealed = volumes.stage(volume, KEY)
    target = volume.generation(KEY.kind, KEY.digest, 1)
    monkeypatch.setattr(os, "fsync", fsync)
    volumes.commit(volume, staging, sealed, grant=Asked())
    assert flushed == [os.path.dirname(target)]


def test_a_published_generation_survives_a_power_cut_right_after(tmp_path):
    with volumes.Disk(tmp_path / "disk") as disk:
        volume = Volume(disk.path)
        for number in (1, 2):
            staging, sealed = volumes.stage(volume, KEY)
            assert volumes.commit(volume, staging, sealed, after=number - 1) == number
            with disk.after_power_cut() as root:
                assert len(volumes.assert_invariants(root)) == number


def test_the_second_publisher_of_a_generation_loses_and_the_first_ones_bytes_stand(volume):
    slow, sealed = volumes.stage(volume, KEY, MINE)
    volumes.fill(volume, KEY, THEIRS)
    with pytest.raises(publish.LostRaceError) as lost:
        volumes.commit(volume, slow, sealed)
    assert lost.value.reason == "lost-race"
    assert lost.value.exit_code == 3
    assert read(volume, 1, "files/a") == b"theirs"
    assert published(volume) == [1]
    assert os.path.isdir(slow.path), "the loser's staging is the loser's to discard"
    stagings.discard(slow)
    assert os.listdir(volume.staging) == []


def test_of_many_publishers_at_once_exactly_one_wins(volume, tmp_path):
    gate, gun = os.pipe()
    results = tmp_path / "results"
    results.mkdir()

    def racer(name):
        os.close(gun)
        staging, sealed = volumes.stage(volume, KEY, {"files/a": name.encode() * 1000})
        os.read(gate, 1)  # returns for all at once, when the parent closes its end
        try:
            volumes.commit(volume, staging, sealed)
            (results / name).write_text("won")
        except publish.LostRaceError:
            (results / name).write_text("lost")

    children = []
    for i in range(6):
        pid = os.fork()
        if pid == 0:
            try:
                racer(f"racer-{i}")
            finally:
                os._exit(0)
        children.append(pid)
    os.close(gun)
    for pid in children:
        os.waitpid(pid, 0)
    os.close(gate)
    said = {path.name: path.read_text() for path in results.iterdir()}
    assert sorted(said.values()) == ["lost"] * 5 + ["won"]
    winner = next(name for name, word in said.items() if word == "won")
    assert published(volume) == [1]
    assert read(volume, 1, "files/a") == winner.encode() * 1000


def test_a_writer_that_lost_its_lock_publishes_nothing(volume):
    grant = FileLock(volume, me="me").try_acquire(KEY)
    staging, sealed = volumes.stage(volume, KEY, MINE)
    grant.release()
    with pytest.raises(LostGrantError) as lost:
        volumes.commit(volume, staging, sealed, grant=grant)
    assert (lost.value.reason, lost.value.exit_code) == ("lost-lock", 3)
    assert published(volume) == []
    assert verdict(volume) == "absent"
    assert volumes.fill(volume, KEY, THEIRS) == 1


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST])
def test_a_rename_that_happened_though_it_failed_counts_as_published(volume, error):
    """NFS: the server renamed, its reply was lost, the retransmitted call finds it done."""

    def publisher():
        real = os.rename

        def rename(source, target):
            real(source, target)
            raise OSError(error, os.strerror(error), source)

        staging, sealed = volumes.stage(volume, KEY, MINE)
        os.rename = rename
        assert volumes.commit(volume, staging, sealed) == 1

    assert not volumes.run_child(publisher)
    assert published(volume) == [1]
    assert read(volume, 1, "files/a") == b"mine"


@pytest.mark.parametrize("rival", [False, True])
def test_a_rename_that_failed_is_not_taken_for_a_success(volume, rival):
    def publisher():
        def rename(source, target):
            raise OSError(errno.EIO, os.strerror(errno.EIO), source)

        staging, sealed = volumes.stage(volume, KEY, MINE)
        os.rename = rename
        with pytest.raises(VolumeError) as failed:
            volumes.commit(volume, staging, sealed)
        assert failed.value.reason == "io"

    if rival:
        volumes.fill(volume, KEY, THEIRS)
    assert not volumes.run_child(publisher)
    assert published(volume) == ([1] if rival else [])
    assert not rival or read(volume, 1, "files/a") == b"theirs"


def test_one_whose_staging_a_successor_swept_has_lost_the_race_to_what_it_published(volume):
    """Frozen after its last question to the lock, which by then is another's."""

    class Frozen(volumes.Granted):
        def still_mine(self):
            for path in stagings.abandoned(volume, KEY, volumes.Granted()):
                stagings.discard(stagings.Staging(path, KEY, ""))
            volumes.fill(volume, KEY, THEIRS)
            return True

    staging, sealed = volumes.stage(volume, KEY, MINE)
    with pytest.raises(publish.LostRaceError) as lost:
        volumes.commit(volume, staging, sealed, grant=Frozen())
    assert (lost.value.key, lost.value.generation) == (KEY, 1)
    assert read(volume, 1, "files/a") == b"theirs"
    assert published(volume) == [1]


def test_what_lies_at_the_target_already_is_left_as_it_is(volume):
    target = Path(volume.generation(KEY.kind, KEY.digest, 1))
    target.mkdir(parents=True)
    (target / "half").write_bytes(b"somebody's")
    staging, sealed = volumes.stage(volume, KEY, MINE)
    with pytest.raises(publish.LostRaceError):
        volumes.commit(volume, staging, sealed)
    assert volumes.read_tree(target).keys() == {"half"}
    (target / "half").unlink()
    target.rmdir()
    target.write_bytes(b"a file")
    with pytest.raises(VolumeError) as failed:
        volumes.commit(volume, staging, sealed)
    assert failed.value.reason == "not-a-directory"
    assert target.read_bytes() == b"a file"


def test_a_staged_file_that_is_gone_stops_the_publish(volume):
    staging, sealed = volumes.stage(volume, KEY)
    os.unlink(os.path.join(staging.path, sealed[-1].path))
    with pytest.raises(VolumeError) as failed:
        volumes.commit(volume, staging, sealed)
    assert failed.value.reason == "missing"
    assert published(volume) == []


def test_abandoned_stagings_are_those_of_the_key_alone(volume):
    assert stagings.abandoned(volume, KEY, volumes.Granted()) == []
    mine = [volumes.stage(volume, KEY, MINE)[0].path for _ in range(2)]
    volumes.stage(volume, OTHER, MINE)
    assert stagings.abandoned(volume, KEY, volumes.Granted()) == sorted(mine)


def test_where_the_grant_excludes_nobody_no_staging_counts_as_abandoned(volume):
    class Beside(volumes.Granted):
        exclusive = False

    theirs, sealed = volumes.stage(volume, KEY, THEIRS)
    stagings.sweep(volume, KEY, Beside())
    volumes.commit(volume, theirs, sealed)  # they are at work, and end well
    assert read(volume, 1, "files/a") == b"theirs"


def test_a_quarantined_generation_is_looked_at_no_more_and_kept_whole(volume):
    volumes.fill(volume, KEY)
    directory = volume.generation(KEY.kind, KEY.digest, 1)
    before = volumes.read_tree(directory)
    with open(os.path.join(directory, "files/config.json"), "rb") as reader:
        place = publish.quarantine(volume, KEY, 1)
        assert reader.read() == volumes.FILES["files/config.json"], "a reader was cut off"
    assert volumes.read_tree(place) == before
    assert os.path.dirname(place) == volume.quarantine
    assert verdict(volume) == "absent"


def test_the_number_of_a_quarantined_generation_is_not_used_again(volume):
    """A handoff, a `needs`, a symlink made for it must not come to mean other bytes."""
    volumes.fill(volume, KEY)
    publish.quarantine(volume, KEY, 1)
    assert numbers.highest_taken(volume, KEY.kind, KEY.digest) == 1
    volumes.fill(volume, KEY, after=1)
    publish.quarantine(volume, KEY, 2)
    volumes.fill(volume, OTHER)
    assert numbers.highest_taken(volume, KEY.kind, KEY.digest) == 2
    assert numbers.highest_taken(volume, OTHER.kind, OTHER.digest) == 1
