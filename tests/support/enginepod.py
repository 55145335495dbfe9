"""A pod on the real vLLM found here: warmer's verbs, and the server by the handoff."""

import json
import os
import shutil
import subprocess
import sys

import runs
from server import Server

from warmer.families import EXCLUDED
from warmer.fill import answer, members
from warmer.handoff import write
from warmer.layout import WarmDir
from warmer.observe import stack
from warmer.report import log as start_log

MODEL = "demo/tiny-llama"
ARGS = ("--max-model-len", "512")


def read(path):
    with open(path, encoding="utf-8", errors="replace") as f:
        return f.read()


class Pod:
    """A volume, a warm dir and the environment of a pod."""

    def __init__(self, top, hub):
        self.volume, self.warm_dir = os.path.join(top, "volume"), os.path.join(top, "warm")
        os.makedirs(self.volume)
        self.env = dict(os.environ, HF_ENDPOINT=hub.url, VLLM_CPU_KVCACHE_SPACE="1")
        self.env["PATH"] = os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]

    def warmer(self, verb, *flags, serve_args=ARGS):
        argv = [sys.executable, "-m", "warmer", verb, *flags, "--warm-dir", self.warm_dir]
        if verb != "check":
            argv += ["--volume", self.volume, "--model", MODEL, "--", *serve_args]
        return subprocess.run(argv, env=self.env, capture_output=True, text=True)

    def new(self):
        """A new pod: the volume is all that is left."""
        shutil.rmtree(self.warm_dir)
        done = self.warmer("prefill")
        assert done.returncode == 0, done.stderr

    def built(self):
        """The tokens that the build run completed; the last server's are `completed`."""
        return answer.kept(os.path.join(self.warm_dir, "cache", "compile"))

    def compiled(self):
        """The compile tree, less the locks that a compiler takes even to read."""
        tree = os.path.join(self.warm_dir, "cache", "compile")
        return set(members.scan(tree, EXCLUDED).members)

    def serve(self, log, *more, listener=None, early=False):
        """Start the server by the handoff, ask for one completion, stop it.

        With a `listener` it sends the spans of its start there, and is stopped after they came. If it is
        `early`, it is started before there is a handoff, and imports meanwhile.

        Returns its log, and vLLM's own digest of its configuration: a part of every key under
        which it compiles, told by vLLM 0.32 and newer in each answer.
        """
        script = os.path.join(self.warm_dir, "handoff", "serve")
        env = self.env
        if listener is not None:
            more = (*more, "--otlp-traces-endpoint", listener.url)
            env = dict(env, OTEL_EXPORTER_OTLP_TRACES_PROTOCOL="http/protobuf")
        argv, record = [script], os.path.join(self.warm_dir, "handoff", "handoff.json")
        if early:
            with open(record, encoding="utf-8") as f:
                foretold = json.load(f)["env"]
            write.foretell(WarmDir(self.warm_dir), stack=stack.find(None), env=foretold)
            os.rename(record, f"{record}.hidden")
            argv = [sys.executable, "-m", "warmer", "serve", "--warm-dir", self.warm_dir]
            argv += ["--wait", "600", "--"]
        with Server([*argv, *more], log=log, env=env) as server:
            process = f"/proc/{server.process.pid}"
            if early:
                server._starts = os.path.join(self.warm_dir, "starts")
                runs.eventually(lambda: "libtorch" in read(f"{process}/maps"), 600)
                os.rename(f"{record}.hidden", record)
            server.wait_ready()
            assert not early or "/early.py\0" in read(f"{process}/cmdline"), "it was thrown away"
            told = server.complete(MODEL)
            (choice,) = told["choices"]
            self.completed = tuple(choice["token_ids"])
            assert listener is None or listener.wait(60), "no span says that the start is over"
        assert choice["text"]
        with open(log, encoding="utf-8") as f:
            return start_log.parse(f), told.get("system_fingerprint")

    def missing(self, *serve_args):
        """The factors on which `plan` says that kernels for these arguments differ."""
        done = self.warmer("plan", "--json", serve_args=serve_args)
        steps = json.loads(done.stdout)["steps"]
        assert done.returncode == (1 if steps else 0)
        found = [d for s in steps if s["kind"] == "compile" for d in s["nearest"]["differences"]]
        return {d["factor"]: (d["wanted"], d["held"]) for d in found}
