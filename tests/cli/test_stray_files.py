"""Strange things under a key: kernels are built anew, weights are filled again, no start is denied."""

import os
import sys

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import runs


@pytest.fixture(scope="module")
def seeded(tmp_path_factory):
    with runs.place(tmp_path_factory.mktemp("place")) as place:
        place.warmed()
        yield place


@pytest.fixture
def place(seeded, tmp_path):
    """A warm pod and its volume, to be damaged."""
    place = seeded.fresh(tmp_path).but(model=seeded.model)
    place.warmed()
    return place


def stray_file(key):
    with open(f"{key}/7", "w", encoding="utf-8") as stream:
        stream.write("junk")


def seal_is_a_directory(key):
    os.makedirs(f"{key}/8/seal.json")


def no_seal_can_be_read(key):
    generation = f"{key}/{max(os.listdir(key))}"
    os.unlink(f"{generation}/seal.json")
    os.mkdir(f"{generation}/seal.json")


def only_a_stray_file(key):
    os.rename(f"{key}/{max(os.listdir(key))}", f"{os.path.dirname(key)}/aside")
    stray_file(key)


DAMAGES = [stray_file, seal_is_a_directory, no_seal_can_be_read, only_a_stray_file]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", ["compile", "weights"])
def test_what_is_strange_under_a_key_denies_no_start(place, kind, damage):
    key = os.path.dirname(
        next(piece["directory"] for piece in place.handoff()["pieces"] if piece["kind"] == kind)
    )
    damage(key)
    done = place.run("prefill", "--json")
    assert (done.code, done.json["warm"]) == (0, True), done
    assert place.verdicts() == {"weights": "sealed", "compile": "sealed"}
    assert place.run("check", "--deep").code == 0
    again = place.run("plan")
    assert again.code == 0, again
