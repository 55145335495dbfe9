"""Questions to a Prometheus server about what engines did, and its answers. Pure.

The answers are those of ``/api/v1/query_range``: a matrix of series. Series with the label ``le``
are a histogram's; every other is a gauge of requests, each of its points one sample.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, Final

from warmer.tune.exposition import TOKENS
from warmer.tune.observed import BadMetricsError, Observed, from_buckets, from_samples

if TYPE_CHECKING:
    from collections.abc import Mapping

RUNNING: Final = "vllm:num_requests_running"
STEP: Final = "$step"
"""Stands for the distance of two points in a query."""

_POINTS: Final = 2000
"""Points of a series that are asked for; the server's own limit is 11,000."""
_SHORTEST: Final = 15.0
"""Seconds between two points at least; few servers are scraped more often."""


def query(metric: str, model: str | None) -> str:
    """Write the question where the user asks none: ``running`` or ``tokens``."""
    which = "" if model is None else f"{{model_name={json.dumps(model, ensure_ascii=False)}}}"
    if metric == "running":
        return f"{RUNNING}{which}"
    return f"sum by (le, model_name) (increase({TOKENS}_bucket{which}[{STEP}]))"


def step(seconds: float) -> int:
    """Choose the distance of two points, in seconds."""
    return math.ceil(max(_SHORTEST, seconds / _POINTS))


def read(body: bytes) -> tuple[Observed | None, bool, list[str]]:
    """Read an answer.

    Returns:
        The steps, None where nothing ran; whether they are a histogram's; the models they are of.

    Raises:
        BadMetricsError: it is no matrix, or its numbers are none.
    """
    series = _series(body)
    models = sorted({str(labels["model_name"]) for labels, _ in series if "model_name" in labels})
    kinds = {"le" in labels for labels, _ in series}
    if len(kinds) > 1:
        raise BadMetricsError("series with and without the label le")
    if kinds != {True}:
        # A quotient of an idle engine's is 0/0, which Prometheus writes as NaN: nothing ran.
        values = [value for _, points in series for value in points if not math.isnan(value)]
        return from_samples(values), False, models
    buckets: dict[float, float] = {}
    for labels, points in series:
        bound = _number(labels["le"])
        if odd := [value for value in points if not value >= 0]:
            raise BadMetricsError(f'a count of {odd[0]:g} in the bucket le="{bound:g}"')
        buckets[bound] = buckets.get(bound, 0.0) + sum(points)
    return from_buckets(buckets), True, models


def _series(body: bytes) -> list[tuple[Mapping[str, Any], list[float]]]:
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError) as exc:
        raise BadMetricsError("what is no JSON") from exc
    if not isinstance(answer, dict) or answer.get("status") != "success":
        said = answer.get("error") if isinstance(answer, dict) else None
        raise BadMetricsError(
            f"a refusal: {str(said)[:200]}" if said else "no answer of Prometheus"
        )
    data = answer.get("data")
    if not isinstance(data, dict) or data.get("resultType") != "matrix":
        raise BadMetricsError("an answer that is no matrix")
    try:
        return [
            (dict(one["metric"]), [_point(value) for _, value in one["values"]])
            for one in data["result"]
        ]
    except BadMetricsError:
        raise
    except (KeyError, TypeError, ValueError) as exc:
        raise BadMetricsError("a series without labels and points") from exc


def _point(text: Any) -> float:
    return math.nan if text == "NaN" else _number(text)


def _number(text: Any) -> float:
    try:
        value = float(text)
    except (TypeError, ValueError, OverflowError):  # JSON's whole numbers have no largest
        value = math.nan
    if math.isnan(value):
        raise BadMetricsError(f"a value of {str(text)[:40]!r}")
    return value
