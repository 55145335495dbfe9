"""A start, or two beside each other, as plain values: what `report --json` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from warmer.report.log import StartLog
    from warmer.report.table import Comparison

SCHEMA_VERSION: Final = 1
"""Of `as_json` and `start_as_json`: new keys may come, old ones keep their meaning."""


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Give a comparison as plain values; seconds and ratios are rounded to a thousandth."""
    return {
        "schema_version": SCHEMA_VERSION,
        "cold": _start(comparison.cold),
        "warm": _start(comparison.warm),
        "rows": [
            {
                "phase": row.phase,
                "title": row.title,
                "parent": row.parent,
                "cold_s": _rounded(row.cold),
                "warm_s": _rounded(row.warm),
                "ratio": _rounded(row.ratio),
            }
            for row in comparison.rows
        ],
    }


def start_as_json(start: StartLog) -> dict[str, Any]:
    """Give a single start as plain values."""
    return {"schema_version": SCHEMA_VERSION, **_start(start), "phases": dict(start.phases)}


def _rounded(value: float | None) -> float | None:
    """To a thousandth, when there is a value."""
    return None if value is None else round(value, 3)


def _start(start: StartLog) -> dict[str, Any]:
    """What is true of a start as a whole."""
    return {
        "vllm_version": start.vllm_version,
        "total_s": start.total_s,
        "clock": start.clock,
        "rough": sorted(start.rough),
        "cache": start.cache,
        "evidence": list(start.evidence),
        "built": list(start.built),
        "notes": list(start.notes),
        "failed": start.failed or None,
        "ranks": [
            {"rank": rank.name, "cache": rank.cache, "phases": dict(rank.phases)}
            for rank in start.ranks
        ],
    }
