"""What each lever is worth: one cold fill of MODEL, then warm starts, with one lever less each.

The cold start is the engine run of `prefill`: empty caches, no bytecode. Its weights are in the page
cache, for they were just copied, which makes it faster than a user's. The recipe is the published one:
what lies below ``~/.cache`` is kept (vLLM's caches, FlashInfer's), and SERVE limits the capture sizes;
what other builders keep elsewhere is gone, and no lever is on. "Caches alone" keeps every family.
A new node has nothing in its page cache and an empty warm dir; restoring and reading ahead count.

One run takes LIMIT seconds at most (600): no start is begun that may take longer than what is left. Those
with the fewest repeats come first, until each has ROUNDS of them (3). RESUME=1 takes up a WORK whose fill
is done and adds to its starts, on the same machine; FILL=1 ends with the fill. TUNE=1 has the loaders measured
after the fill (`prefill --tune-loader`): if one is chosen it is a lever like the others. MODEL is a URI (the tiny
model unless told), SERVE the words after ``--``, WORK a directory, kept.
The page cache is dropped only with DROP=1, as root, on a machine that is nobody else's.

    MODEL=file:///models/llama WORK=/tmp/levers DROP=1 make bench NAME=levers

TP is the tensor-parallel size (1). With more than one rank, each warm start must hit in all of them, or the
bench fails; the levers that are off then (docs/levers.md) are each tried, and a start that does not get ready
is a row without seconds.

    TP=2 SERVE="--max-model-len 8192 --max-num-seqs 64 --cudagraph-capture-sizes 1 2 4 8 16 24 32 64" \
        MODEL=file:///models/llama WORK=/tmp/levers DROP=1 make bench NAME=levers
"""

import contextlib
import dataclasses
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

from warmer import families, levers

BEGUN = time.monotonic()
SERVE = shlex.split(os.environ.get("SERVE", "--max-model-len 512"))
TP = int(os.environ.get("TP", "1"))
if TP > 1:
    SERVE += ["--tensor-parallel-size", str(TP)]
OFF_WITH_RANKS = ("startup-plan",)
PATIENCE = float(os.environ.get("PATIENCE", "600"))
"""Seconds to wait for a start that may never get ready."""
ROUNDS = int(os.environ.get("ROUNDS", "3"))
LIMIT = float(os.environ.get("LIMIT", "600"))
OFF = tuple(word for name in levers.NAMES for word in ("--lever", f"{name}=off"))
KEPT = ("~/.cache/", "$VLLM_CACHE_ROOT/")
"""Where what the recipe keeps lies by default."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One kind of start.

    Attributes:
        name: what the table calls it.
        flags: of its `prefill`.
        new: on a new node: with an empty warm dir and page cache, and a restore that counts.
        recipe: with what the published recipe keeps, and nothing else.
        may_fail: whether the bench passes all the same if it does not get ready.
    """

    name: str
    flags: tuple[str, ...] = ()
    new: bool = False
    recipe: bool = False
    may_fail: bool = False


RECIPE = Row("the recipe, page cache hot", OFF, recipe=True)
NEW = Row("default, new node", new=True)
HOT = Row("default, page cache hot")


def less(name):
    return Row(f"less {name}, page cache hot", ("--lever", f"{name}=off"))


def rows(used):
    """Every row, in order: what a new node has read is in the page cache for those that follow."""
    more = []
    for name in OFF_WITH_RANKS if TP > 1 else ():
        on = ("--lever", f"{name}=on")
        # The build had no plan: the first of the two measures and keeps what it finds.
        more.append(Row("a plan is made, page cache hot", on, may_fail=True))
        more.append(Row(f"with {name}, page cache hot", on, may_fail=True))
    return [
        RECIPE,
        NEW,
        Row("less read-ahead, new node", ("--lever", "read-ahead=off"), new=True),
        HOT,
        *[less(name) for name in used if name != "read-ahead"],
        Row("caches alone, page cache hot", OFF),
        Row("caches alone, new node", OFF, new=True),
        *more,
    ]


