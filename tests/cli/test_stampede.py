"""Many pods at once: each byte is fetched once, the engine runs once, all start warm."""

import os
import secrets
import signal
import sys
from collections import Counter

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import runs
import s3
from leases import LeaseServer

from warmer.layout import HANDOFF_FILES

PODS = 6
# Each process sees a directory of its own at the one path that kernels are bound to.
OWN_WARM_DIR = 'mount --bind "$1" "$2" && shift 2 && exec "$@"'

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="bind mounts are root's")


@pytest.fixture
def place(tmp_path):
    with runs.place(tmp_path) as place:
        yield place


@pytest.fixture(params=["file", "k8s", "s3"])
def lock(request, tmp_path):
    """Yield what names a lock on the command line, and the environment it needs."""
    if request.param == "file":
        yield "file?lease=3", {}
    elif request.param == "k8s":
        with LeaseServer() as server:
            config = server.kubeconfig(tmp_path / "kubeconfig")
            yield "k8s://warm/models?lease=3", {"KUBECONFIG": str(config)}
    else:
        server = s3.seaweed()
        bucket = f"locks-{secrets.token_hex(4)}"
        server.bucket(bucket)
        yield f"s3://{bucket}/models?lease=3", server.environment()


def pods(place):
    """Yield for each pod its directory, and what to run a process under to see it as `warm`."""
    for number in range(PODS):
        own = f"{place.top}/pod-{number}"
        os.mkdir(own)
        yield own, ("unshare", "-m", "sh", "-c", OWN_WARM_DIR, "sh", own, place.warm)


def handed_off(own):
    """Read all files of a pod's handoff, but for what only a running prefill needs."""
    found = {}
    for name in runs.listing(f"{own}/handoff"):
        if name != "plan.json":
            with open(f"{own}/handoff/{name}", "rb") as stream:
                found[name] = stream.read()
    return found


def test_six_pods_fetch_and_build_once_and_hand_off_the_same(place, lock):
    url, env = lock
    place.hub.fault(r"\.safetensors$", rate=2_000_000)  # slow enough that all six meet
    every = list(pods(place))
    env = env | {"FAKE_ENGINE": "slow=0.5"}
    how = ("prefill", "--json", "--lock", url)
    started = [place.start(*how, prefix=prefix, env=env) for _, prefix in every]
    results = [runs.finish(process, timeout=180) for process in started]
    assert [result.code for result in results] == [0] * PODS, results
    assert all(result.json["warm"] for result in results)

    files = sorted(os.listdir(f"{place.hub.root}/{runs.REPO}"))
    assert Counter(place.fetched()) == Counter(files), "each file once"
    assert len(place.engine.starts) == 1
    assert len(place.generations("weights")) == len(place.generations("compile")) == 1
    assert (place.staged(), place.held()) == ([], [])

    first, *others = [handed_off(own) for own, _ in every]
    assert first.keys() == {*HANDOFF_FILES}
    assert all(other == first for other in others)
    for _, prefix in every:
        assert place.run("check", "--deep", prefix=prefix).code == 0
    # One was at work, and the others waited for it: they say for whom.
    waits = [line for result in results for line in result.logged if line["event"] == "waiting"]
    assert "weights" in {line["kind"] for line in waits}
    assert all(line["owner"] for line in waits)


def test_the_death_of_the_owner_makes_one_of_the_waiting_the_next(place, lock):
    url, env = lock
    slow = place.hub.fault(r"\.safetensors$", rate=20_000)
    every = list(pods(place))
    owner = place.start("prefill", "--lock", url, prefix=every[0][1], env=env)
    runs.eventually(lambda: set(runs.SHARDS) <= set(place.fetched()), 60)
    how = ("prefill", "--json", "--lock", url)
    waiting = [place.start(*how, prefix=prefix, env=env) for _, prefix in every[1:]]
    for own, _ in every[1:]:
        runs.eventually(lambda own=own: os.path.exists(f"{own}/handoff/plan.json"), 60)
    slow.times = 0
    runs.kill(owner)
    results = [runs.finish(process, timeout=180) for process in waiting]
    assert [(result.code, result.json["warm"]) for result in results] == [(0, True)] * (PODS - 1)
    assert max(Counter(place.fetched()).values()) <= 2, "once by the dead, once by the next"
    assert len(place.engine.starts) == 1
    assert (place.staged(), place.held()) == ([], [])


def test_two_pods_fill_two_models_of_one_volume_at_the_same_time(place, lock):
    """A lock is a piece's, not the volume's."""
    url, env = lock
    slow = place.hub.fault(r"\.safetensors$", rate=20_000)
    (_, prefix), (_, other_prefix), *_ = pods(place)
    one = place.start("prefill", "--lock", url, prefix=prefix, env=env)
    other = place.but(model=place.pinned(runs.OTHER))
    another = other.start("prefill", "--lock", url, prefix=other_prefix, env=env)
    runs.eventually(lambda: all(Counter(place.fetched())[shard] == 2 for shard in runs.SHARDS), 60)
    assert len(place.staged()) == 2
    assert place.generations("weights") == [], "neither is done, and both are at it"
    slow.times, slow.rate = 0, 1e9  # what is under way too
    results = [runs.finish(process, timeout=180) for process in (one, another)]
    assert [result.code for result in results] == [0, 0], results
    assert len(place.generations("weights")) == 2
    assert set(Counter(place.fetched()).values()) == {2}, "each file of each model once"
    assert "waiting" not in {
        line["event"]
        for result in results
        for line in result.logged
        if line.get("kind") == "weights"
    }


def test_a_stampede_onto_a_sealed_volume_restores_without_a_word_to_the_hub(place):
    place.warmed()
    place.hub.close()
    every = list(pods(place))
    started = [place.start("prefill", "--json", prefix=prefix) for _, prefix in every]
    results = [runs.finish(process, timeout=180) for process in started]
    assert [(result.code, result.json["warm"]) for result in results] == [(0, True)] * PODS
    assert len(place.engine.starts) == 1
    assert all(handed_off(own) == handed_off(place.warm) for own, _ in every)


def test_an_owner_that_was_stopped_past_its_lease_publishes_nothing_when_it_wakes(place, lock):
    url, env = lock
    slow = place.hub.fault(r"\.safetensors$", rate=20_000)
    (_, prefix), (_, next_prefix), *_ = pods(place)
    owner = place.start("prefill", "--json", "--lock", url, prefix=prefix, env=env)
    runs.eventually(lambda: set(runs.SHARDS) <= set(place.fetched()), 60)
    owner.send_signal(signal.SIGSTOP)
    slow.times = 0
    following = place.start("prefill", "--json", "--lock", url, prefix=next_prefix, env=env)
    result = runs.finish(following, timeout=180)
    assert (result.code, result.json["warm"]) == (0, True), result
    (generation,) = place.generations("weights")
    before = runs.published(place.volume)
    owner.send_signal(signal.SIGCONT)
    woken = runs.finish(owner, timeout=180)
    assert (woken.code, woken.json["error"]["reason"]) == (3, "lost-lock"), woken
    assert runs.published(place.volume) == before, "nothing changes"
    assert place.generations("weights") == [generation]
    assert place.staged() == [], "its staging is gone"
