"""Every quick benchmark runs and ends with the line that others parse; nobody judges its figures."""

import json
import os
import subprocess
import sys

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
FIELDS = {
    "check": {"bench", "ratio", "files"},
    "noop-prefill": {"bench", "wall_s", "network_calls"},
}


@pytest.mark.parametrize("name", FIELDS)
def test_a_benchmark_ends_with_one_json_object_of_the_promised_fields(name):
    argv = [sys.executable, os.path.join(HERE, f"{name}.py")]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout.splitlines()[-1])
    assert record.keys() >= FIELDS[name]
    assert record["bench"] == name
    if name == "noop-prefill":
        assert record["network_calls"] == 0
