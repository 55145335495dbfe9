"""The image by itself, as `docker run` would have it."""

import json
import re
import signal
import threading
import time

import images
import pytest
from images import BASE, podman

LOCKED = (
    *("--network", "none", "--read-only", "--read-only-tmpfs=false", "--passwd=false"),
    *("--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--pull=never"),
)
MOST = 150e6
COMPILERS = ("gcc", "g++", "cc", "c++", "clang", "nvcc", "cc1plus", "as", "ld", "make", "ninja")


def run(image, *words, entrypoint=None, options=(), check=True):
    """Run the image as a user whom nobody knows, without rights, on a read-only root."""
    how = [*LOCKED, "--user", "1000660000:0", *options]
    if entrypoint is not None:
        how += ["--entrypoint", json.dumps(entrypoint)]
    return podman("run", "--rm", *how, image, *words, check=check)


def test_it_weighs_little_over_its_base(image):
    assert 0 < images.size(image) - images.size(BASE) <= MOST


def test_it_runs_as_no_root_and_begins_with_a_prefill(image):
    told = json.loads(podman("image", "inspect", image).stdout)[0]["Config"]
    assert told["User"] == "1000:0"
    assert told["Entrypoint"] == ["/opt/warmer/entrypoints/init"]
    done = run(image, check=False)
    assert done.returncode == 2, "no model and no volume: a usage error"
    assert "--volume" in done.stderr


@pytest.mark.parametrize(
    ("verb", "code", "says"),
    [("check", 1, "/warm"), ("serve", 2, "/warm"), ("sidecar", 2, "--volume")],
)
def test_each_entrypoint_is_its_verb(image, verb, code, says):
    done = run(image, entrypoint=[f"/opt/warmer/entrypoints/{verb}"], check=False)
    assert (done.returncode, says in done.stdout + done.stderr) == (code, True)


def test_it_reports_on_a_log_that_comes_through_a_pipe_as_the_quickstart_has_it(image):
    page = (images.TOP / "docs" / "quickstart.md").read_text()
    words = re.search(r"docker run (.*?) --entrypoint warmer (\S+) (.*)", page).groups()
    log = (images.TOP / "tests" / "report" / "logs" / "cold-0.28.log").read_text()
    how = {"input": log, "capture_output": True, "text": True}
    entry = ["--pull=never", "--network", "none", "--entrypoint", "warmer"]
    done = podman("run", *words[0].split(), *entry, image, *words[2].split(), **how)
    assert "Python imports" in done.stdout


def test_a_user_without_a_home_gets_one_that_can_be_written(image):
    script = '. /opt/warmer/entrypoints/home; echo "$HOME $USER"'
    done = run(image, entrypoint=["sh", "-c", script], options=("--env", "HOME=/nowhere"))
    assert done.stdout == "/tmp warmer\n"


def test_it_brings_no_compiler(image):
    script = "; ".join(f"command -v {name}" for name in COMPILERS)
    assert run(image, entrypoint=["sh", "-c", f"{script}; true"]).stdout == ""
    brought = run(image, entrypoint=["find", "/opt/warmer", "-name", "*.[acho]"])
    assert brought.stdout == ""


def test_every_module_is_compiled_and_never_compared_with_its_source(image):
    script = (
        "import importlib.util, json, pathlib, sys\n"
        "top = pathlib.Path(sys.prefix)\n"
        "found = {}\n"
        "for source in top.rglob('*.py'):\n"
        "    compiled = pathlib.Path(importlib.util.cache_from_source(str(source)))\n"
        "    found[str(source)] = compiled.read_bytes()[4:8].hex() if compiled.exists() else None\n"
        "print(json.dumps(found))\n"
    )
    found = json.loads(run(image, entrypoint=["/opt/warmer/bin/python3", "-c", script]).stdout)
    assert any(path.endswith("warmer/check.py") for path in found)
    unchecked = (1).to_bytes(4, "little").hex()  # PEP 552: hash-based, and not checked
    assert {path: flags for path, flags in found.items() if flags != unchecked} == {}


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_as_first_process_it_obeys_signals_at_once(image, sign, tmp_path):
    name = f"signal-{sign.name.lower()}"
    for each in (tmp_path, tmp_path / "volume", tmp_path / "warm"):
        each.mkdir(exist_ok=True)
        each.chmod(0o777)
    # A hub that nobody answers for: it tries again and again.
    options = ["--name", name, "--env", "WARMER_RETRY=600"]
    options += ["--env", "HF_ENDPOINT=http://127.0.0.1:9"]
    options += ["--volume", f"{tmp_path}/volume:/models", "--volume", f"{tmp_path}/warm:/warm"]
    words = ("--volume", "/models", "--model", "org/none", "--compile", "never")
    done = []
    running = threading.Thread(
        target=lambda: done.append(run(image, *words, options=options, check=False))
    )
    running.start()
    try:
        deadline = time.monotonic() + 30
        while not (tmp_path / "warm" / "lock").exists():
            assert time.monotonic() < deadline, done
            time.sleep(0.05)
        started = time.monotonic()
        podman("kill", "--signal", str(int(sign)), name)
        running.join(20)
        assert time.monotonic() - started < 15, "without being killed"
        assert done[0].returncode == 128 + sign
    finally:
        podman("rm", "--force", "--time", "0", name, check=False)
        running.join(30)
