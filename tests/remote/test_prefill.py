"""Whole prefills of nodes that share no volume: one builds and pushes, the others pull."""

import hashlib
import json
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import fleets
import runs
import s3
import volumes
from fleets import KERNELS

NEVER = ("--compile", "never")


def seal(directory):
    return json.loads(Path(directory, "seal.json").read_bytes())


def newest(node, kind):
    return seal(max(node.generations(kind), key=lambda path: int(path.rsplit("/", 1)[1])))


def warned(result, event):
    return [line for line in fleets.warnings(result) if line["event"] == event]


def lame(fleet, kind, number):
    """Take rank 1 out of a piece in the bucket, as an older warmer may have pushed it."""
    record = fleet.seals(kind)[number]
    (entry,) = (file for file in record["files"] if file["path"] == "manifest.json")
    manifest = json.loads(fleet.read(f"blobs/{entry['sha256']}"))
    manifest["files"] = [f for f in manifest["files"] if "/rank_1_0/" not in f["path"]]
    data = json.dumps(manifest).encode()
    entry |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    fleet.put(f"blobs/{entry['sha256']}", data)
    fleet.put(fleet.seal_name(kind, number), json.dumps(record).encode())


def test_a_node_with_an_empty_volume_pulls_and_its_engine_never_runs(fleet, pioneer):
    fleet.check()
    starts, node = len(pioneer.first.engine.starts), fleet.node()
    done = node.warmed(*NEVER, env=fleet.env())
    assert done.json["warm"] is True
    assert set(done.json["pulled_bytes"]) == set(KERNELS)
    assert done.json["pushed_bytes"] == {}
    assert fleets.warnings(done) == []
    assert len(node.engine.starts) == starts
    assert {method for method, _ in fleet.bucket.wire.requests} == {"GET"}, (
        "who pulls writes nothing"
    )
    for kind in KERNELS:
        (there,), (here,) = pioneer.first.generations(kind), node.generations(kind)
        ours, theirs = volumes.read_tree(here), volumes.read_tree(there)
        assert ours.pop("seal.json") != theirs.pop("seal.json")
        assert ours == theirs
        assert seal(here)["source"] == fleet.url
        assert seal(here)["seconds"] == seal(there)["seconds"], "what a build took, not a pull"
    assert node.run("check", "--deep").code == 0
    assert node.run("plan", *NEVER, env=fleet.away()).code == 0
    volumes.assert_invariants(node.volume, warm=[node.warm], clean=True)


def test_a_piece_in_the_bucket_that_lacks_a_rank_is_not_taken(empty):
    serve = (*runs.SERVE, "--tensor-parallel-size", "2")
    assert empty.node().warmed(env=empty.env(), serve=serve).json["pushed_bytes"]
    (number,) = empty.seals("compile")
    lame(empty, "compile", number)
    node = empty.node()
    done = node.warmed(*NEVER, env=empty.env(), serve=serve)
    (line,) = warned(done, "a piece in the bucket cannot be used")
    assert "lacks the compiled code of rank 1" in line["failure"]
    assert "compile" in done.json["without"]
    assert node.generations("compile") == []


def test_a_warm_volume_asks_the_bucket_nothing(fleet):
    node = fleet.node()
    node.warmed(env=fleet.env())
    asked = len(fleet.bucket.wire.requests)
    for pod in (node, fleet.at(node)):
        for env in (fleet.env(), fleet.away()):
            again = pod.warmed(env=env)
            assert again.json["warm"] is True
            assert not {"pull", "push", "kernels"} & set(again.json["seconds"])
            assert fleets.warnings(again) == []
    assert len(fleet.bucket.wire.requests) == asked


