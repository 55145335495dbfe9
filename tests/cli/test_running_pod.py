"""A pod that runs stays ready, whatever becomes of the archive it was started from."""

import os
import sys

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import handed

from warmer.fill import publish


@pytest.mark.parametrize(("kind", "ready"), [("compile", True), ("weights", False)])
def test_a_pod_is_ready_without_the_archive_it_unpacked_but_not_without_its_weights(
    tmp_path, kind, ready
):
    pod = handed.Pod(tmp_path)
    assert pod.check()[0] == 0
    aside = publish.quarantine(pod.volume, handed.KEYS[kind], 1)
    assert (os.path.isdir(aside), pod.generation(kind).exists()) == (True, False)
    code, rows = pod.rows()
    verdicts = {name: verdict for name, (verdict, _) in rows.items()}
    assert verdicts == {"weights": "warm", "compile": "warm"} | ({} if ready else {kind: "absent"})
    assert code == (0 if ready else 1)


def test_a_pod_whose_unpacked_kernels_are_gone_is_not_ready(tmp_path):
    pod = handed.Pod(tmp_path)
    os.rename(pod.warm.tree("compile"), tmp_path / "gone")
    assert pod.rows()[1]["compile"][0] == "absent"
    assert pod.check()[0] == 1
