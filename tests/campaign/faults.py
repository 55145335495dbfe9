"""Classes of faults: what each is, where it happens, and one try of it.

A try starts work in a world, causes the fault for real at an instant that the seed chooses, ends it,
and returns what ran, and with which statuses that may have ended. Looking and recovering are the
episode's.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import disks
from worlds import LEASE

if TYPE_CHECKING:
    from collections.abc import Callable

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))

LOCKS = ("file", "k8s", "s3")
DONE, BUSY, SOURCE, INTEGRITY, VOLUME, ENGINE = 0, 3, 4, 5, 6, 7


@dataclasses.dataclass(frozen=True)
class Fault:
    """A class: its name, what really happens, the disk it needs, its tries an episode, the try."""

    name: str
    what: str
    disk: Callable
    once: Callable
    tries: int = 4
    locks: tuple = LOCKS


FAULTS: dict[str, Fault] = {}


def fault(name, what, *, disk=lambda world_top, _choose: disks.Memory(world_top), **how):
    def add(once):
        FAULTS[name] = Fault(name, what, disk, once, **how)
        return once

    return add


# --- work ----------------------------------------------------------------------------------------


def begin(world, *, most=3, verbs=True, **how):
    """Start something in some pods: prefills mostly, of few models, so that they meet."""
    count = world.choose.randint(1, most)
    models = [world.model() for _ in range(world.choose.choice((1, 1, 2)))]
    runs = []
    for pod in world.choose.sample(world.pods, count):
        if world.choose.random() < 0.4:
            world.new_pod(pod)
        verb = world.choose.random()
        if verbs and pod.model and verb < 0.3:
            runs += other_verb(world, pod, verb / 0.3)
            continue
        compiles = "never" if world.choose.random() < 0.3 else "run"
        runs.append(world.prefill(pod, world.choose.choice(models), "--compile", compiles, **how))
    return runs


def other_verb(world, pod, which):
    """In a pod that had a prefill: gc, a deep check, a server's restart, or a harvest."""
    if which < 0.25:
        if world.choose.random() < 0.5:
            age(world.volume, 2)
        return [world.gc(pod)]
    if which < 0.45:
        return [world.deep(pod)]
    if not os.path.exists(f"{pod.warm}/handoff/serve"):
        return [world.prefill(pod, pod.model)]
    server = world.serve(pod)
    return [server] if which < 0.75 else [server, world.sidecar(pod)]


TYPICAL = {"prefill": 1.6, "gc": 0.3, "deep": 0.1, "serve": 0.5, "sidecar": 2.5}
"""Seconds after which a kill of each may come; adapted to the machine by `learn`."""


def learn(runs):
    for run in runs:
        if run.name == "prefill":
            least = max(0.3, min(6.0, TYPICAL["prefill"] * (1.03 if run.met else 0.95)))
            TYPICAL["prefill"] = least


def instants(world, runs):
    """An instant for each, sorted: (when, run)."""
    now = time.monotonic()
    chosen = [(now + world.choose.random() * TYPICAL[run.name], run) for run in runs]
    return sorted(chosen, key=lambda pair: pair[0])


def until(instant):
    time.sleep(max(0.0, instant - time.monotonic()))


def finish(world, runs):
    """Let servers and sidecars, which do not end by themselves, work a little; then end them."""
    for run in runs:
        if run.name in ("serve", "sidecar"):
            run.wait(world.choose.uniform(0.2, 1.5))
            if run.name == "serve":
                run.kill_all()
            else:
                run.signal(signal.SIGTERM)


def age(volume, days):
    """Let all on a volume be older, by the one clock it has."""
    import aging  # noqa: PLC0415 - the path to it is set above

    for _ in range(5):
        try:
            aging.age_all(volume, days)
        except FileNotFoundError:
            continue  # somebody is at work on it
        return


# --- processes -----------------------------------------------------------------------------------


def armed(number, *, torn):
    """Be killed before the nth change of a disk, or in the middle of the nth write."""

    def before():
        import volumes  # noqa: PLC0415 - as above

        volumes._arm(number, torn=torn)

    return before


@fault("kill", "SIGKILL of the process, at a random instant", tries=8)
def kill(world):
    runs = begin(world)
    for when, run in instants(world, runs):
        until(when)
        world.tried += not run.met and run.signal(signal.SIGKILL)
    return runs, {DONE, BUSY}


@fault("kill-group", "SIGKILL of all it started too, as of a container", tries=8)
def kill_group(world):
    runs = begin(world)
    for when, run in instants(world, runs):
        until(when)
        world.tried += not run.met and run.kill_all()
    return runs, {DONE, BUSY}


