"""The bench of the levers over two ranks, with an engine that starts at once: its table is whole."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "support"))

import fakeengine


def bench(tmp_path, mode=""):
    engine = fakeengine.make_engine(tmp_path / "engine", torch="2.13.0+cu130", cuda="13.0")
    env = {"PATH": f"{engine.bin}:{os.defpath}", "HOME": str(tmp_path), "WARMER_VLLM": engine.vllm}
    env |= {"TP": "2", "ROUNDS": "1", "WORK": str(tmp_path / "work"), "FAKE_ENGINE": mode}
    env |= {"PATIENCE": "20", "PYTHONPATH": os.path.join(HERE, "..", "..")}
    argv = [sys.executable, os.path.join(HERE, "levers.py")]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=300)
    return done, json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Where a plan is to be used this engine crashes, as one with two ranks may."""
    return bench(tmp_path_factory.mktemp("levers"), "no-plan")


def test_each_start_tells_of_both_ranks(run):
    done, record = run
    assert done.returncode == 0, done.stderr
    ready = [row for row in record["rows"] if row["ready_s"] is not None]
    assert len(ready) >= 8
    assert all(row["ranks"] == {"0": "hit", "1": "hit"} for row in ready)
    assert (record["tensor_parallel"], record["missed"]) == (2, [])


def test_a_lever_with_which_no_start_gets_ready_is_a_row_and_no_end(run):
    _, record = run
    failed = [row for row in record["rows"] if row["ready_s"] is None]
    assert [row["start"].split(",")[0] for row in failed] == ["a plan is made", "with startup-plan"]
    assert all("ended with 1" in row["failure"] for row in failed)
    assert record["hot_with_s"] == {"startup-plan": None}
    assert set(record["hot_less_s"]) == {"bytecode", "fork", "imports"}


@pytest.mark.parametrize(
    ("ranks", "missed"),
    [
        ({"0": "hit", "1": "hit"}, False),
        ({"0": "unknown", "1": "unknown"}, False),  # on CPUs, where the log says nothing
        ({"0": "hit", "1": "unknown"}, True),
        ({"0": "hit", "1": "rebuilt"}, True),
        ({"0": "rebuilt", "1": "rebuilt"}, True),
        ({"0": "hit"}, True),
    ],
    ids=str,
)
def test_a_start_in_which_not_every_rank_hit_fails_the_bench(monkeypatch, ranks, missed):
    monkeypatch.setenv("TP", "2")
    spec = importlib.util.spec_from_file_location("bench_levers", os.path.join(HERE, "levers.py"))
    module = importlib.util.module_from_spec(spec)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path])
        spec.loader.exec_module(module)
    starts = module.Starts(None, "")
    starts.rows += [{"start": "x", "ranks": ranks}, {"start": "y", "failure": "z"}]
    assert starts.missed() == (["x"] if missed else [])
