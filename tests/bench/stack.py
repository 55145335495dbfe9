"""What room on Python's stack is worth (`warmer/handoff/start.py`): the same work at many depths of calls.

The work is what vLLM does with its compiled graph at a warm start: torch unpickles a graph of fake tensors.
It runs below 0 to 200 more calls, in steps of STEP (4), with Python's stack as it is and with room, in turns;
the better of two counts. Then vLLM's imports, each way in ROUNDS (3) processes, in turns. Python 3.11 and 3.12
have the defect (CPython's issue 142183). `ratio` is worst against worst, `imports_ratio` median against median.

    make bench NAME=stack
"""

import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import time

import torch
from torch._subclasses import FakeTensorMode
from torch.fx._graph_pickler import GraphPickler
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv

STEP = int(os.environ.get("STEP", "4"))
ROUNDS = int(os.environ.get("ROUNDS", "3"))
ROOM = 1 << 15
IMPORTS = """\
import gc, resource, sys, time

def work():
    gc.disable()
    began = time.perf_counter()
    import vllm.entrypoints.cli.benchmark.main, vllm.entrypoints.cli.serve
    import vllm.entrypoints.openai.api_server
    pages = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    print("took", time.perf_counter() - began, pages, flush=True)

if sys.argv[1] == "room":
    work.__code__ = work.__code__.replace(co_stacksize=int(sys.argv[2]))
work()
"""


def graph():
    """A pickled graph of 1,600 operations on fake tensors."""

    def layers(x, *weights):
        for weight in weights:
            x = torch.nn.functional.silu(x @ weight) + x
            x = x.view(4, -1).reshape(8, 256) * 2
        return x

    with FakeTensorMode(shape_env=ShapeEnv()):
        weights = [torch.empty(256, 256) for _ in range(400)]
        return GraphPickler.dumps(make_fx(layers)(torch.empty(8, 256), *weights))


def unpickled(data):
    """Seconds and minor faults."""
    mode = FakeTensorMode(shape_env=ShapeEnv())
    faults, began = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
    GraphPickler.loads(data, mode)
    seconds = time.perf_counter() - began
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults


def below(depth, data):
    return below(depth - 1, data) if depth else unpickled(data)


def roomy(depth, data):
    return below(depth, data)


roomy.__code__ = roomy.__code__.replace(co_stacksize=ROOM)


def imports(way):
    argv = [sys.executable, "-c", IMPORTS, way, str(ROOM)]
    said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    (line,) = (line for line in said.splitlines() if line.startswith("took "))
    return float(line.split()[1]), int(line.split()[2])


def spread(runs):
    seconds = [one for one, _ in runs]
    return {
        "best_s": round(min(seconds), 3),
        "median_s": round(statistics.median(seconds), 3),
        "worst_s": round(max(seconds), 3),
        "most_faults": max(faults for _, faults in runs),
    }


def main():
    data = graph()
    ways = {"as_it_is": below, "room": roomy}
    for way in ways.values():
        way(0, data)
    gc.disable()
    runs = {name: [] for name in ways}
    for depth in range(0, 200, STEP):
        tries = {name: [] for name in ways}
        for name in [*ways] * 2:
            tries[name].append(ways[name](depth, data))
            gc.collect()
        for name in ways:
            runs[name].append(min(tries[name]))
    imported = {name: [] for name in ways}
    for name in [*ways] * ROUNDS:
        imported[name].append(imports(name))
    record = {"bench": "stack", "python": sys.version.split()[0]}
    for name in ways:
        record[name] = {"unpickle": spread(runs[name]), "imports": spread(imported[name])}
        print(name, record[name], flush=True)
    worst = [record[name]["unpickle"]["worst_s"] for name in ways]
    took = [record[name]["imports"]["median_s"] for name in ways]
    record |= {"ratio": round(worst[0] / worst[1], 2), "imports_ratio": round(took[0] / took[1], 2)}
    print(json.dumps(record))


if __name__ == "__main__":
    main()
