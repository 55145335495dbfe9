"""Room: asked for before the first byte, missed midway with a number, and never at others' cost."""

import errno
import os
import re
import resource
import signal
import subprocess
import threading

import pytest
import runs
from pages import ext4, ramfs
from scripted import Scripted, fill, published, seeded, stagings
from volumes import assert_invariants, run_child

from warmer.errors import VolumeError
from warmer.fill import capacity, partial

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts filesystems, as root alone may")
MIB = 1 << 20
SHARD = runs.SHARDS[1]


@pytest.fixture
def place(tmp_path):
    with runs.place(tmp_path) as place:
        yield place


def free(path):
    info = os.statvfs(path)
    return info.f_bavail * info.f_frsize


def fill_up(volume, *, leaving=0):
    """What another process does: write until so many bytes are free."""
    count = max(0, free(volume) - leaving) // MIB
    words = ["dd", "if=/dev/zero", f"of={volume}/others", "bs=1M", "status=none"]
    done = subprocess.run(
        [*words, *([f"count={count}"] if leaving else [])], stderr=subprocess.PIPE
    )
    assert (done.returncode != 0) == (leaving == 0), done.stderr


def numbers(message):
    got, expected, short = map(int, re.findall(r"\d+", message))
    assert expected - got == short > 0
    return got, expected


def test_the_room_is_gone_midway_and_the_shortfall_is_told_in_bytes(place, tmp_path):
    with runs.tmpfs(str(tmp_path / "small"), "100m") as path:
        small = place.but(volume=path)
        small.but(warm=str(tmp_path / "earlier")).warmed()
        before = runs.published(path)
        second = small.but(model=place.pinned(runs.OTHER))
        asked = len(place.hub.requests)
        place.hub.fault(SHARD, rate=1_000_000)
        filling = second.start("prefill", "--json")
        try:
            runs.eventually(lambda: SHARD in second.fetched(asked))
            fill_up(path)
        finally:
            result = runs.finish(filling)
        error = runs.failed(result, 6, "no-space", "bytes free on the volume", "too few")
        numbers(error["message"])
        runs.nothing_lost(second, before)
        assert not os.path.exists(f"{small.warm}/handoff/handoff.json")
        os.unlink(f"{path}/others")
        place.hub.faults.clear()
        second.warmed()
        assert before.items() < runs.published(path).items()


def test_the_shortfall_is_what_is_still_to_come(tmp_path, small_parts):
    with runs.tmpfs(str(tmp_path / "volume"), "200m") as volume:
        source = Scripted({"model.safetensors": seeded(1).randbytes(100 * MIB)})
        once = threading.Lock()

        def reading(*_):
            if source.delivered >= 30 * MIB and once.acquire(blocking=False):
                fill_up(volume)

        source.reading = reading
        with pytest.raises(VolumeError) as caught:
            fill(source, volume)
        assert (caught.value.reason, caught.value.exit_code) == ("no-space", 6)
        got, expected = numbers(caught.value.message)
        assert got < MIB
        assert 30 * MIB <= source.delivered < 100 * MIB
        assert 0 <= expected - (100 * MIB - source.delivered) <= 8 * small_parts
        assert stagings(volume) == []
        os.unlink(f"{volume}/others")
        assert free(volume) > 199 * MIB, "nothing is held, nothing is left"


def test_a_model_too_large_is_refused_before_a_file_is_asked_for(place, tmp_path):
    model = f"{place.hub.root}/{runs.OTHER}"
    size = sum(os.stat(f"{model}/{name}").st_size for name in os.listdir(model))
    with runs.tmpfs(str(tmp_path / "small"), f"{size + capacity.RESERVE - 4096}") as path:
        small = place.but(volume=path, model=place.pinned(runs.OTHER))
        error = small.fails(6, "no-space", "too few")
        got, expected = numbers(error["message"])
        assert expected == size + capacity.RESERVE
        assert got <= size + capacity.RESERVE - 4096
        assert small.fetched() == []


@pytest.mark.parametrize("need", [0, 1, 50 * MIB])
def test_what_was_set_aside_is_given_back(tmp_path, need):
    with ext4(tmp_path / "disk") as disk:
        before = free(disk)
        capacity.require(disk, need)
        assert free(disk) == before
        assert os.listdir(disk) == ["lost+found"]


def test_a_filesystem_that_cannot_set_room_aside_is_believed(tmp_path, small_parts):
    with ext4(tmp_path / "old", "200M", "-O", "^extent,^64bit") as disk:
        with open(f"{disk}/probe", "wb") as stream:
            assert capacity._fallocate(stream.fileno(), 4096) == errno.EOPNOTSUPP
        os.unlink(f"{disk}/probe")
        capacity.require(disk, 10 * MIB)
        assert os.listdir(disk) == ["lost+found"]
        with pytest.raises(VolumeError, match="too few"):
            capacity.require(disk, free(disk) - capacity.RESERVE + 1)
        source = Scripted({"a": seeded(1).randbytes(9 * small_parts)})
        fill(source, disk)
        assert published(disk) == source.contents


def test_a_filesystem_that_counts_no_blocks_is_not_taken_for_a_full_one(tmp_path):
    with ramfs(tmp_path / "ramfs") as volume:
        assert os.statvfs(volume).f_blocks == 0
        capacity.require(volume, MIB)
        assert os.listdir(volume) == []


def test_a_plan_longer_than_a_file_may_be_is_no_lack_of_room(tmp_path):
    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (10 * MIB, 10 * MIB))
        capacity.require(str(tmp_path), 100 * MIB)

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    assert not run_child(limited), "shards of less than 10 MiB would fit"
    assert os.listdir(tmp_path) == []


def test_a_volume_with_no_room_for_a_copy_of_what_was_left_fetches_anew(tmp_path, small_parts):
    """Or no run would ever get past what a killed one left."""
    with runs.tmpfs(str(tmp_path / "volume"), "190m") as volume:
        source = Scripted({"model.safetensors": seeded(1).randbytes(110 * MIB)})

        def reading(*_):
            if source.delivered >= 100 * MIB:
                os.kill(os.getpid(), signal.SIGKILL)

        source.reading = reading
        assert run_child(lambda: fill(source, volume))
        source.reading = lambda *_: None
        (name,) = stagings(volume)
        assert os.path.exists(partial.place(f"{volume}/v1/staging/{name}", "model.safetensors"))
        assert free(volume) < 95 * MIB, "no room for both"
        fill(source, volume)
        assert published(volume) == source.contents
        assert stagings(volume) == []
        assert_invariants(volume)
