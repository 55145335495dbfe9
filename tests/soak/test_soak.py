"""A soak that grows, that fails or that sees nothing is told from one that is steady."""

import json
import math
import os
import random
import subprocess
import sys
from contextlib import contextmanager

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "..", "support"), HERE]
import aging
import fakeengine
import runs
import sampler
import verdict

MEASURES = {"volume_files": 300, "warm_files": 200, "fds": 12, "rss_kb": 80_000, "processes": 2}
EVERY = 60.0


def samples(count=120, **series):
    """Samples of a soak in which nothing grows, but for the series given: number → value."""
    found = []
    for n in range(count):
        one = {"time": EVERY * (n + 1)} | dict.fromkeys(verdict.MOVING, 10 * n) | MEASURES
        found.append(one | {name: of(n) for name, of in series.items()})
    return found


def judged(some, failures=0):
    return verdict.judge(some, failures=failures, every=EVERY)


NOISE = random.Random(1)  # noqa: S311 - the same noise each time


@pytest.mark.parametrize(
    "level",
    [
        lambda n: 300,
        lambda n: 300 + n % 12 * 20,
        lambda n: 300 + NOISE.randint(-60, 60),
        lambda n: min(300, 10 * (n + 1)),
        lambda n: 301 if n == 100 else 300,
        lambda n: 300 - n,
        lambda n: 5000 if n == 119 else 300,
        lambda n: 300 - round(40 * math.cos(n / 120 * 4 * math.pi)) * (n < 90) + 30 * (n >= 90),
    ],
    ids=["flat", "sawtooth", "noise", "filled once", "a blip", "falling", "one outlier", "a wave"],
)
def test_what_keeps_a_level_is_steady(level):
    assert judged(samples(volume_files=level))["verdict"] == "steady"


