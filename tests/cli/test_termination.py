"""What Kubernetes shows of a warmer that has ended: one line, whatever it ended with."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import runs

from warmer.cli import termination


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    with runs.place(tmp_path_factory.mktemp("place")) as place:
        yield place


@pytest.fixture
def place(filled, tmp_path):
    filled.hub.faults.clear()
    return filled.fresh(tmp_path)


@pytest.fixture
def log(tmp_path):
    """The file as the kubelet makes it."""
    path = tmp_path / "termination-log"
    path.write_text("what an earlier container said, at length\n" * 9)
    return path


def said(log):
    text = log.read_text()
    assert text.count("\n") == 1
    assert text.endswith("\n")
    return json.loads(text)


def test_it_says_what_was_fetched_built_and_restored(place, log):
    outcome = place.warmed("--termination-log", str(log)).json
    note = said(log)
    assert (note["code"], note["warm"], note["built"]) == (0, True, True)
    assert note["fetched_bytes"] == {"weights": outcome["bytes"]["weights"]}
    assert (note["waited_seconds"], note["restored_bytes"]) == (0, {})
    assert note["seconds"] == outcome["seconds"]

    shutil.rmtree(place.warm)
    place.warmed(env={"WARMER_TERMINATION_LOG": str(log)})
    note = said(log)
    assert (note["warm"], note["built"], note["fetched_bytes"]) == (True, False, {})
    assert note["restored_bytes"]["compile"] > 0


@pytest.mark.skipif(os.geteuid() != 0, reason="bind mounts are root's")
def test_it_says_how_long_another_owner_was_waited_for(place, log, tmp_path):
    os.mkdir(other := f"{tmp_path}/other-warm")
    mount = 'mount --bind "$1" "$2" && shift 2 && exec "$@"'
    another = ("unshare", "-m", "sh", "-c", mount, "sh", other, place.warm)
    first = place.start("prefill", env={"FAKE_ENGINE": "slow=2"}, prefix=another)
    runs.eventually(lambda: any("compile" in path for path in place.held()))
    done = place.warmed("--termination-log", str(log))
    assert runs.finish(first).code == 0
    assert said(log)["waited_seconds"] == done.json["seconds"]["waiting"] > 0


def test_a_failure_is_told_with_its_reason_and_hint(place, log):
    place.hub.fault(status=503)
    options = ("--termination-log", str(log), "--retry", "0")
    error = place.fails(4, "unavailable", options=options, compared=False)
    note = said(log)
    assert (note["code"], note["warm"]) == (4, False)
    assert note["error"] == {name: error[name] for name in ("reason", "message", "hint")}


def test_a_prefill_that_is_told_to_stop_says_so(place, log):
    run = place.start("prefill", "--termination-log", str(log), env={"FAKE_ENGINE": "hang"})
    runs.eventually(lambda: place.engine.starts and place.held())
    run.send_signal(signal.SIGTERM)
    assert runs.finish(run, timeout=60).code == 143
    assert (said(log)["code"], said(log)["error"]["reason"]) == (143, "terminated")


def test_output_that_nobody_reads_is_no_failure_to_tell_of(place, log):
    read, write = os.pipe()
    os.close(read)
    argv = place.command("prefill", "--termination-log", str(log), "--compile", "never")
    with os.fdopen(write, "wb") as nobody:
        done = subprocess.run(argv, env=place.env(), stdout=nobody, stderr=subprocess.DEVNULL)
    assert (done.returncode, said(log)["code"]) == (0, 0)


@pytest.mark.parametrize("kind", ["absent", "pipe", "directory", "link"])
def test_what_is_no_file_of_the_kubelet_is_let_alone(place, tmp_path, kind):
    path = tmp_path / "log"
    target = tmp_path / "target"
    {
        "absent": lambda: None,
        "pipe": lambda: os.mkfifo(path),
        "directory": path.mkdir,
        "link": lambda: (target.write_text("mine"), path.symlink_to(target)),
    }[kind]()
    options = ("--termination-log", str(path), "--compile", "never")
    assert place.run("prefill", *options).code == 0
    assert path.exists() == (kind != "absent")
    assert not target.exists() or target.read_text() == "mine"


def test_what_kubernetes_would_cut_off_is_shortened_and_secrets_are_not_in_it(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_PlantedToken")
    long = {f"kind-{n}": "hf_PlantedToken " + "é" * 3000 for n in range(12)}
    text = termination.line({"code": 0, "without": long})
    assert len(text) <= 4096
    assert b"Planted" not in text
    assert set(json.loads(text)["without"]) == set(long)
