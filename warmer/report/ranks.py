"""What each rank of an engine says of its start: its caches, its phases. Pure.

vLLM prints many lines in the first rank alone (``logger.info_once``), and that compiled code is loaded or
saved in each (``compilation/decorators.py``, 0.20 to 0.33). A start has hit when all ranks have.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from warmer.report.phases import PHASES

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from warmer.report.verdict import Cache, Verdict

_ENGINE = re.compile(r"(?:^|_)DP(\d{1,6})(?:_|$)")


class Rank(NamedTuple):
    """One process of an engine that has several.

    Attributes:
        name: its rank; behind a point where several engines have one of that number.
        cache: as of the whole start.
        phases: seconds of what it tells of; as of the whole start.
    """

    name: str
    cache: Cache
    phases: Mapping[str, float]


def named(found: Mapping[str, int], processes: Mapping[str, str]) -> dict[str, str]:
    """Name the ranks: process → name, in their order.

    Args:
        found: process → rank.
        processes: process → what it calls itself, as ``Worker_DP1_TP0``.
    """
    often = Counter(found.values())
    names = {}
    for process, rank in sorted(found.items(), key=lambda item: (item[1], item[0])):
        engine = _ENGINE.search(processes.get(process, ""))
        many = often[rank] > 1
        names[process] = f"{engine[1] if engine else process}.{rank}" if many else str(rank)
    return dict(sorted(names.items(), key=lambda item: _order(item[1])))


def _order(name: str) -> list[int]:
    return [int(part) if part.isdigit() else -1 for part in name.split(".")]


def agreed(verdict: Verdict, ranks: Sequence[Rank]) -> Verdict:
    """Take a hit of some ranks for what it is: no hit of the engine."""
    missed = without_a_hit(ranks)
    if not missed:
        return verdict
    if verdict.cache == "rebuilt":
        why = f"{missed} made code anew; the others loaded theirs, and waited"
    else:
        why = f"{missed} did not say that compiled code was loaded: no hit of the whole engine"
    cache: Cache = "rebuilt" if verdict.cache == "rebuilt" else "unknown"
    return verdict._replace(cache=cache, built=(*verdict.built, why))


def without_a_hit(ranks: Sequence[Rank]) -> str:
    """Name the ranks that did not hit where others did; empty where all did, or none."""
    missed = [rank.name for rank in ranks if rank.cache != "hit"]
    if not missed or len(missed) == len(ranks):
        return ""
    return f"rank{'s' * (len(missed) > 1)} {', '.join(missed)}"


def clauses(ranks: Iterable[Rank], rough: Collection[str] = ()) -> Iterable[str]:
    """Say what each rank tells, a clause each; phases in `rough` are known to a second."""
    for rank in ranks:
        told = [
            f"{phase.title} {_seconds(rank.phases[phase.name], rough=phase.name in rough)} s"
            for phase in PHASES
            if phase.name in rank.phases
        ]
        yield f"rank {rank.name}: {'; '.join([f'cache {rank.cache}', *told])}"


def _seconds(value: float, *, rough: bool) -> str:
    return f"~{value:.0f}" if rough else f"{value:.2f}"
