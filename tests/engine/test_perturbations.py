"""What `plan` foretells of a perturbed start, beside the keys that the real vLLM would make for it."""

import os
import sys

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "perturb"))

import perturb
from enginepod import ARGS, MODEL
from rows import ROWS

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def perturbed(pod):
    """Every row with its prediction and vLLM's keys; what the sweep found."""
    pod.new()
    filled = perturb.Pod(pod.volume, pod.warm_dir, MODEL, pod.env, ARGS)
    said = perturb.predictions(filled, ROWS)
    base, keys, sweep, _ = perturb.digests(filled, ROWS, sweep=True)
    return base, list(zip(ROWS, said, keys, strict=True)), sweep


def test_no_perturbed_start_is_called_warm_of_which_a_key_of_vllm_differs(perturbed):
    base, rows, _ = perturbed
    verdicts = {}
    for row, (said, factors), keys in rows:
        if said != "refused":
            assert "error" not in keys, (row.name, keys)
            verdict = perturb.judge(said, perturb.differing(base, keys), None)
            verdicts.setdefault(verdict, {})[row.name] = factors
    assert verdicts.get("false_warm", {}) == {}
    # The table must be able to fail: starts of either sort are in it.
    assert len(verdicts["agree_warm"]) >= 10
    assert len(verdicts["agree_miss"]) >= 10


def test_every_variable_in_a_key_of_vllm_torch_or_triton_is_a_factor(perturbed):
    _, _, sweep = perturbed
    assert "error" not in sweep, sweep
    assert sweep["swept"] > 200
    assert sweep["left_out"] > 0
    assert sweep["missed"] == []