def turns(todo, took, left):
    """Yield what to start next, of what fits in the time left: those with the fewest starts first.

    What was not started yet is taken to be as slow as the slowest of those with levers, or without. What may
    fail comes last and once.

    Args:
        todo: the rows.
        took: row name -> seconds that its starts have taken; it grows meanwhile.
        left: tells the seconds that are left.
    """

    def wanted(row):
        like = [took[other.name] for other in todo if (other.flags == OFF) == (row.flags == OFF)]
        fits = max(took[row.name] or [s for starts in like for s in starts] or [0.0]) <= left()
        return fits and len(took[row.name]) < (1 if row.may_fail else ROUNDS)

    while fitting := [row for row in todo if wanted(row)]:
        yield min(fitting, key=lambda row: (row.may_fail, len(took[row.name])))


def left():
    return LIMIT - (time.monotonic() - BEGUN)


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
            shutil.rmtree(demo.warm_dir, ignore_errors=True)
            drop()
        return demo.warmer("prefill", *flags)


class Starts:
    """Starts by the handoff, each with what it took, what it answered, and what its log says.

    They are kept in WORK, for a run that adds to them.
    """

    def __init__(self, demo, work):
        self.demo, self.work = demo, work
        self.done = []
        self._kept = os.path.join(work, "starts.json")

    def resume(self):
        """Take up those of the runs before."""
        with contextlib.suppress(FileNotFoundError), open(self._kept, encoding="utf-8") as f:
            self.done = json.load(f)

    def start(self, row):
        """Start it; one that does not get ready is kept too, without seconds."""
        begun = time.monotonic()
        kept = {"start": row.name, "ready_s": None}
        try:
            kept |= self._start(row)
        except (RuntimeError, OSError) as exc:
            kept["failure"] = str(exc)
            self.demo.new_pod()  # In this one the next start would go without levers.
            print(f"{row.name:<40}       -     {exc}", flush=True)
        kept["took_s"] = round(time.monotonic() - begun, 2)
        self.done.append(kept)
        with open(self._kept, "w", encoding="utf-8") as f:
            json.dump(self.done, f)

    def _start(self, row):
        restored = quiet(self.demo, *row.flags, new=row.new)
        if row.recipe:
            self._forget()
        log = os.path.join(self.work, f"start-{len(self.done)}.log")
        script = os.path.join(self.demo.warm_dir, "handoff", "serve")
        with Server([script], log=log, env=self.demo.env) as server:
            ready = server.wait_ready(PATIENCE)
            answer = server.complete(self.demo.handoff()["served_name"], tokens=24)
        if row.recipe:
            self.demo.new_pod()  # What it has built anew, the others have from the volume.
        said = read_log(log)
        total = ready + (restored if row.new else 0.0)
        ranks = "".join(f", rank {rank.name} {rank.cache}" for rank in said.ranks)
        print(f"{row.name:<40} {total:7.1f} s   compile cache {said.cache}{ranks}", flush=True)
        return {
            "ready_s": round(total, 2),
            "restore_s": round(restored, 2) if row.new else 0.0,
            "cache": said.cache,
            "phases": said.phases,
            "ranks": {rank.name: rank.cache for rank in said.ranks},
            "of_ranks": {rank.name: rank.phases for rank in said.ranks},
            "tokens": answer["choices"][0]["token_ids"],
        }

    def _forget(self):
        """Remove what the recipe would have lost with the pod."""
        for family in families.FAMILIES:
            # FlashInfer makes its own .cache in the home that it is told.
            if not (family.default == "~" or family.default.startswith(KEPT)):
                tree = os.path.join(self.demo.warm_dir, "cache", family.kind, family.name)
                shutil.rmtree(tree, ignore_errors=True)

    def of(self, name, what="ready_s"):
        """What the starts of a row took; of those that got ready."""
        found = [done[what] for done in self.done if done["start"] == name]
        return [value for value in found if value is not None]

    def unlike(self, cold):
        """Tell which starts completed another text than the cold one (its first `tokens`)."""
        if not cold:
            return ["nobody knows what the cold start completed"]
        told = [(done["start"], done["tokens"]) for done in self.done if "tokens" in done]
        longest = max((tokens for _, tokens in told), key=len, default=[])
        return [
            f"{name} completed another text"
            for name, tokens in told
            if tokens != longest or tokens[: len(cold)] != [*cold]
        ]

    def failed(self, todo):
        """The starts that did not get ready and should have."""
        may = {row.name for row in todo if row.may_fail}
        failed = [done["start"] for done in self.done if "failure" in done]
        return [name for name in failed if name not in may]

    def missed(self):
        """The starts in which some rank hit and another did not, or not all told."""
        told = [done for done in self.done if done.get("ranks") and done["start"] != RECIPE.name]
        return [
            done["start"]
            for done in told
            if len(done["ranks"]) != TP or len(set(done["ranks"].values())) > 1
            or "rebuilt" in done["ranks"].values()
        ]  # fmt: skip


