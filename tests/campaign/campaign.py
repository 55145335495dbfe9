"""`make campaign`: random work against random faults, and what must always hold after each.

    campaign.py [--minutes M] [--hours H] [--seed S] [--workers N] [--only FAULTS] [--record FILE]

A number as the seed repeats a whole campaign's choices, ``fault/lock/number`` one episode's, several
with commas. The last line of stdout is one JSON object; the exit status is 1 where something was violated.
"""

import argparse
import collections
import contextlib
import datetime as dt
import json
import os
import queue
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "support"), str(HERE.parents[1])]

import faults
import processes  # noqa: F401 - these three add theirs
import sites
import storage  # noqa: F401
import wires  # noqa: F401

KILLS = ("kill", "kill-group", "kill-step")
OFTEN = (*KILLS, "pause")
"""Played three times in a round: whoever is stopped or killed comes back to a world that went on."""
KEEP = HERE.parents[1] / ".campaign"


@contextlib.contextmanager
def bucket():
    """An S3 server with two models; yields what a `Site` is told of it."""
    import s3  # noqa: PLC0415 - a replay without S3 would not need it

    server = s3.seaweed()
    name, client = server.bucket(), server.client()
    models = {}
    with tempfile.TemporaryDirectory() as top:
        for number, size in ((7, 30_000), (8, 200_000)):
            prefix = f"models/s{number}"
            models[f"{name}/{prefix}"] = sites.make_model(f"{top}/{number}", number, size)
            for path in models[f"{name}/{prefix}"]:
                data = Path(top, str(number), path).read_bytes()
                client.put_object(Bucket=name, Key=f"{prefix}/{path}", Body=data)
    found = {"bucket": name, "endpoint": server.endpoint, "environment": server.environment()}
    yield found | {"models": models, "secret": server.secret_key, "role": s3.ROLE}


class Worker:
    """A process that plays episodes, one after the other."""

    def __init__(self, how):
        argv = [sys.executable, str(HERE / "episodes.py"), json.dumps(how)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(argv, text=True, start_new_session=True, **pipes)

    def play(self, seed):
        print(seed, file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def seeds(base):
    """Round after round, an episode for each fault and lock; some faults come three times a round."""
    number = 0
    while True:
        for turn in range(3):
            for fault in faults.FAULTS.values():
                if turn == 0 or fault.name in OFTEN:
                    for lock in fault.locks:
                        yield f"{fault.name}/{lock}/{base}.{number}.{turn}"
        number += 1


def run(base, *, seconds, workers, plant="", show=print, **play):
    """Play for so long; return what each episode told.

    Args:
        base: a number, or seeds of episodes.
        seconds: no episode begins later.
        workers: how many are played at a time.
        plant: see `plants`.
        show: told of each violation.
        play: for `episodes.play`.
    """
    told, ready = [], queue.Queue()
    shutil.rmtree(KEEP, ignore_errors=True)
    KEEP.mkdir()
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with bucket() as s3, tempfile.TemporaryDirectory(prefix="campaign-", dir=memory) as top:
        how = {"top": top, "s3": s3, "plant": plant, "play": play | {"keep": str(KEEP)}}
        todo = iter(base if isinstance(base, list) else seeds(base))
        until, lock = time.monotonic() + seconds, threading.Lock()

        def work():
            worker = Worker(how)
            try:
                while time.monotonic() < until:
                    with lock:
                        seed = next(todo, None)
                    if seed is None:
                        break
                    ready.put(worker.play(seed))
            except (ValueError, OSError) as exc:
                ready.put({"seed": "none/none/0", "tried": 0, "wrong": [repr(exc)], "seconds": 0})
            finally:
                worker.close()
                ready.put(None)

        workers = min(workers, len(base)) if isinstance(base, list) else workers
        for _ in range(workers):
            threading.Thread(target=work, daemon=True).start()
        left = workers
        while left:
            one = ready.get()
            if one is None:
                left -= 1
                continue
            told.append(one)
            with (KEEP / "episodes.jsonl").open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(one) + "\n")
            for sentence in one["wrong"]:
                show(f"VIOLATION SEED={one['seed']}: {sentence}\n")
    return told


def summary(told, *, base, seconds, only=""):
    """One object: the table, totals, and the seed of each violation."""
    cells = collections.defaultdict(lambda: {"tried": 0, "episodes": 0, "violations": []})
    for one in told:
        name, lock, _ = one["seed"].split("/")
        cell = cells[f"{name}/{lock}"]
        cell["tried"] += one["tried"]
        cell["episodes"] += 1
        if one["wrong"]:
            cell["violations"].append({"seed": one["seed"], "wrong": one["wrong"][:3]})
    tried = sum(cell["tried"] for cell in cells.values())
    kills = sum(cell["tried"] for place, cell in cells.items() if place.split("/")[0] in KILLS)
    pauses = sum(cell["tried"] for place, cell in cells.items() if place.startswith("pause/"))
    return {
        "campaign": base,
        "only": only,
        "date": dt.datetime.now(dt.UTC).strftime("%Y-%m-%d"),
        "seconds": round(seconds),
        "cpus": len(os.sched_getaffinity(0)),
        "episodes": len(told),
        "tried": tried,
        "kills": kills,
        "pauses": pauses,
        "violations": sum(len(cell["violations"]) for cell in cells.values()),
        "cells": dict(sorted(cells.items())),
    }


def table(found):
    """The same for people."""
    lines = [f"{'fault':12} {'lock':5} {'tried':>6} {'survived':>9} {'violations':>11}"]
    for place, cell in found["cells"].items():
        name, lock = place.split("/")
        bad = len(cell["violations"])
        lines.append(f"{name:12} {lock:5} {cell['tried']:6} {cell['tried'] - bad:9} {bad:11}")
        lines += [f"    SEED={one['seed']}" for one in cell["violations"]]
    return "\n".join(lines)


def record(path, found):
    """Add a campaign to those in a file; `page.py` makes docs/reliability.md of it."""
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    text = json.dumps([*before, found], indent=1) + "\n"
    path.write_text(text, encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--hours", type=float, default=0)
    parser.add_argument("--seed", default="")
    parser.add_argument("--only", default="", help="faults, with commas")
    parser.add_argument("--workers", type=int, default=2 * len(os.sched_getaffinity(0)))
    parser.add_argument("--tries", type=int, default=0, help="in an episode, at most")
    parser.add_argument("--plant", default="", help="break warmer first: see plants.py")
    parser.add_argument("--record", default="", help="add what was found to this file")
    given = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("got no root, expected it: pods have mounts of their own")
    began, single = time.monotonic(), "/" in given.seed
    for name in [n for n in faults.FAULTS if given.only and n not in given.only.split(",")]:
        del faults.FAULTS[name]
    base = given.seed or str(secrets.randbelow(10**6))
    how = {"seconds": given.hours * 3600 or given.minutes * 60, "plant": given.plant}
    how |= {"long": 0.05, "tries": given.tries, "workers": given.workers}
    chosen = given.seed.split(",") if single else base
    print(f"SEED={base}", flush=True)
    told = run(chosen, **how)
    seconds = time.monotonic() - began
    found = summary(told, base=base, seconds=seconds, only=given.only)
    print(table(found))
    if given.record:
        record(Path(given.record), found)
    print(json.dumps(found))
    sys.exit(found["violations"] > 0)


if __name__ == "__main__":
    main()
