"""Exit codes 4 and 5: the source failed, or its bytes are wrong."""

import os
import sys
from collections import Counter

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import runs

NO_RETRY = ("--retry", "0")
SHARD = runs.SHARDS[1]
TOKEN = "hf_planted"


@pytest.fixture(scope="module")
def seeded(tmp_path_factory):
    with runs.place(tmp_path_factory.mktemp("place")) as place:
        place.warmed()
        yield place


@pytest.fixture
def place(seeded, tmp_path):
    seeded.hub.faults.clear()
    seeded.hub.private.clear()
    seeded.hub.gated.clear()
    return seeded.fresh(tmp_path)


@pytest.mark.parametrize("env", [{}, {"HF_TOKEN": TOKEN}])
@pytest.mark.parametrize("model", ["org/none", f"org/none@{'0' * 40}"])
def test_a_model_that_does_not_exist(place, model, env):
    place.but(model=model).fails(4, "not-found", "org/none", env=env)


@pytest.mark.parametrize("revision", ["nope", "0" * 40])
def test_a_revision_that_does_not_exist(place, revision):
    wanted = place.but(model=f"{runs.OTHER}@{revision}")
    wanted.fails(4, "no-such-revision", revision, runs.OTHER)


def test_a_gated_model_without_a_token_or_with_a_wrong_one(place):
    place.hub.gated[runs.OTHER] = TOKEN
    for env, status in (({}, 401), ({"HF_TOKEN": "hf_other"}, 403)):
        before = len(place.hub.requests)
        place.fails(4, "gated", "HF_TOKEN", env=env)
        asked = Counter(place.fetched(before))
        assert set(asked.values()) == {1}, f"the hub said {status}, and was asked again"
    place.warmed(env={"HF_TOKEN": TOKEN})


def test_a_private_model_looks_like_none_without_its_token(place):
    place.hub.private[runs.OTHER] = TOKEN
    for env in ({}, {"HF_TOKEN": "hf_other"}):
        place.fails(4, "not-found", runs.OTHER, "HF_TOKEN", env=env)
    place.warmed(env={"HF_TOKEN": TOKEN})


def test_a_status_of_denial_without_a_reason(place):
    place.hub.fault("^/api/", status=403, code="", message="no scope")
    place.fails(4, "denied", "HTTP 403")


def test_a_hub_that_refuses_connections(place):
    env = {"HF_ENDPOINT": f"http://127.0.0.1:{runs.closed_port()}"}
    for model in (place.model, runs.OTHER):
        error = place.but(model=model).fails(4, "unreachable", options=NO_RETRY, env=env)
        assert "HF_ENDPOINT" in error["hint"]


def test_leave_to_ask_the_hub_withheld(place):
    for model in (place.model, runs.OTHER):
        asked = len(place.hub.requests)
        place.but(model=model).fails(4, "offline", "HF_HUB_OFFLINE", env={"HF_HUB_OFFLINE": "1"})
        assert len(place.hub.requests) == asked


@pytest.mark.parametrize(
    ("fault", "reason", "word"),
    [
        ({"status": 500}, "unavailable", "HTTP 500"),
        ({"status": 503}, "unavailable", "HTTP 503"),
        ({"status": 429}, "rate-limited", "HTTP 429"),
        ({"reset": True}, "unreachable", "no answer"),
        ({"method": "GET", "truncate": 100}, "unreachable", "no answer"),
    ],
)
def test_a_listing_that_fails_past_the_budget(place, fault, reason, word):
    place.hub.fault("^/api/", **fault)
    asked = len(place.hub.requests)
    place.fails(4, reason, word, "--retry" if reason != "unreachable" else "", options=NO_RETRY)
    assert len(place.hub.requests) == asked + 1