def spread(values):
    """Least, median and most seconds, and of how many starts."""
    if not values:
        return {"starts": 0}
    least, middle, most = min(values), statistics.median(values), max(values)
    shown = {"min": least, "median": middle, "max": most}
    return {"starts": len(values)} | {name: round(value, 2) for name, value in shown.items()}


def filled(work):
    """Have a volume that was filled from nothing, and the log of the cold start; all of it, or as it was kept."""
    tiny, volume = os.path.join(work, "tiny"), os.path.join(work, "volume")
    resume = "RESUME" in os.environ
    if resume:
        shutil.move(volume, f"{volume}.filled")
    else:
        shutil.rmtree(work, ignore_errors=True)
        if "MODEL" not in os.environ:
            make_tiny_llama(tiny)
    demo = Demo(work, os.environ.get("MODEL", f"file://{tiny}"), {}, SERVE)
    if resume:
        os.rmdir(volume)
        shutil.move(f"{volume}.filled", volume)
        return demo
    took = quiet(demo, "--on-miss", "kernels=fail")
    print(f"prefill with nothing: {took:.1f} s", flush=True)
    built = next(e.path for e in os.scandir(os.path.join(demo.warm_dir, "logs")))
    shutil.copy(built, os.path.join(work, "cold.log"))
    if "TUNE" in os.environ:
        print(f"loaders measured: {quiet(demo, '--tune-loader'):.1f} s", flush=True)
    return demo


def gpus():
    """Name the GPUs and their driver; empty without."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        ask = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        return subprocess.run(ask, capture_output=True, text=True).stdout.strip()
    return ""


def main():
    work = os.environ.get("WORK") or tempfile.mkdtemp()
    demo = filled(work)
    if os.environ.get("FILL"):
        return 0
    cold = read_log(os.path.join(work, "cold.log"))
    print(f"{'cold, nothing cached':<40} {cold.total_s:7.1f} s", flush=True)

    starts = Starts(demo, work)
    if "RESUME" in os.environ:
        starts.resume()
        quiet(demo)
    completed = demo.answered()
    todo = rows(demo.handoff()["levers"])
    took = {row.name: starts.of(row.name, "took_s") for row in todo}
    for row in turns(todo, took, left):
        starts.start(row)
        took[row.name] = starts.of(row.name, "took_s")

    ready = {row.name: starts.of(row.name) for row in todo}
    against = [f"not a hit of every rank: {name}" for name in starts.missed()]
    against += [f"not ready: {name}" for name in starts.failed(todo)]
    against += starts.unlike(completed)
    unstarted = [name for name, seconds in took.items() if not seconds]
    for line in [*against, *(f"no time for: {name}" for name in unstarted)]:
        print(line)
    record = {
        "bench": "levers",
        "cold_s": round(cold.total_s, 2),
        "starts": {name: spread(seconds) for name, seconds in ready.items()},
        "ratios": {
            row.name: round(cold.total_s / statistics.median(ready[row.name]), 2)
            for row in (RECIPE, NEW, HOT)
            if ready[row.name]
        },
        "run_s": round(time.monotonic() - BEGUN, 1),
        "unstarted": unstarted,
        "against": against,
        "tensor_parallel": TP,
        "gpu": gpus(),
        "rows": starts.done,
    }
    print(json.dumps(record))
    return 1 if against else 0


if __name__ == "__main__":
    sys.exit(main())
