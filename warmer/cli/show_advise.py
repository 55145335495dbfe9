"""Advice as a screen of text, or as one JSON object (docs/cli.md)."""

from __future__ import annotations

import dataclasses
import math
import textwrap
from typing import TYPE_CHECKING, Any, Final

from warmer.advise import advice as judging
from warmer.quantities import show_bytes
from warmer.secrecy import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from warmer.advise.advice import Advice, Comparison
    from warmer.advise.case import Case
    from warmer.advise.strategies import Strategy

SCHEMA_VERSION: Final = 1
_WIDE: Final = 80
"""Columns of a terminal; only what are long numbers goes beyond."""
_TITLE: Final = 29
_HEADS: Final = ("weights", "kernels", "stored", "moved", "bill", "waiting", "all")
_TIMES: Final = 2
"""How many of them are seconds; the others are dollars."""
_WHERE: Final = "pays if an hour of waiting costs"

_NAMES: Final = {
    "weights": "weights",
    "starts": "starts a month",
    "kernels": "kernels",
    "build": "building kernels",
    "price_storage": "volume, a GB-month",
    "price_transfer": "volume, a GB read",
    "price_download": "download, a GB",
    "price_bucket": "bucket, a GB-month",
    "price_registry": "registry, a GB-month",
    "price_pull": "image, a GB pulled",
    "price_gpu": "GPUs, an hour",
    "network": "network",
    "volume_bandwidth": "volume",
    "disk_bandwidth": "node disk",
    "image_bandwidth": "image",
    "node_hits": "starts on a used node",
}


def screen(case: Case, advice: Advice, *, explain: bool) -> str:
    """Write advice for people."""
    lines = _rests_on(case)
    cells = [_cells(way, case) for way in advice.ways]
    widths = [max(map(len, column)) + 1 for column in zip(_HEADS, *cells, strict=True)]
    widths[_TIMES] += 2
    lines += ["", *_heads(widths)]
    for way, row in zip(advice.ways, cells, strict=True):
        mark = ">" if way is advice.recommended else "x" if way.against else " "
        lines.append(_row(f"{mark} {way.title}", row, widths))
        lines += _formulas(way, case) if explain else []
    lines += ["", f"{'the shared volume, beside':<{_TITLE}}{'costs less':>18}{_WHERE:>33}"]
    lines += [_compared(one) for one in advice.comparisons]
    title = "none of these" if advice.recommended is None else advice.recommended.title
    lines += ["", f"recommended: {title}"]
    for reason in advice.reasons:
        lines += _said("  - ", reason)
    for name, (value, instead) in advice.swayed.items():
        text = f"{_NAMES[name]} is assumed: at {_value(name, value)} it would be {instead}."
        lines += _said("  ? ", text)
    lines += _said(
        "  ", "Not counted: writing the volume once per revision, requests, the node's own disk."
    )
    return "\n".join(printable(line) for line in lines)


def as_json(case: Case, advice: Advice) -> dict[str, Any]:
    """Render advice for programs."""
    figures = {field.name: getattr(case, field.name) for field in dataclasses.fields(case)}
    return {
        "schema_version": SCHEMA_VERSION,
        "rests_on": {name: {"value": f.value, "origin": f.origin} for name, f in figures.items()},
        "strategies": [_strategy(way, case) for way in advice.ways],
        "volume_beside": [
            {
                "other": one.other.name,
                "costs_less_between_starts": _between(one),
                "worth_dollars_per_hour_above": one.gpu_hour,
            }
            for one in advice.comparisons
        ],
        "recommended": None if advice.recommended is None else advice.recommended.name,
        "reasons": list(advice.reasons),
        "swayed_by": {
            name: {"value": value, "recommended": title}
            for name, (value, title) in advice.swayed.items()
        },
    }


