"""Shared kinds grow in the bucket as on a volume; numbers and needs are each place's own."""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import fleets
import runs
import volumes

NEVER = ("--compile", "never")
SHARED = ("flashinfer", "jit")


def records(node, kind):
    """Seals of all generations of a kind, of whatever key."""
    return [json.loads(Path(top, "seal.json").read_bytes()) for top in node.generations(kind)]


def numbers(node, kind):
    return [seal["generation"] for seal in records(node, kind)]


def ops(node, kind="jit"):
    """Operations of a pod's tree."""
    found = [name for _, _, names in os.walk(f"{node.warm}/cache/{kind}") for name in names]
    return sorted(name.removesuffix(".so") for name in found if name.endswith(".so"))


def second(node):
    """The pod of another model on the same node."""
    return node.but(model=node.pinned(runs.OTHER))


def of(fleet, op):
    return fleet.env(FAKE_ENGINE=f"op={op}")


def compiled(fleet):
    """Seals of all compile keys in the bucket, by key and number."""
    found = [json.loads(data) for data in fleet.objects("seals/compile/").values()]
    return {(seal["key"], seal["generation"]): seal for seal in found}


def test_a_second_model_adds_to_what_was_pulled_and_numbers_differ_between_places(fleet):
    (first,) = compiled(fleet)
    builder = second(fleet.node())
    done = builder.warmed(env=of(fleet, "two"))
    assert set(done.json["pulled_bytes"]) == {*SHARED, "bytecode"}
    assert ops(builder) == ["one", "two"]
    assert set(done.json["pushed_bytes"]) == {*SHARED, "compile"}, "what is there is not put again"
    fleet.check()
    (made,) = compiled(fleet).keys() - {first}
    assert compiled(fleet)[made]["needs"] == dict.fromkeys(SHARED, 2)
    assert compiled(fleet)[first]["needs"] == dict.fromkeys(SHARED, 1)

    empty = second(fleet.node())
    assert empty.warmed(*NEVER, env=fleet.env()).json["warm"] is True
    (record,) = records(empty, "compile")
    assert record["needs"] == dict.fromkeys(SHARED, 1), "this volume's own numbers"
    assert numbers(empty, "jit") == [1]
    assert ops(empty) == ["one", "two"]

    # The first model there needs less than is held: nothing but its own piece comes.
    other = fleet.at(empty.but(model=empty.pinned(runs.REPO)))
    done = other.warmed(*NEVER, env=fleet.env())
    assert (done.json["warm"], set(done.json["pulled_bytes"])) == (True, {"compile"})
    assert sorted(seal["needs"]["jit"] for seal in records(other, "compile")) == [1, 1]
    assert fleet.at(other).run("plan", env=fleet.away()).code == 1, (
        "a new warm dir, to restore into"
    )


def test_a_volume_whose_shared_kinds_are_too_old_pulls_newer_ones(fleet):
    old = fleet.node()
    old.warmed(*NEVER, env=fleet.env())
    second(fleet.node()).warmed(env=of(fleet, "two"))
    pod = second(fleet.at(old))
    done = pod.warmed(*NEVER, env=fleet.env())
    assert done.json["warm"] is True
    assert set(done.json["pulled_bytes"]) == {*SHARED, "compile"}
    assert numbers(pod, "jit") == [1, 2]
    needs = sorted(seal["needs"]["jit"] for seal in records(pod, "compile"))
    assert needs == [1, 2]
    assert ops(pod) == ["one", "two"]


def test_a_volume_that_grew_by_itself_takes_nothing_away_here_or_there(fleet):
    alone = fleet.node()
    alone.warmed(env=of(fleet, "three") | {"WARMER_REMOTE": ""})
    second(fleet.node()).warmed(env=of(fleet, "two"))
    before = fleet.objects()
    pod = second(fleet.at(alone))
    done = pod.warmed(env=of(fleet, "two"))
    assert done.json["warm"] is True
    assert done.json["pulled_bytes"] == {}
    warned = [line["event"] for line in fleets.warnings(done)]
    assert warned == ["a piece in the bucket needs another that cannot be had"], done.err
    assert ops(pod) == ["three", "two"]
    joined = [line["kind"] for line in done.logged if line.get("joined")]
    assert joined == list(SHARED)
    assert fleet.objects().items() >= before.items()
    fleet.check()
    last = second(fleet.node())
    assert last.warmed(*NEVER, env=fleet.env()).json["warm"] is True
    assert ops(last) == ["one", "three", "two"]


