"""Who signs vouches for all of a piece: nothing that is not trusted gets into it by a merge."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))

import volumes

from warmer import trust
from warmer.fill import restore, trees
from warmer.fill.claim import Claims
from warmer.fill.locks.file import FileLock
from warmer.layout import Volume, WarmDir
from warmer.model import Key
from warmer.observe import inventory
from warmer.trust import ANYBODY

KEY = Key("jit", {"engine.cuda": "13.0"})


@pytest.fixture
def place(tmp_path):
    return Volume(str(tmp_path / "volume")), WarmDir(str(tmp_path / "warm"))


@pytest.fixture
def me(tmp_path):
    trust.generate(str(tmp_path / "key"))
    return trust.load(str(tmp_path / "key"), None)


def build(place, by, *names, meanwhile=None):
    """Do as a build does with a shared kind; return the generation that it ends with."""
    volume, warm = place
    held = inventory.observe(volume, warm, {KEY.kind: KEY}, trust=by).held[KEY.kind]
    trees.prepare(volume, warm, KEY, held, trust=by)
    for name in names:
        Path(warm.tree(KEY.kind), name).write_bytes(name.encode())
    if meanwhile:
        meanwhile()
    claims = Claims(lambda: FileLock(volume, me="a test"))
    return trees.publish_shared(
        volume, warm, KEY, claims=claims, wait=5, seconds=1, trust=by, secrets={}
    )


def packed(place, number):
    return set(restore.read_manifest(place[0], KEY, number, trust=ANYBODY)[0].members)


@pytest.fixture
def plant(place, tmp_path):
    """Publish an unsigned piece with one file."""

    def planted(after=0):
        (tmp_path / "tree").mkdir()
        (tmp_path / "tree" / "planted").write_bytes(b"code")
        volumes.fill_tree(place[0], KEY, tmp_path / "tree", after=after)

    return planted


def test_a_base_that_is_not_trusted_is_not_built_upon(place, me, plant):
    plant()
    assert build(place, me, "mine") == 2
    assert packed(place, 2) == {"mine"}
    assert build(place, trust.ANYBODY, "theirs") == 3
    assert packed(place, 3) == {"mine", "theirs"}, "who trusts anybody builds upon the newest"


def test_what_is_planted_while_the_engine_runs_is_not_merged(place, me, plant):
    assert build(place, me, "mine") == 1
    assert build(place, me, "more", meanwhile=lambda: plant(after=1)) == 3
    assert packed(place, 3) == {"mine", "more"}


def test_a_signed_base_is_built_upon_and_signed_again(place, me):
    assert build(place, me, "mine") == 1
    assert build(place, me, "more") == 2
    assert packed(place, 2) == {"mine", "more"}
    volume, warm = place
    look = inventory.observe(volume, warm, {KEY.kind: KEY}, trust=me)
    assert (look.held[KEY.kind].verdict, look.held[KEY.kind].generation) == ("sealed", 2)
    assert look.held[KEY.kind].restored
