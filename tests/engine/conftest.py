"""One cold build by the real vLLM, for every test that wants one."""

import json
import os
import sys

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "support"))

from enginepod import MODEL, Pod
from hub import Hub
from tinymodel import make_tiny_llama


@pytest.fixture(scope="session")
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
    with open(pod.proof["log"], encoding="utf-8") as f:
        pod.proof["said"] = f.read()  # a new pod's warm dir has no log of this one
    return pod