def test_a_listing_is_asked_again_only_inside_the_budget(place):
    place.hub.fault("^/api/", status=429, retry_after=60)
    asked = len(place.hub.requests)
    place.fails(4, "rate-limited", options=("--retry", "5"))
    assert len(place.hub.requests) == asked + 1, "60 s do not fit into 5"
    place.hub.faults.clear()
    place.hub.fault("^/api/", status=500)
    place.fails(4, "unavailable", options=("--retry", "1.5"))
    assert len(place.hub.requests) > asked + 2


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"status": 500}, "unavailable"),
        ({"status": 503}, "unavailable"),
        ({"status": 429}, "rate-limited"),
        ({"truncate": 1000}, "unreachable"),
        ({"truncate": 1000, "reset": True}, "unreachable"),
    ],
)
def test_a_download_that_fails_past_the_budget(place, fault, reason):
    place.hub.fault(SHARD, method="GET", **fault)
    before = len(place.hub.requests)
    # A budget of nothing is one call of the hub's client. After 429 and a cut body the client
    # itself tries again, for up to half a minute; after the others it does not.
    place.fails(4, reason, SHARD, options=NO_RETRY, timeout=60)
    alone = fault not in ({"status": 429}, {"truncate": 1000})
    assert place.fetched(before).count(SHARD) == 1 or not alone


def test_a_failure_of_one_file_is_not_the_end_of_the_others_next_time(place):
    place.hub.fault(SHARD, method="GET", status=500)
    place.fails(4, "unavailable", options=NO_RETRY)
    place.hub.faults.clear()
    place.warmed()
    assert place.run("check").code == 0


@pytest.mark.parametrize("where", ["^/api/", f"/resolve/.*{SHARD}"])
@pytest.mark.parametrize("fault", [{"status": 503}, {"reset": True}])
def test_a_source_that_fails_twice_and_then_answers_is_a_success(place, where, fault):
    before = runs.published(place.volume)
    fault = place.hub.fault(where, method="GET", times=2, **fault)
    result = place.warmed("--retry", "30")
    assert fault.times == 0
    tries = [line for line in result.logged if line["event"] == "source failed, trying again"]
    assert [line["attempt"] for line in tries] == [1, 2]
    assert result.json["warm"] is True
    assert before.items() < runs.published(place.volume).items()
    assert (place.staged(), place.held()) == ([], [])
    assert place.run("check", "--deep").code == 0


@pytest.mark.parametrize("name", [SHARD, "config.json"])
def test_wrong_bytes_of_the_right_length_are_5(place, name):
    place.hub.fault(f"/{name}$", corrupt=True)
    place.fails(5, "hash-mismatch", name)
    place.hub.faults.clear()
    place.warmed()


@pytest.mark.parametrize("kind", ["weights", "compile"])
def test_a_deep_check_of_a_flipped_byte_is_5(place, kind):
    place.warmed()
    piece = next(piece for piece in place.handoff()["pieces"] if piece["kind"] == kind)
    name = {"weights": f"files/{SHARD}", "compile": "tree.tar.zst"}[kind]
    runs.flip(f"{piece['directory']}/{name}")
    assert place.run("check").code == 0, "what has its size and time is not read at every probe"
    deep = place.run("check", "--deep", "--json")
    assert deep.code == 5
    rows = {row["kind"]: (row["verdict"], row["reason"]) for row in deep.json["pieces"]}
    assert rows.pop(kind)[0] == "corrupt"
    assert [verdict for verdict, _ in rows.values()] == ["warm"]
    assert name in next(r["reason"] for r in deep.json["pieces"] if r["kind"] == kind)


def test_a_seal_that_is_not_json_is_5(place):
    place.warmed()
    (piece,) = (piece for piece in place.handoff()["pieces"] if piece["kind"] == "weights")
    with open(f"{piece['directory']}/seal.json", "w", encoding="ascii") as stream:
        stream.write("{")
    assert place.run("check").code == 5
    assert place.run("plan", "--json").json["steps"][0]["verdict"] == "corrupt"
