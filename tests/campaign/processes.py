"""Faults of processes: killed, told to end, frozen, and their clocks."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import libfaketime
import running
import volumes
from faults import BUSY, DONE, SOURCE, begin, fault, instants, until
from worlds import LEASE


def armed(number, *, torn):
    """Be killed before the nth change of a disk, or in the middle of the nth write."""

    def before():
        volumes._arm(number, torn=torn)

    return before


@fault("kill", "SIGKILL of the process, at a random instant", tries=8)
def kill(world):
    # At times an engine with a process that heeds no SIGTERM and says nothing: an EngineCore.
    deaf = {"env": {"FAKE_ENGINE": "leave-child"}} if world.choose.random() < 0.3 else {}
    runs = begin(world, verbs=not deaf, **deaf)
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
    running.thaw(frozen)
    return [*runs, rival], {DONE, BUSY}


@fault("clock", "the wall clock of a process jumps by minutes, to and fro (libfaketime)", tries=3)
def clock(world):
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
