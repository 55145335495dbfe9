"""A YAML file of vLLM's own, given with --config after --: what warmer reads of it."""

import os
import sys

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import runs


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    with runs.place(tmp_path_factory.mktemp("place")) as place:
        yield place


def written(tmp_path, text):
    path = tmp_path / "vllm.yaml"
    path.write_text(text)
    return ("--config", str(path))


@pytest.mark.parametrize("key", ["served-model-name", "served_model_name"])
def test_a_name_given_in_the_file_is_not_overridden(place, tmp_path, key):
    place.warmed(serve=written(tmp_path, f"{key}: llama\n"))
    assert "--served-model-name" not in place.handoff()["argv"]
    place.warmed(serve=written(tmp_path, "max-num-seqs: 8\n"))
    assert "--served-model-name" in place.handoff()["argv"]


def test_a_name_given_as_a_flag_is_the_one_in_the_handoff(place):
    place.warmed(serve=("--served-model-name", "llama", "l2"))
    assert place.handoff()["served_name"] == "llama"


@pytest.mark.parametrize(
    "text", ["model: x/y\n", "uds: /tmp/s\n", "ssl-keyfile: /k\n", "revision: a\n"]
)
def test_what_warmer_must_see_is_refused_in_a_file(place, tmp_path, text):
    place.fresh(tmp_path / "fresh").fails(
        2, "flag-in-config", text.partition(":")[0], serve=written(tmp_path, text)
    )


@pytest.mark.parametrize("text", ["- a\n- [b\n", "7\n", "{"])
def test_a_file_that_is_no_yaml_object_is_refused(place, tmp_path, text):
    place.fresh(tmp_path / "fresh").fails(2, "bad-config", serve=written(tmp_path, text))


def test_a_repository_named_in_the_file_leaves_the_hub_open_to_the_server(place, tmp_path):
    place.warmed(serve=written(tmp_path, "tokenizer: org/other\n"))
    assert "HF_HUB_OFFLINE" not in place.handoff()["env"]
    place.warmed(serve=written(tmp_path, "max-num-seqs: 9\n"))
    assert place.handoff()["env"]["HF_HUB_OFFLINE"] == "1"
