"""What a server built passes through a bucket: another node pulls it, and knows who built it."""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import beside
import fleets
import runs
import volumes

HARVESTED = {"compile", "flashinfer", "jit"}


def test_a_harvest_is_pushed_once_the_bucket_is_there_and_another_node_starts_warm_from_it(empty):
    pod = beside.Pod(empty.node())
    serving = beside.serving(pod.port)
    pod.prefill("--compile", "harvest", env=empty.env())
    # Bytecode beside the sources would stay in the image that these tests share.
    with pod.server(env={"PYTHONDONTWRITEBYTECODE": "1"}):
        with pod.sidecar("--retry", "0", env=empty.away()) as sidecar:
            sidecar.says("harvested", '"compile": 1')
            sidecar.says("not pushed, trying again later", times=2)
            assert sidecar.process.poll() is None
        late = Path(pod.place.warm, "cache/compile/inductor/late")
        late.write_bytes(b"built at a request")
        with pod.sidecar(env=empty.env()) as sidecar:
            sidecar.says("harvested", '"compile": 2')
            sidecar.says("passed on")
    empty.check()
    assert {kind for kind in HARVESTED if empty.seals(kind)} == HARVESTED
    other = empty.node()
    done = other.warmed("--compile", "never", env=empty.env(), serve=serving)
    assert set(done.json["pulled_bytes"]) == HARVESTED
    for kind in HARVESTED:
        (place,) = other.generations(kind)
        assert json.loads(Path(place, "seal.json").read_bytes())["source"] == "harvest"
    assert Path(other.warm, "cache/compile/inductor/late").exists()
    assert "HF_HUB_OFFLINE" not in other.handoff()["env"], "nothing has shown that it may"
    volumes.assert_invariants(other.volume, warm=[other.warm])
    assert fleets.TEAM in empty.url and runs.listing(f"{pod.place.warm}/harvest") == []
