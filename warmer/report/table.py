"""Set a cold start beside a warm one: rows, a table for people, JSON for programs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from warmer.report import ranks
from warmer.report.phases import PHASES
from warmer.secrecy import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from warmer.report.clock import Clock
    from warmer.report.log import StartLog


_NONE: Final = "\N{EN DASH}"
_TIMES: Final = "\N{MULTIPLICATION SIGN}"
_TOTAL: Final = "ready"


@dataclass(frozen=True, slots=True)
class Row:
    """One phase of two starts.

    Attributes:
        phase: its name in `PHASES`, or the caller's.
        title: for people.
        parent: the phase it happens inside, or None.
        cold: seconds, or None when that start has no such phase.
        warm: as `cold`.
        ratio: cold over warm; None when either is missing, the warm one is zero, or they do not
            count from the same moment.
        rough: whether cold, warm come from whole seconds in the log, so ±1 s.
    """

    phase: str
    title: str
    parent: str | None
    cold: float | None
    warm: float | None
    ratio: float | None
    rough: tuple[bool, bool]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two starts, phase by phase.

    Attributes:
        rows: in the order to show: a parent, its children, the total last.
        cold: the start without caches.
        warm: the start with them.
    """

    rows: tuple[Row, ...]
    cold: StartLog
    warm: StartLog


class _Side(NamedTuple):
    """One start's part of a row; `clock` says what it counts from."""

    seconds: float | None
    rough: bool
    clock: Clock


def compare(
    cold: StartLog,
    warm: StartLog,
    *,
    extra: Mapping[str, tuple[float | None, float | None]] = {},
) -> Comparison:
    """Set two starts side by side.

    Args:
        cold: the start without caches.
        warm: the start with them.
        extra: (cold, warm) seconds the log cannot know, by phase name. A known name takes its row,
            where a None leaves what the log says; any other gets a row of its own.
    """
    rows = []
    for name, title, parent in _order(extra):
        measured = extra.get(name, (None, None))
        one = _side(cold, name, measured[0])
        two = _side(warm, name, measured[1])
        fair = _same_moment(name, one.clock, two.clock)
        ratio = (
            one.seconds / two.seconds if fair and one.seconds is not None and two.seconds else None
        )
        rows.append(
            Row(name, title, parent, one.seconds, two.seconds, ratio, (one.rough, two.rough))
        )
    return Comparison(_shown(rows), cold, warm)


def render(comparison: Comparison, *, markdown: bool = False) -> str:
    """Draw the table, with what a reader must know to believe it underneath.

    Args:
        comparison: what to draw.
        markdown: a Markdown table instead of one for the terminal.
    """
    cells = [
        (
            _label(row, markdown=markdown),
            seconds(row.cold, rough=row.rough[0]),
            seconds(row.warm, rough=row.rough[1]),
            ratio(row),
        )
        for row in comparison.rows
    ]
    notes = remarks(comparison)
    return _draw(("phase", "cold, s", "warm, s", "ratio"), cells, notes, markdown=markdown)


def render_one(start: StartLog, *, markdown: bool = False) -> str:
    """Draw the phases of a single start, as `render` does for two."""
    rows = compare(start, start).rows
    cells = [
        (_label(row, markdown=markdown), seconds(row.cold, rough=row.rough[0])) for row in rows
    ]
    return _draw(("phase", "s"), cells, remarks_one(start), markdown=markdown)


def remarks(comparison: Comparison) -> list[str]:
    """Say what a reader must know to believe the table, and what was rebuilt, and why."""
    cold, warm = comparison.cold, comparison.warm
    versions = {version(start): name for start, name in ((cold, "cold"), (warm, "warm"))}
    vllm = ", ".join(f"{name} {v}" if len(versions) > 1 else v for v, name in versions.items())
    notes = [f"{_named(vllm)}compile cache: cold {cold.cache}, warm {warm.cache}"]
    for name, start in (("cold", cold), ("warm", warm)):
        notes += [
            f"{name}: {clause}"
            for clause in (*start.built, *ranks.clauses(start.ranks, start.rough), *start.notes)
        ]
        if start.total_s is None:
            notes.append(f"the {name} {_end(start)}")
    return notes + list(_roughness(comparison.rows, (cold, warm)))


