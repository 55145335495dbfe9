"""Classes of faults: what each is, where it happens, and one try of it.

A try starts work in a world, causes the fault for real at an instant that the seed chooses, ends it,
and returns what ran, and with which statuses that may have ended. Looking and recovering are the
episode's.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import disks

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
            world.aged = True
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
