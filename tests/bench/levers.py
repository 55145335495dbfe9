"""What each lever is worth: one cold fill of MODEL, then warm starts, with one lever less each.

The cold start is the engine run of `prefill`: empty caches, no bytecode. Its weights are in the page
cache, for they were just copied, which makes it faster than a user's. "Caches alone" is the published
recipe (caches kept, few capture sizes) and more than that: every family is kept, not vLLM's own alone.
A new node has nothing in its page cache and an empty warm dir; restoring and reading ahead count.

MODEL is a URI (the tiny model unless told), SERVE the words after ``--``, ROUNDS how often the default
is started (3), WORK a directory, kept; RESUME=1 takes up a WORK whose fill is done, FILL=1 ends there.
The page cache is dropped only with DROP=1, as root, on a machine that is nobody else's.

    MODEL=file:///models/llama WORK=/tmp/levers DROP=1 make bench NAME=levers

TP is the tensor-parallel size (1). With more than one rank, each warm start must hit in all of them, or the
bench fails; the levers that are off then (docs/levers.md) are each tried, and a start that does not get ready
is a row without seconds.

    TP=2 SERVE="--max-model-len 8192 --max-num-seqs 64 --cudagraph-capture-sizes 1 2 4 8 16 24 32 64" \
        MODEL=file:///models/llama WORK=/tmp/levers DROP=1 make bench NAME=levers
"""

import contextlib
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "..", "support"), os.path.join(HERE, "..", "demo")]

from demo import Demo, read_log
from server import Server
from tinymodel import make_tiny_llama

from warmer import levers

SERVE = shlex.split(os.environ.get("SERVE", "--max-model-len 512"))
TP = int(os.environ.get("TP", "1"))
if TP > 1:
    SERVE += ["--tensor-parallel-size", str(TP)]
OFF_WITH_RANKS = ("startup-plan",)
PATIENCE = float(os.environ.get("PATIENCE", "600"))
"""Seconds to wait for a start that may never get ready."""
ROUNDS = int(os.environ.get("ROUNDS", "3"))
OFF = [word for name in levers.NAMES for word in ("--lever", f"{name}=off")]


def drop():
    """Have nothing in the page cache, as on a node that has just come up."""
    if os.environ.get("DROP"):
        os.sync()
        with open("/proc/sys/vm/drop_caches", "w", encoding="ascii") as f:
            f.write("3\n")


def quiet(demo, *flags, new=False):
    """Prefill; seconds. With `new`, in a new pod on a new node."""
    with contextlib.redirect_stdout(sys.stderr):
        if new:
            demo.new_pod()
            drop()
        return demo.warmer("prefill", *flags)


class Starts:
    """Starts by the handoff, each a row: what it took, what it answered, what its log says."""

    def __init__(self, demo, work):
        self.demo, self.work = demo, work
        self.rows, self.answers = [], []

    def start(self, name, *flags, new=False, cold=False):
        restored = quiet(self.demo, *flags, new=new)
        if cold and not new:
            drop()
        log = os.path.join(self.work, f"start-{len(self.rows)}.log")
        script = os.path.join(self.demo.warm_dir, "handoff", "serve")
        with Server([script], log=log, env=self.demo.env) as server:
            ready = server.wait_ready(PATIENCE)
            answer = server.complete(self.demo.handoff()["served_name"], tokens=24)
        said = read_log(log)
        self.answers.append(answer["choices"][0]["text"])
        total = ready + (restored if new else 0.0)
        row = {"start": name, "ready_s": round(total, 2), "cache": said.cache}
        row |= {"restore_s": round(restored, 2) if new else 0.0, "phases": said.phases}
        row["ranks"] = {rank.name: rank.cache for rank in said.ranks}
        row["of_ranks"] = {rank.name: rank.phases for rank in said.ranks}
        self.rows.append(row)
        ranks = "".join(f", rank {name} {cache}" for name, cache in row["ranks"].items())
        print(f"{name:<44} {total:7.1f} s   compile cache {said.cache}{ranks}", flush=True)
        return total

    def attempt(self, name, *flags):
        """A start that may fail or hang: it says so, and the others are not lost."""
        try:
            return round(self.start(name, *flags), 2)
        except (RuntimeError, OSError) as exc:
            print(f"{name:<44}       -     {exc}", flush=True)
            self.rows.append({"start": name, "ready_s": None, "failure": str(exc)})
            return None

    def missed(self):
        """The starts in which some rank hit and another did not, or not all told."""
        told = [row for row in self.rows if "ranks" in row]
        return [
            row["start"]
            for row in told
            if len(row["ranks"]) not in (0, TP) or len(set(row["ranks"].values())) > 1
            or "rebuilt" in row["ranks"].values()
        ]  # fmt: skip