@pytest.mark.parametrize("build", [True, False])
def test_a_plan_says_that_the_bucket_will_be_asked_and_does_not_ask(fleet, build):
    node, options = fleet.node(), () if build else NEVER
    plan = node.run("plan", "--json", *options, env=fleet.env())
    steps = {step["kind"]: step for step in plan.json["steps"] if step["kind"] in KERNELS}
    assert set(steps) == set(KERNELS)
    assert {step["action"] for step in steps.values()} == {"pull or build" if build else "pull"}
    assert all(fleet.url in step["reason"] for step in steps.values())
    assert (plan.code, plan.json["without"]) == (1, {})
    assert f"{fleet.url} is asked" in node.run("plan", *options, env=fleet.env()).out
    assert fleet.bucket.wire.requests == []


def test_the_bucket_may_be_named_by_a_flag_or_a_config_file_too(fleet, tmp_path):
    env = fleet.env(WARMER_REMOTE="s3://another/bucket")
    config = tmp_path / "warmer.yaml"
    config.write_text(json.dumps({"remote": fleet.url}))
    node = fleet.node()
    for options in (("--remote", fleet.url), ("--config", str(config))):
        if "--config" in options:
            del env["WARMER_REMOTE"]
        plan = node.run("plan", "--json", *options, env=env)
        assert fleet.url in plan.json["steps"][1]["reason"]


def test_what_the_bucket_lacks_is_built_or_left_out(empty):
    node = empty.node()
    done = node.run("prefill", "--json", *NEVER, "--on-miss", "kernels=fail", env=empty.env())
    runs.failed(done, 1, "not-warm", "--compile=never")
    node = empty.node()
    cold = node.warmed(*NEVER, env=empty.env())
    assert (cold.json["warm"], set(cold.json["without"])) == (False, set(KERNELS))
    assert empty.objects() == {}


@pytest.mark.parametrize("how", ["a proxy says 403", "the keys may only read"])
def test_a_bucket_that_may_only_be_read_costs_one_warning(empty, how):
    node, keys = empty.node(), None
    if how == "the keys may only read":
        keys = empty.bucket.server.reader
    else:
        body = s3.refusal("AccessDenied", "Access Denied")
        empty.bucket.wire.fault(method="PUT", status=403, body=body)
    done = node.warmed(env=empty.env(keys))
    assert done.json["warm"] is True
    assert done.json["pushed_bytes"] == {}
    (warning,) = fleets.warnings(done)
    assert warning["event"] == "nothing more is pushed"
    assert "403" in warning["failure"]
    assert "s3:PutObject" in warning["hint"]
    assert empty.objects() == {}
    assert node.run("check").code == 0


def test_a_reader_pulls(fleet):
    node = fleet.node()
    done = node.warmed(*NEVER, env=fleet.env(fleet.bucket.server.reader))
    assert done.json["warm"] is True


def test_a_bucket_that_is_away_costs_two_warnings_and_its_retries(fleet):
    node = fleet.node()
    done = node.warmed("--retry", "1", env=fleet.away(), timeout=60)
    assert done.json["warm"] is True
    assert "kernels" in done.json["seconds"]
    assert len(warned(done, "nothing more is pulled")) == 1
    assert len(warned(done, "nothing more is pushed")) == 1
    others = {"source failed, trying again"}
    events = {line["event"] for line in fleets.warnings(done)}
    assert events <= {"nothing more is pulled", "nothing more is pushed"} | others


def test_a_service_that_asks_for_patience_gets_it(fleet):
    body = s3.refusal("SlowDown", "Please reduce your request rate.")
    fleet.bucket.wire.fault("/blobs/", status=503, body=body, times=2)
    fleet.bucket.wire.fault("/blobs/", truncate=100, times=2)
    done = fleet.node().warmed(*NEVER, env=fleet.env())
    assert done.json["warm"] is True
    assert len(warned(done, "source failed, trying again")) >= 2


def test_a_service_that_stays_throttled_is_left_after_the_budget(empty):
    body = s3.refusal("SlowDown", "Please reduce your request rate.")
    empty.bucket.wire.fault(method="PUT", status=503, body=body)
    done = empty.node().warmed("--retry", "1", env=empty.env())
    assert done.json["warm"] is True
    (warning,) = warned(done, "nothing more is pushed")
    assert "SlowDown" in warning["failure"]


