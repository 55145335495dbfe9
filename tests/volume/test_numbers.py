"""Numbers that warmer cannot have come to: they neither count nor stop the next one from being given."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))

import volumes

from warmer.errors import BusyError
from warmer.fill import publish
from warmer.layout import Volume, WarmDir
from warmer.model import Key
from warmer.observe import inventory, numbers
from warmer.trust import ANYBODY

KEY = Key("compile", {"of": "these tests"})
HIGHEST = [10**9 - 1, 10**9, 2**31, 10**18 - 1, 10**18, 2**63 - 1, 2**63, 10**40]


@pytest.fixture
def volume(tmp_path):
    return Volume(str(tmp_path / "volume"))


def fill(volume):
    return volumes.fill(
        volume, KEY, after=numbers.highest_taken(volume, KEY.kind, KEY.digest), needs={}
    )


def look(volume):
    return inventory.observe(volume, WarmDir("/nowhere"), {KEY.kind: KEY}, trust=ANYBODY).held[
        KEY.kind
    ]


def plant(volume, number, place="pieces"):
    """Make a name that says the number is given."""
    if place == "pieces":
        os.makedirs(volume.generation(KEY.kind, KEY.digest, number))
    else:
        os.makedirs(f"{volume.top}/{place}/{KEY.kind}-{KEY.digest}-{number}")


@pytest.mark.parametrize("place", ["pieces", "quarantine", "trash", "taken"])
@pytest.mark.parametrize("number", HIGHEST)
def test_a_key_is_filled_and_used_beside_a_number_that_is_not_warmers(volume, place, number):
    plant(volume, number, place)
    assert fill(volume) == 1
    assert (look(volume).verdict, look(volume).generation) == ("sealed", 1)
    assert fill(volume) == 2
    assert look(volume).generation == 2


def test_numbers_from_far_ahead_are_gone_beyond_and_seen(volume):
    """Names that are near enough to count take their numbers, and what follows is still seen."""
    for step in range(1, 4):
        plant(volume, step * numbers.LEAP, "taken")
    plant(volume, 10**17)
    assert fill(volume) == 3 * numbers.LEAP + 1
    assert (look(volume).verdict, look(volume).generation) == ("sealed", 3 * numbers.LEAP + 1)


def test_the_very_next_number_taken_by_a_directory_is_gone_past(volume):
    plant(volume, 1)
    assert fill(volume) == 2
    assert (look(volume).verdict, look(volume).generation) == ("sealed", 2)


def test_of_two_writers_that_were_given_one_number_the_second_loses(volume):
    plant(volume, 10**9 - 1)
    after = numbers.highest_taken(volume, KEY.kind, KEY.digest)
    volumes.fill(volume, KEY, after=after)
    with pytest.raises(publish.LostRaceError) as lost:
        volumes.fill(volume, KEY, {"files/other": b"other"}, after=after)
    assert isinstance(lost.value, BusyError)
    assert lost.value.generation == 1
