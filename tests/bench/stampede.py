"""Many pods at once on one empty volume: what the origin sends, and when the last one is ready.

PROCESSES processes are released together after their imports, so that few cores do not measure
Python's start-up. The hub is a local one; `single_s` is one process alone, before and after, on
volumes of its own. One line for each lock; SIZE_MB, PROCESSES and LOCKS make it smaller.
"""

import contextlib
import importlib
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
import traceback

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))

from hub import Hub
from leases import LeaseServer
from s3 import Seaweed

from warmer.cli import options
from warmer.prefill import prefill

# All that a prefill imports on its way, before the fork.
IMPORTED = ("huggingface_hub.file_download", "warmer.fill.sources.hub")
IMPORTED += tuple(f"warmer.fill.locks.{name}" for name in ("file", "kubernetes", "s3"))

PROCESSES = int(os.environ.get("PROCESSES", "64"))
SIZE_MB = int(os.environ.get("SIZE_MB", "4096"))
LOCKS = os.environ.get("LOCKS", "file k8s s3").split()
SHARDS = 4
MODEL = "bench/shards"
SINGLES = 3


def make_model(top):
    """Write SIZE_MB of shards that compress badly, and the little that makes them a model."""
    os.makedirs(top)
    block = os.urandom(1 << 20)
    for number in range(SHARDS):
        name = f"model-{number + 1:05}-of-{SHARDS:05}.safetensors"
        with open(os.path.join(top, name), "wb") as f:
            f.writelines(bytes([number, at % 256]) + block[2:] for at in range(SIZE_MB // SHARDS))
    with open(os.path.join(top, "config.json"), "w", encoding="utf-8") as f:
        json.dump({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}, f)


class Pod:
    """A forked process that waits to be released, prefills, and says when it was ready."""

    def __init__(self, settings):
        gate, self._release = os.pipe()
        self._said, say = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._release)
            code = 1
            try:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2) if PROCESSES > 8 else None
                os.write(say, b"here")
                os.read(gate, 1)
                prefill(settings)
                os.write(say, json.dumps(time.monotonic()).encode())
                code = 0
            except BaseException:  # noqa: BLE001 - a child must not return
                traceback.print_exc(file=sys.stdout)
            finally:
                os._exit(code)
        os.close(gate)
        os.close(say)
        assert os.read(self._said, 4) == b"here"

    def release(self):
        os.close(self._release)

    def ready(self):
        """The moment it was ready; fails where it was not."""
        said = b""
        while more := os.read(self._said, 64):
            said += more
        os.close(self._said)
        assert os.waitpid(self.pid, 0)[1] == 0, "a pod failed; see its traceback"
        return json.loads(said)


def run(count, top, model, lock):
    """Seconds from the release to the last pod's being ready, on a new volume."""
    volume = os.path.join(top, "volume")
    os.makedirs(volume)
    os.sync()  # what the run before left to write is not this one's
    pods = []
    for number in range(count):
        warm = os.path.join(top, f"warm-{number}")
        values = {"volume": volume, "warm_dir": warm, "model": model, "compile": "never"}
        pods.append(Pod(options.read({**values, "lock": lock})))
    started = time.monotonic()
    for pod in pods:
        pod.release()
    seconds = max([pod.ready() for pod in pods]) - started
    shutil.rmtree(top)
    return seconds


def measure(name, url, top, hub):
    """Print one line for one lock."""
    model = f"hf://{MODEL}@{hub.sha(MODEL)}"
    singles = [run(1, os.path.join(top, name), model, url(i)) for i in range(SINGLES - 1)]
    sent = hub.sent
    all_ready = run(PROCESSES, os.path.join(top, name), model, url(SINGLES))
    sent = hub.sent - sent
    singles.append(run(1, os.path.join(top, name), model, url(SINGLES + 1)))
    single = statistics.median(singles)
    size = sum(file.size for file in hub.commit(MODEL, "main").files.values())
    record = {
        "bench": "stampede",
        "lock": name,
        "processes": PROCESSES,
        "origin_ratio": round(sent / size, 3),
        "ready_ratio": round(all_ready / single, 3),
        "ready_s": round(all_ready, 2),
        "single_s": [round(seconds, 2) for seconds in singles],
        "model_mb": SIZE_MB,
    }
    print(json.dumps(record), flush=True)


def main():
    for name in IMPORTED:
        importlib.import_module(name)
    with contextlib.ExitStack() as stack:
        top = stack.enter_context(tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")))
        make_model(os.path.join(top, "hub", *MODEL.split("/")))
        hub = stack.enter_context(Hub(os.path.join(top, "hub")))
        os.environ["HF_ENDPOINT"] = hub.url
        hub.sha(MODEL)  # hashes every file once
        if "file" in LOCKS:
            measure("file", lambda _: "file", top, hub)
        if "k8s" in LOCKS:
            server = stack.enter_context(LeaseServer(namespaces={"warm"}))
            os.environ["KUBECONFIG"] = str(server.kubeconfig(os.path.join(top, "kubeconfig")))
            measure("k8s", lambda i: f"k8s://warm/volume-{i}", top, hub)
        if "s3" in LOCKS:
            store = stack.enter_context(Seaweed())
            os.environ.update(store.environment())
            store.bucket("locks")
            measure("s3", lambda i: f"s3://locks/volume-{i}", top, hub)


if __name__ == "__main__":
    main()
