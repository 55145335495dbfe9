"""The build run and the server get the same words and variables, and only those that matter."""

import json
import os
import subprocess
import sys

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import runs

from warmer.fill import engine

OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
# What kubelet sets in every pod of a namespace that has Services called vllm, vllm-svc and vllm-x.
SERVICES = {
    "VLLM_SVC_SERVICE_HOST": "10.0.0.7",
    "VLLM_SVC_SERVICE_PORT": "8000",
    "VLLM_SVC_SERVICE_PORT_HTTP": "8000",
    "VLLM_PORT": "tcp://10.0.0.8:8000",
    "VLLM_X_PORT": "tcp://10.0.0.9:8000",
    "VLLM_X_PORT_8000_TCP": "tcp://10.0.0.9:8000",
    "VLLM_X_PORT_8000_TCP_ADDR": "10.0.0.9",
    "VLLM_X_PORT_8000_TCP_PORT": "8000",
    "VLLM_X_PORT_8000_TCP_PROTO": "tcp",
}


@pytest.fixture(scope="module")
def seeded(tmp_path_factory):
    with runs.place(tmp_path_factory.mktemp("place")) as place:
        place.warmed("--compile", "never")
        yield place.but(model=place.pinned(runs.REPO))


@pytest.fixture
def place(seeded, tmp_path):
    """A place whose weights are sealed and whose kernels are not."""
    return seeded.fresh(tmp_path).but(model=seeded.model)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("--port 8000 -tp 2 -q fp8 --max-model-len 8", "-tp 2 -q fp8 --max-model-len 8"),
        ("--port=8000 --x y", "--x y"),
        ("--x y --host 0.0.0.0", "--x y"),
        ("--host=0.0.0.0 -tp=2", "-tp=2"),
        ("--root_path /a -O2 --ssl-keyfile k --ssl-certfile c -q fp8", "-O2 -q fp8"),
        ("--uds /s -dp 2 --port 1", "-dp 2"),
        ("--grpc -dp 2 --port 1 --grpc-port 2", "-dp 2"),
        ("--port", ""),
        ("-tp 2 a b --x", "-tp 2 a b --x"),
    ],
)
def test_where_the_server_listens_is_dropped_and_no_word_beside_it(given, kept):
    assert engine._not_listening(given.split()) == kept.split()


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("--port 8000 -tp 2 -q fp8 --max-model-len 8", "-tp 2 -q fp8 --max-model-len 8"),
        ("--port=8000 --x y", "--x y"),
    ],
)
def test_flags_after_the_port_reach_the_build_run_as_they_reach_the_server(place, given, kept):
    place.warmed("--on-miss", "fail", serve=tuple(given.split()))
    built = place.engine.starts[-1]["argv"]
    name = ["--served-model-name", runs.REPO]
    assert built[2:-4] == [*kept.split(), *name]
    assert built[-4:-1] == ["--host", "127.0.0.1", "--port"]
    assert place.handoff()["argv"] == [*given.split(), *name]


def offline(place):
    exported = subprocess.run(
        ["sh", "-c", f'. "{place.warm}/handoff/env"; env'], env={}, capture_output=True, text=True
    )
    names = {line.partition("=")[0] for line in exported.stdout.splitlines()}
    assert "VLLM_CACHE_ROOT" in names
    assert [name in names for name in OFFLINE] == [
        name in place.handoff()["env"] for name in OFFLINE
    ]
    return {name in names for name in OFFLINE}


def test_a_server_is_offline_only_where_it_has_all_it_needs(place):
    place.warmed("--compile", "never")
    assert offline(place) == {False}, "what a cold start needs is not known"
    place.warmed()
    assert offline(place) == {True}


@pytest.mark.parametrize(
    "serve",
    [
        ("--speculative-config", '{"model": "org/draft"}'),
        ("-sc", '{"model": "org/draft"}'),
        ("--tokenizer", "org/words"),
    ],
    ids=lambda words: words[0],
)
def test_a_server_that_may_read_another_repository_is_not_offline(place, serve):
    place.warmed("--on-miss", "fail", serve=serve)
    assert place.verdicts()["compile"] == "sealed"
    assert offline(place) == {False}


def serve(place, more):
    """Run the handed-off script until the engine has written its environment and crashed."""
    echo = f"{place.warm}.env.json"
    env = {"PATH": os.defpath, "FAKE_ENGINE": "echo-env,crash", "FAKE_ENGINE_ENV": echo} | more
    return runs.finish(runs.spawn([f"{place.warm}/handoff/serve"], env)), echo


def test_serve_runs_the_command_the_kernels_were_built_with(place, tmp_path):
    place.warmed()
    other = tmp_path / "other"
    other.mkdir()
    (other / "vllm").write_text("#!/bin/sh\necho ANOTHER VLLM\n")
    (other / "vllm").chmod(0o755)
    starts = len(place.engine.starts)
    result, _ = serve(place, {"PATH": f"{other}:{os.defpath}"})
    assert "ANOTHER" not in result.out + result.err
    assert len(place.engine.starts) == starts + 1


def test_what_kubernetes_says_of_services_is_no_factor_and_no_warning(place):
    place.warmed(env=SERVICES)
    assert not SERVICES.keys() & place.handoff()["env"].keys()
    planned = place.run("plan", "--json", env=SERVICES)
    for piece in planned.json["pieces"]:
        assert not [name for name in piece["factors"] if name.partition(".")[2] in SERVICES]
    assert (planned.code, place.run("plan").code) == (0, 0), "with them or without: the same key"
    result, echo = serve(place, SERVICES)
    assert [line for line in result.said if line.startswith("warmer:")] == []
    with open(echo, encoding="utf-8") as stream:
        assert json.load(stream)["VLLM_CACHE_ROOT"]


def test_what_only_resembles_a_service_is_a_factor(place):
    place.warmed()
    planned = place.run("plan", "--json", env={"VLLM_USE_PORTABLE": "1", "VLLM_SERVICE": "1"})
    assert planned.code == 1
    (differences,) = [step["nearest"]["differences"] for step in planned.json["steps"]]
    assert {d["factor"].rpartition(".")[2] for d in differences} == {
        "VLLM_USE_PORTABLE",
        "VLLM_SERVICE",
    }
