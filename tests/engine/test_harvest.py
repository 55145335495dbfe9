"""The real engine builds as a server, the sidecar publishes, and the next pod builds nothing."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "support"))

import runs
from enginepod import ARGS, Pod
from server import Server, free_port

pytestmark = pytest.mark.engine


@pytest.fixture
def first(pod, tmp_path):
    """A pod like the one that was filled, on a volume with its weights and no kernels."""
    mine = Pod.__new__(Pod)
    mine.volume, mine.warm_dir, mine.env = f"{tmp_path}/volume", f"{tmp_path}/warm", pod.env
    for name in ("pieces/weights", "refs"):
        shutil.copytree(f"{pod.volume}/v1/{name}", f"{mine.volume}/v1/{name}", symlinks=True)
    return mine


@contextmanager
def harvesting(pod, log):
    """Run a sidecar until the block ends; yields what waits for what it did."""
    argv = [*runs.WARMER, "sidecar", "--volume", pod.volume, "--warm-dir", pod.warm_dir]
    argv += ["--quiet", "3", "--http-port", "0"]
    with open(log, "w", encoding="utf-8") as out:
        process = subprocess.Popen(argv, env=pod.env, stdout=out, stderr=out)

    def said():
        assert process.poll() is None, open(log, encoding="utf-8").read()
        lines = [json.loads(line) for line in open(log, encoding="utf-8")]
        return [e for e in lines if e["event"] in ("harvested", "nothing to harvest")]

    try:
        yield lambda: runs.eventually(said, 120)[0]
    finally:
        process.terminate()
        assert process.wait(20) == 143


def test_what_a_server_built_is_harvested_and_the_next_server_adds_no_file(first, tmp_path):
    port = free_port()
    serving = (*ARGS, "--port", str(port))
    done = first.warmer("prefill", "--compile", "harvest", "--json", serve_args=serving)
    assert done.returncode == 0, done.stderr
    assert "compile" in json.loads(done.stdout)["without"]
    assert first.compiled() == set()
    script = os.path.join(first.warm_dir, "handoff", "serve")
    with Server([script], log=f"{tmp_path}/cold.log", env=first.env, port=port) as server:
        with harvesting(first, f"{tmp_path}/sidecar.log") as harvested:
            server.wait_ready()
            line = harvested()
        live = first.compiled()
    assert line["compile"] == 1, line
    assert any(path.endswith((".so", "/model")) for path in live)
    shutil.rmtree(first.warm_dir)
    done = first.warmer("prefill", "--compile", "never", "--json", serve_args=ARGS)
    assert json.loads(done.stdout)["warm"] is True, done.stderr
    assert first.compiled() == live
    said, _ = first.serve(f"{tmp_path}/warm.log")
    assert first.compiled() == live
    assert said.cache != "rebuilt", said.evidence
