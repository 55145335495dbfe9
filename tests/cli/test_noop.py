"""The second prefill: an empty plan, no request, no engine, nothing written."""

import os
import socket
import sys
from pathlib import Path

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import runs


@pytest.fixture
def place(tmp_path):
    with runs.place(tmp_path) as place:
        place.warmed()
        yield place


def state(top):
    """Fingerprint everything below a directory, but for the lock's own record.

    The volume's records of use are made young again by every prefill; no more than that.
    """
    found = {}
    for at, names, files in os.walk(top):
        if os.path.basename(at) == "uses":
            found |= {name: Path(at, name).read_bytes() for name in files}
            continue
        for name in names + files:
            path = os.path.join(at, name)
            info = os.lstat(path)
            if name != "lock":
                found[os.path.relpath(path, top)] = (info.st_mtime_ns, info.st_ino, info.st_size)
    return found


def test_a_second_prefill_asks_the_hub_nothing_and_starts_no_engine(place):
    asked = len(place.hub.log)
    volume, warm = state(place.volume), state(place.warm)
    # A hub that is closed, a port where nobody listens, and one where nobody must be seen.
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        seen = f"http://127.0.0.1:{listening.getsockname()[1]}"
        for endpoint in (place.hub.url, f"http://127.0.0.1:{runs.closed_port()}", seen):
            env = {"HF_ENDPOINT": endpoint, "FAKE_ENGINE": "crash"}
            assert place.run("plan", "--json", env=env).json["steps"] == []
            done = place.warmed("--on-miss", "fail", env=env)
            assert done.json["seconds"].keys() == {"observe", "handoff"}
            assert (done.json["bytes"], done.json["without"], done.json["left"]) == ({}, {}, [])
            assert (done.json["warm"], done.err) == (True, "")
            assert place.run("check", env=env).code == 0
        with pytest.raises(BlockingIOError):
            listening.accept()
    assert len(place.hub.log) == asked
    place.hub.close()
    assert place.warmed().json["warm"] is True
    assert len(place.engine.starts) == 1
    assert (state(place.volume), state(place.warm)) == (volume, warm)


def test_a_second_prefill_opens_no_socket(place, tmp_path):
    trace = tmp_path / "trace"
    prefix = ("strace", "-f", "-qq", "-e", "trace=connect,sendto,sendmsg", "-o", str(trace))
    try:
        done = place.run("prefill", "--json", prefix=prefix)
    except FileNotFoundError:
        pytest.skip("there is no strace here")
    assert done.code == 0
    assert [line for line in trace.read_text().splitlines() if "AF_INET" in line] == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts filesystems, as root alone may")
def test_a_second_prefill_needs_no_writable_volume(place):
    with runs.read_only(place.volume):
        done = place.warmed("--on-miss", "fail")
    assert (done.json["warm"], done.err) == (True, "")


def test_an_unpinned_revision_asks_once_and_means_what_it_last_meant_when_the_hub_is_down(place):
    moving = place.but(model=runs.REPO)
    asked = len(place.hub.requests)
    done = moving.warmed("--on-miss", "fail")
    assert place.hub.requests[asked:] == [("GET", f"/api/models/{runs.REPO}/revision/main")]
    assert done.json["seconds"].keys() == {"observe", "handoff"}
    handoff = moving.handoff()

    place.hub.close()
    for endpoint in (place.hub.url, f"http://127.0.0.1:{runs.closed_port()}"):
        env = {"HF_ENDPOINT": endpoint}
        done = moving.warmed("--retry", "0", "--on-miss", "fail", env=env)
        assert done.json["warm"] is True
        (warning,) = done.logged
        assert warning["level"] == "warning"
        assert warning["revision"] == place.model.partition("@")[2]
        assert warning["failure"].startswith("got no answer from the hub")
        assert moving.handoff() == handoff
        assert moving.run("plan", "--retry", "0", env=env).code == 0
    assert len(place.engine.starts) == 1


def test_an_unpinned_revision_that_moved_is_another_model(place):
    moving = place.but(model=runs.REPO)
    moving.warmed()
    with open(f"{place.hub.root}/{runs.REPO}/tokenizer_config.json", "a", encoding="ascii") as f:
        f.write("\n")
    planned = moving.run("plan", "--json")
    assert planned.code == 1
    nearest = planned.json["steps"][0]["nearest"]
    assert [d["factor"] for d in nearest["differences"]] == ["revision"]
    moving.warmed()
    assert len(place.generations("weights")) == 2
    assert moving.handoff()["model_path"].endswith(place.hub.sha(runs.REPO)[:12])


def test_an_unpinned_revision_never_asked_about_needs_the_hub(place):
    place.hub.close()
    result = place.but(model=runs.OTHER).run("prefill", "--json", "--retry", "0")
    runs.failed(result, 4, "unreachable", runs.OTHER)
