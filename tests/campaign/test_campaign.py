"""A slice of the campaign, with fixed seeds: nothing is violated; and what is broken on purpose is found."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
SLICE = ("kill-step/file/1", "pause/k8s/1", "power/s3/1", "reset/file/1")

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="pods have mounts of their own")


def campaign(*options):
    """Run it; return its status and the JSON object in its last line."""
    run = [sys.executable, str(HERE / "campaign.py"), *options]
    env = os.environ | {"PYTHONPATH": str(HERE.parents[1])}
    done = subprocess.run(run, capture_output=True, text=True, env=env, timeout=600)
    assert done.returncode in (0, 1), done
    return done.returncode, json.loads(done.stdout.splitlines()[-1]), done.stdout


def test_a_slice_of_the_campaign_survives():
    code, found, said = campaign("--seed", ",".join(SLICE), "--tries", "1", "--workers", "4")
    assert (code, found["violations"]) == (0, 0), said
    assert found["cells"].keys() == {seed.rpartition("/")[0] for seed in SLICE}
    assert found["tried"] >= len(SLICE) - 1, "faults met nothing at work"


def test_a_warmer_that_hands_on_other_gpus_kernels_is_found_out_and_the_seed_is_named():
    seed = "kill/file/2"
    code, found, said = campaign("--seed", seed, "--plant", "one-key-for-all")
    assert (code, found["violations"]) == (1, 1), said
    (violation,) = found["cells"]["kill/file"]["violations"]
    assert violation["seed"] == seed
    assert any("is handed to a pod of" in sentence for sentence in violation["wrong"])
    assert f"VIOLATION SEED={seed}: " in said
