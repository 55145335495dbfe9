"""A volume that is full, read-only or forbidden: nothing half-done is ever published."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))

import volumes

from warmer.errors import VolumeError
from warmer.fill import publish, stagings
from warmer.fill.locks.file import FileLock
from warmer.fill.locks.record import Owner
from warmer.layout import Volume, WarmDir
from warmer.model import Key
from warmer.observe import inventory
from warmer.trust import ANYBODY

KEY = Key("weights", {"name": "org/model"})
FILES = {f"files/{i}": b"x" * 5000 for i in range(3)}


def outcome(action):
    """Run something that may meet a full or read-only volume; return the reason, or None."""
    try:
        action()
    except VolumeError as exc:
        assert exc.exit_code == 6
        return exc.reason
    except OSError as exc:  # staging is the test's own writing, as fetching a file is the source's
        return os.strerror(exc.errno)
    return None


@pytest.mark.parametrize("limit", ["size={}k", "nr_inodes={}"])
def test_a_volume_that_fills_up_at_any_step_publishes_nothing_or_all(tmp_path, limit):
    reasons = []
    for room in range(4, 200, 4 if "size" in limit else 1):
        with volumes.tmpfs(tmp_path / f"{room}", limit.format(room)) as path:
            volume = Volume(path)
            reason = outcome(lambda volume=volume: volumes.fill(volume, KEY, FILES))
            reasons.append(reason)
            whole = [("weights", KEY.digest, 1)] if reason is None else []
            assert volumes.assert_invariants(path) == whole
        if reason is None:
            break
    assert reasons[-1] is None, "it never fitted"
    assert set(reasons[:-1]) <= {"no-space", "No space left on device"}
    assert "no-space" in reasons


def test_a_publish_on_a_full_volume_fails_and_works_once_there_is_room(
    tmp_path,
):
    with volumes.tmpfs(tmp_path / "volume", "size=64k") as path:
        volume = Volume(path)
        staging, sealed = volumes.stage(volume, KEY, FILES)
        with open(os.path.join(path, "ballast"), "wb", buffering=0) as ballast:
            while outcome(lambda: ballast.write(b"x" * 4096)) is None:
                pass
        assert outcome(lambda: volumes.commit(volume, staging, sealed)) == "no-space"
        assert volumes.assert_invariants(path) == []
        os.unlink(os.path.join(path, "ballast"))
        assert volumes.commit(volume, staging, sealed) == 1
        assert len(volumes.assert_invariants(path)) == 1


def test_a_lock_on_a_full_volume_fails_as_no_space_and_holds_nothing(tmp_path):
    with volumes.tmpfs(tmp_path / "volume", "size=8k") as path:
        volume = Volume(path)
        ballast = os.path.join(path, "ballast")
        with open(ballast, "wb") as f:
            f.write(b"x" * 8192)
        lock = FileLock(volume, me="me")
        assert outcome(lambda: lock.try_acquire(KEY)) == "no-space"
        os.unlink(ballast)
        assert not isinstance(lock.try_acquire(KEY), Owner)


def test_a_volume_that_turns_read_only_while_filling_publishes_nothing(tmp_path):
    with volumes.tmpfs(tmp_path / "volume") as path:
        volume = Volume(path)
        volumes.fill(volume, KEY, FILES)
        staging, sealed = volumes.stage(volume, KEY, FILES)
        volumes.make_read_only(path)
        assert outcome(lambda: volumes.commit(volume, staging, sealed, after=1)) == "read-only"
        assert outcome(lambda: publish.quarantine(volume, KEY, 1)) == "read-only"
        assert outcome(lambda: volumes.begin(volume, KEY)) == "read-only"
        stagings.discard(staging)  # cannot, and does not fail
        assert volumes.assert_invariants(path) == [("weights", KEY.digest, 1)]


@pytest.mark.parametrize("lock_file", ["there", "missing"])
def test_a_lock_on_a_read_only_volume_fails_as_read_only(tmp_path, lock_file):
    with volumes.tmpfs(tmp_path / "volume") as path:
        volume = Volume(path)
        if lock_file == "there":
            FileLock(volume, me="earlier").try_acquire(KEY).release()
        volumes.make_read_only(path)
        lock = FileLock(volume, me="me")
        assert outcome(lambda: lock.try_acquire(KEY)) == "read-only"


def test_a_read_only_volume_is_still_read(tmp_path):
    with volumes.tmpfs(tmp_path / "volume") as path:
        volume = Volume(path)
        volumes.fill(volume, KEY, FILES)
        volumes.make_read_only(path)
        seen = inventory.observe(volume, WarmDir("/nowhere"), {"weights": KEY}, trust=ANYBODY)
        assert seen.held["weights"].verdict == "sealed"


def become_a_stranger(path):
    """Give up root, in a child; the volume is named so that its parents need not be entered."""
    os.chdir(path)
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
    return Volume(".")


def test_a_user_who_may_not_write_meets_permission(tmp_path):
    def stranger():
        volume = become_a_stranger(path)
        assert outcome(lambda: volumes.begin(volume, KEY)) == "permission"
        assert outcome(lambda: FileLock(volume, me="me").try_acquire(KEY)) == "permission"

    with volumes.tmpfs(tmp_path / "volume", "mode=0755") as path:
        assert not volumes.run_child(stranger)


@pytest.mark.parametrize("hidden", ["generation", "seal"])
def test_kernels_that_may_not_be_read_are_missing_and_weights_are_a_failure(tmp_path, hidden):
    """Without kernels a server starts slowly; without weights it does not start."""
    kernels = Key("compile", {"model.key": "m"})

    def stranger():
        volume = become_a_stranger(path)
        seen = inventory.observe(volume, WarmDir("/nowhere"), {"compile": kernels}, trust=ANYBODY)
        assert seen.held["compile"].verdict != "sealed"
        with pytest.raises(VolumeError) as failed:
            inventory.observe(volume, WarmDir("/nowhere"), {"weights": KEY}, trust=ANYBODY)
        assert failed.value.reason == "permission"

    with volumes.tmpfs(tmp_path / "volume", "mode=0755") as path:
        for key in (KEY, kernels):
            volumes.fill(Volume(path), key, FILES)
            place = Path(Volume(path).generation(key.kind, key.digest, 1))
            (place / "seal.json" if hidden == "seal" else place).chmod(0o600)
        assert not volumes.run_child(stranger)
