"""What a start says of its caches: hit, rebuilt, or nothing; and what it rebuilt, and why. Pure.

vLLM says that it loads compiled code, that it saves what it compiled, and why a load failed. It
says nothing of a plain miss: code that was saved without a failed load before it was not there.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from warmer.secrecy import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Cache = Literal["hit", "rebuilt", "unknown"]

_REBUILT: Final = frozenset({"aot_saved", "aot_unsaved", "aot_failed", "graph_built"})
_HIT: Final = frozenset({"aot_loaded", "graph_loaded"})
_FAILED: Final = re.compile(r"load failure from .*?, reason: (.+)")
_UNSAVED: Final = re.compile(r"unable to save AOT compiled function to .*?: (.+)")
_BUILT: Final = re.compile(r"Building JIT module ([^;\s]+)")
_LONGEST: Final = 200
"""Characters of the engine's own words in a reason."""
_NAMED: Final = 3
"""Kernels that are named before the rest is counted."""


class Said(NamedTuple):
    """One line that was recognised.

    Attributes:
        mark: what the line is called in `warmer.report.lines`.
        pid: of the process that said it, or empty.
        took: the seconds in it, or 0.
        text: all of it.
    """

    mark: str
    pid: str
    took: float
    text: str


class Verdict(NamedTuple):
    """What became of the caches.

    Attributes:
        cache: whether compiled code was loaded or made; `unknown` when the log does not say.
        evidence: the lines that decided it.
        built: one clause for each thing that was made: what, and why where the log says it.
    """

    cache: Cache
    evidence: tuple[str, ...]
    built: tuple[str, ...]


def judge(said: Sequence[Said]) -> Verdict:
    """Decide whether compiled code was loaded or made; anything made outweighs what was loaded."""
    made = tuple(s.text for s in said if s.mark in _REBUILT)
    loaded = tuple(s.text for s in said if s.mark in _HIT)
    cache: Cache = "rebuilt" if made else "hit" if loaded else "unknown"
    return Verdict(cache, made or loaded, (*_compiled(said), *_kernels(said)))


def _compiled(said: Sequence[Said]) -> Iterable[str]:
    """What torch.compile made; a rank says the same as the next, so the distinct is told once."""
    failed = _words(said, "aot_failed", _FAILED)
    off = any(s.mark == "cache_off" for s in said)
    why = "the cache is switched off" if off else "none was in the cache under this start's key"
    graphs = [s for s in said if s.mark == "graph_built"]
    if graphs:
        # Ranks compile side by side: what the slowest of them made is what had to be made.
        ranks = ([s.took for s in graphs if s.pid == pid] for pid in {s.pid for s in graphs})
        number, seconds = max((len(rank), sum(rank)) for rank in ranks)
        took = f"{_count(number, 'graph')} compiled in {seconds:.2f} s"
        yield took if failed else f"{took}: {why}"
    for reason in failed:
        yield f"compiled code made again: what was in the cache failed to load ({reason})"
    if not failed and not graphs and any(s.mark == "aot_saved" for s in said):
        yield f"compiled code made anew: {why}"
    for reason in _words(said, "aot_unsaved", _UNSAVED):
        yield f"compiled code not saved, so the next start makes it again ({reason})"


def _kernels(said: Sequence[Said]) -> Iterable[str]:
    """What FlashInfer built and tuned. It says neither where it looked nor why it missed."""
    names = list(dict.fromkeys(_words(said, "build", _BUILT)))
    if names:
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        yield f"{_count(len(names), 'FlashInfer kernel')} built: {', '.join(names[:_NAMED])}{more}"


def _words(said: Sequence[Said], mark: str, pattern: re.Pattern[str]) -> list[str]:
    """What the lines of one kind say, each once."""
    found = (pattern.search(s.text) for s in said if s.mark == mark)
    words = (
        printable(match[1].strip(), _LONGEST) if match else "no reason given" for match in found
    )
    return list(dict.fromkeys(words))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
