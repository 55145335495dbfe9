"""Which sizes to capture: as few as cover a quantile and waste little padding. Pure.

vLLM pads a step to the next captured size, and runs a larger one without a graph. Each size costs
capture time and memory at every start. So the largest size is the quantile, and below it the
fewest sizes are chosen that keep padding within a limit; among as many, those that pad least.
"""

from __future__ import annotations

import bisect
import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from warmer.tune.observed import Observed

CEILING: Final = 512
"""The largest size vLLM captures by itself; 1024 on data-centre Blackwell (config/vllm.py, 0.32)."""

_FINE: Final = 16
"""Up to here every number of requests is a candidate."""
_COARSE: Final = 256
"""Up to here multiples of 8 are, beyond it those of 16: vLLM's own strides, and the tiles kernels
pad to by themselves."""


@dataclass(frozen=True, slots=True)
class Engine:
    """What of the engine bounds its steps.

    Attributes:
        seqs: ``--max-num-seqs``: requests in one step at most.
        query: tokens that a decoding request has in a step: 1, and the speculative ones.
        tokens: ``--max-num-batched-tokens``: no step has more; None where it is not known.
    """

    seqs: int
    query: int = 1
    tokens: int | None = None

    @property
    def widest(self) -> int:
        """Tokens of the widest step that only decodes."""
        widest = self.seqs * self.query
        return widest if self.tokens is None else min(widest, self.tokens)


@dataclass(frozen=True, slots=True)
class Fit:
    """What a list of sizes does with what was observed.

    Attributes:
        sizes: ascending.
        covered: share of the steps that run in a graph.
        padding: share of the tokens computed in graphs that are padding.
    """

    sizes: tuple[int, ...]
    covered: float
    padding: float


def default(engine: Engine, ceiling: int = CEILING) -> tuple[int, ...]:
    """List what vLLM 0.32 captures where it is told nothing (`_set_cudagraph_sizes`)."""
    largest = min(engine.seqs * engine.query * 2, ceiling)
    counts = min(engine.seqs, ceiling)
    decoding = {n * engine.query for n in (*_strided(counts), counts)}
    decoding = {size for size in decoding if size <= largest}
    if engine.query == 1:
        decoding &= {engine.seqs}
    if engine.tokens is not None:
        largest = min(largest, engine.tokens)
        decoding = {size for size in decoding if size <= engine.tokens}
        if engine.tokens <= largest:
            decoding.add(engine.tokens)
    return tuple(sorted({*_strided(largest), *decoding}))


def target(observed: Observed, share: float, engine: Engine) -> int:
    """Return the largest size to capture: the quantile, as a whole number of requests."""
    size = min(observed.quantile(share), engine.widest)
    whole = math.ceil(size / engine.query) * engine.query
    return whole if engine.tokens is None or whole <= engine.tokens else engine.tokens


def propose(observed: Observed, largest: int, *, query: int, padding: float) -> tuple[int, ...]:
    """Choose the fewest sizes that pad no more than allowed.

    Args:
        observed: the steps.
        largest: the size that must be there.
        query: the others are multiples of it.
        padding: share of the computed tokens that may be padding; where no list keeps to it, the
            one that pads least is returned.
    """
    steps = {n: weight for n, weight in observed.spread().items() if n <= largest}
    choices = _candidates(steps, largest, query)
    used = math.fsum(size * weight for size, weight in steps.items())
    allowed = used * padding / (1 - padding) if padding < 1 else math.inf
    return _fewest(choices, _Waste(choices, steps), allowed)


def fit(observed: Observed, sizes: Sequence[int]) -> Fit:
    """Say what a list of sizes does with the steps."""
    used, computed = [], []
    for size, weight in observed.spread().items():
        at = bisect.bisect_left(sizes, size)
        if at < len(sizes):
            used.append(size * weight)
            computed.append(sizes[at] * weight)
    total = math.fsum(computed)
    waste = 1 - math.fsum(used) / total if total else 0.0
    return Fit(tuple(sizes), observed.covered(sizes[-1]), max(0.0, waste))


