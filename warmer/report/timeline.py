"""A start as a stacked bar: which phases follow each other, how long each is, where an axis has ticks. Pure.

A log gives durations, seldom moments, so the phases stand in the order a start goes through them,
each as long as it took. A phase with parts is drawn as its parts and what they leave of it, and what
no line tells about comes last. Ranks work side by side, so that the parts may be longer than the whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from warmer.report.phases import PHASES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from warmer.report.log import StartLog

_TOTAL: Final = "ready"
REST: Final = "_rest"
"""Ends the name of what a phase's parts leave of it."""
OTHER: Final = "other"
"""What is in no phase."""
_STEPS: Final = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200)
_TICKS: Final = 8


class Segment(NamedTuple):
    """One part of a bar.

    Attributes:
        name: a phase's, or one with `REST`, or `OTHER`.
        title: for people.
        begin: seconds from the bar's begin.
        seconds: how long.
    """

    name: str
    title: str
    begin: float
    seconds: float


def kinds() -> list[tuple[str, str]]:
    """Name and title of every segment there can be, in the order of a bar."""
    found = []
    for phase in PHASES:
        if phase.name == _TOTAL:
            continue
        if any(child.parent == phase.name for child in PHASES):
            found.append((phase.name + REST, f"{phase.title}, the rest"))
        else:
            found.append((phase.name, phase.title))
    return [*found, (OTHER, "in no phase")]


def segments(start: StartLog) -> tuple[Segment, ...]:
    """Lay a start out as a bar; what took no time is not in it."""
    lengths = dict(start.phases)
    for phase in PHASES:
        children = [child.name for child in PHASES if child.parent == phase.name]
        if children and phase.name in lengths:
            parts = sum(lengths.get(name, 0.0) for name in children)
            lengths[phase.name + REST] = lengths[phase.name] - parts
    named = sum(
        lengths.get(phase.name, 0.0) for phase in PHASES if _stands_alone(phase.parent, phase.name)
    )
    lengths[OTHER] = (start.total_s or 0.0) - named
    bar: list[Segment] = []
    for name, title in kinds():
        # Thousandths are noise: the parts are rounded one by one.
        if (seconds := round(lengths.get(name, 0.0), 3)) > 0.001:
            bar.append(Segment(name, title, end(bar), seconds))
    return tuple(bar)


def _stands_alone(parent: str | None, name: str) -> bool:
    return parent is None and name != _TOTAL


def end(bar: Sequence[Segment]) -> float:
    """Seconds from a bar's begin to its end."""
    return bar[-1].begin + bar[-1].seconds if bar else 0.0


def ticks(longest: float) -> list[float]:
    """Round seconds for an axis that ends at `longest`: not more than eight, 0 the first."""
    step = next((step for step in _STEPS if longest / step < _TICKS), longest / _TICKS or 1.0)
    return [round(i * step, 3) for i in range(int(longest / step + 1e-9) + 1)]
