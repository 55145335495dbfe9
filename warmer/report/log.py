"""Read the log of one vLLM start: seconds per phase, and whether the compile cache was used.

A line may carry our supervisor's clock, ``[+12.345] ``: seconds since the process started. Without
it the only clock is vLLM's own stamp, in whole seconds and not before its first line. Durations
that vLLM prints itself are exact either way. Phases may overlap, and do not add up to the total:
what no line tells about is in no phase.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from warmer.report import events as messages
from warmer.report.clock import Timer
from warmer.report.intervals import covered
from warmer.report.phases import PHASES
from warmer.report.ranks import Rank, agreed, named
from warmer.report.verdict import Said, judge

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from warmer.report.clock import Clock
    from warmer.report.events import Event
    from warmer.report.verdict import Cache

_SETTLED: Final = frozenset({"loaded", "compiled", "compiled_and_run"})
_OF_A_RANK: Final[tuple[str, ...]] = (
    "distributed",
    "download",
    "weights",
    "dynamo",
    "compile",
    "jit",
    "warmup",
)
"""Phases that a rank's own lines tell of."""


@dataclass(frozen=True, slots=True)
class StartLog:
    """What the log of one start says.

    Attributes:
        vllm_version: as printed, or None.
        phases: phase name to seconds, in the order of `PHASES`; only those the log tells.
        total_s: seconds to ready, or None when the log ends before; the same as ``ready``.
        clock: ``process`` counts from process start, ``stamps`` from vLLM's first line, ``spans``
            from the first span to the last: without imports, and without the HTTP server.
        rough: the phases read from whole seconds, vLLM's stamps or its `graph_capture`, so ±1 s.
        cache: whether compiled code was loaded or made; ``unknown`` when the log does not say, as
            on CPU with AOT off, where the files in the cache have to.
        evidence: the lines that decided `cache`.
        built: what was made, and why where the log says it; a clause each.
        failed: the span in which the start failed, where spans say so; else empty.
        ranks: what each rank says of itself, where there are several.
        notes: what else of the log is left out, or not to be trusted; a clause each.
    """

    vllm_version: str | None
    phases: dict[str, float]
    total_s: float | None
    clock: Clock
    rough: frozenset[str]
    cache: Cache
    evidence: tuple[str, ...]
    built: tuple[str, ...] = ()
    failed: str = ""
    ranks: tuple[Rank, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def recognised(self) -> bool:
        """Whether anything in it was a line of a vLLM start."""
        return self.vllm_version is not None or bool(self.phases)


def parse(lines: Iterable[str]) -> StartLog:
    """Read a start up to the line that says it is ready.

    Args:
        lines: of one start, all ranks together; bytes that are no text, colours and progress bars
            do no harm. Starts that crashed before it, and other pods' lines, are left out.

    Returns:
        What could be told; of an empty or a foreign log, nothing.
    """
    timer = Timer()
    read = messages.read(lines, timer)
    events = read.kept
    if not any(event.mark and event.mark != "ready" for event in events):
        timer.kind, events = "none", []  # uvicorn alone is not vLLM
    printed, derived = _printed(events), _derived(events, timer.kind)
    found = printed | derived
    phases = {p.name: round(found[p.name], 3) for p in PHASES if p.name in found}
    ranks = tuple(_ranks(events, timer.kind))
    verdict = agreed(judge(_said(events)), ranks)
    return StartLog(
        vllm_version=next((e.version for e in events if e.version), None),
        phases=phases,
        total_s=phases.get("ready"),
        clock=timer.kind,
        rough=frozenset(_rough(printed, derived, timer.kind)),
        cache=verdict.cache,
        evidence=verdict.evidence,
        built=verdict.built,
        ranks=ranks,
        notes=read.notes() if events else (),
    )


def _said(events: Iterable[Event]) -> list[Said]:
    return [Said(e.mark, e.pid, e.took, e.text) for e in events if e.mark]


def _ranks(events: list[Event], clock: Clock) -> Iterator[Rank]:
    """Read what each process says that tells which of several ranks it is."""
    found = {e.pid: e.rank for e in events if e.rank is not None and e.pid}
    for pid, name in named(found, {e.pid: e.name for e in events if e.name}).items():
        own = [event for event in events if event.pid == pid]
        told = _printed(own) | _derived(own, clock)
        phases = {p: round(told[p], 3) for p in _OF_A_RANK if p in told}
        yield Rank(name, judge(_said(own)).cache, phases)


def _sums(events: list[Event], *marks: str) -> dict[str, float]:
    """Printed seconds by process: in one process they follow each other, ranks go side by side."""
    sums: defaultdict[str, float] = defaultdict(float)
    for event in events:
        if event.mark in marks:
            sums[event.pid] += event.took
    return sums


def _printed(events: list[Event]) -> dict[str, float]:
    """The phases whose seconds vLLM prints."""
    phases = {}
    for name, mark in (
        ("download", "downloaded"),
        ("weights", "weights"),
        ("dynamo", "dynamo"),
        ("graph_capture", "captured"),
        ("engine_init", "initialised"),
    ):
        if sums := _sums(events, mark):
            phases[name] = max(sums.values())
    # The total has Dynamo in it, and on an AOT hit it is all that is printed. A range compiled
    # after the first run is not in it.
    total, dynamo = _sums(events, "compiled"), _sums(events, "dynamo")
    graphs = _sums(events, "graph_built", "graph_loaded")
    if total or graphs:
        phases["compile"] = max(
            max(total.get(p, 0.0) - dynamo.get(p, 0.0), graphs.get(p, 0.0)) for p in total | graphs
        )
    return phases


def _derived(events: list[Event], clock: Clock) -> dict[str, float]:
    """The phases that are the time between two lines."""
    first: dict[str, float] = {}
    last: dict[str, float] = {}
    for event in events:
        first.setdefault(event.mark, event.at)
        last[event.mark] = event.at
        if event.mark in _SETTLED and "memory" not in first:
            last["settled"] = event.at
    up = first.get("args", first.get("banner", first.get("api")))
    ready = first.get("ready", first.get("serving"))
    spans = {
        "imports": (0.0 if clock == "process" else None, up),
        "config": (up, first.get("engine")),
        "engine_process": (first.get("engine"), first.get("model")),
        "memory_profile": (last.get("settled"), first.get("memory")),
        "api_setup": (last.get("initialised"), ready),
        "ready": (0.0, ready),
    }
    phases = {
        name: max(end - begin, 0.0)
        for name, (begin, end) in spans.items()
        if begin is not None and end is not None
    }
    several = [event.at for event in events if event.rank is not None]
    if several and "connected" in last:
        phases["distributed"] = max(last["connected"] - min(several), 0.0)
        if "engine_process" in phases:
            left = phases["engine_process"] - phases["distributed"]
            phases["engine_process"] = max(left, 0.0)
    for name, found in (("warmup", _pairs(events, "warming", "warmed")), ("jit", _builds(events))):
        if spent := list(found):
            phases[name] = covered(spent)
    return phases


def _rough(printed: Iterable[str], derived: Iterable[str], clock: Clock) -> set[str]:
    """The phases known to a second only."""
    rough = {"graph_capture"} & set(printed)
    return rough | set(derived) if clock == "stamps" else rough


def _pairs(events: list[Event], begin: str, end: str) -> Iterator[tuple[float, float]]:
    """Spans from one line to the other in the same process."""
    since: dict[str, float] = {}
    for event in events:
        if event.mark == begin:
            since[event.pid] = event.at
        elif event.mark == end and event.pid in since:
            yield since.pop(event.pid), event.at


def _builds(events: list[Event]) -> Iterator[tuple[float, float]]:
    """Spans in which kernels were built or tuned.

    A FlashInfer build says only that it begins: it lasts until the process speaks again. After
    graph capture a worker does one thing, a dummy run of the sampler, which builds what is left.
    """
    yield from _pairs(events, "tune", "tuned")
    building: dict[str, float] = {}
    captured: float | None = None
    for event in events:
        for pid in (event.pid, ""):  # from 0.32 on FlashInfer's own lines name no process
            if (since := building.pop(pid, None)) is not None:
                yield since, event.at
        if event.mark == "jit":
            yield event.at - event.took, event.at
        elif event.mark == "build":
            building[event.pid] = event.at
        elif event.mark == "captured":
            captured = event.at
        elif event.mark == "initialised" and captured is not None:
            yield captured, event.at
