"""What the image installs is locked by hashes, and the lock is of what pyproject.toml says."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

TOP = Path(__file__).parents[2]
LOCK = TOP / "deploy/docker/requirements.txt"
LINE = re.compile(
    r"^([A-Za-z0-9._-]+==[^ ]+)(?: ; .*)? \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)",
    re.MULTILINE,
)
_spec = importlib.util.spec_from_file_location("lock", TOP / "deploy/docker/lock.py")
lock = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(lock)


def locked():
    """Name → version, of every line of the lock."""
    found = [Requirement(name) for name, _ in LINE.findall(LOCK.read_text())]
    return {canonicalize_name(one.name): next(iter(one.specifier)).version for one in found}


def test_the_lock_is_made_of_what_pyproject_says_now():
    first = LOCK.read_text().splitlines()[0]
    assert first == lock.stamp(), "the dependencies changed: make lock"


def test_a_changed_dependency_makes_the_lock_stale(monkeypatch):
    before = lock.stamp()
    real = lock.wanted()
    monkeypatch.setattr(lock, "wanted", lambda: [*real, "another>=1"])
    assert lock.stamp() != before


def test_every_line_of_the_lock_has_its_hashes_and_meets_what_is_wanted():
    text = LOCK.read_text()
    assert "".join(match[0] for match in LINE.finditer(text)) == text.split("\n", 1)[1]
    versions = locked()
    for one in map(Requirement, lock.wanted()):
        assert one.specifier.contains(versions[canonicalize_name(one.name)], prereleases=True), one


@pytest.mark.parametrize("spoilt", [False, True])
def test_pip_takes_the_locked_files_and_no_others(tmp_path, spoilt):
    """One small package, as install.sh takes all of them."""
    name = "six"
    (line,) = (
        match[0] for match in LINE.finditer(LOCK.read_text()) if match[1].startswith(f"{name}==")
    )
    if spoilt:
        line = re.sub("sha256:[0-9a-f]{8}", "sha256:00000000", line)
    asked = tmp_path / "requirements.txt"
    asked.write_text(line)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps"]
    words = ["--no-cache-dir", "--require-hashes", "--dest", str(tmp_path), "-r", str(asked)]
    done = subprocess.run([*pip, *words], capture_output=True, text=True)
    if "NewConnectionError" in done.stderr or "Temporary failure" in done.stderr:
        pytest.skip("there is no package index here")
    assert (done.returncode != 0) is spoilt, done.stderr
    assert not spoilt or "DO NOT MATCH THE HASHES" in done.stderr


def test_the_bill_of_materials_names_each_locked_file_with_its_hash(tmp_path):
    tool = os.path.join(os.path.dirname(sys.executable), "cyclonedx-py")
    out = tmp_path / "sbom.json"
    words = ["requirements", "--pyproject", str(TOP / "pyproject.toml"), "--output-reproducible"]
    subprocess.run(
        [tool, *words, "--of", "JSON", "-o", str(out), str(LOCK)], check=True, capture_output=True
    )
    told = json.loads(out.read_text())
    named = {canonicalize_name(one["name"]): one["version"] for one in told["components"]}
    assert named == locked()
    hashes = {
        h["content"]
        for one in told["components"]
        for ref in one["externalReferences"]
        for h in ref.get("hashes", ())
    }
    assert hashes == set(re.findall("sha256:([0-9a-f]{64})", LOCK.read_text()))
    assert told["metadata"]["component"]["name"] == "warmer"


def test_the_dockerfile_copies_the_lock_and_the_script_insists_on_it():
    assert "deploy/docker/requirements.txt" in (TOP / "Dockerfile").read_text()
    assert "!deploy/docker/requirements.txt" in (TOP / ".dockerignore").read_text()
    script = (TOP / "deploy/docker/install.sh").read_text()
    assert "--require-hashes" in script
    assert shutil.which("sh")
    subprocess.run(["sh", "-n", str(TOP / "deploy/docker/install.sh")], check=True)
