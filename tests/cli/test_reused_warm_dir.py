"""A warm dir that served another start: nothing of that one is handed to this one."""

import os
import sys

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import runs


@pytest.fixture
def place(tmp_path):
    with runs.place(tmp_path) as place:
        yield place


def files(place, kind):
    top = f"{place.warm}/cache/{kind}"
    return [os.path.join(at, name) for at, _, names in os.walk(top) for name in names]


@pytest.mark.parametrize("other", ["flags", "model"])
def test_kernels_of_an_earlier_start_are_cleared_where_this_one_goes_without(place, other):
    place.warmed()
    assert files(place, "compile")
    later = place.but(model=place.pinned(runs.OTHER)) if other == "model" else place
    serve = runs.SERVE if other == "model" else ("--max-model-len", "9")
    done = later.warmed("--compile", "never", serve=serve)
    assert done.json["without"].keys() == {"compile"}
    assert place.verdicts()["compile"] == "absent"
    assert files(place, "compile") == []
    assert not os.path.exists(f"{place.warm}/cache/compile.restored.json")
    assert place.handoff()["env"]["VLLM_CACHE_ROOT"].startswith(f"{place.warm}/cache/compile/")

    # They come back for the start they were built for.
    place.warmed("--compile", "never")
    assert place.verdicts() == {"weights": "sealed", "compile": "sealed"}
    assert files(place, "compile")
