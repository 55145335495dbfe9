"""The real vLLM in containers: two pods at once on an empty volume, and a third on the full one.

Two engines at once take minutes of every core, and get what the tests beside them leave: who waits here
waits long.
"""

import json
import urllib.error

import namespaces
import pytest
import runs

from warmer.families import EXCLUDED
from warmer.fill import members
from warmer.report import log as start_log

PATIENCE = 1500
"""Seconds; a machine that has nothing else to do needs a tenth."""
pytestmark = [pytest.mark.engine, pytest.mark.timeout(2 * PATIENCE)]
MEMORY = {"requestMemory": "10Gi"}


@pytest.fixture(scope="module")
def space(node):
    with namespaces.namespace(node / "real", fake=False) as space:
        (model,) = space.values["servingEngineSpec"]["modelSpec"]
        model |= MEMORY
        space.values["extraEnv"].append({"name": "VLLM_CPU_KVCACHE_SPACE", "value": "1"})
        space.values["warmer"] = {"wait": PATIENCE}  # or a waiter goes on without, as it should
        yield space


def test_kernels_are_built_once_for_all_pods_and_hit_in_each(space, capsys):
    pods = [space.pod(hurry=1) for _ in range(2)]
    notes = [pod.wait_ended("warmer", timeout=PATIENCE).note for pod in pods]
    assert sorted((note["built"], note["warm"]) for note in notes) == [(False, True), (True, True)]
    before = runs.published(str(space.volume))
    for pod in pods:
        _serves(space, pod, capsys)
        pod.remove()

    alone = space.pod(hurry=1)
    note = alone.wait_ended("warmer", timeout=PATIENCE).note
    assert (note["built"], note["warm"], note["fetched_bytes"]) == (False, True, {})
    assert runs.published(str(space.volume)) == before


def _serves(space, pod, capsys):
    """Ask a pod for a completion; its server has compiled nothing."""
    tree = _tree(space, pod)
    pod.wait_ready(timeout=PATIENCE)
    with pytest.raises(urllib.error.HTTPError, match="401"):
        pod.get("/v1/models")
    _, models = pod.get("/v1/models", key=namespaces.API_KEY)
    ask = {"model": json.loads(models)["data"][0]["id"], "prompt": "Hello", "max_tokens": 4}
    status, answer = pod.get("/v1/completions", data=ask, key=namespaces.API_KEY)
    assert status == 200
    assert json.loads(answer)["choices"][0]["text"]
    assert _tree(space, pod) - tree == set(), "the server compiled nothing"
    log = start_log.parse(pod.log("vllm").splitlines())
    assert log.cache != "rebuilt", log.evidence
    with capsys.disabled():
        init = pod.status["warmer"].runs[0]
        print(f"\n{pod.name}: init container {init.seconds:.1f} s, engine {log.phases}")


def _tree(space, pod):
    """The compile tree of a pod, less the locks that a compiler takes even to read."""
    tree = space.top / "pods" / pod.name / "warm" / "cache" / "compile"
    return set(members.scan(str(tree), EXCLUDED).members)
