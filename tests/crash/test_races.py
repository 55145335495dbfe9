"""Other owners' acts between two of ours: what they published is taken, seen late or stale or not.

Each act is done for real, at the instant that hurts most; what it spoils is looked at again.
"""

import contextlib
import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent.parent / "support"), str(Path(__file__).parent)]
sys.path.insert(0, str(Path(__file__).parent.parent / "doctor"))

import doctors
import pods
import runs
import volumes

from warmer import stages
from warmer.fill import engine, kernels, publish, restore, trees, weights
from warmer.fill.locks.file import FileLock
from warmer.layout import Volume

LATE = pytest.mark.skipif(
    not doctors.can_lie(), reason="needs root, /dev/fuse, libfuse and the package mfusepy"
)


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "_AGAIN", 0.05, raising=False)
    site = pods.Site(tmp_path, pods.gpu_engine(f"{tmp_path}/engine", monkeypatch))
    # The kernel's lock, though a FUSE mount would be given tickets, which take seconds to draw.
    lock = FileLock(Volume(site.volume), me="a pod")
    monkeypatch.setattr(pods.prefill, "open_lock", lambda *_, **__: lock)
    return site


@contextlib.contextmanager
def late(under, point, error, asks):
    os.makedirs(point)
    argv = [sys.executable, str(Path(__file__).with_name("late.py")), under, point]
    process = subprocess.Popen([*argv, str(error), str(asks)])
    try:
        runs.eventually(lambda: os.path.ismount(point) or process.poll() is not None, timeout=30)
        assert process.poll() is None, "it does not mount"
        yield point
    finally:
        subprocess.run(["umount", "-l", point], check=False)
        process.kill()
        process.wait()


def before(module, name, act, *, when=lambda *_, **__: True):
    """Have another owner act just before the first call of a function that is meant."""
    real, done = getattr(module, name), []

    def call(*args, **how):
        if not done and when(*args, **how):
            done.append(act())
        return real(*args, **how)

    setattr(module, name, call)


def look(pod):
    return pods.situation.look(pod.settings())


@LATE
@pytest.mark.parametrize("kind", ["weights", "compile"])
@pytest.mark.parametrize("error", [errno.ENOENT, errno.ESTALE], ids=["missing", "stale"])
def test_what_another_published_first_is_waited_for_until_it_is_seen(site, tmp_path, kind, error):
    pod = site.pods[0]
    pods.run(pod.prefill)
    (won,) = site.generations(kind)
    seal = Path(won, "seal.json").read_bytes()
    os.rename(won, f"{site.volume}/theirs")
    if kind == "weights":
        shutil.rmtree(f"{site.volume}/v1/pieces/compile")
    started = len(pod.engine.starts)
    site.new_pod()
    with late(site.volume, f"{tmp_path}/point", error, 16) as point:
        here = pod.but(volume=point)

        def overtaken():
            before(
                publish,
                "publish",
                lambda: os.rename(f"{site.volume}/theirs", won),
                when=lambda _, staging, **__: staging.key.kind == kind,
            )
            here.prefill()

        pods.run(overtaken)
        pods.run(here.clean)
    assert site.generations(kind) == [won]
    assert Path(won, "seal.json").read_bytes() == seal
    assert len(pod.engine.starts) == started + 1, "what is published was built once more"
    volumes.assert_invariants(site.volume, warm=[site.warm], clean=True)


@LATE
def test_one_who_waits_for_an_owner_bears_with_a_stale_name(site, tmp_path):
    pod = site.pods[0].but(compile="never")
    pods.run(pod.prefill)
    (won,) = site.generations("weights")
    os.rename(won, f"{site.volume}/theirs")
    with late(site.volume, f"{tmp_path}/point", errno.ESTALE, 16) as point:

        def waits():
            before(weights, "fill", lambda: os._exit(1))  # it is there: nobody has to fill it again
            before(
                stages,
                "fill_weights",
                lambda: os.rename(f"{site.volume}/theirs", won),
            )
            pod.but(volume=point).prefill()

        pods.run(waits)
    assert site.generations("weights") == [won]


def test_a_corrupt_generation_that_another_moves_aside_first_is_built_anew(site):
    pod = site.pods[0]
    pods.run(pod.prefill)
    (bad,) = site.generations("compile")
    runs.flip(f"{bad}/tree.tar.zst")
    site.new_pod()

    def second():
        key = look(pod).wanted.keys["compile"]
        before(
            stages,
            "set_aside",
            lambda: publish.quarantine(Volume(site.volume), key, 1),
        )
        pod.prefill()

    pods.run(second, pod.clean)
    assert [os.path.basename(path) for path in site.generations("compile")] == ["2"]
    assert len(runs.listing(f"{site.volume}/v1/quarantine")) == 1
    volumes.assert_invariants(site.volume, warm=[site.warm], clean=True)


