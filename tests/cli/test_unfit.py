"""Kernels whose hashes are right but that nobody can unpack are moved aside, and are replaced."""

import os
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import runs
import volumes

from warmer import trust
from warmer.layout import Volume
from warmer.model import Key

NEVER = ("--compile", "never")


@pytest.fixture(scope="module")
def signer(tmp_path_factory):
    """The path of a private key."""
    path = str(tmp_path_factory.mktemp("keys") / "one")
    trust.generate(path)
    return path


@pytest.fixture(scope="module", params=["signed", "unsigned"])
def built(request, tmp_path_factory, signer):
    """A place with a good piece, the words of its pods, and as whom they publish."""
    words = ("--signing-key", signer) if request.param == "signed" else ()
    with runs.place(tmp_path_factory.mktemp(request.param)) as place:
        place.warmed(*words)
        yield place, words, trust.load(signer, None) if words else trust.ANYBODY


@pytest.fixture
def pod(built, tmp_path):
    return another(built[0], tmp_path / "volume")


def another(place, volume):
    """A pod with an empty warm dir at the same path, on a copy of the volume."""
    shutil.copytree(place.volume, volume, symlinks=True)
    return fresh(place.but(volume=str(volume)))


def fresh(place):
    shutil.rmtree(place.warm)
    os.mkdir(place.warm)
    return place


def seal_unfit(pod, signed_by, *, after):
    """Publish, by the one door, an archive that is no archive, beside its good manifest."""
    (top, *_) = pod.generations("compile")
    files = {name: Path(top, name).read_bytes() for name in ("key.json", "manifest.json")}
    files["tree.tar.zst"] = b"written by something else"
    key = Key.known("compile", top.split("/")[-2])
    return volumes.fill(Volume(pod.volume), key, files, after=after, trust=signed_by)


def aside(pod):
    return [name.split("-")[2] for name in runs.listing(f"{pod.volume}/v1/quarantine")]


def test_what_cannot_be_unpacked_is_moved_aside_and_built_again_once(built, pod):
    _, words, signed_by = built
    (good,) = pod.generations("compile")
    seal_unfit(pod, signed_by, after=1)
    shutil.rmtree(good)
    starts = len(pod.engine.starts)
    pod.warmed(*words)
    assert aside(pod) == ["2"]
    assert [Path(top).name for top in pod.generations("compile")] == ["3"]
    assert len(pod.engine.starts) == starts + 1
    assert fresh(pod).warmed(*words, *NEVER).json["warm"] is True, "the next pod has it"
    volumes.assert_invariants(pod.volume, warm=[pod.warm], clean=True)


def test_an_older_piece_that_can_be_unpacked_is_taken_though_many_newer_ones_cannot(built, pod):
    _, words, signed_by = built
    many = range(1, 5)  # more than a prefill looks again
    for number in many:
        seal_unfit(pod, signed_by, after=number)
    assert pod.warmed(*words, *NEVER).json["warm"] is True
    assert sorted(aside(pod)) == [str(number + 1) for number in many]
    assert [Path(top).name for top in pod.generations("compile")] == ["1"]


def test_a_pod_that_may_not_write_on_the_volume_is_cold_and_moves_nothing(built, pod):
    _, words, signed_by = built
    seal_unfit(pod, signed_by, after=1)
    with open(f"{pod.volume}/v1/quarantine", "wb"):  # as root, permissions would not do
        done = pod.run("prefill", "--json", *words, *NEVER)
    assert (done.code, list(done.json["without"])) == (0, ["compile"]), done.err
    assert len(pod.generations("compile")) == 2
