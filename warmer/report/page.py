"""One start, or a cold one beside a warm one, as a page that needs nothing else. Pure.

One HTML file: a stacked bar for each start on one axis of seconds, and under it the table with every
figure, for whoever cannot see the bars or must not trust colours. No script, no font, no request: a
content policy forbids them, should a log ever smuggle one in, and all that a log says is escaped.
"""

from __future__ import annotations

import base64
import hashlib
from html import escape
from typing import TYPE_CHECKING, Final, NamedTuple

from warmer.report import chart, table, timeline
from warmer.report.style import STYLE
from warmer.secrecy import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from warmer.report.chart import Bar, Numbers
    from warmer.report.log import StartLog
    from warmer.report.table import Comparison, Row

_DASH: Final = "\N{EN DASH}"
_LONGEST: Final = 600
"""Characters shown of a line of the log."""
_EVIDENCE: Final = 12
"""Lines of the log that are shown for a start."""


class _Line(NamedTuple):
    """One line of the table: `name` is the segment it tells of, or none is drawn for it alone."""

    kind: str
    name: str
    title: str
    figures: Sequence[str]


class _Page(NamedTuple):
    """What a page shows. `lead` is HTML; all else is text."""

    title: str
    lead: str
    bars: Sequence[Bar]
    head: Sequence[str]
    lines: Sequence[_Line]
    remarks: Sequence[str]


def page(comparison: Comparison) -> str:
    """Draw a cold start beside a warm one."""
    bars = [chart.bar("cold", comparison.cold), chart.bar("warm", comparison.warm)]
    figures = [
        (
            table.seconds(row.cold, rough=row.rough[0]),
            table.seconds(row.warm, rough=row.rough[1]),
            table.ratio(row),
        )
        for row in comparison.rows
    ]
    total = next((row for row in comparison.rows if row.phase == "ready"), None)
    return _html(
        _Page(
            "vLLM start, cold and warm",
            _lead(total),
            bars,
            ("cold, s", "warm, s", "ratio"),
            _lines(comparison.rows, figures, bars),
            table.remarks(comparison),
        )
    )


def page_of_one(start: StartLog) -> str:
    """Draw a single start."""
    bars = [chart.bar("start", start)]
    rows = table.compare(start, start).rows
    total = next((row for row in rows if row.phase == "ready"), None)
    lead = "The start did not get ready."
    if total is not None and total.cold is not None:
        lead = f"Ready after <strong>{chart.spoken(total.cold, rough=total.rough[0])}</strong>."
    figures = [(table.seconds(row.cold, rough=row.rough[0]),) for row in rows]
    lines = _lines(rows, figures, bars)
    return _html(_Page("vLLM start", lead, bars, ("seconds",), lines, table.remarks_one(start)))


def _lines(
    rows: Sequence[Row], figures: Sequence[Sequence[str]], bars: Sequence[Bar]
) -> list[_Line]:
    """The rows of the table, and among them what the bars show of no phase."""
    lines: list[_Line] = []
    width, inside = len(figures[0]) if figures else 0, ""
    for row, cells in zip(rows, figures, strict=True):
        if inside and row.parent != inside:
            lines += _left("part", inside + timeline.REST, "the rest of it", bars, width)
        inside = row.parent or ""
        if row.phase == "ready":
            lines += _left("phase", timeline.OTHER, "in no phase", bars, width)
        kind = "total" if row.phase == "ready" else "part" if row.parent else "phase"
        lines.append(_Line(kind, row.phase, row.title, cells))
    if inside:
        lines += _left("part", inside + timeline.REST, "the rest of it", bars, width)
    return lines


def _left(kind: str, name: str, title: str, bars: Sequence[Bar], width: int) -> Iterable[_Line]:
    """A line for what is left over, where something is; it has no ratio."""
    left = [sum(s.seconds for s in bar.segments if s.name == name) or None for bar in bars]
    if any(left):
        cells = [table.seconds(seconds, rough=False) for seconds in left]
        yield _Line(kind, name, title, [*cells, _DASH][:width])


def _lead(total: Row | None) -> str:
    """The answer, in one sentence; already escaped."""
    if total is None or total.cold is None or total.warm is None:
        return "At least one of the two did not get ready."
    cold, warm = (
        chart.spoken(value, rough=rough)
        for value, rough in zip((total.cold, total.warm), total.rough, strict=True)
    )
    times = f", <strong>{escape(table.ratio(total))}</strong> as fast" if total.ratio else ""
    return f"Ready after <strong>{warm}</strong> instead of {cold}{times}."


def _html(shown: _Page) -> str:
    policy = (
        "default-src 'none'; base-uri 'none'; form-action 'none'; "
        f"style-src 'sha256-{base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()}'"
    )
    numbers = chart.numbered(shown.bars)
    verdict, *remarks = shown.remarks
    parts = [
        "<!doctype html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        '<meta name="referrer" content="no-referrer">',
        f"<title>{escape(shown.title)}</title>",
        f"<style>{STYLE}</style>",
        "</head>",
        "<body>",
        "<main>",
        f"<h1>{escape(shown.title)}</h1>",
        f'<p class="lead">{shown.lead}</p>',
        f'<p class="verdict">{escape(verdict)}</p>',
        *chart.draw(shown.bars, numbers),
        *chart.legend(numbers),
        *_table(shown.head, shown.lines, numbers),
        *_remarks(remarks),
        *_evidence(shown.bars),
        "</main>",
        "</body>",
        "</html>",
    ]
    return "\n".join(parts) + "\n"


def _table(head: Sequence[str], lines: Sequence[_Line], numbers: Numbers) -> Iterable[str]:
    yield "<table>"
    yield "<caption>Seconds by phase. An indented phase is part of the one above it.</caption>"
    yield '<thead><tr><th scope="col">phase</th>'
    yield "".join(f'<th scope="col" class="figure">{escape(text)}</th>' for text in head)
    yield "</tr></thead>"
    yield "<tbody>"
    for line in lines:
        swatch = chart.swatch(line.name, numbers[line.name][0]) if line.name in numbers else ""
        yield (
            f'<tr class="{line.kind}"><th scope="row">{swatch}{escape(line.title)}</th>'
            + "".join(f'<td class="figure">{escape(cell.strip())}</td>' for cell in line.figures)
            + "</tr>"
        )
    yield "</tbody>"
    yield "</table>"


def _remarks(remarks: Sequence[str]) -> Iterable[str]:
    yield '<ul class="remarks">'
    yield from (f"<li>{escape(printable(remark))}</li>" for remark in remarks)
    yield "</ul>"


def _evidence(bars: Sequence[Bar]) -> Iterable[str]:
    """The lines of the log that say whether the cache was hit, word for word but escaped."""
    for bar in bars:
        if not (lines := bar.start.evidence):
            continue
        yield f"<details><summary>What the {escape(bar.label)} log says of the cache</summary>"
        shown = [printable(line, _LONGEST) for line in lines[:_EVIDENCE]]
        if len(lines) > _EVIDENCE:
            shown.append(f"and {len(lines) - _EVIDENCE} lines more")
        yield f"<pre>{escape(chr(10).join(shown))}</pre></details>"
