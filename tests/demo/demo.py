"""The demo: an empty volume, one cold start, and the proof that the next start did not repeat it.

Everything is real but the size of the model: a Hugging Face-compatible endpoint on loopback, or
SeaweedFS as an S3 service, the vLLM found here (an NVIDIA GPU's, or the CPU build), its compiler, its server. Exit status 1 says
that the warm start did not hit.

    python tests/demo/demo.py [--work DIR] [--source hf|s3] [--model URI] [--json] [-- VLLM SERVE ARGS]
"""

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "support"))

from buckets import Bucket
from hub import Hub
from s3 import Seaweed
from server import Server
from tinymodel import make_tiny_llama

from warmer.families import EXCLUDED
from warmer.fill import answer, members
from warmer.report import log as start_log
from warmer.report import table

MODEL = "demo/tiny-llama"
SERVE_ARGS = ["--max-model-len", "512"]
FACTOR = 3.0
"""How many times faster the engine must initialise to call it a hit."""


class Demo:
    def __init__(self, work, model, env, serve_args):
        self.model, self.serve_args = model, serve_args
        self.volume = os.path.join(work, "volume")
        self.warm_dir = os.path.join(work, "warm")
        os.makedirs(self.volume)
        self.env = dict(os.environ, VLLM_CPU_KVCACHE_SPACE="1", **env)
        self.env["PATH"] = os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]
        self.env.pop("HF_HUB_OFFLINE", None)

    def warmer(self, verb, *flags, expect=0):
        """Run one verb as a user would; show the command and what it prints."""
        argv = [sys.executable, "-m", "warmer", verb, *flags]
        if verb in ("plan", "prefill"):
            argv += ["--volume", self.volume, "--warm-dir", self.warm_dir, "--model", self.model]
            argv += ["--", *self.serve_args]
        else:
            argv += ["--warm-dir", self.warm_dir]
        print(f"\n$ warmer {' '.join(argv[3:])}", flush=True)
        started = time.monotonic()
        done = subprocess.run(argv, env=self.env, stdout=subprocess.PIPE, text=True)
        seconds = time.monotonic() - started
        print(done.stdout, end="")
        if done.returncode != expect:
            raise SystemExit(f"warmer {verb} ended with {done.returncode}, expected {expect}")
        return seconds

    def handoff(self):
        with open(os.path.join(self.warm_dir, "handoff", "handoff.json"), encoding="utf-8") as f:
            return json.load(f)

    def seal(self, kind):
        (piece,) = (p for p in self.handoff()["pieces"] if p["kind"] == kind)
        with open(os.path.join(piece["directory"], "seal.json"), encoding="utf-8") as f:
            return json.load(f)

    def new_pod(self):
        """A new pod has an empty warm dir; only the volume is shared."""
        shutil.rmtree(self.warm_dir)

    def tree(self):
        """What the compile tree holds, less the kernel locks a compiler takes even to read."""
        return members.scan(os.path.join(self.warm_dir, "cache", "compile"), EXCLUDED)

    def answered(self):
        """The tokens that the build run completed, as the restored piece tells them."""
        return answer.kept(os.path.join(self.warm_dir, "cache", "compile"))


def read_log(path):
    with open(path, encoding="utf-8", errors="replace", newline="\n") as f:
        return start_log.parse(f)


def judge(cold, warm, before, after):
    """Say what speaks against a hit; nothing, when it was one."""
    against = []
    new = sorted(after.members.keys() - before.members.keys())
    if warm.cache == "rebuilt":
        against.append(f"the warm log shows a compile: {warm.evidence[0]}")
    if new:
        against.append(f"{len(new)} new files in the compile tree, {new[0]} first")
    ratio = cold.phases["engine_init"] / warm.phases["engine_init"]
    if ratio < FACTOR:
        against.append(f"engine init only {ratio:.1f} times faster, expected {FACTOR}")
    return against, ratio