def test_a_node_that_lives_on_while_others_push_passes_on_what_it_builds(fleet):
    node = fleet.node()
    node.warmed(*NEVER, env=fleet.env())
    second(fleet.node()).warmed(env=of(fleet, "two"))
    fleet.at(node)
    for op, length in (("three", "128"), ("four", "64")):
        done = node.warmed(env=of(fleet, op), serve=("--max-model-len", length))
        assert set(done.json["pushed_bytes"]) == {*SHARED, "compile"}
        fleet.check()
        assert node.run("plan", serve=("--max-model-len", length), env=fleet.away()).code == 0
        fleet.at(node)
    last = fleet.node()
    done = last.warmed(*NEVER, serve=("--max-model-len", "64"), env=fleet.env())
    assert done.json["warm"] is True
    assert ops(last) == ["four", "one", "three", "two"]
    volumes.assert_invariants(last.volume, warm=[last.warm], clean=True)


def test_a_node_that_starts_afresh_brings_together_what_two_could_not(fleet):
    alone = fleet.node()
    alone.warmed(env=of(fleet, "three") | {"WARMER_REMOTE": ""})
    serve = ("--max-model-len", "256")
    pod = fleet.node()
    done = pod.warmed(serve=serve, env=of(fleet, "three"))
    assert ops(pod) == ["one", "three"]
    assert set(done.json["pushed_bytes"]) == {*SHARED, "compile"}
    # What the other volume has is part of that now: its next model's needs can be pulled.
    last = fleet.at(alone)
    done = last.warmed(*NEVER, serve=serve, env=fleet.env())
    assert (done.json["warm"], ops(last)) == (True, ["one", "three"])


def test_what_crashed_the_engine_here_is_not_pulled_again_but_replaced(fleet):
    node = fleet.node()
    node.warmed(*NEVER, env=fleet.env())
    (top,) = node.generations("compile")
    key, number = top.split("/")[-2:]
    os.makedirs(f"{node.volume}/v1/crashes", exist_ok=True)
    for start in ("a" * 16, "b" * 16):
        Path(f"{node.volume}/v1/crashes/compile-{key}-{number}.{start}").touch()
    pod, starts = fleet.at(node), len(node.engine.starts)
    done = pod.warmed(env=of(fleet, "one"))
    assert done.json["warm"] is True
    assert len(node.engine.starts) == starts + 1
    events = [line["event"] for line in fleets.warnings(done)]
    assert "a piece in the bucket was moved aside here" in events
    assert [name.split("-")[0] for name in runs.listing(f"{node.volume}/v1/quarantine")] == [
        "compile"
    ]
    assert list(fleet.seals("compile")) == [1, 2]
    fleet.check()
    other = fleet.node()
    assert other.warmed(*NEVER, env=fleet.env()).json["warm"] is True
    (pulled,) = records(other, "compile")
    assert pulled["files"] == fleet.seals("compile")[2]["files"]


def test_a_shared_kind_that_the_bucket_lost_is_pushed_again(fleet):
    for name in fleet.objects("blobs/"):
        fleet.remove(name)
    node = fleet.node()
    done = node.warmed(env=of(fleet, "one"))
    assert done.json["warm"] is True
    assert {1, 2} == set(fleet.seals("jit")) == set(fleet.seals("compile"))
    # Its notes name the libraries that were mapped at one moment: they may differ from run to run.
    noted = set(fleet.seals("bytecode"))
    assert noted in ({1}, {1, 2})
    for kind in (*SHARED, "compile", *(["bytecode"] if 2 in noted else [])):
        fleet.remove(fleet.seal_name(kind, 1))
    fleet.check()
    done = fleet.node().warmed(*NEVER, env=fleet.env())
    assert done.json["warm"] is True, fleets.warnings(done)


def test_what_crashed_here_is_not_pulled_again_but_built(fleet):
    fleet.node().warmed(env=fleet.env())
    node = fleet.node()
    node.warmed(*NEVER, env=fleet.env())
    handed = json.loads(Path(node.warm, "handoff", "handoff.json").read_bytes())
    told = [p for p in handed["pieces"] if p["kind"] == "compile"]
    os.makedirs(f"{node.volume}/v1/crashes", exist_ok=True)
    for start in ("one", "two"):
        name = f"compile-{told[0]['key']}-{told[0]['generation']}.{start}"
        Path(node.volume, "v1", "crashes", name).write_bytes(b"")
    starts = len(node.engine.starts)
    done = node.warmed(env=fleet.env())
    assert done.json["pulled_bytes"] == {}
    assert len(node.engine.starts) == starts + 1
