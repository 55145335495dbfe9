"""The spine on the real vLLM found here: one cold build, shared by every test of this file."""

import json
import os
import shutil
import subprocess
import sys

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "support"))

from hub import Hub
from server import Server
from tinymodel import make_tiny_llama

from warmer.families import EXCLUDED
from warmer.fill import members
from warmer.report import log as start_log

pytestmark = pytest.mark.engine
MODEL = "demo/tiny-llama"
ARGS = ("--max-model-len", "512")
DTYPE = "float16" if shutil.which("nvidia-smi") else "float32"  # what each has attention for


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

    def compiled(self):
        """The compile tree, less the locks that a compiler takes even to read."""
        tree = os.path.join(self.warm_dir, "cache", "compile")
        return set(members.scan(tree, EXCLUDED).members)

    def serve(self, log, *more):
        """Start the server by the handoff, ask for one completion, stop it.

        Returns its log, and vLLM's own digest of its configuration: a part of every key under
        which it compiles, told by vLLM 0.32 and newer in each answer.
        """
        script = os.path.join(self.warm_dir, "handoff", "serve")
        with Server([script, *more], log=log, env=self.env) as server:
            server.wait_ready()
            answer = server.complete(MODEL)
        assert answer["choices"][0]["text"]
        with open(log, encoding="utf-8") as f:
            return start_log.parse(f), answer.get("system_fingerprint")

    def missing(self, *serve_args):
        """The factors on which `plan` says that kernels for these arguments differ."""
        done = self.warmer("plan", "--json", serve_args=serve_args)
        steps = json.loads(done.stdout)["steps"]
        assert done.returncode == (1 if steps else 0)
        found = [d for s in steps if s["kind"] == "compile" for d in s["nearest"]["differences"]]
        return {d["factor"]: (d["wanted"], d["held"]) for d in found}


@pytest.fixture(scope="module")
def pod(tmp_path_factory):
    """A pod whose volume was filled by the real engine; the hub is closed again."""
    top = str(tmp_path_factory.mktemp("engine"))
    make_tiny_llama(os.path.join(top, "hub", *MODEL.split("/")))
    with Hub(os.path.join(top, "hub")) as hub:
        pod = Pod(top, hub)
        done = pod.warmer("prefill", "--on-miss", "kernels=fail", "--prove", "--json")
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["warm"]
    pod.proof = outcome["proof"]
    return pod


@pytest.fixture(scope="module")
def warm(pod, tmp_path_factory):
    """One warm start of a new pod: its log, its fingerprint, the files it added."""
    pod.new()
    assert pod.warmer("check").returncode == 0
    before = pod.compiled()
    assert any(path.endswith((".so", "/model")) for path in before)
    log, fingerprint = pod.serve(tmp_path_factory.mktemp("logs") / "warm.log")
    return log, fingerprint, pod.compiled() - before


def test_the_archives_were_proved_by_a_start_that_built_nothing(pod):
    assert pod.proof["answered"]
    assert pod.proof["cache"] == ("hit" if shutil.which("nvidia-smi") else "unknown")
    with open(pod.proof["log"], encoding="utf-8") as f:
        assert "jit_monitor_mode" in f.read(), "vLLM 0.32 was told to object"


def test_a_warm_start_of_a_new_pod_compiles_nothing(warm):
    log, _, added = warm
    assert added == set()
    assert log.cache != "rebuilt", log.evidence
    assert log.phases["engine_init"] > 0


def test_another_port_is_no_miss_and_the_engine_agrees(pod, warm, tmp_path):
    assert pod.missing(*ARGS, "--port", "8123") == {}
    before = pod.compiled()

    log, fingerprint = pod.serve(tmp_path / "port.log")  # every server has a port of its own

    assert pod.compiled() - before == set()
    assert log.cache != "rebuilt"
    assert fingerprint == warm[1]


def test_another_max_model_len_is_a_miss_that_names_the_factor_and_the_engine_agrees(
    pod, warm, tmp_path
):
    factors = pod.missing("--max-model-len", "256")
    assert factors == {"argv.--max-model-len": ([["256"]], [["512"]])}
    done = pod.warmer("plan", "--explain", serve_args=("--max-model-len", "256"))
    assert "argv.--max-model-len: wanted 256, held 512" in done.stdout

    log, fingerprint = pod.serve(tmp_path / "shorter.log", "--max-model-len", "256")

    # vLLM keys what it compiles by this digest.
    assert fingerprint is None or fingerprint != warm[1]
    if warm[0].cache == "hit":  # where vLLM's own compile cache is used, it must be seen to miss
        assert log.cache == "rebuilt", log.evidence
    else:  # the CPU build's Inductor cache is keyed by the graph, which this flag leaves as it is
        assert fingerprint is not None


def test_another_dtype_is_a_miss_and_the_engine_compiles_again(pod, warm, tmp_path):
    assert set(pod.missing(*ARGS, "--dtype", DTYPE)) == {"argv.--dtype"}
    before = pod.compiled()

    log, fingerprint = pod.serve(tmp_path / "dtype.log", "--dtype", DTYPE)

    assert pod.compiled() - before != set()
    assert fingerprint is None or fingerprint != warm[1]
    assert log.cache == "rebuilt" or warm[0].cache != "hit", log.evidence


def test_an_engine_that_cannot_start_ends_prefill_with_7_and_says_why(pod):
    pod.new()
    args = ("--max-model-len", "1000000")
    done = pod.warmer("prefill", "--json", "--on-miss", "kernels=fail", serve_args=args)
    assert done.returncode == 7
    error = json.loads(done.stdout)["error"]
    assert (error["code"], error["reason"]) == (7, "engine-exited")
    assert "max_model_len" in error["message"]
    assert os.path.isfile(error["hint"].removeprefix("the whole log is at "))
    assert pod.warmer("plan").returncode in (0, 1)
