"""Weights that may be missing: the server then fetches them itself, as it would without warmer."""

import os
import sys

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import runs

COLD = ("--on-miss", "weights=cold", "--retry", "0")


@pytest.mark.parametrize("revision", ["", "@main"])
def test_a_hub_that_is_down_denies_no_start_where_weights_may_be_missing(tmp_path, revision):
    with runs.place(tmp_path) as place:
        name, _, _ = place.model.removeprefix("hf://").partition("@")
        there = place.but(model=f"hf://{name}{revision}")
        env = {"HF_ENDPOINT": f"http://127.0.0.1:{runs.closed_port()}"}
        result = there.run("prefill", "--json", *COLD, env=env)
        assert result.code == 0, result
        assert set(result.json["without"]) >= {"weights", "compile"}
        handoff = there.handoff()
        assert handoff["model_path"] == name
        assert handoff["argv"][-2:] == ["--revision", "main"]
        assert not any(name.endswith("_OFFLINE") for name in handoff["env"])
        assert there.generations("weights") == []


def test_a_pinned_revision_is_handed_on_to_the_server(tmp_path):
    with runs.place(tmp_path) as place:
        place.hub.fault("resolve", status=503)
        place.hub.fault("^/api/", status=503)
        result = place.run("prefill", "--json", *COLD, timeout=90)
        assert result.code == 0, result
        commit = place.model.partition("@")[2]
        assert place.handoff()["argv"][-2:] == ["--revision", commit]


def test_nothing_is_published_under_a_name_that_moves(tmp_path):
    """The hub answers again right after it did not say what the branch means."""
    with runs.place(tmp_path) as place:
        name, _, _ = place.model.removeprefix("hf://").partition("@")
        there = place.but(model=f"hf://{name}")
        place.hub.fault("^/api/", status=503, times=1)
        result = there.run("prefill", "--json", *COLD)
        assert result.code == 0, result
        assert "weights" in result.json["without"]
        assert there.generations("weights") == []
