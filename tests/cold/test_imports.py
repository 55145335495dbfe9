"""Which layer imports which, and which verb pays for what."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent.parent
HEAVY = {"structlog", "huggingface_hub", "zstandard", "tenacity", "yaml", "pynvml", "httpx", "vllm"}
HEAVY |= {"torch", "numpy", "cryptography", "opentelemetry", "google.protobuf"}


def run(*argv):
    return subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)


def test_the_import_contracts_are_kept():
    linter = os.path.join(os.path.dirname(sys.executable), "lint-imports")
    done = run(linter, "--no-cache", "--no-logo")
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 broken" in done.stdout


def imported(*argv):
    done = run(sys.executable, "-X", "importtime", "-m", "warmer", *argv)
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    modules = {line.rsplit("|", 1)[1].strip() for line in lines}
    assert "click" in modules, done.stderr
    return done, modules


@pytest.mark.parametrize(
    "argv",
    [
        ["--help"],
        ["--version"],
        *([verb, "--help"] for verb in ("keygen", "plan", "prefill", "report", "serve")),
    ],
    ids=" ".join,
)
def test_help_loads_nothing_heavy(argv):
    done, modules = imported(*argv)
    assert done.returncode == 0
    assert done.stdout
    assert modules & HEAVY == set()


def test_the_measure_sees_what_is_heavy():
    done, modules = imported("plan", "--volume", "/nonexistent", "--model", "org/name")
    assert done.returncode == 6
    assert {"structlog"} <= modules & HEAVY
