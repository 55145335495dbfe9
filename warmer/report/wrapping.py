"""What others put around a line of a log: kubectl, a container runtime, a shipper, a JSON formatter. Pure.

A runtime's record holds the line as it was printed. A record of a JSON formatter
(``VLLM_LOGGING_CONFIG_PATH``) holds a message and its attributes under names that each formatter
chooses: the usual ones are known, and it is written as vLLM would have.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

_BEFORE: Final = re.compile(
    r"(?:\[pod/(?P<pod>[^\]\s]{1,300})\] |(?P<service>[\w.-]{1,100}) +\| )?"
    r"(?:\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:Z|[+-]\d\d:\d\d) )?"
    r"(?:std(?:out|err) [FP] )?"
)
"""``kubectl logs --prefix --timestamps``, ``docker compose logs``, and a node's file of the CRI."""
_TIME: Final = re.compile(r"\d{4}-(\d\d-\d\d)[T ](\d\d:\d\d:\d\d)")
_MESSAGES: Final = ("message", "msg", "event")
_TIMES: Final = ("asctime", "timestamp", "time", "ts", "@timestamp")
_PIDS: Final = ("process", "pid", "process_id")
_NAMES: Final = ("processName", "process_name")
_DEEP: Final = 2
"""A runtime's record may hold a formatter's."""


class Bare(NamedTuple):
    """A line without its wrapping.

    Attributes:
        text: as the process printed it, or as vLLM would have.
        pod: whose it is, where that was written before it; else empty.
    """

    text: str
    pod: str


def bare(line: str) -> Bare:
    """Take off what stands around a line; one without wrapping is itself."""
    before = _BEFORE.match(line)
    text = line[before.end() :] if before else line
    for _ in range(_DEEP):
        held = _held(text)
        if held is None:
            break
        text = held
    return Bare(text, before["pod"] or before["service"] or "" if before else "")


def _held(text: str) -> str | None:
    if not text.startswith("{"):
        return None
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict):
        return None
    log = record.get("log")
    return log if isinstance(log, str) else _formatted(record)


def _formatted(record: Mapping[str, Any]) -> str | None:
    """Write a formatter's record as vLLM does: without a message or a time it is none."""
    message, stamp = _first(record, _MESSAGES), _TIME.match(_first(record, _TIMES))
    if not message or stamp is None:
        return None
    pid = _first(record, _PIDS)
    process = ""
    if pid.isascii() and pid.isdecimal():
        name = _first(record, _NAMES).replace("(", "").replace(")", "")
        process = f"({name[:100] or 'process'} pid={pid[:20]}) "
    return f"{process}INFO {stamp[1]} {stamp[2]} [json] {message}"


def _first(record: Mapping[str, Any], names: tuple[str, ...]) -> str:
    return next((str(record[name]) for name in names if record.get(name) is not None), "")
