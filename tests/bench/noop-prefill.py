"""A second prefill: wall seconds, and what it asks of the network, with a hub that must not be asked.

The volume is filled by a tiny model and a stand-in engine; what is measured, the second prefill,
runs as in production: it starts no engine and asks no hub, so neither is missed.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))

from fakeengine import make_engine
from hub import Hub
from tinymodel import make_tiny_llama

MODEL = "demo/tiny-llama"
RUNS = int(os.environ.get("RUNS", "15"))


def main():
    with tempfile.TemporaryDirectory() as top:
        make_tiny_llama(os.path.join(top, "hub", *MODEL.split("/")))
        os.makedirs(os.path.join(top, "volume"))
        engine = make_engine(os.path.join(top, "engine"))
        with Hub(os.path.join(top, "hub")) as hub:
            env = dict(os.environ, HF_ENDPOINT=hub.url)
            argv = [sys.executable, "-m", "warmer", "prefill", "--json", "--vllm", engine.vllm]
            argv += ["--volume", os.path.join(top, "volume"), "--warm-dir", os.path.join(top, "w")]
            argv += ["--model", f"hf://{MODEL}@{hub.sha(MODEL)}", "--", "--max-model-len", "512"]
            subprocess.run(
                argv, env=env, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            asked = len(hub.requests)
            walls = []
            for _ in range(RUNS):
                started = time.monotonic()
                done = subprocess.run(argv, env=env, check=True, stdout=subprocess.PIPE)
                walls.append(time.monotonic() - started)
                outcome = json.loads(done.stdout)
                assert outcome["warm"], outcome
                assert "kernels" not in outcome["seconds"], outcome
            calls = len(hub.requests) - asked
        bare = []
        for _ in range(RUNS):
            started = time.monotonic()
            subprocess.run([sys.executable, "-c", "pass"], check=True)
            bare.append(time.monotonic() - started)
    record = {
        "bench": "noop-prefill",
        "wall_s": round(statistics.median(walls), 3),
        "wall_max_s": round(max(walls), 3),
        "network_calls": calls,
        "ratio_to_bare_python": round(statistics.median(walls) / statistics.median(bare), 1),
        "runs": RUNS,
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()
