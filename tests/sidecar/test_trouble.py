"""What goes wrong beside a server is said, tried again, and never ends the sidecar."""

import json
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import beside
import runs
from server import free_port

from warmer import trust

ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="mounts are root's")


@pytest.fixture
def pod(tmp_path):
    with runs.place(tmp_path) as place:
        yield beside.Pod(place)


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    top = tmp_path_factory.mktemp("keys")
    trust.generate(str(top / "one"))
    trust.generate(str(top / "other"))
    return str(top / "one")


def test_a_signed_harvest_is_restored_by_pods_that_trust_its_key(pod, keys):
    pod.prefill("--compile", "harvest", "--trusted-keys", f"{keys}.pub")
    with pod.server():
        with pod.sidecar("--trusted-keys", f"{keys}.pub") as sidecar:
            sidecar.says("not harvesting", "without --signing-key")
        for options in ((), ("--signing-key", keys.replace("one", "other"))):
            with pod.sidecar(*options) as sidecar:
                sidecar.says("not harvesting", "prefill trusts", "--signing-key of one")
        assert pod.harvested() == []
        with pod.sidecar("--signing-key", keys) as sidecar:
            sidecar.says("harvested", '"compile": 1')
    (generation,) = pod.harvested()
    assert json.loads(Path(generation, "seal.json").read_bytes())["signatures"]
    later = pod.anew()
    assert later.prefill("--compile", "harvest", "--trusted-keys", f"{keys}.pub")["warm"] is True


def test_a_volume_that_is_not_the_one_that_prefill_filled_gets_nothing(pod, tmp_path):
    pod.prefill()
    other = tmp_path / "unmounted"
    other.mkdir()
    with pod.server(), pod.sidecar("--volume", str(other)) as sidecar:
        sidecar.says("not harvested, trying again later", "as it was handed to this pod", times=2)
    assert os.listdir(other) == []


@ROOT
def test_a_read_only_volume_is_said_and_tried_again_until_it_is_writable(pod):
    pod.prefill()
    with pod.server():
        with runs.read_only(pod.place.volume):
            sidecar = beside.Sidecar(pod.place, ())
            failed = sidecar.says("not harvested, trying again later", "Read-only", times=2)
            assert all(line["level"] == "warning" for line in failed)
        # The mount is gone from under it, as when an administrator remounts the volume writable.
        try:
            sidecar.says("harvested", '"compile": 1')
        finally:
            sidecar.process.kill()
            sidecar.process.wait()


@ROOT
def test_a_full_volume_is_said_and_tried_again_until_there_is_room(pod, tmp_path):
    full = str(tmp_path / "small")
    with runs.tmpfs(full, "96m"):
        os.mkdir(f"{full}/volume")
        small = beside.Pod(pod.place.but(volume=f"{full}/volume"), pod.port)
        small.prefill()
        Path(small.place.warm, "cache/compile/big").write_bytes(os.urandom(8 << 20))
        ballast = Path(full, "ballast")
        with small.server():
            with open(ballast, "wb") as f:
                info = os.statvfs(full)
                f.write(b"x" * (info.f_bavail * info.f_frsize - (1 << 20)))
            with small.sidecar() as sidecar:
                sidecar.says("not harvested, trying again later", "No space left", times=2)
                assert small.harvested() == []
                assert small.place.staged() == []
                ballast.unlink()
                sidecar.says("harvested", '"compile": 1')


@ROOT
def test_a_warm_dir_without_room_for_copies_is_left_alone_until_there_is_some(pod):
    with runs.tmpfs(pod.place.warm, "80m"):
        pod.prefill()
        with pod.server(), pod.sidecar() as sidecar:
            big = Path(pod.place.warm, "cache/compile/inductor/big")
            big.write_bytes(os.urandom(12 << 20))
            sidecar.says("not harvested, trying again later", "bytes free in the warm dir")
            assert not os.path.exists(f"{pod.place.warm}/harvest")
            assert pod.harvested() == []
            big.unlink()
            sidecar.says("harvested", '"compile": 1')


