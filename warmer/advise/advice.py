"""Which way to start is recommended, and why. Pure."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from warmer.advise.case import ASSUMED, Figure
from warmer.advise.strategies import LARGEST_IMAGE, Strategy, cheaper, strategies, worth

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from warmer.advise.case import Case, Needs

_NOTHING: Final = 0.05
"""What is tried in the place of a price that is nothing."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """The shared volume beside another way.

    Attributes:
        other: the other way.
        starts: a month, between which the volume costs less; None where it never does.
        gpu_hour: dollars above which an hour of waiting saved pays for the volume; None where it
            saves none.
    """

    other: Strategy
    starts: tuple[float, float] | None
    gpu_hour: float | None


@dataclass(frozen=True, slots=True)
class Advice:
    """What to do.

    Attributes:
        ways: every way to start.
        recommended: the one to take; None where none does what is needed.
        reasons: sentences.
        comparisons: the volume beside each other way.
        swayed: assumed figures → half or twice their value, where that would change the
            recommendation, and what it would be then.
    """

    ways: tuple[Strategy, ...]
    recommended: Strategy | None
    reasons: tuple[str, ...]
    comparisons: tuple[Comparison, ...]
    swayed: Mapping[str, tuple[float, str]]


def advise(case: Case, needs: Needs) -> Advice:
    """Compare all ways, and choose the cheapest that does what is needed, GPU time included."""
    ways = tuple(strategies(case, needs))
    chosen = _cheapest(ways, case)
    volume = next(way for way in ways if way.name == "volume")
    starts, price = case.starts.value, case.price_gpu.value
    comparisons = tuple(
        Comparison(way, cheaper(volume, way, price), worth(volume, way, starts))
        for way in ways
        if way is not volume
    )
    reasons = [f"not {way.title}: {way.against}." for way in ways if way.against]
    if case.weights.value > LARGEST_IMAGE:
        text = f"not in the image: models of more than {LARGEST_IMAGE / 1e9:.0f} GB are hard to"
        reasons.append(f"{text} push, pull and unpack.")
    if needs.copies > 1:
        reasons.append(f"a volume that lives in one zone is held {needs.copies} times.")
    if chosen is not None:
        reasons = [*_for(chosen, ways, case), *reasons]
    return Advice(ways, chosen, tuple(reasons), comparisons, _swayed(case, needs, chosen))


def cost(way: Strategy, case: Case) -> float:
    """Return dollars a month, GPUs that wait included."""
    starts = case.starts.value
    return way.bill(starts) + way.waiting(starts, case.price_gpu.value)


def _cheapest(ways: Sequence[Strategy], case: Case) -> Strategy | None:
    fit = [way for way in ways if not way.against]
    return min(fit, key=lambda way: cost(way, case)) if fit else None


def _swayed(case: Case, needs: Needs, chosen: Strategy | None) -> dict[str, tuple[float, str]]:
    """Try each assumed figure at half and at twice its value."""
    found: dict[str, tuple[float, str]] = {}
    for field in dataclasses.fields(case):
        figure: Figure = getattr(case, field.name)
        if not figure.origin.startswith(ASSUMED):
            continue
        most = 1.0 if field.name == "node_hits" else math.inf
        for value in (figure.value / 2, min(figure.value * 2 or _NOTHING, most)):
            other = dataclasses.replace(case, **{field.name: Figure(value, figure.origin)})
            then = _cheapest(strategies(other, needs), other)
            if then is not None and (chosen is None or then.name != chosen.name):
                found[field.name] = (value, then.title)
    return found


def _for(chosen: Strategy, ways: Sequence[Strategy], case: Case) -> list[str]:
    """Say what speaks for the choice, and for what was not chosen."""
    starts = case.starts.value
    fit = sorted((way for way in ways if not way.against), key=lambda way: cost(way, case))
    told = [f"it costs least, ${cost(chosen, case):,.2f} a month with the GPUs that wait."]
    if len(fit) > 1:
        told[0] = told[0][:-1] + f"; next is {fit[1].title} with ${cost(fit[1], case):,.2f}."
    fastest = min(fit, key=lambda way: way.seconds)
    if fastest is not chosen and fastest.seconds < chosen.seconds:
        hour = worth(fastest, chosen, starts)
        saved = f"{fastest.title} starts {chosen.seconds - fastest.seconds:,.1f} s sooner"
        pays = (
            ""
            if hour is None
            else f"; that pays where an hour of waiting is worth more than ${hour:,.2f}"
        )
        told.append(f"{saved}{pays}.")
    elif fastest is chosen and len(fit) > 1:
        told.append("it is the fastest too.")
    return told
