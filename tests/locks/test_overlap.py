"""16 contenders, 200 grants: no two at once, told by a detector that knows nothing of the lock."""

import os
import sys

sys.path.insert(0, os.path.dirname(__file__))
from contend import contend_all

PROCESSES, ROUNDS = 16, 200


def test_of_16_contenders_no_two_hold_the_key_at_once_and_every_grant_has_its_epoch(
    bench, tmp_path
):
    grants, overlaps, refusals = contend_all(
        bench.at, tmp_path / "seen", processes=PROCESSES, rounds=ROUNDS
    )
    assert overlaps == 0
    epochs = [epoch for epoch, _ in grants]
    assert len(epochs) >= ROUNDS
    assert epochs == list(range(1, len(epochs) + 1)), "in the order of the grants"
    assert len({pid for _, pid in grants}) > PROCESSES // 2
    assert refusals > ROUNDS // 4, "they did contend"
    assert (bench.read()["epoch"], bench.read()["name"]) == (epochs[-1], "")


def test_the_detector_sees_the_overlaps_where_nothing_excludes(tmp_path):
    at = {"mechanism": "none", "volume": str(tmp_path)}
    grants, overlaps, _ = contend_all(at, tmp_path / "seen", processes=PROCESSES, rounds=ROUNDS)
    assert len(grants) >= ROUNDS
    assert overlaps > 0