@fault("kill-step", "SIGKILL before the nth change of a disk, or in the nth write", tries=8)
def kill_step(world):
    count, runs = world.choose.randint(1, 3), []
    model = world.model()
    for pod in world.choose.sample(world.pods, count):
        if world.choose.random() < 0.5:
            world.new_pod(pod)
        last = int(world.choose.uniform(1, 17) ** 2)
        before = armed(last, torn=world.choose.random() < 0.3)
        runs.append(world.prefill(pod, model, before=before))
    for run in runs:
        run.wait(60)
        if run.status == -signal.SIGKILL:
            run.sent = signal.SIGKILL
            world.tried += 1
    return runs, {DONE, BUSY}


@fault("term", "SIGTERM or SIGINT, also while Python starts", tries=6)
def term(world):
    before = world.stagings()
    runs = begin(world, fresh=world.choose.random() < 0.4)
    for when, run in instants(world, runs):
        until(when)
        number = world.choose.choice((signal.SIGTERM, signal.SIGTERM, signal.SIGINT))
        if run.name == "serve":
            run.kill_all()  # a shell, as the kubelet's SIGTERM finds it
        elif run.signal(number):
            world.tried += 1
            if not run.wait(20):
                world.say(f"did not end within 20 s of {number}", run)
    left = world.stagings() - before
    if left and not any(run.sent == signal.SIGKILL for run in runs):
        world.say(f"signals left {sorted(left)} staged", runs[0])
    return runs, {DONE, BUSY}


@fault("pause", "SIGSTOP of a process and its children past its lease; then SIGCONT", tries=3)
def pause(world):
    runs = begin(world, most=2, verbs=False)
    frozen = []
    for when, run in instants(world, runs[:1]):
        until(when)
        frozen = run.stop()
        world.tried += bool(frozen)
    spare = [pod for pod in world.pods if pod not in {run.pod for run in runs}]
    rival = world.prefill(spare[0], runs[0].model)
    rival.wait(world.choose.uniform(LEASE * 1.1, LEASE * 2.5))
    import running  # noqa: PLC0415

    running.thaw(frozen)
    return [*runs, rival], {DONE, BUSY}


# --- clocks --------------------------------------------------------------------------------------


@fault("clock", "the wall clock of a process jumps by minutes, to and fro (libfaketime)", tries=3)
def clock(world):
    import libfaketime  # noqa: PLC0415 - whoever lacks it can try the rest

    fake = Path(libfaketime.__file__).parent / "vendor/libfaketime/src/libfaketime.so.1"
    file = Path(world.top, "clock")

    def jump(offset):
        file.with_suffix(".fresh").write_text(f"{offset:+d}\n")
        file.with_suffix(".fresh").replace(file)

    jump(world.choose.choice((-600, 0, 600)))
    env = {"LD_PRELOAD": str(fake), "DONT_FAKE_MONOTONIC": "1", "FAKETIME_NO_CACHE": "1"}
    env["FAKETIME_TIMESTAMP_FILE"] = str(file)
    runs = begin(world, most=2, verbs=False, fresh=True, env=env)
    for _ in range(3):
        time.sleep(world.choose.uniform(0.1, 0.7))
        jump(world.choose.choice((-86_400, -600, -5, 5, 600, 86_400)))
    world.tried += 1
    return runs, {DONE, BUSY, SOURCE}  # S3 refuses a clock that is far off


# --- disks ---------------------------------------------------------------------------------------


def small(top, _choose):
    return disks.Small(top)


@fault("no-space", "ENOSPC: a quota (tmpfs) too small from the start, or from some instant on", disk=small, tries=3)
def no_space(world):
    left = world.choose.choice((0, 4096, 30_000, 100_000, 67_000_000 + 50_000))
    early = world.choose.random() < 0.3
    if early:
        world.disk.shrink(left)
    runs = begin(world, verbs=False)
    if not early:
        until(instants(world, runs[:1])[0][0])
        world.disk.shrink(left)
    world.tried += 1
    for run in runs:
        run.wait(60)
    world.disk.grow()
    return runs, {DONE, BUSY, VOLUME}


def loop(top, choose):
    options = choose.choice(("", "noauto_da_alloc", "data=writeback,noauto_da_alloc", "commit=1"))
    return disks.Loop(top, options=options)


