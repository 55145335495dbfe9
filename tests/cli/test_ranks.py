"""An engine with two ranks: what is not there of both is not sealed, not handed off and not called warm."""

import json
import os
import sys

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import fakeengine
import runs

TP2 = (*runs.SERVE, "--tensor-parallel-size", "2")


@pytest.fixture
def place(tmp_path):
    """A pod with GPUs, so that there is tuning too."""
    with runs.place(tmp_path) as place:
        cuda = fakeengine.make_engine(tmp_path / "cuda", torch="2.13.0+cu130", cuda="13.0")
        yield place.but(engine=cuda)


def run(place, mode="", *options, verb="prefill", serve=TP2, **more):
    env = {"PATH": f"{place.engine.bin}:{os.defpath}", "FAKE_ENGINE": mode}
    return place.run(verb, "--json", *options, env=env, serve=serve, **more)


def members(place, kind):
    """The files of the kind's newest generation."""
    with open(f"{place.generations(kind)[-1]}/manifest.json", encoding="utf-8") as stream:
        return {file["path"] for file in json.load(stream)["files"]}


def function(place, rank):
    (path,) = (p for p in members(place, "compile") if p.endswith(f"/rank_{rank}_0/model"))
    return f"{place.warm}/cache/compile/{path}"


def forget_rank(place, rank):
    """Take a rank out of the newest generation's manifest, as an older warmer may have left it."""
    top = place.generations("compile")[-1]
    with open(f"{top}/manifest.json", "r+", encoding="utf-8") as stream:
        record = json.load(stream)
        left = [f for f in record["files"] if f"/rank_{rank}_0/" not in f["path"]]
        assert len(left) == len(record["files"]) - 1
        stream.seek(0)
        # As long as it was: a look compares sizes.
        size = os.fstat(stream.fileno()).st_size
        stream.write(json.dumps(record | {"files": left}).ljust(size))


def test_every_rank_has_its_own_in_the_archive_and_the_proof_names_each(place):
    result = run(place, "", "--prove")
    assert result.code == 0, result
    assert result.json["proof"]["ranks"] == {"0": "hit", "1": "hit"}
    assert all(os.path.isfile(function(place, rank)) for rank in (0, 1))
    tuned = {path for path in members(place, "flashinfer") if "autotune_configs" in path}
    assert {path.rpartition("_")[2] for path in tuned} == {"rank0.json", "rank1.json"}
    assert place.run("check").code == 0
    assert run(place, verb="plan").json["steps"] == []


def test_another_parallel_size_is_another_compile_key_and_shares_all_else(place):
    assert run(place).code == 0
    planned = run(place, verb="plan", serve=runs.SERVE).json
    (step,) = planned["steps"]
    assert step["kind"] == "compile"
    assert [d["factor"] for d in step["nearest"]["differences"]] == ["parallel.tp"]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_build_in_which_a_rank_saved_nothing_is_not_sealed(place, rank):
    result = run(place, f"unsaved={rank}", "--on-miss", "kernels=fail")
    error = runs.failed(result, 7, "missing-rank", f"rank {rank}", "all 2 ranks")
    assert "save" in error["hint"]
    assert place.generations("compile") == []
    # Of the tuning of one rank alone nothing is published, as another run's would join it.
    assert not any("autotune" in path for path in members(place, "flashinfer"))
    assert not os.path.exists(f"{place.warm}/cache/compile")
    cold = run(place, f"unsaved={rank}")
    assert cold.code == 0
    assert f"rank {rank}" in cold.json["without"]["compile"]


def test_a_generation_that_lacks_a_rank_is_partial_and_is_built_again(place):
    assert run(place).code == 0
    forget_rank(place, 1)
    os.rename(f"{place.warm}/cache/compile.restored.json", f"{place.top}/record")
    (step,) = run(place, verb="plan").json["steps"]
    assert (step["kind"], step["verdict"]) == ("compile", "partial")
    assert "generation 1 lacks the compiled code of rank 1" in step["reason"]
    done = run(place)
    assert done.code == 0, done
    assert len(place.generations("compile")) == 2
    assert os.path.isfile(function(place, 1))
    assert place.run("check").code == 0


def test_a_rank_that_the_warm_dir_lost_is_named_by_check_and_plan_and_restored(place):
    assert run(place).code == 0
    os.unlink(function(place, 1))
    checked = place.run("check", "--json")
    assert checked.code == 1
    (row,) = (row for row in checked.json["pieces"] if row["verdict"] != "warm")
    assert row["kind"] == "compile"
    assert "/rank_1_0/model is not there" in row["reason"]
    (step,) = run(place, verb="plan").json["steps"]
    assert (step["action"], "the warm dir lacks rank 1" in step["reason"]) == ("restore", True)
    assert run(place).code == 0
    assert os.path.isfile(function(place, 1))
    assert place.run("check").code == 0
    assert len(place.engine.starts) == 1, "nothing was built anew"


def test_a_start_in_which_one_rank_missed_is_not_proved(place):
    result = run(place, "quiet=1", "--prove")
    error = runs.failed(result, 7, "not-proved", compared=False)
    assert "rank 1 did not load what was compiled" in error["message"]
    assert not os.path.exists(f"{place.warm}/handoff/handoff.json")


def test_what_vllm_notes_of_one_nodes_devices_is_in_no_archive(place):
    assert run(place, "p2p").code == 0
    there = [
        os.path.join(directory, name)
        for directory, _, names in os.walk(f"{place.warm}/cache")
        for name in names
        if name.startswith("gpu_p2p_access_cache_for_")
    ]
    assert len(there) == 6, "the engine wrote some at the top and deeper, in each tree"
    for kind in ("compile", "flashinfer", "jit"):
        assert not any("gpu_p2p" in path for path in members(place, kind))
        (top,) = place.generations(kind)
        for name in os.listdir(top):
            with open(f"{top}/{name}", "rb") as stream:
                assert b"gpu_p2p" not in stream.read(), (kind, name)