@pytest.mark.parametrize(
    ("name", "series"),
    [
        ("volume_files", lambda n: 300 + n),
        ("volume_files", lambda n: 300 + n // 2 + NOISE.randint(-5, 5)),
        ("volume_files", lambda n: 300 + n % 12 * 3 + n // 2),
        ("fds", lambda n: 12 + n // 15),
        ("rss_kb", lambda n: 80_000 + 100 * n),
        ("locks_held", lambda n: n // 40),
        ("zombies", lambda n: 0 if n < 70 else n - 70),
    ],
    ids=["a file a minute", "in noise", "on a sawtooth", "a descriptor in a quarter of an hour",
         "6 MB an hour", "a lock in 40 minutes", "from the middle on"],
)  # fmt: skip
def test_what_grows_is_named(name, series):
    found = judged(samples(**{name: series}))
    assert (found["verdict"], found["why"]) == ("grows", name)
    assert found["measures"][name]["grows"] is True


def test_what_was_kept_is_judged_again(tmp_path):
    codes = []
    for more in ({}, {"fds": lambda n: 12 + n}):
        kept = tmp_path / "samples.jsonl"
        lines = [json.dumps(one | {"failures": 0}) + "\n" for one in samples(**more)]
        kept.write_text("".join(lines))
        argv = [sys.executable, os.path.join(HERE, "verdict.py"), str(kept)]
        codes.append(subprocess.run(argv, stdout=subprocess.DEVNULL, check=False).returncode)
    assert codes == [0, 1]


def test_a_failure_is_no_steady_soak():
    assert judged(samples(), failures=1)["verdict"] == "failed"


def without(name):
    return [{k: v for k, v in one.items() if k != name} for one in samples()]


@pytest.mark.parametrize(
    ("some", "word"),
    [
        ([], "0 samples"),
        (samples(15), "8 samples"),
        (without("fds"), "fds"),
        (without("time"), "time"),
        ([*samples()[:-1], samples()[-1] | {"more": 1}], "more"),
        (samples(fds=lambda n: math.nan), "nan"),
        (samples(fds=lambda n: None), "None"),
        (samples(volume_files=lambda n: -1), "-1"),
        (samples(rss_kb=lambda n: 0), "saw nothing"),
        (samples(processes=lambda n: 0 if n > 100 else 2), "saw nothing"),
        (samples(starts=lambda n: 5), "did not move"),
        (samples(removed_kb=lambda n: 0), "did not move"),
        (samples(time=lambda n: 5), "apart"),
        (samples(time=lambda n: EVERY * n * (100 if n == 119 else 1)), "apart"),
    ],
)
def test_a_sampler_that_sees_nothing_is_not_taken_for_a_steady_soak(some, word):
    found = judged(some)
    assert found["verdict"] == "broken"
    assert word in found["why"]


# --- the sampler sees what there is


@pytest.fixture
def where(tmp_path):
    top = os.fspath(tmp_path)
    for name in ("volume", "warm", "tmp", "home"):
        os.mkdir(f"{top}/{name}")
    engine = fakeengine.Engine(top, "", "", "")
    place = runs.Place(top, None, engine, f"{top}/volume", f"{top}/warm", "")
    argv = [sys.executable, "-S", "-c", "print(flush=True); input()", top]
    living = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    living.stdout.readline()  # it is there, and as large as it gets
    yield sampler.Where(place, [f"{top}/warm"], [f"{top}/tmp"], [living.pid])
    living.communicate(b"\n")


def write(path, data=b"x"):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as stream:
        stream.write(data)


@contextmanager
def held(path):
    write(path)
    script = (
        "import fcntl, struct, sys; f = open(sys.argv[1], 'r+b');"
        "fcntl.fcntl(f, fcntl.F_OFD_SETLK, struct.pack('hhqqi4x', fcntl.F_WRLCK, 0, 0, 0, 0));"
        "print(flush=True); input()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-S", "-c", script, path], **pipes) as holder:
        holder.stdout.readline()
        yield
        holder.communicate(b"\n")


def test_the_sampler_sees_each_thing_that_is_left(where):
    before = sampler.sample(where)
    top = where.place.top
    for path in ("volume/v1/staging/a/b", "volume/v1/trash/a", "volume/v1/taken/a", "warm/x",
                 "volume/v1/uses/a.json", "volume/v1/crashes/a", "volume/v1/quarantine/a", "tmp/x", "home/x"):  # fmt: skip
        write(f"{top}/{path}", b"x" * 20_000)
    aging.age(f"{top}/volume/v1/uses/a.json", 2)
    with held(f"{top}/volume/v1/locks/a.lock"):
        after = sampler.sample(where)
    grown = {name for name in after if after[name] > before[name]} - {"rss_kb"}  # it may, or not
    assert grown == after.keys() - {"fds", "rss_kb", "threads", "zombies"}
    assert sampler.sample(where)["locks_held"] == 0


def test_a_record_of_use_that_no_gc_has_met_is_not_left_over(where):
    os.makedirs(f"{where.place.top}/volume/v1/uses")
    before = sampler.sample(where)["volume_files"]
    write(f"{where.place.top}/volume/v1/uses/a.json")
    after = sampler.sample(where)
    assert (after["uses_left"], after["volume_files"]) == (0, before)


def test_the_sampler_sees_descriptors_threads_memory_and_the_unburied_of_what_lives(where):
    script = (
        "import os, threading; kept = [open('/dev/null') for _ in range(9)];"
        "more = 'x' * 30_000_000; [threading.Thread(target=threading.Event().wait, daemon=True)"
        ".start() for _ in range(2)]; os.fork() or os._exit(0); print(flush=True); input()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    before = sampler.sample(where)
    with subprocess.Popen([sys.executable, "-S", "-c", script], **pipes) as leaking:
        leaking.stdout.readline()
        found = runs.eventually(
            lambda: (
                one
                if (one := sampler.sample(where._replace(living=[leaking.pid])))["zombies"]
                else None
            )
        )
        leaking.communicate(b"\n")
    assert found["fds"] >= before["fds"] + 9
    assert found["threads"] == before["threads"] + 2
    assert found["rss_kb"] > before["rss_kb"] + 25_000