def remarks_one(start: StartLog) -> list[str]:
    """Say of a single start what `remarks` says of two."""
    notes = [f"{_named(version(start))}compile cache: {start.cache}", *start.built]
    notes += [*ranks.clauses(start.ranks, start.rough), *start.notes]
    if start.total_s is None:
        notes.append(f"the {_end(start)}")
    return notes + list(_roughness(compare(start, start).rows, (start,)))


def version(start: StartLog) -> str:
    """What vLLM says it is, as it may be shown."""
    return printable(start.vllm_version or "?", 40)


def _named(vllm: str) -> str:
    return "" if vllm == "?" else f"vLLM {vllm}; "


def _end(start: StartLog) -> str:
    if start.failed:
        return f"start failed, in the span {start.failed!r}"
    return "spans end before ready" if start.clock == "spans" else "log ends before ready"


def _side(start: StartLog, phase: str, measured: float | None) -> _Side:
    """Prefer what the caller measured to what the log says."""
    if measured is not None:
        return _Side(measured, rough=False, clock="process")
    return _Side(start.phases.get(phase), phase in start.rough, start.clock)


def _same_moment(phase: str, one: Clock, two: Clock) -> bool:
    """Whether two starts count a phase from the same moment; spans know nothing of the config."""
    if phase == _TOTAL:
        return one == two
    return phase != "config" or (one == "spans") == (two == "spans")


def _order(extra: Mapping[str, object]) -> Iterator[tuple[str, str, str | None]]:
    """Name, title and parent of every possible row, in the order to show them."""
    known = {phase.name for phase in PHASES}
    for phase in PHASES:
        if phase.name == _TOTAL:
            for name in extra:
                if name not in known:
                    yield name, name.replace("_", " "), None
        if phase.parent is None:
            yield phase.name, phase.title, None
            for child in PHASES:
                if child.parent == phase.name:
                    yield child.name, child.title, child.parent


def _shown(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Rows that say something, and the parents of those."""
    told = [row for row in rows if row.cold is not None or row.warm is not None]
    parents = {row.parent for row in told}
    return tuple(row for row in rows if row in told or row.phase in parents)


def _label(row: Row, *, markdown: bool) -> str:
    """A title, indented when it is a part of the row above."""
    indent = "&emsp;" if markdown else "  "
    return f"{indent if row.parent else ''}{row.title}"


def seconds(value: float | None, *, rough: bool) -> str:
    """Two decimals; a rough value shows none but keeps its place above the others' points."""
    if value is None:
        return _NONE + "   "
    return f"~{value:.0f}   " if rough else f"{value:.2f}"


def ratio(row: Row) -> str:
    """One decimal, below one two; as rough as what it was made of."""
    if row.ratio is None:
        return _NONE
    return f"{'~' if any(row.rough) else ''}{row.ratio:.{1 if row.ratio >= 1 else 2}f}{_TIMES}"


def _roughness(rows: Sequence[Row], starts: Sequence[StartLog]) -> Iterator[str]:
    """What a tilde means, where there is one, and what spans leave out."""
    rough = {row.phase for row in rows if any(row.rough)}
    if rough:
        total = "; ready then counts from its first line" if _TOTAL in rough else ""
        yield f"~ is in whole seconds, as vLLM logs them, ±1 s{total}"
    if any(start.clock == "spans" for start in starts):
        yield (
            "spans begin after Python's imports and end before the HTTP server: ready is from the "
            "first to the last, and no span tells of the cache"
        )


def _draw(
    head: Sequence[str], cells: Sequence[Sequence[str]], notes: Sequence[str], *, markdown: bool
) -> str:
    """Lay out the columns, the first to the left and the others to the right."""
    if markdown:
        cells = [[cell.strip() for cell in row] for row in cells]
    widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]

    def line(row: Sequence[str], sep: str) -> str:
        first, *others = zip(row, widths, strict=True)
        return sep.join([first[0].ljust(first[1]), *(text.rjust(width) for text, width in others)])

    if markdown:
        rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
        table = [f"| {line(row, ' | ')} |" for row in (head, rule, *cells)]
        return "\n".join([*table, "", *(f"{note}  " for note in notes[:-1]), *notes[-1:]])
    rule = ["-" * width for width in widths]
    table = [line(row, "  ").rstrip() for row in (head, rule, *cells)]
    return "\n".join([*table, "", *notes])
