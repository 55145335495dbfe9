"""The Lease server under the real client: `lightkube`, in a pod and outside, and what goes wrong."""

import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import httpx2
import pytest
from lightkube import ApiError, Client, KubeConfig
from lightkube.models.coordination_v1 import LeaseSpec
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.coordination_v1 import Lease
from lightkube.types import PatchType

sys.path.insert(0, str(Path(__file__).parent))
from leases import LeaseServer

PATH = "/apis/coordination.k8s.io/v1/namespaces/warm/leases"
NAME = "model"
NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
MINE = {"holderIdentity": "a", "leaseDurationSeconds": 15, "leaseTransitions": 0}


@pytest.fixture
def server():
    with LeaseServer() as server:
        yield server


@pytest.fixture
def client(server, tmp_path, monkeypatch):
    return by_kubeconfig(server, tmp_path, monkeypatch)


def by_kubeconfig(server, tmp_path, monkeypatch):
    monkeypatch.setenv("KUBECONFIG", server.kubeconfig(tmp_path / "kubeconfig"))
    return Client(KubeConfig.from_env(service_account=tmp_path / "no-pod"))


def by_service_account(server, directory, monkeypatch):
    for name, value in server.in_cluster(directory).items():
        monkeypatch.setenv(name, value)
    return Client(KubeConfig.from_env(service_account=directory))


def lease(**spec):
    return Lease(metadata=ObjectMeta(name=NAME), spec=LeaseSpec(**spec))


def refused(call, *args, **kwargs):
    with pytest.raises(ApiError) as caught:
        call(*args, **kwargs)
    return caught.value.status.code, caught.value.status.reason


def impatient(client):
    return Client(client.config, timeout=httpx2.Timeout(30, read=0.2))


def until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def told(server):
    return [(seen.method, seen.status) for seen in server.requests]


@pytest.mark.parametrize("tls", [False, True])
def test_lightkube_creates_reads_and_replaces_by_a_kubeconfig(tls, tmp_path, monkeypatch):
    with LeaseServer(tls=tls) as server:
        client = by_kubeconfig(server, tmp_path, monkeypatch)
        assert client.namespace == "warm"
        assert refused(client.get, Lease, NAME) == (404, "NotFound")
        made = client.create(lease(**MINE, renewTime=NOW))
        assert client.get(Lease, NAME) == made
        assert refused(client.create, lease()) == (409, "AlreadyExists")
        stale = client.get(Lease, NAME)
        made.spec.holderIdentity = "b"
        replaced = client.replace(made)
        assert replaced.metadata.uid == made.metadata.uid
        assert replaced.spec.renewTime == NOW
        assert refused(client.replace, stale) == (409, "Conflict")
        assert server.leases[NAME]["spec"]["holderIdentity"] == "b"
        assert refused(client.replace, lease()) == (422, "Invalid")


def test_lightkube_leaves_the_fraction_out_of_a_whole_second_which_is_refused(client):
    whole = lease(renewTime=NOW.replace(microsecond=0))
    assert refused(client.create, whole) == (400, "BadRequest")


def test_a_merge_patch_never_conflicts_so_two_hold_one_lease(server, client):
    """Why a lock must replace: both patched what they saw as free, and both were told yes."""
    server.tokens = {server.token: {"get", "create", "update", "patch"}}
    client.create(lease())
    for me in ("a", "b"):
        change = {"spec": {"holderIdentity": me}}
        assert (
            client.patch(Lease, NAME, change, patch_type=PatchType.MERGE).spec.holderIdentity == me
        )
    stale = {"metadata": {"resourceVersion": "1"}, "spec": {"holderIdentity": "c"}}
    patch = [Lease, NAME, stale]
    assert refused(client.patch, *patch, patch_type=PatchType.MERGE) == (409, "Conflict")
    assert refused(client.patch, *patch) == (415, "UnsupportedMediaType")


def test_lightkube_in_a_pod_reads_a_rotated_token_again(tmp_path, monkeypatch):
    with LeaseServer(tls=True) as server:
        client = by_service_account(server, tmp_path, monkeypatch)
        assert client.namespace == "warm"
        client.create(lease(**MINE))
        server.rotate("the next")
        assert refused(client.get, Lease, NAME) == (401, "Unauthorized")
        server.in_cluster(tmp_path)
        assert client.get(Lease, NAME).spec.holderIdentity == "a"
        gets = [status for method, status in told(server) if method == "GET"]
        assert gets == [401, 401, 401, 200]