@fault("filled", "ENOSPC: somebody else fills the ext4 while work is under way", disk=loop, tries=3)
def filled(world):
    runs = begin(world)
    until(instants(world, runs[:1])[0][0])
    ballast = Path(world.volume, "ballast")
    left = world.choose.choice((0, 0, 4096, 60_000))
    with ballast.open("wb", buffering=0) as stream:
        try:
            while True:
                stream.write(bytes(1 << 16))
        except OSError:
            pass
        stream.truncate(max(0, stream.tell() - left))
    world.tried += 1
    for run in runs:
        if run.name not in ("serve", "sidecar"):
            run.wait(60)
    finish(world, runs)
    ballast.unlink()
    return runs, {DONE, 1, BUSY, VOLUME}


@fault("power", "the power of an ext4 is cut: what was not flushed is lost", disk=loop, tries=3)
def power(world):
    runs = begin(world)
    done = set()
    for when, run in instants(world, runs)[:1]:
        until(when)
        run.poll()
    world.disk.cut_power()
    world.tried += 1
    done |= {run for run in runs if run.status == DONE and run.name == "prefill"}
    for run in runs:
        run.kill_all()
    for run in runs:
        run.wait(10)
    world.orphans()
    world.disk.remount()
    for run in done:
        import checker  # noqa: PLC0415

        lost = checker.handed(run.pod.warm) - checker.published(world.volume)
        if lost:
            world.say(f"acknowledged, and lost with the power: {sorted(lost)}", run)
    return runs, {DONE, 1, BUSY, VOLUME}


@fault("read-only", "an ext4 turns read-only with files open (emergency_ro)", disk=loop, tries=3)
def read_only(world):
    runs = begin(world)
    until(instants(world, runs[:1])[0][0])
    world.disk.end_read_only()
    world.tried += 1
    for run in runs:
        if run.name not in ("serve", "sidecar"):
            run.wait(60)
    finish(world, runs)
    for run in runs:
        run.wait(20)
    world.orphans()
    world.disk.remount()
    return runs, {DONE, 1, BUSY, VOLUME}


def fuse(top, _choose):
    return disks.Fuse(top)


def failing(world, rules, codes):
    runs = begin(world)
    until(instants(world, runs[:1])[0][0])
    world.disk.fail(*rules)
    world.tried += 1
    for run in runs:
        if run.name not in ("serve", "sidecar"):
            run.wait(world.choose.uniform(0.5, 3))
    finish(world, runs)
    world.disk.heal()
    return runs, codes


@fault("io-error", "EIO of reads, writes, flushes, renames, in a share of them", disk=fuse, tries=3)
def io_error(world):
    ops = ("write", "fsync", "read", "rename", "mkdir|create|open", "write|read|fsync|rename")
    rule = {"op": world.choose.choice(ops), "errno": errno.EIO}
    rule |= {"share": world.choose.choice((0.05, 0.3, 1))}
    if world.choose.random() < 0.3:
        rule["times"] = 1
    return failing(world, [rule], {DONE, 1, BUSY, INTEGRITY, VOLUME})


@fault("short-write", "writes that take half of what they are given", disk=fuse, tries=3)
def short_write(world):
    rule = {"op": "write", "short": True, "share": world.choose.choice((0.1, 0.5, 0.9))}
    return failing(world, [rule], {DONE, BUSY})


def late(number):
    return lambda top, choose: disks.Late(top, errno=number, asks=choose.choice((1, 3, 10, 40)))


def unseen(world):
    """One pod sees through the late view, the others publish."""
    blind = world.pods[0]
    blind.view = world.disk.view
    model = world.model()
    first = world.prefill(blind, model)
    time.sleep(world.choose.uniform(0, TYPICAL["prefill"]))
    second = world.prefill(world.choose.choice(world.pods[1:]), model)
    world.tried += 1
    return [first, second], {DONE, BUSY}


@fault("late", "what another node published is not seen for a while", disk=late(errno.ENOENT), tries=3)
def not_seen(world):
    return unseen(world)


@fault("stale", "what another node published answers ESTALE for a while", disk=late(errno.ESTALE), tries=3)
def stale(world):
    return unseen(world)


@fault("removed", "rm -rf of half the volume under work", tries=3)
def removed(world):
    runs = begin(world)
    until(instants(world, runs[:1])[0][0])
    for directory, names, files in os.walk(f"{world.volume}/v1", topdown=True):
        for name in (*names, *files):
            if world.choose.random() < (0.5 if directory.count("/") > 6 else 0.2):
                path = os.path.join(directory, name)
                shutil.rmtree(path, ignore_errors=True) if name in names else _unlink(path)
    world.tried += 1
    for run in runs:
        if run.name not in ("serve", "sidecar"):
            run.wait(60)
    finish(world, runs)
    world.ledger.gone = True
    return runs, {DONE, 1, BUSY, INTEGRITY, VOLUME, ENGINE}


def _unlink(path):
    try:
        os.unlink(path)
    except OSError:
        pass
