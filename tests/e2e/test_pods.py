"""Pods of the chart, each in containers of its own, on one volume; the engine is a fake."""

import json
import re
import signal

import namespaces
import pytest
import runs

LEASE = {"lock": {"leaseSeconds": 3}}


@pytest.fixture(scope="module")
def space(node):
    with namespaces.namespace(node / "shared", values=LEASE) as space:
        yield space


@pytest.fixture(scope="module")
def two(space):
    """Two pods that started at once on an empty volume, and are ready."""
    return [pod.wait_ready() for pod in space.two_at_once()]


@pytest.fixture
def empty(space, two):
    """The same namespace with a claim that nobody has filled."""
    number, kept = len(space.pods), space.values["persistence"]
    space.values["persistence"] = {"existingClaim": f"claim-{number}"}
    yield space
    space.values["persistence"] = kept
    for pod in space.pods[number:]:
        pod.remove()


def volume(space):
    return space.objects.claim(space.values["persistence"]["existingClaim"])


def published(space):
    return {path.split("/")[0] for path in runs.published(str(volume(space)))}


def test_of_two_pods_one_fills_and_the_other_waits_and_neither_server_builds(space, two):
    notes = sorted((pod.wait_ended("warmer").note for pod in two), key=lambda note: note["built"])
    waited, built = notes
    assert (waited["built"], built["built"]) == (False, True)
    assert (waited["fetched_bytes"], waited["warm"], built["warm"]) == ({}, True, True)
    assert waited["waited_seconds"] > built["waited_seconds"] == 0
    assert waited["restored_bytes"]["compile"] > 0
    assert built["fetched_bytes"]["weights"] > 1_000_000
    for pod in two:
        assert pod.get("/health")[0] == 200
        assert "Directly load AOT compilation" in pod.log("vllm")
        assert "Starting torch.compile" not in pod.log("vllm")
    fetched = [
        p.rsplit("/", 1)[1] for m, p in space.hub.requests if m == "GET" and "/resolve/" in p
    ]
    assert sorted(fetched) == sorted(set(fetched)), "each file came once"


def test_the_probe_is_run_with_the_manifests_words_and_sees_what_is_damaged(space, two):
    pod = two[0]
    command = space.spec()["containers"][0]["readinessProbe"]["exec"]["command"]
    assert command == ["python3", "-IS", "/warm/handoff/check.py"]
    asked = [code for kind, code, _, _ in pod.status["vllm"].probes if kind == "readiness"]
    assert asked[0] == 0
    done = pod.execute("vllm", *command, "--json")
    assert (done.returncode, json.loads(done.stdout)["warm"]) == (0, True)
    assert pod.execute("vllm", "sh", "-c", "command -v warmer").returncode, "it is not there"

    (record,) = (space.top / "pods" / pod.name / "warm" / "cache").glob("compile.restored.json")
    record.rename(f"{record}.gone")
    pod.wait(lambda pod: not pod.status["vllm"].ready)
    assert pod.status["vllm"].probes[-1][1:3][0] == 1
    record.with_name(f"{record.name}.gone").rename(record)
    pod.wait(lambda pod: pod.status["vllm"].ready)
    assert pod.status["vllm"].runs == [], "it was not restarted"


def test_a_user_nobody_knows_without_rights_on_a_read_only_root(two):
    for container in ("vllm",):
        said = two[0].execute(container, "sh", "-c", "id -u; id -g; cat /proc/self/status").stdout
        user, group, status = said.split("\n", 2)
        assert (user, group) == (str(namespaces.RANDOM_USER), "0")
        assert {line.split()[1] for line in status.splitlines() if line.startswith("Cap")} == {
            "0000000000000000"
        }
        assert "NoNewPrivs:\t1" in status
        for place in ("/", "/etc", "/opt", "/models", "/models/v1"):
            assert two[0].execute(container, "touch", f"{place}/mine").returncode, place
        for place in ("/warm", "/tmp", "/dev/shm"):
            assert two[0].execute(container, "touch", f"{place}/mine").returncode == 0, place
    assert two[0].inspect("warmer")["HostConfig"]["ReadonlyRootfs"]
    assert two[0].inspect("warmer")["EffectiveCaps"] in ([], None)


def test_each_secret_is_known_to_the_container_that_needs_it_and_to_no_other(space, two):
    with_it = [seen for seen in space.hub.log if seen.authorized]
    assert with_it, "the model is private"
    pod = two[0]
    assert namespaces.TOKEN in json.dumps(pod.inspect("warmer")["Config"]["Env"])
    assert namespaces.TOKEN not in json.dumps(pod.inspect("vllm"))
    assert namespaces.API_KEY in json.dumps(pod.inspect("vllm")["Config"]["Env"])
    assert namespaces.API_KEY not in json.dumps(pod.inspect("warmer"))
    assert pod.execute("vllm", "sh", "-c", "env; cat /proc/1/environ").stdout.count("hf_") == 0
    told = pod.log("warmer") + pod.log("vllm") + pod.wait_ended("warmer").message
    assert namespaces.TOKEN not in told
    (warm,) = [space.top / "pods" / pod.name / "warm"]
    for top in (warm, space.volume):
        for path in top.rglob("*"):
            if path.is_file() and not path.is_symlink():
                assert namespaces.TOKEN.encode() not in path.read_bytes(), path


