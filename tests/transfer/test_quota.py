"""A user's quota, on a kernel that has them: statvfs(3) promises room that the limit withholds."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import uml

MIB = 1 << 20
SCENARIO = Path(__file__).parent / "scenarios" / "quota.py"


@pytest.mark.skipif(not uml.available(), reason=uml.REASON)
def test_room_that_statvfs_promises_and_a_limit_withholds_is_refused(tmp_path):
    with uml.start(SCENARIO, memory="256M", disk=uml.make_disk(tmp_path / "image")) as guest:
        (found,) = guest.wait(120).results
    assert (found["refused"]["reason"], found["refused"]["code"]) == ("quota", 6)
    assert str(30 * MIB) in found["refused"]["message"]
    assert found["free"] > 100 * MIB, "there was room"
    assert set(found["left"]) <= {"lost+found"}
