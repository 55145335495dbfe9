"""What one prefill did, as it leaves it in the warm dir for the sidecar's metrics. Pure.

The wire format is one JSON object; a record that cannot be read is none.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from warmer.model import KINDS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from warmer.model import Kind

SCHEMA_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Tally:
    """What a prefill did.

    Attributes:
        source: the scheme that weights come from.
        filled: kind → seconds it took to fill it here.
        fetched: bytes of weights that came from the source.
        restored: kind → seconds it took to restore it.
        without: kinds that are not handed off.
        retries: reason → times the source was asked again.
        throttled: seconds in which the source was asked nothing, because it said so.
        waited: seconds spent waiting for locks.
        takeovers: times that the owner before had not given a lock back.
        pulled: kind → bytes that came from the remote bucket.
    """

    source: str = ""
    filled: Mapping[Kind, float] = field(default_factory=dict)
    fetched: int = 0
    restored: Mapping[Kind, float] = field(default_factory=dict)
    without: tuple[Kind, ...] = ()
    retries: Mapping[str, int] = field(default_factory=dict)
    throttled: float = 0.0
    waited: float = 0.0
    takeovers: int = 0
    pulled: Mapping[Kind, int] = field(default_factory=dict)


def encode(done: Tally) -> str:
    """Render what was done."""
    record = {
        "schema_version": SCHEMA_VERSION,
        "source": done.source,
        "filled_seconds": dict(done.filled),
        "fetched_bytes": done.fetched,
        "restored_seconds": dict(done.restored),
        "without": list(done.without),
        "retries": dict(done.retries),
        "throttled_seconds": done.throttled,
        "lock_wait_seconds": done.waited,
        "lock_takeovers": done.takeovers,
        "pulled_bytes": dict(done.pulled),
    }
    return json.dumps(record, indent=1) + "\n"


def parse(data: bytes) -> Tally:
    """Read what was done.

    Raises:
        ValueError: it is malformed, or of a format this warmer does not know.
    """
    try:
        record = json.loads(data)
        if record["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema_version {record['schema_version']!r}")
        return Tally(
            source=str(record["source"]),
            filled=_seconds(record["filled_seconds"]),
            fetched=int(record["fetched_bytes"]),
            restored=_seconds(record["restored_seconds"]),
            without=tuple(kind for kind in KINDS if kind in record["without"]),
            retries={str(why): int(times) for why, times in record["retries"].items()},
            throttled=float(record["throttled_seconds"]),
            waited=float(record["lock_wait_seconds"]),
            takeovers=int(record["lock_takeovers"]),
            pulled={kind: int(size) for kind, size in _of_kinds(record["pulled_bytes"])},
        )
    except (TypeError, KeyError, AttributeError, OverflowError, RecursionError) as exc:
        raise ValueError(f"no record of a prefill ({type(exc).__name__}: {exc})") from exc


def _seconds(record: Any) -> dict[Kind, float]:
    return {kind: float(seconds) for kind, seconds in _of_kinds(record)}


def _of_kinds(record: Any) -> list[tuple[Kind, Any]]:
    return [(kind, record[kind]) for kind in KINDS if kind in record]
