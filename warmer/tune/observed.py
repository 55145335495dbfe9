"""How often an engine step had which size, as far as metrics tell. Pure.

A size is the number of tokens of one step: what vLLM pads to the next captured graph. A gauge's
samples are exact; a histogram knows bands alone. Where a band matters for what is covered, all of
it counts as its upper end; for padding its steps are taken as spread evenly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

LARGEST: Final = 1 << 17
"""Tokens of a step that is still believed; no engine has more."""

_SLACK: Final = 1e-6
"""Share of a histogram by which rates that Prometheus extrapolates may fall from one to the next."""


class BadMetricsError(ValueError):
    """The numbers are none of a histogram or a gauge. Says why, as a clause."""


class Band(NamedTuple):
    """Steps of `low` up to `high` tokens, both included; how many, or for what share of the time."""

    low: int
    high: int
    weight: float


@dataclass(frozen=True, slots=True)
class Observed:
    """Steps by size, ascending; never empty."""

    bands: tuple[Band, ...]

    @property
    def weight(self) -> float:
        """All steps."""
        return math.fsum(band.weight for band in self.bands)

    def within(self, ceiling: int) -> Observed | None:
        """Keep the steps of at most `ceiling` tokens; None where there are none."""
        kept = [_cut(band, ceiling) for band in self.bands if band.low <= ceiling]
        return Observed(tuple(kept)) if kept else None

    def quantile(self, share: float) -> int:
        """Return the size that at least this share of the steps does not exceed, for certain."""
        wanted, seen = share * self.weight, 0.0
        for band in self.bands:
            seen += band.weight
            if seen >= wanted * (1 - 1e-12):
                return band.high
        return self.bands[-1].high

    def covered(self, size: int) -> float:
        """Return the share of the steps that have at most `size` tokens."""
        inside = [_cut(band, size).weight for band in self.bands if band.low <= size]
        return math.fsum(inside) / self.weight

    def scaled(self, factor: int, ceiling: int) -> Observed:
        """Multiply every size, to `ceiling` at most."""
        bands = (
            Band(min(b.low * factor, ceiling), min(b.high * factor, ceiling), b.weight)
            for b in self.bands
        )
        return Observed(tuple(bands))

    def spread(self) -> dict[int, float]:
        """Return size → steps, those of a band spread evenly over its sizes."""
        found: dict[int, float] = {}
        for low, high, weight in self.bands:
            each = weight / (high - low + 1)
            for size in range(low, high + 1):
                found[size] = found.get(size, 0.0) + each
        return found


def from_samples(values: Iterable[float]) -> Observed | None:
    """Read samples of a gauge; those of an idle engine are left out, None where no other is.

    Raises:
        BadMetricsError: a value is no number of requests.
    """
    counts: dict[int, float] = {}
    for value in values:
        if not math.isfinite(value) or not 0 <= value <= LARGEST:
            raise BadMetricsError(f"a value of {value:g}")
        size = math.ceil(value)  # an average over engines counts as the larger one
        if size:
            counts[size] = counts.get(size, 0.0) + 1.0
    return _observed([Band(size, size, count) for size, count in sorted(counts.items())])


def from_buckets(cumulative: Mapping[float, float]) -> Observed | None:
    """Read a histogram: upper bound → steps up to it; None where nothing was counted.

    Steps beyond the last bound count as one band of twice that bound.

    Raises:
        BadMetricsError: a bound or a count is none, or the counts fall.
    """
    bounds = sorted(cumulative)
    if any(math.isnan(bound) for bound in cumulative) or not bounds or bounds[-1] != math.inf:
        raise BadMetricsError('a histogram without its bucket le="+Inf"')
    if len(bounds) < 2 or bounds[0] <= 0 or bounds[-2] > LARGEST:
        raise BadMetricsError(
            f"a histogram with the bounds {', '.join(f'{b:g}' for b in bounds[:9])}"
        )
    total = cumulative[math.inf]
    bands: list[Band] = []
    low, before = 1, 0.0
    for bound in bounds:
        count = cumulative[bound]
        if not math.isfinite(count) or count < 0:
            raise BadMetricsError(f'a count of {count:g} in the bucket le="{bound:g}"')
        if count < before - _SLACK * max(total, before):
            raise BadMetricsError(
                f'counts that fall, from {before:g} to {count:g} in the bucket le="{bound:g}"'
            )
        high = 2 * (low - 1) if bound == math.inf else math.floor(bound)
        if count > before and high >= low:
            bands.append(Band(low, high, count - before))
        low, before = max(low, high + 1), max(before, count)
    return _observed(bands)


def difference(before: Mapping[float, float], after: Mapping[float, float]) -> dict[float, float]:
    """Return what a histogram counted between two looks at it.

    Raises:
        BadMetricsError: it began anew in between, or has other buckets.
    """
    if before.keys() != after.keys():
        raise BadMetricsError("two scrapes with different buckets")
    gone = [bound for bound in after if after[bound] < before[bound]]
    if gone:
        raise BadMetricsError("counts that fell between two scrapes (the server was restarted)")
    return {bound: after[bound] - before[bound] for bound in after}


def added(histograms: Iterable[Mapping[float, float]]) -> dict[float, float]:
    """Add the histograms of several engines.

    Raises:
        BadMetricsError: they have different buckets.
    """
    total: dict[float, float] = {}
    for histogram in histograms:
        if total and total.keys() != histogram.keys():
            raise BadMetricsError("engines with different buckets")
        for bound, count in histogram.items():
            total[bound] = total.get(bound, 0.0) + count
    return total


def _observed(bands: list[Band]) -> Observed | None:
    return Observed(tuple(bands)) if bands else None


def _cut(band: Band, ceiling: int) -> Band:
    """Keep the part of a band up to `ceiling`, its steps taken as spread evenly."""
    if band.high <= ceiling:
        return band
    share = (ceiling - band.low + 1) / (band.high - band.low + 1)
    return Band(band.low, ceiling, band.weight * share)
