"""The spine on the real vLLM found here: one cold build, shared by every test of this directory."""

import json
import os
import shutil
import sys

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "support"))

from enginepod import ARGS

from warmer.listen import Address, Listener
from warmer.loaders import NAMES
from warmer.report import spans

pytestmark = pytest.mark.engine
DTYPE = "float16" if shutil.which("nvidia-smi") else "float32"  # what each has attention for


@pytest.fixture(scope="module")
def warm(pod, tmp_path_factory):
    """One warm start of a new pod: its log, its fingerprint, the files it added, what it completed."""
    pod.new()
    assert pod.warmer("check").returncode == 0
    before = pod.compiled()
    assert any(path.endswith((".so", "/model")) for path in before)
    log, fingerprint = pod.serve(tmp_path_factory.mktemp("logs") / "warm.log")
    return log, fingerprint, pod.compiled() - before, pod.completed


def test_the_archives_were_proved_by_a_start_that_built_nothing(pod):
    assert pod.proof["answered"]
    assert pod.proof["cache"] == ("hit" if shutil.which("nvidia-smi") else "unknown")
    assert "jit_monitor_mode" in pod.proof["said"], "vLLM 0.32 was told to object"


def test_a_warm_start_of_a_new_pod_compiles_nothing(warm):
    log, _, added, _ = warm
    assert added == set()
    assert log.cache != "rebuilt", log.evidence
    assert log.phases["engine_init"] > 0


def test_a_warm_start_completes_what_the_cold_one_did(pod, warm):
    assert pod.built()
    assert warm[-1] == pod.built()
    assert pod.proof["same_answer"]


@pytest.fixture(scope="module")
def loaders(pod, warm):
    """What was measured of the engine's loaders; of them, the handoff then has `prefetch`."""
    done = pod.warmer("prefill", "--tune-loader", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["loaders"]
    directory = os.path.join(pod.volume, "v1", "loaders")
    (record,) = (os.path.join(directory, name) for name in os.listdir(directory))
    with open(record, encoding="utf-8") as f:
        kept = json.load(f)
    with open(record, "w", encoding="utf-8") as f:
        json.dump(kept | {"chosen": "prefetch"}, f)
    assert pod.warmer("prefill").returncode == 0
    return found


def test_the_loaders_of_the_engine_are_measured_on_the_volume(loaders):
    assert loaders["seconds"].keys() >= {"default", "prefetch", "multithread"}
    assert loaders["seconds"].keys() | loaders["left_out"].keys() >= {*NAMES}
    assert loaders["chosen"] in loaders["seconds"]


def test_another_port_loader_telemetry_and_early_imports_are_no_miss_and_the_engine_agrees(
    pod, warm, loaders, tmp_path
):
    assert pod.missing(*ARGS, "--port", "8123") == {}
    before = pod.compiled()

    with Listener(Address("127.0.0.1", 0)) as listener:  # every server has a port of its own
        log, fingerprint = pod.serve(tmp_path / "port.log", listener=listener, early=True)

    assert "'safetensors_load_strategy': 'prefetch'" in (tmp_path / "port.log").read_text()
    assert pod.compiled() - before == set()
    assert log.cache != "rebuilt"
    assert pod.completed == pod.built()
    assert fingerprint == warm[1]
    told = spans.read(listener.spans())
    assert told.phases["engine_init"] == pytest.approx(log.phases["engine_init"], abs=0.1)
    assert log.phases["engine_init"] < told.total_s < log.total_s


def test_another_max_model_len_is_a_miss_that_names_the_factor(pod):
    # That vLLM's keys differ is asked of vLLM's own code: test_perturbations.py has the row.
    factors = pod.missing("--max-model-len", "256")
    assert factors == {"argv.--max-model-len": ([["256"]], [["512"]])}
    done = pod.warmer("plan", "--explain", serve_args=("--max-model-len", "256"))
    assert "argv.--max-model-len: wanted 256, held 512" in done.stdout


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