def test_a_third_pod_is_warm_as_the_quickstart_shows_it_and_answers_what_it_asks(space, two):
    (shown,) = re.findall(r"```json\n(.*?)```", namespaces.PAGE, re.DOTALL)
    shown = json.loads(shown)
    spec = space.spec()
    pod = space.pod(spec).wait_ready()
    note = pod.wait_ended("warmer").note
    assert list(note) == list(shown)
    assert (
        {"compile"} <= note["restored_bytes"].keys() <= shown["restored_bytes"].keys()
    )  # a CPU has no more
    measured = dict.fromkeys(("restored_bytes", "seconds"))
    assert note | measured == shown | measured
    path, asked = re.search(
        r"localhost:8000(\S+) .*?-d '(.*?)'", namespaces.PAGE, re.DOTALL
    ).groups()
    model = json.loads(pod.get("/v1/models")[1])["data"][0]["id"]
    status, answer = pod.get(path, data=json.loads(asked) | {"model": model})
    assert (status, bool(json.loads(answer)["choices"])) == (200, True)
    # and one that is told to stop ends within its grace
    assert pod.terminate() < spec["terminationGracePeriodSeconds"] / 2
    assert pod.status["vllm"].runs[0].code in (0, 143)


def test_an_init_container_that_fails_is_tried_again_ever_later_and_the_server_waits(empty):
    empty.hub.fault(status=503)
    try:
        pod = empty.pod(empty.spec(warmer={"retry": 0}), hurry=100)
        third = pod.wait_ended("warmer", runs=3)
        assert "vllm" not in pod.status
        assert (third.code, third.note["code"]) == (4, 4)
        assert third.note["error"]["reason"] == "unavailable"
        assert pod.status["warmer"].waits[:2] == [10, 20]
    finally:
        empty.hub.faults.clear()
    pod.wait_ready()
    assert pod.status["warmer"].runs[-1].note["warm"]


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGKILL])
def test_an_init_container_that_is_stopped_leaves_nothing_in_the_way_of_the_next(empty, sign):
    slow = namespaces.with_env(empty.spec(), "warmer", FAKE_ENGINE="hang")
    pod = empty.pod(slow, hurry=1)
    pod.wait(lambda pod: list(volume(empty).glob("v1/locks/compile-*")))
    assert published(empty) == {"weights"}
    if sign == signal.SIGTERM:
        assert pod.terminate(grace=30) < 15, "PID 1 hears it, and its engine too"
        assert pod.status["warmer"].runs[0].code == 143
        assert pod.status["warmer"].runs[0].note["error"]["reason"] == "terminated"
        assert list(volume(empty).glob("v1/staging/*")) == []
    else:
        pod.kill("warmer")
        assert pod.wait_ended("warmer").code == 137
        last = pod.wait_ended("warmer").message.splitlines()[-1]
        assert json.loads(last)["event"] == "filling", (
            "a note has not been written: the log's end is"
        )
        pod.remove()
    note = empty.pod().wait_ready().wait_ended("warmer").note
    assert (note["warm"], note["built"], note["fetched_bytes"]) == (True, True, {})


def test_an_init_container_without_enough_memory_is_killed_and_one_with_enough_goes_on(empty):
    small = {"limits": {"memory": "24Mi"}}
    pod = empty.pod(empty.spec(warmer={"resources": small}), hurry=1)
    ended = pod.wait_ended("warmer")
    assert (ended.code, ended.oom) == (137, True)
    pod.remove()
    assert empty.pod().wait_ready().wait_ended("warmer").note["warm"]


def test_a_job_fills_the_volume_before_the_first_server_comes(empty):
    job = empty.spec("Job", mode="job")
    done = empty.pod(job).wait_ended("warmer")
    assert (done.code, done.note["built"]) == (0, True)
    note = empty.pod().wait_ready().wait_ended("warmer").note
    assert (note["warm"], note["built"], note["fetched_bytes"]) == (True, False, {})


def test_the_collectors_job_runs_on_the_volume_of_pods_that_serve(space, two):
    before = runs.published(str(space.volume))
    done = space.pod(space.gc()).wait_ended("gc")
    assert done.code == 0, done.log
    assert runs.published(str(space.volume)) == before
    assert all(pod.status["vllm"].ready for pod in two)