def spread(values):
    return {
        "min": round(min(values), 2),
        "median": round(statistics.median(values), 2),
        "max": round(max(values), 2),
    }


def main():
    work = os.environ.get("WORK") or tempfile.mkdtemp()
    resume = "RESUME" in os.environ
    cold_log = os.path.join(work, "cold.log")
    if not resume:
        shutil.rmtree(work, ignore_errors=True)
    tiny = os.path.join(work, "tiny")
    if "MODEL" not in os.environ and not resume:
        make_tiny_llama(tiny)
    volume = os.path.join(work, "volume")
    if resume:
        shutil.move(volume, f"{volume}.filled")
    demo = Demo(work, os.environ.get("MODEL", f"file://{tiny}"), {}, SERVE)
    if resume:
        os.rmdir(volume)
        shutil.move(f"{volume}.filled", volume)
    else:
        started = time.monotonic()
        quiet(demo, "--on-miss", "kernels=fail")
        print(f"prefill with nothing: {time.monotonic() - started:.1f} s", flush=True)
        built = next(e.path for e in os.scandir(os.path.join(demo.warm_dir, "logs")))
        shutil.copy(built, cold_log)
    if os.environ.get("FILL"):
        return 0
    cold = read_log(cold_log)
    print(f"{'cold, nothing cached':<44} {cold.total_s:7.1f} s", flush=True)

    starts = Starts(demo, work)
    recipe = starts.start("caches alone, new node", *OFF, new=True)
    plain = starts.start("caches alone, page cache hot", *OFF)
    new = [starts.start("default, new node", new=True) for _ in range(min(2, ROUNDS))]
    slow = starts.start("less read-ahead, new node", "--lever", "read-ahead=off", new=True)
    hot = [starts.start("default, page cache hot") for _ in range(ROUNDS)]
    less = {}
    for name in demo.handoff()["levers"]:
        if name != "read-ahead":
            less[name] = starts.start(f"less {name}, page cache hot", "--lever", f"{name}=off")
    hot.append(starts.start("default, page cache hot"))
    more = {}
    for name in OFF_WITH_RANKS if TP > 1 else ():
        on = ("--lever", f"{name}=on")
        if name == "startup-plan":  # the build had none: this one measures and keeps what it finds
            starts.attempt("a plan is made, page cache hot", *on)
        more[name] = starts.attempt(f"with {name}, page cache hot", *on)
    missed = starts.missed()
    for name in missed:
        print(f"NOT A HIT OF EVERY RANK: {name}")
    same = len(set(starts.answers)) == 1
    print(f"the same completion from every start: {'yes' if same else 'NO'}")
    record = {
        "bench": "levers",
        "cold_s": round(cold.total_s, 2),
        "caches_alone_new_node_s": round(recipe, 2),
        "caches_alone_hot_s": round(plain, 2),
        "new_node_s": spread(new),
        "new_node_less_read_ahead_s": round(slow, 2),
        "hot_s": spread(hot),
        "hot_less_s": {name: round(value, 2) for name, value in less.items()},
        "tensor_parallel": TP,
        "hot_with_s": more,
        "missed": missed,
        "ratio": round(cold.total_s / statistics.median(hot), 2),
        "ratio_new_node": round(cold.total_s / statistics.median(new), 2),
        "same_completion": same,
        "rows": starts.rows,
    }
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        ask = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        record["gpu"] = subprocess.run(ask, capture_output=True, text=True).stdout.strip()
    print(json.dumps(record))
    return 0 if same and not missed else 1


if __name__ == "__main__":
    sys.exit(main())
