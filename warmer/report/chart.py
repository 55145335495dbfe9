"""The bars of a page: starts on one axis of seconds, their axis, and what their colours mean. Pure.

SVG in percent of the page's width, so that the bars grow with it and the text does not. Widths are the
seconds and nothing else; what is too thin to be seen gets a line besides.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Final, NamedTuple

from warmer.report import timeline

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from warmer.report.log import StartLog
    from warmer.report.timeline import Segment

    Numbers = Mapping[str, tuple[int, str]]
    """Number and title of each segment that is drawn."""

_BAR: Final = 40
"""Pixels of a bar's height."""
_ROW: Final = 84
"""Pixels from one bar to the next; its label stands above it."""
_LABELLED: Final = 2.6
"""Percent of the axis that a segment must have to bear its number."""
_ROOMY: Final = 7.0
"""As `_LABELLED`, on the screen of a telephone."""
_THIN: Final = 0.5
"""Percent below which a segment gets a line, so that it is seen at all."""


class Bar(NamedTuple):
    """One start as it is drawn."""

    label: str
    start: StartLog
    segments: tuple[Segment, ...]


def spoken(value: float, *, rough: bool) -> str:
    """Say seconds in a sentence."""
    return f"{'about ' if rough else ''}{value:.{0 if rough else 1}f} s"


def bar(label: str, start: StartLog) -> Bar:
    """Lay one start out."""
    return Bar(label, start, timeline.segments(start))


def numbered(bars: Sequence[Bar]) -> dict[str, tuple[int, str]]:
    """Number and title of every segment that is drawn, in the order of the phases."""
    drawn = {segment.name for bar in bars for segment in bar.segments}
    kept = [(name, title) for name, title in timeline.kinds() if name in drawn]
    return {name: (number, title) for number, (name, title) in enumerate(kept, 1)}


def draw(bars: Sequence[Bar], numbers: Numbers) -> Iterable[str]:
    """Draw the bars on their axis; nothing where nothing is told of."""
    longest = max((timeline.end(bar.segments) for bar in bars), default=0.0)
    if not longest:
        return
    height = _ROW * len(bars)
    said = "; ".join(f"{bar.label}: {_length(bar)}" for bar in bars)
    yield "<figure>"
    yield (
        f'<svg width="100%" height="{height + 28}" role="img" '
        f'aria-label="Stacked bars of seconds. {said}. The table below has every figure.">'
    )
    for at in timeline.ticks(longest):
        x = f"{100 * at / longest:.4f}%"
        anchor = "start" if at == 0 else "end" if at > 0.96 * longest else "middle"
        if at:
            yield f'<line class="tick" x1="{x}" x2="{x}" y1="0" y2="{height + 4}"/>'
        yield f'<text class="axis" x="{x}" y="{height + 20}" text-anchor="{anchor}">{at:g} s</text>'
    for i, bar in enumerate(bars):
        yield from _drawn(bar, _ROW * i, longest, numbers)
    yield "</svg>"
    yield "</figure>"


def _drawn(bar: Bar, top: int, longest: float, numbers: Numbers) -> Iterable[str]:
    """One bar: its segments side by side, then the lines of those too thin to be seen."""
    lines = []
    yield (
        f'<text class="name" x="0" y="{top + 24}">{escape(bar.label)} '
        f'<tspan class="total">{_length(bar)}</tspan></text>'
    )
    y = top + 34
    for segment in bar.segments:
        number, title = numbers[segment.name]
        x, wide = 100 * segment.begin / longest, 100 * segment.seconds / longest
        yield (
            f'<rect class="{segment.name}" data-seconds="{segment.seconds:g}" x="{x:.4f}%" y="{y}" '
            f'width="{wide:.4f}%" height="{_BAR}">'
            f"<title>{escape(title)}: {segment.seconds:.2f} s</title></rect>"
        )
        if wide < _THIN:
            lines.append(
                f'<line class="thin {segment.name}" x1="{x:.4f}%" x2="{x:.4f}%" y1="{y}" y2="{y + _BAR}"/>'
            )
        elif segment.begin:
            lines.append(
                f'<line class="edge" x1="{x:.4f}%" x2="{x:.4f}%" y1="{y}" y2="{y + _BAR}"/>'
            )
        if wide >= _LABELLED:
            small = "" if wide >= _ROOMY else " tight"
            lines.append(
                f'<text class="number{small} on-{segment.name}" x="{x + wide / 2:.4f}%" '
                f'y="{y + 25}" text-anchor="middle" aria-hidden="true">{number}</text>'
            )
    yield from lines


def _length(bar: Bar) -> str:
    """A start in words: to ready, or as far as it went."""
    if bar.start.total_s is None:
        return f"not ready; {timeline.end(bar.segments):.1f} s are told of"
    return spoken(bar.start.total_s, rough="ready" in bar.start.rough)


def legend(numbers: Numbers) -> Iterable[str]:
    """Say which number and colour is which phase, in the order of a start."""
    yield '<ol class="legend" aria-label="Phases, in the order of a start">'
    for name, (number, title) in numbers.items():
        yield f"<li>{swatch(name, number)}{escape(title)}</li>"
    yield "</ol>"


def swatch(name: str, number: int) -> str:
    """A phase's colour with its number, as it stands in the bars."""
    return (
        '<svg class="swatch" width="24" height="18" aria-hidden="true">'
        f'<rect class="{name}" width="24" height="18" rx="2"/>'
        f'<text class="number on-{name}" x="12" y="13.5" text-anchor="middle">{number}</text></svg>'
    )
