"""What a prefill leaves for the sidecar (`warmer.tally`)."""

import json

import pytest

from warmer import tally
from warmer.outcome import Outcome

DONE = tally.Tally(
    source="hf",
    filled={"weights": 12.5, "compile": 40.0},
    fetched=1 << 40,
    restored={"jit": 0.25},
    without=("bytecode",),
    retries={"429": 3},
    throttled=7.5,
    waited=1.25,
    takeovers=2,
    pulled={"flashinfer": 7},
)


def test_what_is_written_is_read():
    assert tally.parse(tally.encode(DONE).encode()) == DONE
    assert tally.parse(tally.encode(tally.Tally()).encode()) == tally.Tally()


def test_fields_and_kinds_that_are_not_known_are_left_out():
    record = json.loads(tally.encode(DONE)) | {"more": 1}
    record["restored_seconds"]["sparkles"] = 3
    record["without"].append("sparkles")
    assert tally.parse(json.dumps(record).encode()) == DONE


@pytest.mark.parametrize("name", json.loads(tally.encode(DONE)))
def test_a_record_that_lacks_something_is_none(name):
    record = json.loads(tally.encode(DONE))
    del record[name]
    with pytest.raises(ValueError):
        tally.parse(json.dumps(record).encode())


@pytest.mark.parametrize("data", [b"", b"[]", b"3", b"{", b"\xff", b'{"schema_version": 2}'])
def test_what_is_no_record_is_none(data):
    with pytest.raises(ValueError):
        tally.parse(data)


def test_one_run_of_the_engine_fills_every_kernel_kind_that_has_a_key_and_is_handed_off():
    done = Outcome(seconds={"weights": 1.0, "kernels": 30.0}, without={"jit": "why"})
    found = done.tally("s3", {"weights", "compile", "flashinfer", "jit", "bytecode"})
    assert found.filled == {"weights": 1.0, "compile": 30.0, "flashinfer": 30.0}
    assert found.without == ("jit",)
