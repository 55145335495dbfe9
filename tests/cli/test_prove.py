"""`warmer prefill --prove`: a second start of the engine that must build nothing."""

import json
import os
import sys

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import fakeengine
import runs


@pytest.fixture
def place(tmp_path):
    """A pod with a GPU, so that there are JITs."""
    with runs.place(tmp_path) as place:
        cuda = fakeengine.make_engine(tmp_path / "cuda", torch="2.13.0+cu130", cuda="13.0")
        yield place.but(engine=cuda)


def run(place, mode="", *options, **more):
    env = {"PATH": f"{place.engine.bin}:{os.defpath}", "FAKE_ENGINE": mode}
    return place.run("prefill", "--json", *options, env=env | more.pop("env", {}), **more)


def refused(place, result, reason):
    """What is not proved is not handed off, and no tree of the run is left for a server to load."""
    error = runs.failed(result, 7, reason, compared=False)
    assert not os.path.exists(f"{place.warm}/handoff/handoff.json")
    for kind in ("compile", "flashinfer", "jit"):
        assert not os.path.exists(f"{place.warm}/cache/{kind}")
    return error


def test_a_start_that_builds_nothing_is_proved_and_handed_off(place, tmp_path):
    seen = tmp_path / "env.json"
    result = run(place, "echo-env", "--prove", env={"FAKE_ENGINE_ENV": str(seen)})
    assert result.code == 0, result
    proof = result.json["proof"]
    assert (proof["cache"], proof["answered"]) == ("hit", True)
    assert proof["ready"] > 0
    assert "Directly load AOT" in open(proof["log"], encoding="utf-8").read()
    built, proved = place.engine.starts
    assert proved["argv"][:-6] == built["argv"][:-4], "but for where it listens"
    assert proved["argv"][-6:-4] == ["--jit-monitor-mode", "error"]
    env, handed = json.loads(seen.read_text()), place.handoff()["env"]
    assert env["VLLM_FORCE_AOT_LOAD"] == "1"
    assert handed == {name: env[name] for name in handed}, "the server's environment"
    assert "VLLM_FORCE_AOT_LOAD" not in handed
    assert place.run("check").code == 0


def test_a_warm_pod_is_proved_without_a_build(place):
    assert run(place).code == 0
    assert run(place, "", "--prove").json["proof"]["cache"] == "hit"
    assert len(place.engine.starts) == 2
    assert run(place).json["proof"] is None


def test_without_a_gpu_what_there_is_is_proved(tmp_path):
    with runs.place(tmp_path) as place:
        result = place.run("prefill", "--json", "--prove")
        assert result.code == 0, result
        assert result.json["proof"]["answered"]
        assert len(place.engine.starts) == 2


def test_an_older_engine_is_not_given_a_flag_that_it_does_not_know(place, tmp_path):
    old = fakeengine.make_engine(
        tmp_path / "old", version="0.20.1", torch="2.13.0+cu130", cuda="13.0"
    )
    place = place.but(engine=old)
    assert run(place, "", "--prove").code == 0
    assert "--jit-monitor-mode" not in old.starts[1]["argv"]


def test_what_the_user_says_of_the_monitor_stands(place):
    serve = (*runs.SERVE, "--jit-monitor-mode", "warn")
    assert run(place, "", "--prove", serve=serve).code == 0
    assert place.engine.starts[1]["argv"].count("--jit-monitor-mode") == 1


def test_an_operation_built_at_every_start_is_not_proved(place):
    result = run(place, "op=anew", "--prove")
    error = refused(place, result, "not-proved")
    assert error["message"].startswith("got no compilation and 2 files built by a warm start")
    assert result.err.count("  | built: ") == 2
    assert "  | built: jit/tvm_ffi/op-" in result.err


def test_a_compilation_over_what_is_there_is_not_proved(place):
    error = refused(place, run(place, "recompile", "--prove"), "not-proved")
    assert error["message"].startswith("got a compilation and 0 files built")


def test_an_operation_built_again_over_what_is_there_is_not_proved(place):
    assert run(place).code == 0
    os.unlink(f"{place.warm}/handoff/handoff.json")
    error = refused(place, run(place, "rebuild", "--prove"), "not-proved")
    assert error["message"].startswith("got no compilation and 2 files built")


def test_an_engine_that_breaks_at_the_request_is_not_proved(place):
    assert run(place).code == 0
    os.unlink(f"{place.warm}/handoff/handoff.json")
    error = refused(place, run(place, "refuse=500", "--prove"), "not-proved")
    assert error["message"].startswith("got status 500 for a completion")


def test_a_model_that_completes_no_text_is_proved_as_far_as_it_goes(place):
    result = run(place, "refuse=404", "--prove")
    assert result.code == 0, result
    assert not result.json["proof"]["answered"]


def test_a_warm_start_that_completes_another_text_is_told_and_handed_off(place):
    """GPUs may round differently from run to run, so it is no failure."""
    assert run(place, "tokens=7").code == 0
    other = run(place, "tokens=8", "--prove")
    assert (other.code, other.json["proof"]["same_answer"]) == (0, False)
    (warned,) = [
        e for e in other.logged if e["event"].startswith("a warm start completed another text")
    ]
    assert (warned["build"], warned["warm"]) == ([*range(7, 15)], [*range(8, 16)])
    assert run(place, "tokens=7", "--prove").json["proof"]["same_answer"] is True


@pytest.mark.parametrize("mode", ["refuse=404", "tokens=none"])
def test_without_an_answer_of_the_build_run_none_is_compared(place, mode):
    assert run(place, "tokens=7").code == 0
    assert run(place, mode, "--prove").json["proof"]["same_answer"] is None


def test_a_kill_during_the_proof_leaves_no_tree_that_passes_for_restored(place, tmp_path):
    assert run(place).code == 0
    env = {"PATH": f"{place.engine.bin}:{os.defpath}", "FAKE_ENGINE": "hang"}
    proving = place.start("prefill", "--prove", env=env)
    runs.eventually(lambda: len(place.engine.starts) == 2, timeout=30)
    runs.kill(proving)
    assert not [n for n in os.listdir(f"{place.warm}/cache") if n.endswith(".restored.json")]
    assert place.run("check").code == 1
    assert run(place).code == 0


def test_an_engine_that_spans_nodes_has_no_kernels_to_prove(place):
    serve = (*runs.SERVE, "--nnodes", "2")
    runs.failed(run(place, "", "--prove", serve=serve), 1, "nothing-to-prove", compared=False)


def test_an_engine_that_fails_at_the_proof_fails_the_prefill(place):
    assert run(place).code == 0
    os.unlink(f"{place.warm}/handoff/handoff.json")
    refused(place, run(place, "crash", "--prove"), "engine-exited")


def test_the_archives_are_proved_not_what_the_build_left(place):
    assert run(place).code == 0
    (generation,) = place.generations("jit")
    tree = f"{place.warm}/cache/jit"
    os.unlink(f"{tree}/tvm_ffi/op.so")
    assert run(place, "", "--prove").code == 0, "restored anew, it is there again"
    assert os.path.exists(f"{tree}/tvm_ffi/op.so")
    assert place.generations("jit") == [generation]


def test_without_kernels_there_is_nothing_to_prove(place):
    result = run(place, "", "--prove", "--compile", "never")
    runs.failed(result, 1, "nothing-to-prove", "compile", compared=False)
    assert place.engine.starts == []
