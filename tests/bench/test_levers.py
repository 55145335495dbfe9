"""The bench of the levers, with an engine that starts at once: its table is whole, and ends in time."""

import importlib.util
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "support"))

import fakeengine


def make(work):
    return fakeengine.make_engine(work / "engine", torch="2.13.0+cu130", cuda="13.0")


def bench(engine, work, mode="", **more):
    env = {"PATH": f"{engine.bin}:{os.defpath}", "HOME": str(work), "WARMER_VLLM": engine.vllm}
    env |= {"ROUNDS": "1", "WORK": str(work / "work"), "FAKE_ENGINE": mode}
    env |= {"PATIENCE": "20", "PYTHONPATH": os.path.join(HERE, "..", ".."), **more}
    argv = [sys.executable, os.path.join(HERE, "levers.py")]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=300)
    return done, done.stdout.splitlines()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Where a plan is to be used this engine crashes, as one with two ranks may."""
    work = tmp_path_factory.mktemp("levers")
    done, lines = bench(make(work), work, "no-plan", TP="2")
    return done, json.loads(lines[-1])


def test_each_start_tells_of_both_ranks(run):
    done, record = run
    assert done.returncode == 0, done.stderr
    ready = [row for row in record["rows"] if row["ready_s"] is not None]
    assert len(ready) >= 8
    recipe, *others = ready
    assert recipe["start"].startswith("the recipe")
    assert recipe["cache"] == "rebuilt", (
        "this engine keeps its graph in a place that the recipe loses"
    )
    assert all(row["ranks"] == {"0": "hit", "1": "hit"} for row in others)
    assert (record["tensor_parallel"], record["against"], record["unstarted"]) == (2, [], [])


def test_a_lever_with_which_no_start_gets_ready_is_a_row_and_no_end(run):
    _, record = run
    failed = [row for row in record["rows"] if row["ready_s"] is None]
    assert [row["start"].split(",")[0] for row in failed] == ["a plan is made", "with startup-plan"]
    assert all("ended with 1" in row["failure"] for row in failed)
    assert record["starts"]["with startup-plan, page cache hot"] == {"starts": 0}


def test_the_table_has_each_row_that_is_asked_for(run):
    _, record = run
    less = [name for name in record["starts"] if name.startswith("less")]
    assert [name.split()[1].rstrip(",") for name in less] == [
        "read-ahead", "bytecode", "fork", "imports",
    ]  # fmt: skip
    assert set(record["ratios"]) == {
        "the recipe, page cache hot", "default, new node", "default, page cache hot",
    }  # fmt: skip


def test_the_recipe_lacks_what_lies_elsewhere(tmp_path, monkeypatch):
    module = load(monkeypatch)
    for family in module.families.FAMILIES:
        (tmp_path / "cache" / family.kind / family.name).mkdir(parents=True)
    module.Starts(SimpleNamespace(warm_dir=str(tmp_path)), "")._forget()
    kept = {path.name for path in tmp_path.glob("cache/*/*")}
    assert {"vllm", "workspace", "autotune", "deep_gemm", "torch_extensions"} <= kept
    assert not {"inductor", "triton", "humming", "nv", "pycache", "tilelang"} & kept


def test_a_run_ends_in_time_and_another_adds_what_is_missing(tmp_path):
    """The first has time for the fill alone; the second begins what no run has begun."""
    engine = make(tmp_path)
    done, lines = bench(engine, tmp_path, LIMIT="0")
    first = json.loads(lines[-1])
    assert done.returncode == 0
    assert first["rows"] == [] and "no time for: default, new node" in lines
    done, lines = bench(engine, tmp_path, RESUME="1")
    second = json.loads(lines[-1])
    assert (done.returncode, second["unstarted"]) == (0, [])
    assert second["cold_s"] == first["cold_s"]
    done, lines = bench(engine, tmp_path, RESUME="1", ROUNDS="2", LIMIT="0")
    third = json.loads(lines[-1])
    assert third["rows"] == second["rows"], "what was started before is in the table"


def test_what_has_the_fewest_starts_comes_first_and_what_takes_too_long_not_at_all(monkeypatch):
    monkeypatch.setenv("ROUNDS", "2")
    module = load(monkeypatch)
    todo = [module.Row(name) for name in ("long", "a", "b")]
    took, clock = {"long": [], "a": [], "b": []}, [95.0]
    order = []
    for row in module.turns(todo, took, lambda: clock[0]):
        order.append(row.name)
        seconds = 40.0 if row.name == "long" else 10.0
        took[row.name].append(seconds)
        clock[0] -= seconds
    assert order == ["long", "a", "b", "a", "b"], "35 s are left, and the long one takes 40"


def test_what_was_never_started_may_take_as_long_as_the_longest(monkeypatch):
    module = load(monkeypatch)
    took = {"known": [30.0], "unknown": []}
    todo = [module.Row("known"), module.Row("unknown")]
    assert next(module.turns(todo, took, lambda: 30.0)).name == "unknown"
    assert list(module.turns(todo, took, lambda: 29.0)) == []


def test_what_was_never_started_takes_no_longer_for_what_has_no_levers(monkeypatch):
    module = load(monkeypatch)
    took = {"recipe": [60.0], "default": [20.0], "less": []}
    todo = [module.RECIPE, module.Row("default"), module.less("x")]
    todo = [module.dataclasses.replace(r, name=n) for r, n in zip(todo, took, strict=True)]
    assert next(module.turns(todo, took, lambda: 21.0)).name == "less"


@pytest.mark.parametrize(
    ("cold", "warm", "unlike"),
    [
        ([1, 2], [[1, 2, 3], [1, 2, 3]], []),
        ([1, 2], [[1, 2, 3], [1, 2, 4]], ["b completed another text"]),
        ([1, 9], [[1, 2, 3]], ["a completed another text"]),
        ([1, 2], [[1, 2, 3], []], ["b completed another text"]),
        ([], [[], []], ["nobody knows what the cold start completed"]),
        ([], [[1, 2]], ["nobody knows what the cold start completed"]),
    ],
    ids=str,
)
def test_a_start_that_completes_another_text_fails_the_bench(monkeypatch, cold, warm, unlike):
    starts = load(monkeypatch).Starts(None, "")
    starts.done += [{"start": n, "tokens": t} for n, t in zip("abc", warm, strict=False)]
    starts.done.append({"start": "c", "failure": "z"})
    assert starts.unlike(cold) == unlike


def load(monkeypatch):
    spec = importlib.util.spec_from_file_location("bench_levers", os.path.join(HERE, "levers.py"))
    module = importlib.util.module_from_spec(spec)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path])
        patch.setitem(sys.modules, "bench_levers", module)
        spec.loader.exec_module(module)
    return module


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
    module = load(monkeypatch)
    starts = module.Starts(None, "")
    starts.done += [{"start": "x", "ranks": ranks}, {"start": "y", "failure": "z"}]
    assert starts.missed() == (["x"] if missed else [])
    assert starts.failed([module.Row("y", may_fail=True)]) == []
    assert starts.failed([module.Row("y")]) == ["y"]