def test_the_lock_of_another_owner_is_waited_for_and_then_left_for_later(pod):
    pod.prefill()
    key = next(p["key"] for p in pod.place.handoff()["pieces"] if p["kind"] == "compile")
    lock = Path(pod.place.volume, f"v1/locks/compile-{key}.lock")
    lock.parent.mkdir(exist_ok=True)
    hold = (
        "import sys, time; from warmer.fill.locks.file import acquire;"
        "from warmer.fill.locks.record import Owner;"
        "grant = acquire(sys.argv[1], me=Owner(name='other'), place='it');"
        "print('held', flush=True); time.sleep(600)"
    )
    owner = runs.spawn([sys.executable, "-c", hold, str(lock)], dict(os.environ))
    try:
        assert owner.stdout.readline() == "held\n"
        with pod.server(), pod.sidecar() as sidecar:
            (line, *_) = sidecar.says("not harvested, trying again later", "other", timeout=40)
            assert line["level"] == "info", "nothing is wrong"
            runs.kill(owner)
            sidecar.says("harvested", '"compile": 1', timeout=40)
    finally:
        runs.kill(owner)


def test_http_says_what_check_says_and_measures(pod):
    port = free_port()
    with pod.sidecar("--http-port", str(port)) as sidecar:
        sidecar.says("not harvesting", "no handoff")
        code, body = beside.ask(port, "/readyz")
        assert (code, json.loads(body)["warm"]) == (503, False)
        pod.prefill()
        code, body = beside.ask(port, "/readyz")
        assert (code, json.loads(body)["pieces"]) == (
            200,
            json.loads(pod.place.run("check", "--json").out)["pieces"],
        )
        assert beside.ask(port, "/else")[0] == 404
        slow = lambda: sidecar.events("not harvesting")[-1]["why"].startswith("the server does")  # noqa: E731
        with pod.server(modes="slow=1", before=lambda: runs.eventually(slow)):
            sidecar.says("harvested")
        found = runs.eventually(lambda: measured(port, 'warmer_verdict{kind="compile"'), 20)
        info = os.statvfs(pod.place.volume)
        used = (info.f_blocks - info.f_bfree) * info.f_frsize
        assert found['warmer_verdict{kind="weights",verdict="sealed"}'] == 1
        assert found['warmer_verdict{kind="compile",verdict="absent"}'] == 1
        assert found['warmer_fills_total{kind="weights",result="filled"}'] == 1
        assert found['warmer_fills_total{kind="compile",result="left_out"}'] == 1
        assert found['warmer_fills_total{kind="compile",result="published"}'] == 1
        assert found['warmer_fill_seconds{kind="weights"}'] > 0
        assert found['warmer_fill_bytes_total{kind="weights",source="hf"}'] > 0
        assert found['warmer_fill_bytes_total{kind="compile",source="server"}'] > 0
        assert found['warmer_server_start_seconds{phase="ready"}'] >= 0
        assert abs(found["warmer_volume_used_bytes"] - used) < 1 << 30
        assert found["warmer_volume_free_bytes"] > 0
        assert {name.partition("{")[0] for name in found if name.startswith("warmer_")} >= PLAIN
        assert beside.ask(port, "/livez") == (200, "ok\n")
        text = beside.ask(port, "/metrics")[1]
        assert runs.REPO not in text and pod.place.warm not in text


PLAIN = {
    *("warmer_build_info", "warmer_rate_limit_wait_seconds_total", "warmer_gc_removed_bytes_total"),
    *("warmer_lock_wait_seconds", "warmer_lock_takeovers_total"),
}


def measured(port, name):
    """What is measured, once a metric of this name is among it."""
    found = metrics(beside.ask(port, "/metrics")[1])
    return found if any(key.startswith(name) for key in found) else None


def metrics(text):
    rows = (line.rsplit(" ", 1) for line in text.splitlines() if line and line[0] != "#")
    return {name: float(value) for name, value in rows}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--server-url", "nonsense"), "--server-url"),
        (("--server-url", "http://user:pw@host:1"), "--server-url"),
        (("--warm-dir", "relative"), "relative"),
        (("--lock", "ftp://x"), "--lock"),
        (("--quiet", "-1"), "--quiet"),
    ],
)
def test_wrong_options_are_2(pod, options, reason):
    argv = [*runs.WARMER, "sidecar", "--volume", pod.place.volume, "--http-port", "0", *options]
    done = runs.finish(runs.spawn(argv, pod.place.env({"WARMER_WARM_DIR": pod.place.warm})))
    assert done.code == 2, done
    assert reason in done.err
    assert "pw" not in done.err


def test_a_port_that_is_taken_is_2(pod):
    with runs.socket.socket() as sock:
        sock.bind(("", 0))
        sock.listen()
        taken = str(sock.getsockname()[1])
        sidecar = beside.Sidecar(pod.place, ("--http-port", taken))
        assert sidecar.process.wait(20) == 2
        assert taken in Path(sidecar.log).read_text()
