"""The Lease server beside what a real one was recorded to say, and what the recording lacks."""

import http.client
import json
import re
import sys
import threading
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from leases import LeaseServer

PATH = "/apis/coordination.k8s.io/v1/namespaces/warm/leases"
NAME = "model"
UID = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
MINE = {"holderIdentity": "a", "leaseDurationSeconds": 15, "leaseTransitions": 0}


@pytest.fixture
def server():
    with LeaseServer() as server:
        yield server


def ask(server, method, path, body=None, *, token="", content_type="application/json", agent="py"):
    """One request on a connection of its own; return (status, headers, body)."""
    headers = {"User-Agent": agent, "Content-Type": content_type, "Connection": "close"}
    if token is not None:
        headers["Authorization"] = f"Bearer {token or server.token}"
    data = None if body is None else json.dumps(body)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    try:
        connection.request(method, path, data, headers)
        reply = connection.getresponse()
        return reply.status, reply.headers, json.loads(reply.read())
    finally:
        connection.close()


def put(server, body, **more):
    return ask(server, "PUT", f"{PATH}/{NAME}", body, **more)


# --- as recorded ---------------------------------------------------------------------------------


def transcript():
    text = Path(__file__).with_name("lease-transcript.json").read_text(encoding="utf-8")
    return json.loads(re.sub(r"(\w)\{(\d+)\}", lambda many: many[1] * int(many[2]), text))


def rename(value, names):
    """Put other uids and resourceVersions for those in a body, and for a uid in a message."""
    if isinstance(value, dict):
        return {key: rename(each, names) for key, each in value.items()}
    if not isinstance(value, str):
        return value
    return names.get(value) or re.sub(UID, lambda uid: names.get(uid[0], uid[0]), value)


def without_times(body):
    volatile = {"creationTimestamp", "managedFields"}
    kept = {key: value for key, value in body["metadata"].items() if key not in volatile}
    return body | {"metadata": kept}


def test_every_recorded_request_gets_the_recorded_answer():
    recorded = transcript()
    assert len(recorded) == 26
    ours = {}  # uid or resourceVersion in the recording → the one given here
    with LeaseServer(tokens={"known": {"get", "create", "update", "patch"}}) as server:
        for pair in recorded:
            more = {key: pair[key] for key in ("token", "content_type") if key in pair}
            # The recorder's client, whose name is in managedFields, which count in the length.
            more["agent"] = "Python-urllib/3.11"
            body = rename(pair["request"], ours)
            status, headers, got = ask(server, pair["method"], pair["path"], body, **more)
            wanted, label = pair["response"], pair["label"]
            for key in {"uid", "resourceVersion"} & set(wanted["metadata"]):
                ours.setdefault(wanted["metadata"][key], got["metadata"].get(key))
            theirs = {here: there for there, here in ours.items()}
            assert len(theirs) == len(ours), f"{label}: a new version was no new one"
            got = without_times(rename(got, theirs))
            assert (status, got) == (pair["status"], without_times(wanted)), label
            assert headers["Warning"] == pair.get("warning"), label
            assert headers["Content-Type"] == "application/json", label
            if "length" in pair:  # to the byte, what is left out above included
                assert int(headers["Content-Length"]) == pair["length"], label


# --- beyond the recording ------------------------------------------------------------------------