def test_a_bucket_without_region_or_keys_is_a_warning(fleet):
    env = fleet.env()
    del env["AWS_ACCESS_KEY_ID"]
    done = fleet.node().warmed(env=env)
    assert done.json["warm"] is True
    assert len(warned(done, "nothing more is pulled")) == 1
    assert "credentials" in warned(done, "nothing more is pulled")[0]["failure"]


@pytest.mark.parametrize("which", ["manifest.json", "tree.tar.zst", "key.json"])
@pytest.mark.parametrize("harm", ["missing", "truncated", "corrupt"])
def test_a_piece_with_a_broken_blob_is_built_and_pushed_anew(fleet, which, harm):
    record = fleet.seals("compile")[1]
    (file,) = (file for file in record["files"] if file["path"] == which)
    name = f"blobs/{file['sha256']}"
    data = bytearray(fleet.read(name))
    if harm == "missing":
        fleet.remove(name)
    else:
        data[len(data) // 2] ^= 1
        fleet.put(name, bytes(data[: len(data) // 2] if harm == "truncated" else data))
    node = fleet.node()
    starts = len(node.engine.starts)
    done = node.warmed(env=fleet.env())
    assert done.json["warm"] is True
    assert len(node.engine.starts) == starts + 1
    assert len(node.generations("compile")) == 1, "nothing of the broken one was published"
    volumes.assert_invariants(node.volume, clean=True)
    (warning,) = warned(done, "a piece in the bucket cannot be used")
    assert file["sha256"] in warning["failure"]
    assert list(fleet.seals("compile")) == [1, 2]
    fleet.remove(fleet.seal_name("compile", 1))  # its archive stays as it is: nobody has its bytes
    if which != "key.json":
        fleet.remove(name)
    fleet.check()
    other = fleet.node().warmed(*NEVER, env=fleet.env())
    assert other.json["warm"] is True


def test_an_older_number_stands_in_once_for_one_that_is_broken(fleet):
    top = next(iter(fleet.objects("seals/compile/"))).removesuffix("1.json")
    good = fleet.seals("compile")[1]
    broken = [dict(file) for file in good["files"]]
    for file in broken:
        if file["path"] == "tree.tar.zst":
            file["sha256"] = "0" * 64
    for number in (2, 3):
        fleet.put(
            f"{top}{number}.json",
            json.dumps(good | {"generation": number, "files": broken}).encode(),
        )
        done = fleet.node().warmed(*NEVER, env=fleet.env())
        assert len(warned(done, "a piece in the bucket cannot be used")) == number - 1
        assert list(done.json["without"]) == ([] if number == 2 else ["compile"])


FOREIGN = {
    "not JSON": lambda _: b"\xff\xfe",
    "another format": lambda seal: seal | {"schema_version": 99},
    "another key": lambda seal: seal | {"key": "0" * 64},
    "another number": lambda seal: seal | {"generation": 7},
    "more files": lambda seal: seal | {"files": [*seal["files"], dict(seal["files"][0], path="x")]},
    "a path outside": lambda seal: (
        seal | {"files": [dict(f, path=f"../{f['path']}") for f in seal["files"]]}
    ),
    "its own seal": lambda seal: (
        seal | {"files": [*seal["files"], dict(seal["files"][0], path="seal.json")]}
    ),
    "one file twice": lambda seal: seal | {"files": seal["files"] * 2},
    "no files": lambda seal: seal | {"files": []},
    "too long": lambda seal: json.dumps(seal).encode() + b" " * (1 << 20),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_a_seal_that_is_not_one_of_the_piece_is_left_alone(fleet, what):
    name = next(iter(fleet.objects("seals/compile/")))
    made = FOREIGN[what](fleet.seals("compile")[1])
    fleet.put(name, made if isinstance(made, bytes) else json.dumps(made).encode())
    node = fleet.node()
    done = node.warmed(*NEVER, env=fleet.env())
    assert list(done.json["without"]) == ["compile"]
    assert len(warned(done, "a seal in the bucket is not used")) == 1
    assert node.generations("compile") == []
    volumes.assert_invariants(node.volume, clean=True)


def test_a_piece_that_the_volume_has_no_room_for_is_not_fetched(fleet):
    name, record = next(iter(fleet.objects("seals/compile/"))), fleet.seals("compile")[1]
    for file in record["files"]:
        if file["path"] == "tree.tar.zst":
            file["size"] = 1 << 60
    fleet.put(name, json.dumps(record).encode())
    node = fleet.node()
    done = node.warmed(env=fleet.env())
    assert done.json["warm"] is True
    (warning,) = warned(done, "nothing more is pulled")
    assert "bytes free" in warning["failure"]
    assert "kernels" in done.json["seconds"]


def test_temporary_credentials_are_in_nothing_that_is_written(fleet, empty):
    session = fleet.bucket.server.session()
    bad = session._replace(secret_key="PLANTEDplanted")
    results, nodes = [], []
    for where, keys in ((fleet, session), (empty, session), (fleet, bad), (empty, bad)):
        nodes.append(where.node())
        results.append(nodes[-1].run("prefill", "--retry", "1", env=where.env(keys)))
        results.append(nodes[-1].run("plan", env=where.env(keys)))
        assert [result.code for result in results[-2:]] == [0, 0]
    written = [result.out + result.err for result in results]
    written += [
        data.decode("latin-1") for where in (fleet, empty) for data in where.objects().values()
    ]
    for top in [nodes[-1].warm, *(node.volume for node in nodes)]:
        for at, _, names in os.walk(top):
            for name in names:
                written.append(Path(at, name).read_bytes().decode("latin-1"))
    for secret in (session.secret_key, session.token, "PLANTEDplanted", session.access_key):
        assert not any(secret in text for text in written)


def test_a_service_that_ignores_conditions_still_serves(pioneer):
    with fleets.beside(pioneer, server=s3.rclone(), copied=True) as fleet:
        done = fleet.node().warmed(*NEVER, env=fleet.env())
        assert done.json["warm"] is True


def test_what_is_built_in_place_of_a_piece_that_lacks_a_rank_is_pushed(empty):
    """As the refusal promises; else every node would build it for ever."""
    serve = (*runs.SERVE, "--tensor-parallel-size", "2")
    empty.node().warmed(env=empty.env(), serve=serve)
    lame(empty, "compile", 1)
    done = empty.node().warmed(env=empty.env(), serve=serve)
    assert "compile" in done.json["pushed_bytes"]
    assert list(empty.seals("compile")) == [1, 2]
    last = empty.node().warmed(*NEVER, env=empty.env(), serve=serve)
    assert last.json["warm"] is True


def test_what_is_built_in_place_of_a_piece_whose_needs_are_gone_is_pushed(fleet):
    """A lifecycle rule took the seals of a shared kind, which then counts from 1 anew."""
    number = fleet.seals("compile")[1]
    for kind in ("flashinfer", "jit"):
        fleet.remove(fleet.seal_name(kind, 1))
    record = {**number, "needs": {"flashinfer": 3, "jit": 3}}
    fleet.put(fleet.seal_name("compile", 1), json.dumps(record).encode())
    done = fleet.node().warmed(env=fleet.env(FAKE_ENGINE="op=one"))
    assert "a piece in the bucket needs another that cannot be had" in done.err
    assert list(fleet.seals("jit")) == [1]
    assert list(fleet.seals("compile")) == [1, 2]
    assert fleet.seals("compile")[2]["needs"] == {"flashinfer": 1, "jit": 1}
    last = fleet.node().warmed(*NEVER, env=fleet.env())
    assert last.json["warm"] is True
