"""Read the OpenTelemetry spans of one vLLM start: seconds per phase, as exact as a log's are not.

With ``--otlp-traces-endpoint`` vLLM sends a span for each part of a start (``@instrument`` in its
source, 0.20 to 0.33). They begin when the API server spawns the engine: what went before, Python's
imports and the config, is in none of them, nor is the HTTP server, whose ``API server setup`` ends
before there is anything to send it. Whether a cache was hit no span says.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Final, NamedTuple

from warmer.report.intervals import less
from warmer.report.log import StartLog
from warmer.report.phases import PHASES
from warmer.report.ranks import Rank, named

if TYPE_CHECKING:
    from collections.abc import Iterable

    from warmer.report.intervals import Interval

WHOLE: Final = "Overall Loading"
"""The span that holds all others; it is over when the engine is ready, and so is sent last."""

_INIT: Final = "Prepare model"
"""What vLLM's log calls ``init engine``: profile, KV cache, warm-up."""
_BORN: Final = ("EngineCoreProc init", "Executor init", "Worker init")
"""The engine process is up: the first of these that there is. Each holds the next."""
_LOADING: Final = ("Loading (GPU)", "Loading (CPU)", "Load model")
_WARMING: Final = ("Warmup (GPU)",)
_DYNAMO: Final = ("Dynamo bytecode transform",)
_COMPILING: Final = ("Inductor compilation", "Compile graph")
_CAPTURE: Final = ("Capture model",)
_DOWNLOAD: Final = ("Download weights - HF",)
_WEIGHTS: Final = ("Load weights",)
_WARMING_CPU: Final = ("Warmup (CPU)",)
_BUILDING: Final = ("DeepGemm warmup", "CuTeDSL warmup", "MiniMax M3 MSA warmup")
_CACHE: Final = ("Allocate KV cache",)

_CONNECTING: Final = ("Init device",)
_HOLDING: Final = ("AsyncMPClient init", "Initialize model", "API server setup")
"""Told by the spans around them."""

_OF_A_RANK: Final[tuple[str, ...]] = (
    *("distributed", "download", "weights", "dynamo", "compile"),
    *("jit", "warmup", "graph_capture"),
)
"""Phases that a rank's own spans tell of."""

NAMES: Final = frozenset(
    {WHOLE, _INIT, *_BORN, *_LOADING, *_DOWNLOAD, *_WEIGHTS, *_DYNAMO, *_COMPILING, *_WARMING}
    | {*_BUILDING, *_CAPTURE, *_CACHE, *_WARMING_CPU, *_CONNECTING, *_HOLDING}
)
"""The spans of a start. All others are of requests, or of another program."""


class Span(NamedTuple):
    """One part of a start, as one process saw it.

    Attributes:
        name: one of `NAMES`.
        trace: what it belongs to; a start is one trace.
        id: the same however often it is sent.
        process: whose it is.
        begin: seconds since 1970.
        end: as `begin`.
        failed: whether it ended with an error.
        rank: which of the engine's ranks the process is; None where it is none, or the only one.
    """

    name: str
    trace: str
    id: str
    process: str
    begin: float
    end: float
    failed: bool
    rank: int | None = None


def read(spans: Iterable[Span]) -> StartLog:
    """Read a start.

    Args:
        spans: in any order, sent twice or not; of several starts, the one that was whole first is
            told, else the one with the most spans.

    Returns:
        What could be told. `StartLog.total_s` is None unless the engine got ready.
    """
    own = _one(spans)
    if not own:
        return StartLog(None, {}, None, "none", frozenset(), "unknown", ())
    zero = min(span.begin for span in own)
    found = _phases([s._replace(begin=s.begin - zero, end=s.end - zero) for s in own])
    phases = {p.name: round(found[p.name], 3) for p in PHASES if p.name in found}
    return StartLog(
        vllm_version=None,
        phases=phases,
        total_s=phases.get("ready"),
        clock="spans",
        rough=frozenset(),
        cache="unknown",
        evidence=(),
        failed=_failed(own),
        ranks=_ranks(own),
    )


