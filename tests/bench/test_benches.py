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
    "restore": {"bench", "ratio", "mb_per_s", "archives", "files"},
    "stack": {"bench", "python", "ratio", "imports_ratio", "as_it_is", "room"},
    "stampede": {"bench", "lock", "processes", "origin_ratio", "ready_ratio"},
    "fill-hf": {"bench", "ratio", "others", "ours", "cpu_s_per_gb", "peak_rss_mb"},
    "fill-s3": {"bench", "ratio", "others", "ours", "cpu_s_per_gb", "peak_rss_mb"},
}
SMALLER = {
    "check": {"RUNS": "3"},
    "noop-prefill": {"RUNS": "3"},
    "restore": {"SIZE_MB": "64", "FILES": "100", "ROUNDS": "1"},
    "stack": {"STEP": "100", "ROUNDS": "1"},
    "stampede": {"PROCESSES": "6", "SIZE_MB": "64"},
    "fill-hf": {"SIZE_MB": "16", "SMALL": "20", "ROUNDS": "1"},
    "fill-s3": {"SIZE_MB": "16", "SMALL": "20", "ROUNDS": "1"},
}
"""So that each runs in seconds; whoever wants figures runs `make bench`."""


@pytest.mark.parametrize("name", FIELDS)
def test_a_benchmark_ends_with_one_json_object_of_the_promised_fields(name):
    argv = [sys.executable, os.path.join(HERE, f"{name}.py")]
    env = os.environ | SMALLER.get(name, {})
    done = subprocess.run(argv, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout.splitlines()[-1])
    assert record.keys() >= FIELDS[name]
    assert record["bench"] == name
    if name == "noop-prefill":
        assert record["network_calls"] == 0
    if name == "stampede":
        records = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        assert [record["lock"] for record in records] == ["file", "k8s", "s3"]
        assert {record["origin_ratio"] for record in records} == {1.0}