def test_weights_that_are_gone_again_take_the_kernels_of_their_path_with_them(site):
    """The server will fetch the model under its name, for which these were not built."""
    pod = site.pods[0]
    pods.run(pod.prefill)
    quarantine = lambda: publish.quarantine(Volume(site.volume), key, 2)  # noqa: E731 - an act
    key = look(pod).wanted.keys["weights"]
    publish.quarantine(Volume(site.volume), key, 1)
    started = len(pod.engine.starts)

    def overtaken():
        before(pods.prefill, "again", quarantine)
        chosen = dataclasses.replace(
            pod.settings(), on_miss=pods.settings.parse_on_miss(["weights=cold", "kernels=cold"])
        )
        done = pods.prefill.prefill(chosen)
        assert done.without.keys() == {"weights", "compile", "flashinfer", "jit"}

    pods.run(overtaken)
    assert len(pod.engine.starts) == started, "an engine was run without its model"
    handoff = json.loads(Path(site.warm, "handoff/handoff.json").read_bytes())
    assert "sealed" not in {piece["verdict"] for piece in handoff["pieces"]}


def test_a_generation_that_is_moved_aside_while_it_is_restored_is_built_anew(site):
    pod = site.pods[0]
    pods.run(pod.prefill)
    site.new_pod()

    def overtaken():
        key = look(pod).wanted.keys["compile"]
        before(restore, "restore", lambda: publish.quarantine(Volume(site.volume), key, 1))
        pod.prefill()

    pods.run(overtaken, pod.clean)
    assert [os.path.basename(path) for path in site.generations("compile")] == ["2"]
    volumes.assert_invariants(site.volume, warm=[site.warm], clean=True)


def test_a_corrupt_piece_that_is_stale_too_is_moved_aside_and_built_anew(site):
    pod = site.pods[1]
    pods.run(site.pods[0].prefill, pod.prefill)
    keys = look(pod).wanted.keys
    publish.quarantine(Volume(site.volume), keys["jit"], 2)
    bad = f"{site.volume}/v1/pieces/compile/{keys['compile'].digest}/1"
    runs.flip(f"{bad}/tree.tar.zst")
    site.new_pod()
    assert look(pod).held.held["compile"].verdict == "stale"
    pods.run(pod.clean)
    assert not os.path.exists(bad)
    volumes.assert_invariants(site.volume, warm=[site.warm], clean=True)


def test_a_torn_newest_generation_does_not_hide_the_whole_one_before_it_from_the_next(site):
    first, second, third = site.pods
    pods.run(first.prefill, second.but(compile="never").prefill, third.prefill)
    one, two = site.generations("jit")
    os.rename(two, f"{site.volume}/theirs")
    site.new_pod()

    def others():
        os.rename(f"{site.volume}/theirs", two)
        shutil.copytree(two, f"{os.path.dirname(two)}/3")
        os.truncate(f"{os.path.dirname(two)}/3/seal.json", 100)

    def overtaken():
        run = kernels.engine.run

        def ran(**how):
            done = run(**how)
            others()
            return done

        kernels.engine.run = ran
        second.prefill()

    pods.run(overtaken)
    four = f"{os.path.dirname(two)}/4"
    assert pods.manifest(one).items() < pods.manifest(two).items() < pods.manifest(four).items()
    site.damaged = f"{os.path.dirname(two)}/3"
    site.published()


@pytest.mark.parametrize("kind", ["weights", "compile", "jit"])
def test_what_a_successor_stages_is_not_swept_by_one_who_does_not_know_of_it(site, kind):
    """Who is frozen after it got the lock wakes beside its successor."""
    pod = site.pods[0]

    def woken():
        key = look(pod).wanted.keys[kind]
        begin = lambda: volumes.begin(Volume(site.volume), key)  # noqa: E731 - an act
        if kind == "weights":
            before(weights, "_refuse_paths", begin)
        elif kind == "compile":
            before(engine, "_ask", begin)
        else:
            before(trees, "publish_tree", begin, when=lambda _, __, key, **___: key.kind == kind)
        pod.prefill()

    pods.run(woken)
    (left,) = runs.listing(f"{site.volume}/v1/staging")
    assert left.startswith(f"{kind}-")
