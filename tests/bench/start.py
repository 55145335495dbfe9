"""What a start takes, and what each lever has of it: the demo, then more starts from its volume.

Cold is the demo's engine run: empty caches, no bytecode but what the image ships. The recipe is what
others publish: what lies below ``~/.cache`` is kept and nothing else. It limits the capture sizes too,
which mean nothing on a CPU, where nothing is captured. Then come warmer's default, the default less one
lever at a time, of those that this handoff has, and the caches alone, of every family. The page cache is
as it is, so `read-ahead` has no row; `make bench NAME=levers` drops it, has new nodes, and repeats.

RESUME=1 takes up what `make demo` has left, its two starts included; STARTS=N makes N more at most.
Words after the script's name are the demo's. Ends with one JSON line, and with 1 where a start does not
get ready or completes another text than the cold one.

    make bench NAME=start
"""

import json
import os
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "..", "support"), os.path.join(HERE, "..", "demo")]

from demo import MODEL, SERVE_ARGS, Demo, from_hub, read_log
from levers import OFF, RECIPE, Row, Starts, less

from warmer import levers

DEMO = os.path.join(HERE, "..", "demo", "demo.py")
SHOWN = ("imports", "config", "engine_process", "weights", "engine_init", "api_setup")


def pod(work):
    """Take up the demo's volume and warm dir, whose hub is closed: a pinned model asks none."""
    with from_hub(os.path.join(work, "hub")) as (model, env):
        kept = {name: os.path.join(work, name) for name in ("volume", "warm")}
        os.rename(kept["volume"], f"{kept['volume']}.kept")
        demo = Demo(work, model, env, SERVE_ARGS)
        os.rmdir(demo.volume)
        os.rename(f"{kept['volume']}.kept", demo.volume)
    return demo


def used(demo):
    """Name the levers that the default handoff has, and whose absence a start can show here."""
    handoff = demo.handoff()
    sealed = {piece["kind"] for piece in handoff["pieces"] if piece["verdict"] == "sealed"}
    names = [n for n in levers.NAMES if n in handoff["levers"] and n != "read-ahead"]
    return [name for name in names if name != "bytecode" or name in sealed]


def show(rows):
    """Print one line a start: seconds to ready, the cold start's over it, and where they went."""
    cold = rows[0]["ready_s"]
    print(f"\n{'start':<32}{'ready, s':>9}{'ratio':>7}  {'  '.join(SHOWN)}")
    for row in rows:
        phases = [f"{row['phases'].get(n) or 0.0:{max(len(n), 5)}.2f}" for n in SHOWN]
        ratio = f"{cold / row['ready_s']:.1f}x"
        print(f"{row['start']:<32}{row['ready_s']:9.1f}{ratio:>7}  {'  '.join(phases)}")


def main():
    work = os.path.abspath(os.environ.get("WORK", ".demo"))
    if "RESUME" not in os.environ:
        done = subprocess.run([sys.executable, DEMO, "--work", work, *sys.argv[1:]])
        if done.returncode:
            return done.returncode
    demo = pod(work)
    completed = demo.answered()
    rows = []
    for name, log in (("cold", "cold.log"), ("default", "warm.log")):
        said = read_log(os.path.join(work, log))
        rows.append({"start": name, "ready_s": round(said.total_s, 2), "phases": said.phases})
    todo = [RECIPE, *[less(name) for name in used(demo)], Row("caches alone, page cache hot", OFF)]
    starts = Starts(demo, work)
    for row in todo[: int(os.environ.get("STARTS", len(todo)))]:
        starts.start(row)
    rows += [done for done in starts.done if done["ready_s"]]
    show(rows)
    failed, unlike = starts.failed(todo), starts.unlike(completed)
    for name in failed:
        print(f"NOT READY: {name}")
    for reason in unlike:
        print(f"NOT THE SAME: {reason}")
    cold, warm = rows[:2]
    record = {
        "bench": "start",
        "cold_s": cold["ready_s"],
        "warm_s": warm["ready_s"],
        "ratio": round(cold["ready_s"] / warm["ready_s"], 2),
        "phases": {"cold": cold["phases"], "warm": warm["phases"]},
        "rows": {row["start"]: row["ready_s"] for row in rows},
        "failed": failed,
        "unlike": unlike,
        "model": MODEL,
    }
    print(json.dumps(record))
    return 1 if failed or unlike else 0


if __name__ == "__main__":
    sys.exit(main())
