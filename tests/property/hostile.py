"""Bytes that somebody else wrote: records with one thing wrong in them, and no records at all."""

import copy
import json
import os

from hypothesis import settings
from hypothesis import strategies as st

FUZZ = int(os.environ.get("FUZZ_EXAMPLES", "0"))
"""Examples of each test where a person asks for a long run, with other ones every time."""


def examples(number):
    """How often a test is run: always the same examples, but in a long run."""
    if FUZZ:
        return settings(max_examples=FUZZ, deadline=None, database=None)
    return settings(max_examples=number, deadline=None, database=None, derandomize=True)


_DEEP = "what is deep stands here"

TEXTS = st.text(st.characters(), max_size=12) | st.sampled_from(
    ["", "\0", "a\0b", "..", "/", "../x", "\udc80", "\ud800", "é", "1e999", "compile", "9" * 30]
)
"""Lone surrogates too: JSON can spell them, and Python makes them of names that are no UTF-8."""
NUMBERS = (
    st.integers()
    | st.floats()
    | st.sampled_from([0, -1, 1 << 31, 1 << 63, 10**400, 10**4299, 1e308, float("inf")])
)
PLAIN = st.none() | st.booleans() | NUMBERS | TEXTS | st.just(_DEEP)
VALUES = st.recursive(
    PLAIN,
    lambda of: st.lists(of, max_size=3) | st.dictionaries(TEXTS, of, max_size=3),
    max_leaves=5,
)


def _places(value, path=()):
    """Every place in a JSON value, as the steps that lead to it."""
    yield path
    if isinstance(value, dict | list):
        for step in value if isinstance(value, dict) else range(len(value)):
            yield from _places(value[step], (*path, step))


@st.composite
def changed(draw, record):
    """A record in which one to three things are something else, or missing."""
    record = copy.deepcopy(record)
    for _ in range(draw(st.integers(1, 3))):
        *way, last = draw(st.sampled_from([p for p in _places(record) if p] or [("",)]))
        holder = record
        for step in way:
            holder = holder[step]
        if not isinstance(holder, dict | list) or not holder:
            break
        if draw(st.integers(0, 4)):
            holder[last] = draw(VALUES)
        else:
            del holder[last]
    return record


@st.composite
def documents(draw, record):
    """The bytes of a changed record, of any JSON value, of a cut or spoilt one, or any bytes."""
    how = draw(st.integers(0, 9))
    if how == 0:
        return draw(st.binary(max_size=60))
    value = draw(VALUES) if how == 1 else draw(changed(record))
    text = json.dumps(value)
    if _DEEP in text:
        # Around the interpreter's limit, where what reads a value cannot show or write it.
        levels = draw(st.sampled_from([60, 400]) | st.integers(880, 1000) | st.just(20_000))
        deep = draw(st.sampled_from([("[", "]"), ('{"a":', "}")]))
        text = text.replace(f'"{_DEEP}"', deep[0] * levels + "1" + deep[1] * levels)
    data = text.encode()
    if how == 2:
        return data[: draw(st.integers(0, len(data)))]
    if how == 3 and data:
        at = draw(st.integers(0, len(data) - 1))
        return data[:at] + draw(st.binary(max_size=3)) + data[at + 1 :]
    return data
