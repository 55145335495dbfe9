"""Seconds that lie in intervals: counted once where they overlap, and what others leave of them. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    Interval = tuple[float, float]
    """Begin and end on one axis; one that ends before it begins covers nothing."""


def covered(intervals: Iterable[Interval]) -> float:
    """Seconds covered by at least one interval."""
    return sum(end - begin for begin, end in merged(intervals))


def merged(intervals: Iterable[Interval]) -> list[Interval]:
    """The same seconds as intervals that are apart and in order."""
    apart: list[Interval] = []
    for begin, end in sorted(intervals):
        if end <= begin:
            continue
        if apart and begin <= apart[-1][1]:
            apart[-1] = (apart[-1][0], max(apart[-1][1], end))
        else:
            apart.append((begin, end))
    return apart


def less(intervals: Sequence[Interval], others: Sequence[Interval]) -> float:
    """Seconds that lie in `intervals` and in none of `others`."""
    return covered([*intervals, *others]) - covered(others)