def _strided(largest: int) -> list[int]:
    """1, 2, 4, the multiples of 8 up to 256, those of 16 from there on."""
    small = [n for n in (1, 2, 4) if n <= largest]
    eights = range(8, min(largest + 1, _COARSE), 8)
    return [*small, *eights, *range(_COARSE, largest + 1, 16)]


def _candidates(steps: Mapping[int, float], largest: int, query: int) -> list[int]:
    """List the sizes worth a look: those that some step would be padded to."""
    most = largest // query
    counts = {*range(1, min(most, _FINE) + 1), *_strided(most)}
    found = sorted({*(n * query for n in counts), largest})
    useful = {found[bisect.bisect_left(found, size)] for size in steps}
    return sorted(useful | {largest})


class _Waste:
    """Padding, in tokens, of the steps between two candidates when they run at the upper one."""

    def __init__(self, choices: Sequence[int], steps: Mapping[int, float]) -> None:
        self._choices = choices
        ordered = sorted(steps.items())
        sizes = [size for size, _ in ordered]
        counts = [0.0, *itertools.accumulate(weight for _, weight in ordered)]
        tokens = [0.0, *itertools.accumulate(size * weight for size, weight in ordered)]
        ends = [0, *(bisect.bisect_right(sizes, choice) for choice in choices)]
        self._counts = [counts[end] for end in ends]
        self._tokens = [tokens[end] for end in ends]

    def between(self, below: int, at: int) -> float:
        """Waste at candidate `at`, with number `below` (0 for none) the next lower one chosen."""
        count = self._counts[at] - self._counts[below]
        return self._choices[at - 1] * count - (self._tokens[at] - self._tokens[below])


def _fewest(choices: Sequence[int], waste: _Waste, allowed: float) -> tuple[int, ...]:
    """Add one size after the other, each time choosing all anew, until the waste is allowed.

    Candidates are numbered from 1. The next lower size of a larger one is never smaller (waste
    obeys the quadrangle inequality), so that each round divides and conquers.
    """
    count = len(choices)
    best = [math.inf] * (count + 1)
    best[0] = 0.0
    rounds: list[list[int]] = []
    slack = 1e-9 * (1 + abs(waste.between(0, count)))
    reached = math.inf
    while len(rounds) < count:
        new, below = [math.inf] * (count + 1), [0] * (count + 1)
        _improve(waste, best, (new, below), (1, count), (0, count - 1))
        if new[count] >= reached - slack:
            break
        rounds.append(below)
        best, reached = new, new[count]
        if reached <= allowed + slack:
            break
    chosen, at = [], count
    for below in reversed(rounds):
        chosen.append(choices[at - 1])
        at = below[at]
    return tuple(sorted(chosen))


def _improve(
    waste: _Waste,
    best: Sequence[float],
    into: tuple[list[float], list[int]],
    span: tuple[int, int],
    among: tuple[int, int],
) -> None:
    """Fill in one round, costs and next lower sizes, for the candidates of `span`.

    Args:
        waste: what each pair of neighbours wastes.
        best: the costs of the round before.
        into: where costs and next lower sizes of this one go.
        span: numbers of candidates, first and last.
        among: where their next lower sizes lie, first and last.
    """
    new, below = into
    first, last = span
    if first > last:
        return
    middle = (first + last) // 2
    for lower in range(among[0], min(among[1], middle - 1) + 1):
        cost = best[lower] + waste.between(lower, middle)
        if cost < new[middle]:
            new[middle], below[middle] = cost, lower
    at = below[middle] if math.isfinite(new[middle]) else among[0]
    _improve(waste, best, into, (first, middle - 1), (among[0], at))
    _improve(waste, best, into, (middle + 1, last), (at, among[1]))