def _between(one: Comparison) -> list[float | None] | None:
    """Write the range for JSON, which has no infinity: no end is null."""
    if one.starts is None:
        return None
    return [None if math.isinf(count) else count for count in one.starts]


def _strategy(way: Strategy, case: Case) -> dict[str, Any]:
    starts = case.starts.value
    sums = {
        "weights_seconds": way.weights,
        "kernels_seconds": way.kernels,
        "storage_dollars": way.storage,
        "transfer_dollars_per_start": way.transfer,
    }
    return {
        "name": way.name,
        "title": way.title,
        **{name: one.value for name, one in sums.items()},
        "seconds": way.seconds,
        "bill_dollars": way.bill(starts),
        "waiting_dollars": way.waiting(starts, case.price_gpu.value),
        "month_dollars": judging.cost(way, case),
        "formulas": {name: one.formula for name, one in sums.items()},
        "against": way.against or None,
    }


def _rests_on(case: Case) -> list[str]:
    lines = []
    for name, title in _NAMES.items():
        figure = getattr(case, name)
        first = f"{title:<22}{_value(name, figure.value):>12}  "
        lines += _said(first, figure.origin)
    return lines


def _value(name: str, value: float) -> str:
    if name in ("weights", "kernels"):
        return show_bytes(value)
    if name.startswith("price"):
        return f"${value:,.3f}"
    if name == "starts":
        return f"{value:,.15g}"
    if name == "build":
        return f"{value:.1f} s"
    if name == "node_hits":
        return f"{value:.0%}"
    return f"{value / 1e6:,.0f} MB/s"


def _cells(way: Strategy, case: Case) -> tuple[str, ...]:
    starts = case.starts.value
    moved, waiting = starts * way.transfer.value, way.waiting(starts, case.price_gpu.value)
    seconds = (way.weights.value, way.kernels.value)
    dollars = (way.storage.value, moved, way.bill(starts), waiting, judging.cost(way, case))
    return (*(f"{one:,.1f}" for one in seconds), *(f"{one:,.2f}" for one in dollars))


def _heads(widths: Sequence[int]) -> tuple[str, str]:
    """Two lines: what is counted, above the columns that count it, and their names."""
    times, sums = sum(widths[:_TIMES]), sum(widths[_TIMES:])
    above = f"{'seconds a start':>{times}}{'dollars a month':>{sums}}"
    return f"{'':<{_TITLE}}{above}", _row("", _HEADS, widths)


def _row(title: str, cells: Sequence[str], widths: Sequence[int]) -> str:
    row = (f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
    return f"{title:<{_TITLE}}" + "".join(row)


def _formulas(way: Strategy, case: Case) -> list[str]:
    starts, hour = case.starts.value, case.price_gpu.value
    told = {
        "weights": way.weights.formula,
        "kernels": way.kernels.formula,
        "stored": way.storage.formula,
        "moved": f"{starts:g} starts × {way.transfer.formula}",  # noqa: RUF001 - a sign people read
        "waiting": f"{starts:g} starts × {way.seconds:,.1f} s × ${hour:.2f}/hour",  # noqa: RUF001 - as above
    }
    return [line for name, text in told.items() for line in _said(f"    {name:<9}", text)]


def _compared(one: Comparison) -> str:
    often = "never"
    if one.starts is not None:
        low, high = one.starts
        often = f"from {low:,.1f} starts" if low else "always"
        often = often if math.isinf(high) else f"up to {high:,.1f} starts"
    hour = "it saves none" if one.gpu_hour is None else "anything"
    if one.gpu_hour:
        hour = f"more than ${one.gpu_hour:,.2f}"
    return f"  {one.other.title:<{_TITLE - 2}}{often:>18}{hour:>33}"


def _said(first: str, text: str) -> list[str]:
    blank = " " * len(first)
    wrapped = textwrap.wrap(text, _WIDE - len(first), break_on_hyphens=False) or [""]
    return [(blank if number else first) + line for number, line in enumerate(wrapped)]
