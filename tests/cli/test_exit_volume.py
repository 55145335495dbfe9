"""Exit code 6: the volume or the warm dir failed, on real filesystems."""

import os
import re
import subprocess
import sys

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import runs

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts filesystems, as root alone may")

SHARD = runs.SHARDS[1]
RESERVE = 64 << 20  # what warmer leaves free on a volume


@pytest.fixture(scope="module")
def seeded(tmp_path_factory):
    with runs.place(tmp_path_factory.mktemp("place")) as place:
        place.warmed()
        yield place


@pytest.fixture
def place(seeded, tmp_path):
    seeded.hub.faults.clear()
    return seeded.fresh(tmp_path)


@pytest.fixture
def small(place, tmp_path):
    """A volume of 100 MB that holds the other model already."""
    with runs.tmpfs(str(tmp_path / "small"), "100m") as path:
        small = place.but(volume=path)
        small.but(model=place.pinned(runs.REPO), warm=str(tmp_path / "earlier")).warmed()
        yield small


def free(path):
    info = os.statvfs(path)
    return info.f_bavail * info.f_frsize


def leave(path, size):
    """Fill a filesystem until `size` bytes are free."""
    step, end = free(path) - size, 0
    with open(f"{path}/ballast", "wb") as stream:
        while step >= 4096:
            try:
                os.posix_fallocate(stream.fileno(), end, step)
                end += step
            except OSError:  # others were faster
                step //= 2
            if size:
                return


def test_a_volume_that_is_not_there(place, tmp_path):
    gone = place.but(volume=str(tmp_path / "gone"))
    gone.fails(6, "missing", gone.volume)
    assert gone.run("plan").code == 6
    assert not os.path.exists(gone.volume), "warmer makes no mount points"


def test_a_volume_that_is_a_file(place, tmp_path):
    (tmp_path / "file").write_text("")
    place.but(volume=str(tmp_path / "file")).fails(6, "missing", str(tmp_path / "file"))


def test_a_volume_too_small_is_refused_before_a_byte_is_fetched(small):
    leave(small.volume, RESERVE + 1_000_000)
    asked = len(small.hub.requests)
    error = small.fails(6, "no-space", "free")
    got, expected, short = map(int, re.findall(r"\d+", error["message"]))
    assert (got, expected - got) == (free(small.volume), short)
    model = os.path.join(small.hub.root, runs.OTHER)
    assert expected - RESERVE == sum(
        os.stat(f"{model}/{name}").st_size for name in os.listdir(model)
    )
    assert small.fetched(asked) == []


def test_a_volume_that_others_fill_during_the_download(small):
    before = runs.published(small.volume)
    asked = len(small.hub.requests)
    small.hub.fault(SHARD, rate=1_000_000)
    filling = small.start("prefill", "--json")
    try:
        runs.eventually(lambda: SHARD in small.fetched(asked))
        leave(small.volume, 0)
    finally:
        result = runs.finish(filling)
    runs.failed(result, 6, "no-space", "the volume", compared=False)
    runs.nothing_lost(small, before)
    assert not os.path.exists(f"{small.warm}/handoff/handoff.json")
    os.unlink(f"{small.volume}/ballast")
    small.warmed()


def test_a_read_only_volume_with_something_missing(place):
    with runs.read_only(place.volume):
        place.fails(6, "read-only", "the volume", compared=False)


def test_a_read_only_volume_with_everything_sealed_works(place, tmp_path):
    sealed = place.but(model=place.pinned(runs.REPO))
    sealed.but(warm=str(tmp_path / "filling")).warmed()
    engines = len(place.engine.starts)
    before = runs.published(place.volume)
    with runs.read_only(place.volume):
        # A warm dir at another path would be another key: this one is the path that was sealed.
        os.rename(tmp_path / "filling", tmp_path / "filled")
        ready = sealed.but(warm=str(tmp_path / "filling"))
        done = ready.warmed()
        assert done.json["seconds"].keys() == {"observe", "restore", "handoff"}
        assert done.json["without"] == {}
        assert ready.run("check", "--deep").code == 0
        assert ready.run("plan").code == 0
        assert ready.warmed().json["warm"] is True
    assert len(place.engine.starts) == engines
    runs.nothing_lost(ready, before)


def test_a_read_only_volume_without_the_kernels_starts_cold(place):
    sealed = place.but(model=place.pinned(runs.REPO))
    with runs.read_only(place.volume):
        done = sealed.warmed(serve=("--max-model-len", "1024"))
        assert set(done.json["without"]) == {"compile"}
        assert sealed.run("check").code == 0
        strict = sealed.run(
            "prefill",
            "--json",
            "--on-miss",
            "kernels=fail",
            serve=("--max-model-len", "1024"),
        )
        runs.failed(strict, 6, "read-only", "the volume", compared=False)


def test_a_warm_dir_that_cannot_be_written(place):
    with runs.tmpfs(place.warm, "1m"):
        subprocess.run(["mount", "-o", "remount,ro", place.warm], check=True)
        place.fails(6, "read-only", "the warm dir", place.warm, compared=False)


def test_a_warm_dir_that_is_a_file(place, tmp_path):
    (tmp_path / "file").write_text("mine")
    for warm in (str(tmp_path / "file"), str(tmp_path / "file" / "below")):
        place.but(warm=warm).fails(6, "not-a-directory", "the warm dir", warm, compared=False)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_warm_dir_too_small_for_the_kernels_leaves_the_volume_whole(place):
    with runs.tmpfs(place.warm, "40k"):
        strict = place.run("prefill", "--json", "--on-miss", "kernels=fail")
        runs.failed(strict, 7, "engine-exited", "No space left on device", compared=False)
        assert len(place.generations("weights")) == 2
        assert len(place.generations("compile")) == 1
        assert (place.staged(), place.held()) == ([], [])


def test_a_warm_dir_is_made_where_there_is_none(place, tmp_path):
    place.but(warm=str(tmp_path / "deep" / "warm")).warmed()