@contextlib.contextmanager
def from_hub(top):
    """Serve the model from a hub; yields its URI and the variables that say where the hub is."""
    with Hub(top) as hub:
        # Pinned: a warm start then asks no hub at all. A branch would be asked about once.
        yield f"hf://{MODEL}@{hub.sha(MODEL)}", {"HF_ENDPOINT": hub.url}


@contextlib.contextmanager
def from_bucket(top):
    """Serve the model from a bucket; yields its URI and the variables that say where it is."""
    with Seaweed() as server, Bucket(server) as bucket:
        bucket.put_tree(os.path.join(top, *MODEL.split("/")))
        env = bucket.environment()
        with patched(env):
            # Pinned by the digest of its listing, as `warmer plan` shows it.
            yield str(bucket.source().resolve()), env


@contextlib.contextmanager
def patched(env):
    """Set variables of this process for the length of a block."""
    before = dict(os.environ)
    os.environ.update(env)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


SOURCES = {"hf": from_hub, "s3": from_bucket}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", default=".demo", help="made anew; default .demo")
    parser.add_argument("--json", action="store_true", help="end with one JSON line")
    parser.add_argument(
        "--source", choices=SOURCES, default="hf", help="what serves the tiny model"
    )
    parser.add_argument("--model", help="another model than the tiny one")
    parser.add_argument("serve_args", nargs="*", metavar="VLLM SERVE ARGS")
    options = parser.parse_args()
    work = os.path.abspath(options.work)
    shutil.rmtree(work, ignore_errors=True)
    make_tiny_llama(os.path.join(work, "hub", *MODEL.split("/")))

    with SOURCES[options.source](os.path.join(work, "hub")) as (model, env):
        demo = Demo(work, options.model or model, env, options.serve_args or SERVE_ARGS)
        demo.warmer("plan", expect=1)
        demo.warmer("prefill", "--on-miss", "kernels=fail")
        downloaded = demo.seal("weights")["seconds"]
        cold_log = shutil.copy(
            next(e.path for e in os.scandir(os.path.join(demo.warm_dir, "logs"))),
            os.path.join(work, "cold.log"),
        )
    print("\nThe endpoint is closed. A new pod: its warm dir is empty, the volume is shared.")
    demo.new_pod()
    restored = demo.warmer("prefill")
    demo.warmer("check")
    demo.warmer("plan")

    before = demo.tree()
    warm_log = os.path.join(work, "warm.log")
    serve = os.path.join(demo.warm_dir, "handoff", "serve")
    print(f"\n$ {serve}", flush=True)
    with Server([serve], log=warm_log, env=demo.env) as server:
        server.wait_ready()
        (choice,) = server.complete(demo.handoff()["served_name"])["choices"]
        print(f"completion: {choice['text']!r}")
    cold, warm = read_log(cold_log), read_log(warm_log)
    against, ratio = judge(cold, warm, before, demo.tree())
    built = list(demo.answered())
    if not built or choice["token_ids"] != built:
        against.append(f"it completed {choice['token_ids']}, the cold start {built}")

    extra = {"download": (downloaded, 0.0), "restore": (None, restored)}
    totals = (downloaded + cold.total_s, restored + server.ready_s)
    print("\n" + table.render(table.compare(cold, warm, extra={**extra, "ready": totals})))
    for reason in against:
        print(f"NOT A HIT: {reason}")
    if not against:
        print(
            "HIT: nothing was compiled, no file was added, the same was completed, "
            f"engine init {ratio:.1f}x faster"
        )
    if options.json:
        record = {
            "bench": "start",
            "cold_s": round(totals[0], 2),
            "warm_s": round(totals[1], 2),
            "ratio": round(totals[0] / totals[1], 2),
            "phases": {"cold": cold.phases, "warm": warm.phases},
            "engine_init_ratio": round(ratio, 2),
            "hit": not against,
        }
        print(json.dumps(record))
    return 1 if against else 0


if __name__ == "__main__":
    sys.exit(main())
