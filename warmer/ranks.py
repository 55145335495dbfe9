"""Which ranks an engine has, and which of them a tree lacks. Pure.

Each process of an engine that spans several accelerators has a rank, and vLLM (0.20 to 0.33) keeps some
of what it builds per rank: a compiled function under ``rank_<rank>_<data-parallel index>``
(``compilation/decorators.py``), FlashInfer's tuning in ``autotune_configs_dp<index>_rank<rank>.json``
(``model_executor/warmup/kernel_warmup.py``, 0.32 and newer). What Inductor, Triton and the other JITs
build is named by its content and is every rank's: there no name tells that one is missing, and the
proof (`warmer.proof`) has to.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from warmer import argv
from warmer.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Collection, Container, Iterable, Mapping

SIZES: Final = {
    "parallel.tp": "--tensor-parallel-size",
    "parallel.pp": "--pipeline-parallel-size",
    "parallel.dp": "--data-parallel-size",
}
"""Factor of the compile key → flag."""
TENSOR: Final = SIZES["parallel.tp"]
_CONTEXT: Final = "--prefill-context-parallel-size"
_NODES: Final = "--nnodes"
LAUNCHER: Final = "--distributed-executor-backend"
"""Ray's ranks may be on other nodes, whatever else is said."""
SPREAD: Final = (*SIZES.values(), _CONTEXT, _NODES)
"""Flags with which an engine has more than one rank."""
_APART: Final = ("--data-parallel-", "--headless", _NODES)
"""Beginnings of flags with which some of the data-parallel ranks may be elsewhere."""

_FUNCTION: Final = re.compile(
    r"(?P<group>(?:.*/)?torch_compile_cache/(?:torch_aot_compile/)?[^/]+)"
    r"/rank_(?P<rank>\d{1,6})_(?P<dp>\d{1,6})/(?:model|.*/artifact_compile_range_[^/]+)"
)
_TUNING: Final = re.compile(
    r"(?P<group>.*)/autotune_configs_dp(?P<dp>\d{1,6})_rank(?P<rank>\d{1,6})\.json"
)


class Rank(NamedTuple):
    """One process of an engine: its data-parallel index, and its rank within that."""

    dp: int
    rank: int


@dataclass(frozen=True, slots=True)
class World:
    """The ranks of one engine.

    Attributes:
        stage: ranks of one pipeline stage, which compile the same things.
        stages: pipeline stages; what one compiles, another may not have.
        engines: data-parallel engines that are all in this pod; 0 where they may be elsewhere.
    """

    stage: int = 1
    stages: int = 1
    engines: int = 1

    @property
    def size(self) -> int:
        """Ranks of one data-parallel index: accelerators that an engine takes."""
        return self.stage * self.stages

    @property
    def several(self) -> bool:
        """Whether there is more than one rank."""
        return self.size > 1 or self.engines != 1


def sizes(flags: argv.Flags, configured: Mapping[str, str]) -> dict[str, int]:
    """Read the parallel sizes: factor of the compile key → size.

    Args:
        flags: the server's arguments; they win.
        configured: flag → value, as a YAML file of vLLM's own sets them.

    Raises:
        UsageError: one is no integer.
    """
    found = {}
    for name, flag in SIZES.items():
        said = next((configured[name] for name in argv.spelt(configured, flag)), "1")
        try:
            default = int(said)
        except ValueError as exc:
            raise UsageError(
                f"got {flag[2:]}: {said!r:.40} in a --config file, expected an integer",
                reason="bad-value",
                hint="see vllm serve --help",
            ) from exc
        for word in argv.spelt(flags, flag):
            default = argv.integer(flags, word, default)
        found[name] = default
    return found


def several(flags: argv.Flags, configured: Collection[str], *, beside: Collection[str] = ()) -> str:
    """Name a flag that gives the engine more than one rank; empty where none does.

    Args:
        flags: the server's arguments.
        configured: flags that a YAML file of vLLM's own sets.
        beside: flags that are not asked about.
    """
    for flag in (flag for flag in SPREAD if flag not in beside):
        given = (words for name in argv.spelt(flags, flag) for words in flags[name])
        if argv.spelt(configured, flag) or any(words != ["1"] for words in given):
            return flag
    return ""


def launched(flags: argv.Flags, configured: Collection[str]) -> str:
    """Name the flag that has something else than vLLM's own processes be the ranks, maybe elsewhere.

    Args:
        flags: the server's arguments.
        configured: flags that a YAML file of vLLM's own sets.
    """
    given = [words for name in argv.spelt(flags, LAUNCHER) for words in flags[name]]
    other = any(words not in (["mp"], ["uni"]) for words in given)
    return LAUNCHER if other or argv.spelt(configured, LAUNCHER) else ""