def _ranks(spans: list[Span]) -> tuple[Rank, ...]:
    """What each rank's own spans tell, where there are several."""
    found = {span.process: span.rank for span in spans if span.rank is not None}
    if len(found) < 2:
        return ()
    told = []
    for process, name in named(found, {}).items():
        phases = _phases([span for span in spans if span.process == process])
        own = {phase: round(phases[phase], 3) for phase in _OF_A_RANK if phase in phases}
        told.append(Rank(name, "unknown", own))
    return tuple(told)


def _one(spans: Iterable[Span]) -> list[Span]:
    """The spans of one start, each once."""
    distinct = {(span.trace, span.id): span for span in spans if span.name in NAMES}.values()
    whole = sorted((span.end, span.trace) for span in distinct if span.name == WHOLE)
    sizes = Counter(span.trace for span in distinct)
    trace = whole[0][1] if whole else max(sizes, key=lambda t: sizes[t], default=None)
    return [span for span in distinct if span.trace == trace]


def _failed(spans: list[Span]) -> str:
    """The innermost span that ended with an error, if the whole did; some errors are survived."""
    if not any(span.failed for span in spans if span.name == WHOLE):
        return ""
    return max((span for span in spans if span.failed), key=lambda s: (s.begin, -s.end)).name


def _phases(spans: list[Span]) -> dict[str, float]:
    """Seconds by phase. Ranks go side by side: the slowest counts, as in a log."""
    of: defaultdict[str, defaultdict[str, list[Interval]]]
    of = defaultdict(lambda: defaultdict(list))
    for span in spans:
        of[span.name][span.process].append((span.begin, span.end))

    def own(process: str, *names: str) -> list[Interval]:
        return [interval for name in names for interval in of[name][process]]

    def slowest(names: tuple[str, ...], without: tuple[str, ...] = ()) -> float | None:
        each = [
            less(mine, own(process, *without))
            for process in {span.process for span in spans}
            if (mine := own(process, *names))
        ]
        return max(each, default=None)

    told = {
        "download": slowest(_DOWNLOAD),
        "weights": slowest(_WEIGHTS, _DOWNLOAD),
        "dynamo": slowest(_DYNAMO),
        "compile": slowest(_COMPILING, _DYNAMO),
        # Kernels are built in the warm-up, before graph capture and in the dummy run after it.
        "jit": slowest((*_WARMING, *_BUILDING), (*_CAPTURE, *_DYNAMO, *_COMPILING)),
        "warmup": slowest(_WARMING_CPU),
        "memory_profile": _profile(spans),
        "graph_capture": slowest(_CAPTURE),
        "engine_init": slowest((_INIT,)),
        **_between(spans),
    }
    if any(span.rank is not None for span in spans):  # the device's own set-up is in it
        told["distributed"] = slowest(_CONNECTING)
        if (all_of_it := told["engine_process"]) is not None:
            told["engine_process"] = max(all_of_it - (told["distributed"] or 0.0), 0.0)
    return {name: seconds for name, seconds in told.items() if seconds is not None}


def _profile(spans: list[Span]) -> float | None:
    """What of the engine's init is none of its other parts; on GPUs, as CPUs profile nothing."""
    if not any(span.name in _WARMING for span in spans):
        return None
    init = _where(spans, (_INIT,))
    parts = (*_WARMING, *_CACHE, *_DYNAMO, *_COMPILING, *_CAPTURE, *_BUILDING)
    return less(init, _where(spans, parts)) if init else None


def _between(spans: list[Span]) -> dict[str, float | None]:
    """The phases that are the time from one span's begin to another's, and the whole."""
    born = next((min(found)[0] for name in _BORN if (found := _where(spans, (name,)))), None)
    loading, began = _where(spans, _LOADING), _where(spans, (WHOLE,))
    ends = [span.end for span in spans if span.name == WHOLE and not span.failed]
    return {
        "config": None if born is None or not began else max(born - min(began)[0], 0.0),
        "engine_process": None if born is None or not loading else max(min(loading)[0] - born, 0.0),
        "ready": max(ends, default=None),
    }


def _where(spans: Iterable[Span], names: tuple[str, ...]) -> list[Interval]:
    """Where spans of these names lie, of all processes."""
    return [(span.begin, span.end) for span in spans if span.name in names]


def finished(spans: Iterable[Span]) -> bool:
    """Whether a start is over, well or badly."""
    return any(span.name == WHOLE for span in spans)