def test_of_eight_writers_at_one_version_one_writes(server):
    def write(number):
        holder = f"{turn}-{number}"  # one that is there already would be no write
        body = {"metadata": seen["metadata"], "spec": MINE | {"holderIdentity": holder}}
        start.wait(30)
        answers.append((*put(server, body)[::2], number))

    server.leases[NAME] = {"spec": MINE}
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # or threads take turns so long that no two ever meet
    try:
        for turn in range(20):
            seen, start, answers = server.leases[NAME], threading.Barrier(8), []
            threads = [threading.Thread(target=write, args=(n,)) for n in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
            assert sorted(status for status, *_ in answers) == [200] + [409] * 7
            won = next(number for status, _, number in answers if status == 200)
            assert server.leases[NAME]["spec"]["holderIdentity"] == f"{turn}-{won}"
    finally:
        sys.setswitchinterval(interval)


def test_of_eight_creators_one_creates(server):
    def create(_):
        body = {"metadata": {"name": NAME}, "spec": MINE}
        start.wait(30)
        answers.append(ask(server, "POST", PATH, body)[0])

    start, answers = threading.Barrier(8), []
    threads = [threading.Thread(target=create, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(answers) == [201] + [409] * 7


def test_a_write_that_changes_nothing_keeps_the_version(server):
    server.leases[NAME] = {"spec": MINE}
    before = server.leases[NAME]
    assert put(server, before, agent="another")[2] == before
    before["metadata"]["labels"] = {"a": "b"}
    labelled = put(server, before)[2]
    assert labelled["metadata"]["labels"] == {"a": "b"}
    assert int(labelled["metadata"]["resourceVersion"]) > int(before["metadata"]["resourceVersion"])
    assert server.leases[NAME] == labelled


def test_a_dry_run_is_checked_and_not_kept(server):
    assert ask(server, "POST", f"{PATH}?dryRun=All", {"metadata": {"name": NAME}})[0] == 201
    assert not server.leases
    server.leases[NAME] = {"spec": MINE}
    before = server.leases[NAME]
    changed = before | {"spec": MINE | {"holderIdentity": "b"}}
    status, _, got = ask(server, "PUT", f"{PATH}/{NAME}?dryRun=All", changed)
    assert (status, got["spec"]["holderIdentity"]) == (200, "b")
    assert server.leases[NAME] == before


def test_a_deleted_lease_comes_back_by_a_put_that_names_no_uid(server):
    server.leases[NAME] = {"spec": MINE}
    held = server.leases[NAME]
    del server.leases[NAME]
    status, _, got = put(server, held)
    assert (status, got["reason"]) == (409, "Conflict")
    assert got["message"].endswith(f"{held['metadata']['uid']}, UID in object meta: ")
    del held["metadata"]["uid"]
    status, _, got = put(server, held)
    assert (status, got["spec"]) == (201, MINE)
    del server.leases[NAME]
    server.tokens = {"updater": {"get", "update"}}
    assert put(server, held)[0] == 403


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"leaseDurationSeconds": 15.5}, "cannot unmarshal number 15.5 into Go struct field"),
        ({"leaseDurationSeconds": "15"}, "cannot unmarshal string into Go struct field LeaseSpec."),
        ({"holderIdentity": 1}, "LeaseSpec.spec.holderIdentity of type string"),
        ({"renewTime": 1.5}, "cannot unmarshal number 1.5 into Go value of type string"),
        ({"renewTime": "2026-01-02 03:04:05.000000Z"}, 'cannot parse " 03:04:05.000000Z" as "T"'),
        ({"renewTime": "2026-01-02T03:04:05.123Z"}, 'cannot parse ".123Z" as ".000000"'),
        ({"renewTime": "2026-01-02T03:04:05.123456"}, 'cannot parse "" as "Z07:00"'),
        ({"renewTime": "2026-01-02T03:04:05.123456789Z"}, 'cannot parse "789Z" as "Z07:00"'),
        ({"renewTime": "2026-01-02T03:04:05.123456Zulu"}, 'extra text: "ulu"'),
        ({"renewTime": "2026-02-30T03:04:05.123456Z"}, "day out of range"),
    ],
)
def test_what_does_not_decode_is_a_bad_request(server, spec, says):
    body = {"metadata": {"name": NAME}, "spec": spec}
    status, _, got = ask(server, "POST", PATH, body)
    assert (status, got["reason"]) == (400, "BadRequest")
    assert says in got["message"]
    assert got["message"].startswith('Lease in version "v1" cannot be handled as a Lease: ')


def test_times_of_any_zone_are_kept_in_utc(server):
    spec = {"renewTime": "2026-01-02T03:04:05.000001+05:30"}
    _, _, got = ask(server, "POST", PATH, {"metadata": {"name": NAME}, "spec": spec})
    assert got["spec"] == {"renewTime": "2026-01-01T21:34:05.000001Z"}


@pytest.mark.parametrize(
    ("metadata", "status"),
    [
        ({}, 422),
        ({"name": "x" * 253}, 201),
        ({"name": "a..b"}, 422),
        ({"name": NAME, "namespace": "other"}, 400),
        ({"name": NAME, "resourceVersion": "1"}, 500),
    ],
)
def test_the_metadata_of_a_new_lease_is_checked(server, metadata, status):
    assert ask(server, "POST", PATH, {"metadata": metadata, "spec": MINE})[0] == status
    assert len(server.leases) == (status == 201)


def test_a_put_by_another_name_or_with_bad_numbers_changes_nothing(server):
    server.leases[NAME] = {"spec": MINE}
    held = server.leases[NAME]
    renamed = held | {"metadata": held["metadata"] | {"name": "other"}}
    assert put(server, renamed)[0] == 400
    bad = held | {"spec": {"leaseDurationSeconds": -1, "leaseTransitions": -1}}
    status, _, got = put(server, bad)
    assert (status, len(got["details"]["causes"])) == (422, 2)
    assert server.leases[NAME] == held


def test_tokens_have_their_verbs_in_the_namespaces_that_are(server):
    server.tokens = {"reader": {"get"}, "owner": {"get", "create", "update", "delete"}}
    elsewhere = PATH.replace("warm", "elsewhere")
    assert ask(server, "POST", PATH, {}, token="reader")[0] == 403
    assert ask(server, "GET", f"{PATH}/{NAME}", token="reader")[0] == 404
    assert ask(server, "GET", f"{elsewhere}/{NAME}", token="reader")[0] == 403
    assert ask(server, "GET", f"{PATH}/{NAME}", token="nobody")[0] == 401
    assert ask(server, "GET", f"{PATH}/{NAME}", token=None)[0] == 403
    server.leases[NAME] = {"spec": MINE}
    uid = server.leases[NAME]["metadata"]["uid"]
    status, _, got = ask(server, "DELETE", f"{PATH}/{NAME}", token="owner")
    assert (status, got["status"], got["details"]["uid"]) == (200, "Success", uid)
    assert not server.leases
    assert ask(server, "GET", "/api/v1/pods", token="owner")[0] == 404
    with LeaseServer(namespaces=("warm", "elsewhere")) as both:
        both.namespaces["elsewhere"][NAME] = {"spec": MINE}
        assert ask(both, "GET", f"{elsewhere}/{NAME}")[0] == 200
        assert ask(both, "GET", f"{PATH}/{NAME}")[0] == 404
