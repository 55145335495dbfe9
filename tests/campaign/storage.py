"""Faults of the volume: full, failing, read-only, without power, late, half removed."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
from pathlib import Path

import checker
import disks
from faults import (
    BUSY,
    DONE,
    ENGINE,
    INTEGRITY,
    TYPICAL,
    VOLUME,
    begin,
    fault,
    finish,
    instants,
    until,
)


def small(top, _choose):
    return disks.Small(top)


@fault(
    "no-space",
    "ENOSPC: a quota (tmpfs) too small from the start, or from some instant on",
    disk=small,
    tries=3,
)
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


def late(number, asks):
    """A `disks.Late`; warmer looks thrice at what is stale, and waits for what it knows to be there."""
    return lambda top, choose: disks.Late(top, errno=number, asks=choose.choice(asks))


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


@fault(
    "late",
    "what another node published is not seen for a while",
    disk=late(errno.ENOENT, (1, 3, 10)),
    tries=3,
)
def not_seen(world):
    return unseen(world)


@fault(
    "stale",
    "what another node published answers ESTALE for a while",
    disk=late(errno.ESTALE, (1, 2, 3)),
    tries=3,
)
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
                if name in names:
                    shutil.rmtree(path, ignore_errors=True)
                with contextlib.suppress(OSError):
                    os.unlink(path)
    world.tried += 1
    for run in runs:
        if run.name not in ("serve", "sidecar"):
            run.wait(60)
    finish(world, runs)
    world.ledger.gone = True
    return runs, {DONE, 1, BUSY, INTEGRITY, VOLUME, ENGINE}
