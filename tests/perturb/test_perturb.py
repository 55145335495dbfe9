"""How a verdict is come to; the verdicts themselves need an engine (tests/engine, `make perturb`)."""

import os
import sys

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)

from perturb import differing, judge
from rows import ROWS, merged

BASE = ["--max-model-len", "512", "--enforce-eager"]


@pytest.mark.parametrize(
    ("predicted", "parts", "built", "verdict"),
    [
        ("warm", [], None, "agree_warm"),
        ("warm", [], 0, "agree_warm"),
        ("warm", ["config"], None, "false_warm"),
        ("warm", ["config"], 0, "false_warm"),
        ("warm", [], 1, "false_warm"),
        ("miss", [], None, "cautious"),
        ("miss", [], 0, "cautious"),
        ("miss", ["config"], 0, "agree_miss"),
        ("miss", [], 3, "agree_miss"),
        ("refused", [], None, "refused"),
    ],
)
def test_a_start_is_falsely_warm_if_a_key_differs_or_a_file_is_built(
    predicted, parts, built, verdict
):
    assert judge(predicted, parts, built) == verdict


def test_a_part_of_a_key_that_is_missing_differs():
    assert differing({"config": "a", "variables": "b"}, {"config": "a"}) == ["variables"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ([], BASE),
        (["--seed", "7"], [*BASE, "--seed", "7"]),
        (["--max-model-len", "256"], ["--enforce-eager", "--max-model-len", "256"]),
        (["--max_model_len=256"], ["--enforce-eager", "--max_model_len=256"]),
        (["--enforce-eager"], ["--max-model-len", "512", "--enforce-eager"]),
    ],
)
def test_a_flag_given_anew_takes_the_place_of_the_fills(more, words):
    assert merged(BASE, more) == words


def test_the_table_is_as_long_as_promised_and_no_row_is_there_twice():
    assert len(ROWS) == len({row.name for row in ROWS}) >= 30
    assert sum(row.engine for row in ROWS) >= 12
