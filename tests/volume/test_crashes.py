"""What is told of generations that crashed the engine, and their way out (`warmer.fill.crashes`)."""

import itertools
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))

import aging
import volumes

from warmer import gc, trust
from warmer.fill import crashes, trees
from warmer.layout import Volume, WarmDir
from warmer.model import Key
from warmer.observe import inventory, numbers
from warmer.settings import LockUrl

KEY = Key("jit", {"engine.cuda": "13.0"})
WEIGHTS = Key("weights", {"name": "org/x"})


@pytest.fixture
def volume(tmp_path):
    return make(tmp_path)


def make(top, *, upto=3):
    """A volume with some generations of one shared kind."""
    volume = Volume(f"{top}/volume")
    for after in range(upto):
        volumes.fill(volume, KEY, {"files/k": b"%d" % after}, after=after)
    return volume


def look(volume, key=KEY):
    warm = WarmDir(os.path.join(os.path.dirname(volume.root), "warm"))
    look = inventory.observe(volume, warm, {key.kind: key}, trust=trust.ANYBODY)
    return look.held[key.kind]


def judged(volume):
    held = look(volume)
    return held.verdict, held.generation, held.crashed


def there(volume):
    return sorted(numbers.generations(volume, KEY.kind, KEY.digest))


@pytest.mark.parametrize(
    ("told", "verdict"),
    [
        ([], ("sealed", 3, False)),
        ([3], ("sealed", 3, False)),
        ([3, 3], ("stale", 3, True)),
        ([3, 3, 3], ("stale", 3, True)),
        ([2, 3], ("sealed", 3, False)),
        ([2, 2], ("sealed", 3, False)),
        ([4, 4], ("sealed", 3, False)),
        ([999999999, 999999999], ("sealed", 3, False)),
    ],
    ids=str,
)
def test_two_starts_make_a_generation_stale_and_one_that_is_not_there_makes_none(
    volume, told, verdict
):
    for number in told:
        crashes.tell(volume, [(KEY, number)])
    assert judged(volume) == verdict


def test_the_generations_before_one_that_crashed_are_no_better(volume):
    for _ in range(2):
        crashes.tell(volume, [(KEY, 2)])
    assert judged(volume) == ("sealed", 3, False)
    os.rename(volume.generation(KEY.kind, KEY.digest, 3), f"{volume.root}/elsewhere")
    assert judged(volume) == ("stale", 2, True)


def test_weights_crash_nothing(volume):
    volumes.fill(volume, WEIGHTS)
    for _ in range(2):
        crashes.tell(volume, [(WEIGHTS, 1)])
    assert look(volume, WEIGHTS).verdict == "sealed"


def test_who_got_ready_acquits_its_own_generations_alone(volume):
    other = Key("jit", {"engine.cuda": "12.8"})
    for _ in range(2):
        crashes.tell(volume, [(KEY, 3), (KEY, 2), (other, 3)])
    crashes.acquit(volume, [(KEY, 3)])
    assert judged(volume) == ("sealed", 3, False)
    left = {name.rpartition(".")[0] for name in os.listdir(volume.crashes)}
    assert left == {f"jit-{KEY.digest}-2", f"jit-{other.digest}-3"}


def test_a_retired_generation_takes_those_it_grew_from_along_and_leaves_newer_ones(volume):
    crashes.retire(volume, KEY, 2, trust=trust.ANYBODY)
    assert there(volume) == [3]
    assert len(aging.names(volume.root, "quarantine")) == 2
    volumes.assert_invariants(volume.root)


def test_nothing_is_built_upon_kernels_that_crashed(volume, tmp_path):
    warm = WarmDir(str(tmp_path / "warm"))
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "kernel").write_bytes(b"code")
    volumes.fill_tree(volume, KEY, tmp_path / "tree", after=3)
    for told, base in ((0, ["kernel"]), (1, ["kernel"]), (2, [])):
        trees.prepare(volume, warm, KEY, look(volume), trust=trust.ANYBODY)
        assert os.listdir(warm.tree(KEY.kind)) == base, told
        crashes.tell(volume, [(KEY, 4)])


def test_what_another_has_signed_is_left_where_it_is(volume, tmp_path):
    trust.generate(str(tmp_path / "key"))
    crashes.retire(volume, KEY, 3, trust=trust.load(str(tmp_path / "key"), None))
    assert there(volume) == [1, 2, 3]


def test_a_retirement_that_is_killed_anywhere_is_gone_on_with(tmp_path):
    counter = itertools.count()

    def prepare():
        volume = make(tmp_path / str(next(counter)))
        for _ in range(2):
            crashes.tell(volume, [(KEY, 3)])
        return volume

    for _, volume in volumes.kill_points(
        lambda volume: crashes.retire(volume, KEY, 3, trust=trust.ANYBODY), prepare
    ):
        volumes.assert_invariants(volume.root)
        left = there(volume)
        assert judged(volume) == (("stale", 3, True) if left else ("absent", 0, False))
        crashes.retire(volume, KEY, 3, trust=trust.ANYBODY)
        assert there(volume) == []
        assert numbers.highest_taken(volume, KEY.kind, KEY.digest) == 3


def test_gc_removes_what_was_told_of_generations_that_are_gone(volume):
    for _ in range(2):
        crashes.tell(volume, [(KEY, 3), (KEY, 7)])
    open(os.path.join(volume.crashes, "somebody's"), "wb").close()

    def collect():
        outcome = gc.collect(volume, LockUrl(), me="a test", trust=trust.ANYBODY)
        assert outcome.skipped == []
        return {name.rpartition(".")[0][-2:] for name in os.listdir(volume.crashes)}

    assert collect() == {"-3", "-7", ""}, "a day is left for looks at it"
    aging.age(volume.crashes, 2)
    assert collect() == {"-3", ""}
    assert judged(volume) == ("stale", 3, True)
    crashes.retire(volume, KEY, 3, trust=trust.ANYBODY)
    assert collect() == {""}
