"""One episode: a world of its own, tries of one fault, and after each the same questions.

As a program it is a worker of the campaign: seeds on stdin, a JSON line for each on stdout.
"""

import dataclasses
import json
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "support"), str(HERE.parents[1])]

import faults
import plants
import processes  # noqa: F401 - these three add theirs
import running
import sites
import storage  # noqa: F401
import wires  # noqa: F401
import worlds


@dataclasses.dataclass
class Told:
    """What an episode found.

    Attributes:
        seed: of it.
        tried: faults that met something at work.
        wrong: violations, a sentence each.
        seconds: how long it took.
    """

    seed: str
    tried: int
    wrong: list
    seconds: float


def play(site, seed, *, long=0.0, keep="", tries=0):
    """Play the episode of a seed, ``fault/lock/number``.

    Args:
        site: the worker's.
        seed: what happens follows from it, though not when the machine does what.
        long: the share of outages that last for a minute.
        keep: where to leave the logs of one that found something.
        tries: how many at most; 0: as the fault says.
    """
    began = time.monotonic()
    name, lock, _ = seed.split("/")
    fault = faults.FAULTS[name]
    top = tempfile.mkdtemp(prefix="episode-", dir=site.top)
    disk = fault.disk(top, random.Random(f"disk {seed}"))  # noqa: S311 - not a secret
    world = worlds.World(site, disk, lock, seed, long=long)
    try:
        for _ in range(tries or fault.tries):
            attempt(world, fault)
            if world.wrong:
                break
    except Exception:  # noqa: BLE001 - an episode that fails is told as one
        world.wrong.append(f"the campaign itself failed:\n{traceback.format_exc()}")
    finally:
        site.services.ask("all", "heal")
        running.end_all(site.spared() | ({disk.daemon.pid} if disk.daemon else set()))
        disk.close()
        if world.wrong and keep:
            shutil.copytree(world.logs, f"{keep}/{seed.replace('/', '-')}", dirs_exist_ok=True)
        shutil.rmtree(top, ignore_errors=True)
    return Told(seed, world.tried, world.wrong, round(time.monotonic() - began, 2))


def attempt(world, fault):
    """Try once: fault, judgement, recovery, judgement."""
    runs, codes = fault.once(world)
    faults.finish(world, [run for run in runs if run.poll() is None])
    world.end(runs, codes)
    faults.learn(runs)
    world.orphans()
    if world.ledger.gone:
        world.forgive()
    world.judge(runs)
    world.recover(runs)


def warm_up():
    """Import what the command line imports as it goes, so that forks need not."""
    import boto3  # noqa: F401, PLC0415
    import huggingface_hub  # noqa: PLC0415
    import lightkube  # noqa: F401, PLC0415
    import requests  # noqa: F401, PLC0415
    import zstandard  # noqa: F401, PLC0415
    from huggingface_hub import HfApi, constants  # noqa: F401, PLC0415

    import warmer.cli.gc  # noqa: PLC0415
    import warmer.cli.prefill  # noqa: PLC0415
    import warmer.cli.sidecar  # noqa: PLC0415
    import warmer.fill.locks.kubernetes  # noqa: PLC0415
    import warmer.fill.locks.s3  # noqa: PLC0415
    import warmer.fill.sources.hub  # noqa: PLC0415
    import warmer.fill.sources.s3  # noqa: PLC0415
    import warmer.gc  # noqa: PLC0415
    import warmer.prefill  # noqa: PLC0415
    import warmer.sidecar  # noqa: F401, PLC0415
    from warmer.fill import engine  # noqa: PLC0415

    assert huggingface_hub
    constants.HF_HUB_DISABLE_TELEMETRY = True
    # The campaign's engine is quickly ready, and then writes nothing more.
    engine._POLL = 0.02
    engine._wait_settled = lambda _snapshot: None


def main():
    how = json.loads(sys.argv[1])
    running.adopt_orphans()
    running.see([])  # or other workers' pods would keep this one's disks mounted
    warm_up()
    if how["plant"]:
        plants.PLANTS[how["plant"]]()
    top = os.path.realpath(tempfile.mkdtemp(prefix="worker-", dir=how["top"]))
    site = sites.Site(top, s3=how["s3"])
    try:
        for line in sys.stdin:
            told = play(site, line.strip(), **how["play"])
            print(json.dumps(dataclasses.asdict(told)), flush=True)
    finally:
        site.close()
        shutil.rmtree(top, ignore_errors=True)


if __name__ == "__main__":
    main()
