"""vLLM's ``/metrics`` text → its histogram of tokens per step. Pure.

``vllm:iteration_tokens_total`` counts, for every engine step, the prompt tokens computed and the
tokens generated in it (v1/metrics/loggers.py of vLLM 0.32): the size that a graph would be padded
from, but for speculative tokens that were not accepted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from prometheus_client.parser import text_string_to_metric_families

from warmer.tune.observed import BadMetricsError, added, difference

if TYPE_CHECKING:
    from collections.abc import Mapping

    from prometheus_client.samples import Sample

TOKENS: Final = "vllm:iteration_tokens_total"
_BUCKET: Final = f"{TOKENS}_bucket"
_GENERATED: Final = "vllm:generation_tokens_total"
_STARTED: Final = "process_start_time_seconds"

_Labels = frozenset[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Scrape:
    """What one answer of ``/metrics`` says.

    Attributes:
        histograms: labels without ``le`` → upper bound → steps up to it.
        generated: labels → tokens generated.
        started: when the server's process started, where it says so.
    """

    histograms: Mapping[_Labels, Mapping[float, float]]
    generated: Mapping[_Labels, float]
    started: float | None


@dataclass(frozen=True, slots=True)
class Counted:
    """Steps counted by all engines of one model.

    Attributes:
        buckets: upper bound → steps up to it.
        generated: tokens that a step generated on average; None where it is not told.
    """

    buckets: Mapping[float, float]
    generated: float | None


def read(text: str) -> Scrape:
    """Read one scrape; lines of other metrics are passed over.

    Raises:
        BadMetricsError: a line is malformed, or there is no histogram.
    """
    lines = [line for line in text.split("\n") if line.startswith((_BUCKET, _GENERATED, _STARTED))]
    histograms: dict[_Labels, dict[float, float]] = {}
    generated: dict[_Labels, float] = {}
    started = None
    for sample in _samples("\n".join(lines) + "\n"):
        labels = frozenset(pair for pair in sample.labels.items() if pair[0] != "le")
        if sample.name == _BUCKET:
            bound = _number(sample.labels.get("le", ""))
            buckets = histograms.setdefault(labels, {})
            if bound in buckets:
                raise BadMetricsError(f'the bucket le="{bound:g}" of {TOKENS} twice')
            buckets[bound] = _value(sample)
        elif sample.name == _GENERATED:
            generated[labels] = _value(sample)
        elif sample.name == _STARTED:
            started = _value(sample)
    if not histograms:
        raise BadMetricsError(f"no histogram {TOKENS}")
    return Scrape(histograms, generated, started)


def models(scrape: Scrape) -> list[str]:
    """Name the served models that a scrape tells of."""
    return sorted({_model(labels) for labels in scrape.histograms})


def counted(scrape: Scrape, model: str, *, since: Scrape | None = None) -> Counted:
    """Add up what the engines of a model counted, from the server's start or from `since` on.

    Raises:
        BadMetricsError: they do not belong together, or the server was restarted in between.
    """
    if since is not None and since.started != scrape.started:
        raise BadMetricsError("two scrapes of different processes (the server was restarted)")
    mine = {labels: h for labels, h in scrape.histograms.items() if _model(labels) == model}
    if since is not None:
        if any(labels not in since.histograms for labels in mine):
            raise BadMetricsError(f"an engine of {model} in the later scrape alone")
        mine = {labels: difference(since.histograms[labels], h) for labels, h in mine.items()}
    buckets = added(mine.values())
    total = sum(scrape.generated.get(labels, 0.0) for labels in mine)
    if since is not None:
        total -= sum(since.generated.get(labels, 0.0) for labels in mine)
    steps = max(buckets.values(), default=0.0)
    return Counted(buckets, total / steps if steps and total > 0 else None)


def _samples(text: str) -> list[Sample]:
    try:
        return [s for family in text_string_to_metric_families(text) for s in family.samples]
    except (ValueError, IndexError) as exc:
        raise BadMetricsError(f"a line that is no sample ({exc})") from exc


def _value(sample: Sample) -> float:
    try:
        return float(sample.value)
    except OverflowError:  # it was written as a whole number, which have no largest
        raise BadMetricsError(f"a value of {sample.name} that is no number") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise BadMetricsError(f"a bucket with le={text!r}") from None


def _model(labels: _Labels) -> str:
    return dict(labels).get("model_name", "")