def world(factors: Mapping[str, Any]) -> World:
    """Read the ranks out of the factors of a compile key."""
    tp, pp, dp = (_count(factors.get(name)) for name in SIZES)
    context = factors.get(f"argv.{_CONTEXT}")
    pcp = _count(context[-1][0]) if isinstance(context, list) and context and context[-1] else 1
    elsewhere = any(name.startswith(tuple(f"argv.{flag}" for flag in _APART)) for name in factors)
    return World(tp * pcp, pp, 0 if elsewhere else dp)


def _count(value: Any) -> int:
    try:
        return max(int(value), 1)
    except (TypeError, ValueError):
        return 1


def ranked(paths: Iterable[str]) -> list[str]:
    """The paths of a compile tree that belong to one rank alone, sorted."""
    return sorted(path for path in paths if _FUNCTION.fullmatch(path))


def lacking(paths: Iterable[str], ours: World) -> tuple[Rank, ...]:
    """Find the ranks whose compiled functions a compile tree lacks.

    A tree without any is of an engine that compiles none, or keeps none. A group of files that one
    rank of a pipeline stage has, its neighbours must have too; each rank must have some.
    """
    groups = _groups(paths, _FUNCTION)
    seen = {rank for group in groups.values() for rank in group}
    if not seen or any(rank.rank >= ours.size for rank in seen):
        return ()  # nothing, or not the world that was thought
    indexes = range(ours.engines) if ours.engines else sorted({rank.dp for rank in seen})
    missing = {Rank(dp, n) for dp in indexes for n in range(ours.size)} - seen
    for group in groups.values():
        missing |= _neighbours(group, ours) - group
    return tuple(sorted(missing))


def torn(paths: Collection[str], added: Container[str], ours: World) -> list[str]:
    """Find tuning that a run has added for some ranks and not for all.

    vLLM loads it only if every rank has its own; one that is joined by another run's would be taken
    for whole.

    Args:
        paths: of a FlashInfer tree.
        added: those of this run.
        ours: the ranks of the run.
    """
    bad: list[str] = []
    for group, found in _groups(paths, _TUNING).items():
        mine = [p for p in paths if (m := _TUNING.fullmatch(p)) and m["group"] == group]
        if any(path in added for path in mine) and _neighbours(found, ours) - found:
            bad += mine
    return sorted(bad)


def mixed(mine: Iterable[str], theirs: Iterable[str]) -> bool:
    """Whether two FlashInfer trees have tuning in one place for different ranks.

    As one tree it would be taken for what one run has found.
    """
    ours, others = _groups(mine, _TUNING), _groups(theirs, _TUNING)
    return any(ours[group] != others[group] for group in ours.keys() & others.keys())


def _groups(paths: Iterable[str], pattern: re.Pattern[str]) -> dict[str, set[Rank]]:
    """Directory whose files go together → the ranks that have theirs there."""
    groups: dict[str, set[Rank]] = {}
    for path in paths:
        if match := pattern.fullmatch(path):
            groups.setdefault(match["group"], set()).add(Rank(int(match["dp"]), int(match["rank"])))
    return groups


def _neighbours(group: set[Rank], ours: World) -> set[Rank]:
    """All ranks of the pipeline stages of which one is in the group (PP is outside TP in vLLM)."""
    first = {Rank(rank.dp, rank.rank - rank.rank % ours.stage) for rank in group}
    return {Rank(rank.dp, rank.rank + n) for rank in first for n in range(ours.stage)}


def named(ranks: Iterable[Rank]) -> str:
    """Name ranks for people: ``rank 1``, ``ranks 1, 3``, ``rank 1 of data-parallel index 2``."""
    ranks = sorted(ranks)
    said = []
    for dp in sorted({rank.dp for rank in ranks}):
        mine = [str(rank.rank) for rank in ranks if rank.dp == dp]
        where = f" of data-parallel index {dp}" if dp else ""
        said.append(f"rank{'s' * (len(mine) > 1)} {', '.join(mine)}{where}")
    return "; ".join(said)


def owner(path: str) -> Rank | None:
    """Whose a file of a compile tree is; None where it is every rank's."""
    match = _FUNCTION.fullmatch(path)
    return Rank(int(match["dp"]), int(match["rank"])) if match else None
