"""What a plan says of sizes and time, and an outcome of what it took to get there."""

import os
import sys

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import runs

EXTRA = {"original/consolidated.00.pth": 2_500_000, "pytorch_model.bin": 1_500_000, "a.onnx": 7}
REASONS = {
    "original/consolidated.00.pth": "original/: the same weights for something else",
    "pytorch_model.bin": ".bin beside .safetensors",
    "a.onnx": ".onnx: weights of another framework",
}


def sparse(path, size):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as stream:
        stream.truncate(size)


@pytest.fixture
def place(tmp_path):
    with runs.place(tmp_path) as place:
        for path, size in EXTRA.items():
            sparse(f"{place.hub.root}/{runs.REPO}/{path}", size)
        yield place.but(model=place.pinned(runs.REPO))


def weights(place, *options, **more):
    """The plan's step for the weights."""
    result = place.run("plan", "--json", *options, **more)
    assert result.code == 1, result
    (step,) = (step for step in result.json["steps"] if step["kind"] == "weights")
    return step


def total(place):
    top = f"{place.hub.root}/{runs.REPO}"
    return sum(
        os.stat(f"{top}/{name}").st_size for name in os.listdir(top) if name not in REASONS
    ) - (os.stat(f"{top}/original").st_size)


def test_a_plan_names_what_is_left_out_and_what_that_saves(place):
    step = weights(place)
    assert step["left_out"] == REASONS
    assert step["saved_bytes"] == sum(EXTRA.values())
    assert step["bytes"] == total(place)
    assert step["predicted_seconds"] == round(step["bytes"] / 200e6, 3)

    brief = place.run("plan").out
    assert "leaves out 4.0 MB in 3 files that the engine does not load\n" in brief
    assert "beside .safetensors" not in brief
    assert "download weights: " in brief
    assert "[1.7 MB, about 0 s (200 MB/s assumed)]" in brief
    explained = place.run("plan", "--explain").out
    for reason in REASONS.values():
        assert f"1 × {reason}\n" in explained  # noqa: RUF001 - as it is printed


def test_include_and_exclude_change_the_plan_its_key_and_what_is_fetched(place):
    plain = weights(place)
    more = ("--include", "original/", "--exclude", "tokenizer*")
    step = weights(place, *more)
    assert step["key"] != plain["key"]
    assert step["left_out"].keys() == {"a.onnx", "pytorch_model.bin"} | {
        "tokenizer.json",
        "tokenizer_config.json",
    }
    done = place.warmed("--compile", "never", *more)
    assert done.json["bytes"]["weights"] == step["bytes"]
    (generation,) = place.generations("weights")
    assert sorted(os.listdir(f"{generation}/files")) == sorted(
        {"original", "config.json", "generation_config.json", "model.safetensors.index.json"}
        | {*runs.SHARDS}
    )
    env = {"WARMER_INCLUDE": "original/", "WARMER_EXCLUDE": "tokenizer*"}
    held = place.run("plan", "--json", "--compile", "never", env=env).json["pieces"][0]
    assert (held["key"], held["verdict"]) == (step["key"], "sealed")


def test_patterns_that_leave_nothing_to_load_end_with_a_usage_error(place):
    patterns = ("*.safetensors", "*.bin", "*.pth")
    options = [word for pattern in patterns for word in ("--exclude", pattern)]
    error = place.fails(2, "nothing-selected", options=options)
    assert "whole paths" in error["hint"]


@pytest.mark.parametrize("how", ["flag", "file"])
def test_the_load_format_decides_wherever_it_is_set(place, tmp_path, how):
    """npcache reads *.bin: without that file the server would not start."""
    config = tmp_path / "vllm.yaml"
    config.write_text("load_format: npcache\n")
    serve = ("--load-format", "npcache") if how == "flag" else ("--config", str(config))
    step = weights(place, serve=serve)
    assert step["left_out"].keys() == REASONS.keys() - {"pytorch_model.bin"}
    assert step["key"] != weights(place)["key"]


def test_the_command_line_wins_over_the_servers_file(place, tmp_path):
    config = tmp_path / "vllm.yaml"
    config.write_text("load-format: npcache\n")
    step = weights(place, serve=("--config", str(config), "--load-format", "auto"))
    assert (step["key"], step["left_out"]) == (weights(place)["key"], REASONS)


def test_huge_files_are_planned_by_their_size_and_refused_before_the_first_byte(place, tmp_path):
    huge = 50_000_000_000
    top = f"{tmp_path}/huge"
    for n in range(1, 4):
        sparse(f"{top}/model-{n:05d}-of-00003.safetensors", huge)
    sparse(f"{top}/pytorch_model.bin", 3 * huge)
    place = place.but(model=f"file://{top}")
    step = weights(place)
    assert (step["bytes"], step["saved_bytes"]) == (3 * huge, 3 * huge)
    assert step["predicted_seconds"] == 750.0
    text = place.run("plan").out
    assert "[150.0 GB, about 750 s (200 MB/s assumed)]" in text
    assert "leaves out 150.0 GB in 1 file that the engine does not load" in text
    # More than any machine that runs this has.
    os.truncate(f"{top}/model-00001-of-00003.safetensors", 1 << 43)
    error = place.fails(6, "no-space", "too few", options=("--compile", "never"))
    assert str((1 << 43) + 2 * huge + (64 << 20)) in error["message"]


def test_a_later_plan_predicts_from_what_earlier_fills_took(place):
    place.warmed("--compile", "never")
    other = place.but(model=place.pinned(runs.OTHER))
    step = weights(other)
    assert step["predicted_from"] == "earlier fills of this volume"
    assert step["predicted_seconds"] > 0


def test_an_outcome_tells_what_was_taken_over_and_what_the_source_cost(place):
    place.hub.fault(runs.SHARDS[0], method="GET", times=1, status=500)
    place.hub.fault(runs.SHARDS[1], method="GET", times=1, status=429, retry_after=1)
    done = place.warmed("--compile", "never").json
    assert sum(done["retries"].values()) == 2, done
    assert 1.0 <= done["throttled_seconds"] <= 5.0
    assert (done["bytes"]["weights"], done["taken_over_bytes"]) == (total(place), 0)

    (generation,) = place.generations("weights")
    os.unlink(f"{generation}/files/{runs.SHARDS[0]}")
    size = os.stat(f"{place.hub.root}/{runs.REPO}/{runs.SHARDS[0]}").st_size
    assert weights(place)["bytes"] == size, "a plan counts what a broken generation still has"
    again = place.warmed("--compile", "never").json
    assert (again["bytes"]["weights"], again["taken_over_bytes"]) == (size, total(place) - size)
    assert (again["retries"], again["throttled_seconds"]) == ({}, 0)

    warm = place.warmed("--compile", "never").json
    assert (warm["bytes"], warm["taken_over_bytes"]) == ({}, 0)