def test_a_pod_trusts_no_other_authority(tmp_path, monkeypatch):
    with LeaseServer(tls=True) as server:
        client = by_service_account(server, tmp_path, monkeypatch)
        client.create(lease(**MINE))
    with LeaseServer(tls=True, port=server.port) as impostor:
        with pytest.raises(httpx2.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            client.get(Lease, NAME)
        assert impostor.requests == []


# --- what goes wrong -----------------------------------------------------------------------------


@pytest.mark.parametrize("drop", ["before", "after"])
@pytest.mark.parametrize(
    ("tls", "reset", "error"),
    [
        (False, False, httpx2.RemoteProtocolError),
        (False, True, httpx2.ReadError),
        (True, False, httpx2.RemoteProtocolError),
        (True, True, httpx2.RemoteProtocolError),  # Python's ssl takes a reset for an end
    ],
)
def test_a_dropped_reply_tells_nothing_of_the_write(request, drop, tls, reset, error):
    path, monkeypatch = (request.getfixturevalue(name) for name in ("tmp_path", "monkeypatch"))
    with LeaseServer(tls=tls) as server:
        client = by_kubeconfig(server, path, monkeypatch)
        held = client.create(lease(**MINE))
        held.spec.holderIdentity = "b"
        server.fault(method="PUT", drop=drop, reset=reset, times=1)
        with pytest.raises(error):
            client.replace(held)
        applied = drop == "after"
        assert server.leases[NAME]["spec"]["holderIdentity"] == ("b" if applied else "a")
        if applied:
            assert refused(client.replace, held) == (409, "Conflict")
        else:
            assert client.replace(held).spec.holderIdentity == "b"
        assert told(server) == [("POST", 201), ("PUT", None), ("PUT", 409 if applied else 200)]


def test_a_late_write_is_kept_after_its_client_gave_up(server, client):
    held = client.create(lease(**MINE))
    held.spec.holderIdentity = "b"
    gate = threading.Event()
    server.fault(method="PUT", gate=gate, times=1)
    with pytest.raises(httpx2.ReadTimeout):
        impatient(client).replace(held)
    assert client.get(Lease, NAME).spec.holderIdentity == "a"
    gate.set()
    until(lambda: client.get(Lease, NAME).spec.holderIdentity == "b")


def test_a_lagging_answer_is_to_a_write_that_is_kept_already(server, client):
    held = client.create(lease(**MINE))
    held.spec.holderIdentity = "b"
    server.fault(method="PUT", lag=600)
    with pytest.raises(httpx2.ReadTimeout):
        impatient(client).replace(held)
    until(lambda: client.get(Lease, NAME).spec.holderIdentity == "b")


@pytest.mark.parametrize(
    ("status", "reason"), [(500, "InternalError"), (503, "ServiceUnavailable"), (504, "Timeout")]
)
@pytest.mark.parametrize("applied", [False, True])
def test_an_error_of_the_server_may_follow_the_deed(server, client, status, reason, applied):
    server.fault(status=status, applied=applied, times=1)
    assert refused(client.create, lease(**MINE)) == (status, reason)
    assert (NAME in server.leases) == applied
    assert told(server) == [("POST", status)]


def test_too_many_requests_is_plain_text_and_says_when(server, client):
    server.fault(status=429, retry_after=1)
    with pytest.raises(httpx2.HTTPStatusError) as caught:
        client.get(Lease, NAME)
    reply = caught.value.response
    assert not isinstance(caught.value, ApiError)
    assert (reply.status_code, reply.headers["Retry-After"]) == (429, "1")
    assert reply.text == "Too many requests, please try again later.\n"
    server.faults.clear()
    assert refused(client.get, Lease, NAME) == (404, "NotFound")


def test_a_bare_answer_has_neither_body_nor_type(server):
    server.fault(status=502, bare=True)
    reply = httpx2.get(f"{server.url}{PATH}/{NAME}")
    assert (reply.status_code, reply.content) == (502, b"")
    assert "Content-Type" not in reply.headers


def test_a_fault_is_limited_by_method_path_and_count(server, client):
    client.create(lease(**MINE))
    fault = server.fault(method="GET", path=f"/{NAME}$", status=500, times=2)
    for _ in range(2):
        assert refused(client.get, Lease, NAME) == (500, "InternalError")
        assert refused(client.get, Lease, "other") == (404, "NotFound")
        assert refused(client.create, lease()) == (409, "AlreadyExists")
    assert fault.times == 0
    assert client.get(Lease, NAME).spec.holderIdentity == "a"


def test_a_server_that_is_down_refuses_and_comes_back_with_what_it_had(server, client):
    made = client.create(lease(**MINE))
    server.down()
    with pytest.raises(httpx2.ConnectError):
        client.get(Lease, NAME)
    server.up()
    assert client.get(Lease, NAME) == made


def test_going_down_ends_what_is_under_way_and_applies_none_of_it(server, client):
    def create():
        with pytest.raises(httpx2.TransportError) as caught:
            client.create(lease(**MINE))
        errors.append(caught.type)

    errors = []
    fault = server.fault(delay=600, times=1)
    thread = threading.Thread(target=create)
    thread.start()
    until(lambda: fault.times == 0)
    server.down()
    thread.join(30)
    assert (len(errors), list(server.leases)) == (1, [])


def test_what_is_planted_is_read_and_a_copy_is_handed_out(server, client):
    ancient = "1999-12-31T23:59:59.000001Z"
    server.leases[NAME] = {"spec": {"holderIdentity": "ghost", "renewTime": ancient}}
    found = client.get(Lease, NAME)
    assert (found.spec.holderIdentity, found.spec.renewTime.year) == ("ghost", 1999)
    server.leases[NAME]["spec"]["holderIdentity"] = "nobody"
    assert client.get(Lease, NAME) == found
    server.leases[NAME] = {"spec": {}}
    assert client.get(Lease, NAME).metadata.uid == found.metadata.uid
    assert refused(client.replace, found) == (409, "Conflict")
    del server.leases[NAME]
    assert refused(client.get, Lease, NAME) == (404, "NotFound")
