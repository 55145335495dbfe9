"""Whole prefills of an s3:// model: as a process, with nothing but AWS's own variables."""

import json
import os
import sys

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import runs
import s3
import volumes
from buckets import PREFIX, Bucket

NO_RETRY = ("--retry", "0")


@pytest.fixture
def bucket(tmp_path_factory):
    with Bucket(s3.seaweed()) as bucket:
        yield bucket


@pytest.fixture
def place(tmp_path, bucket):
    with runs.place(tmp_path) as place:
        bucket.put_tree(f"{tmp_path}/hub/{runs.REPO}")
        yield place.but(model=bucket.model)


def closed(bucket):
    """Return the variables of a process for which nobody listens at the endpoint."""
    nobody = f"http://127.0.0.1:{runs.closed_port()}"
    return bucket.environment() | {"AWS_ENDPOINT_URL": nobody}


def steps(result):
    return [step["kind"] for step in result.json["steps"]]


def test_a_model_of_a_bucket_is_prefilled_handed_off_and_not_asked_for_again(place, bucket):
    env = bucket.environment()
    first = place.warmed(env=env)
    assert bucket.wire.listings == 1, "one resolver call per prefill"
    top = f"{place.top}/hub/{runs.REPO}"
    (generation,) = place.generations("weights")
    files = volumes.read_tree(f"{generation}/files")
    assert files == volumes.read_tree(top)
    size = sum(size for size, _ in files.values())
    assert first.json["bytes"]["weights"] == size
    assert sorted(path.rsplit("/", 1)[1] for path, _ in bucket.wire.ranges) == sorted(files)

    handoff = place.handoff()
    assert handoff["served_name"] == PREFIX.rsplit("/", 1)[1]
    model = os.path.join(place.warm, "models", f"{bucket.name}--{PREFIX.replace('/', '--')}")
    (revision,) = runs.listing(model)
    with open(f"{generation}/key.json", encoding="utf-8") as stream:
        assert json.load(stream)["factors"]["revision"].startswith(revision)
    assert os.path.realpath(f"{model}/{revision}") == os.path.realpath(f"{generation}/files")
    volumes.assert_invariants(place.volume, warm=[place.warm], clean=True)

    asked = len(bucket.wire.requests)
    assert steps(place.run("plan", "--json", env=env)) == []
    second = place.warmed(env=env)
    assert second.json["warm"]
    assert "weights" not in second.json["seconds"]
    assert {method for method, _ in bucket.wire.requests[asked:]} == {"GET"}
    assert len(bucket.wire.requests) == asked + 2, "each asked for one listing, and no byte"


def test_a_plan_names_the_listing_by_which_the_model_can_be_pinned(place, bucket):
    env = bucket.environment()
    plan = place.run("plan", env=env)
    assert plan.code == 1
    said = next(word for word in plan.out.split() if word.startswith(f"{bucket.model}@"))
    pinned = place.but(model=said)
    pinned.warmed(env=env)
    again = pinned.run("plan", "--json", env=closed(bucket))
    assert (again.code, steps(again)) == (0, []), "a pinned listing is asked of nobody"
    pinned.warmed(env=closed(bucket))
    assert pinned.run("check").code == 0

    bucket.put("config.json", b'{"changed": true}')
    other = pinned.but(volume=f"{place.top}/other", warm=f"{place.top}/other-warm")
    os.mkdir(other.volume)
    os.mkdir(other.warm)
    other.fails(4, "source-changed", "@revision", env=env)


def test_an_unreachable_service_leaves_what_the_listing_last_was(place, bucket):
    env = bucket.environment()
    place.fails(4, "unreachable", "AWS_ENDPOINT_URL", options=NO_RETRY, env=closed(bucket))
    place.warmed(env=env)
    os.mkdir(f"{place.top}/new-pod")
    pod = place.but(warm=f"{place.top}/new-pod")
    restarted = pod.warmed(env=closed(bucket), timeout=60)
    assert restarted.json["warm"]
    (warning,) = (line for line in restarted.logged if "last meant" in line["event"])
    assert warning["model"] == bucket.model
    assert pod.run("check").code == 0

    bucket.put("config.json", b'{"changed": true}')
    denied = s3.Keys("testkey", "not-the-secret")
    runs.failed(pod.run("prefill", "--json", env=bucket.environment(denied)), 4, "denied", "403")
    assert steps(pod.run("plan", "--json", env=env))[0] == "weights", "what it is now is missing"


def test_a_wrong_byte_is_never_published_and_the_next_run_is_right(place, bucket):
    env = bucket.environment()
    bucket.wire.fault(runs.SHARDS[1], method="GET", corrupt=True, times=1)
    place.fails(5, "hash-mismatch", runs.SHARDS[1], env=env)
    assert place.generations("weights") == []
    place.warmed(env=env)
    (generation,) = place.generations("weights")
    wanted = volumes.read_tree(f"{place.top}/hub/{runs.REPO}")
    assert volumes.read_tree(f"{generation}/files") == wanted


def test_what_a_failed_download_left_is_not_fetched_again(place, bucket):
    env, files = bucket.environment(), volumes.read_tree(f"{place.top}/hub/{runs.REPO}")
    shard, cut = runs.SHARDS[0], 600_000
    # The others have the time to arrive.
    bucket.wire.fault(shard, method="GET", truncate=cut, delay=1)
    place.fails(4, "unreachable", options=NO_RETRY, env=env)
    (staging,) = place.staged()
    finished = volumes.read_tree(f"{staging}/files")
    assert set(finished) == set(files) - {shard}
    bucket.wire.faults.clear()
    bucket.wire.ranges.clear()
    done = place.warmed(env=env).json
    assert [path.rsplit("/", 1)[1] for path, _ in bucket.wire.ranges] == [shard]
    assert done["bytes"]["weights"] == files[shard][0]
    assert done["taken_over_bytes"] == sum(size for size, _ in finished.values())
    (generation,) = place.generations("weights")
    assert volumes.read_tree(f"{generation}/files") == files


def test_slow_down_is_waited_out_and_counted(place, bucket):
    body = s3.refusal("SlowDown", "Please reduce your request rate.")
    headers = {"Content-Type": "application/xml", "Retry-After": "1"}
    bucket.wire.fault(runs.SHARDS[0], status=503, body=body, headers=headers, times=1)
    done = place.warmed(env=bucket.environment()).json
    assert done["retries"] == {"rate-limited": 1}
    assert done["throttled_seconds"] >= 1


def test_temporary_credentials_are_in_nothing_that_is_written(place, bucket):
    session = bucket.server.session()
    env = bucket.environment(session)
    planned = place.run("plan", env=env)
    filled = place.run("prefill", env=env)
    assert filled.code == 0, filled
    bad = bucket.environment(session._replace(secret_key="PLANTEDplanted"))
    failed = place.run("prefill", *NO_RETRY, env=bad)
    assert failed.code == 4, failed
    written = [result.out + result.err for result in (planned, filled, failed)]
    for top in (place.volume, place.warm):
        for directory, _, names in os.walk(top):
            for name in names:
                with open(os.path.join(directory, name), "rb") as stream:
                    written.append(stream.read().decode("latin-1"))
    for secret in (session.secret_key, session.token, "PLANTEDplanted"):
        assert not any(secret in text for text in written)
