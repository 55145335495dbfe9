"""A start as somebody saved it: its log, or its spans, and the handoff it was given."""

from __future__ import annotations

import itertools
import json
import os
from typing import TYPE_CHECKING, Any

from warmer import regular, settings, textfile
from warmer.errors import UsageError
from warmer.layout import WarmDir
from warmer.report import handed, log, spans

if TYPE_CHECKING:
    from collections.abc import Iterable

    from warmer.report.log import StartLog

_MOST = 512 << 20
"""Characters of a log that are looked at; days of serving behind a start are never read."""
_SPANS = 64 << 20
"""Characters of recorded spans at most; a start has some hundred thousand."""
_RECORDED = '{"resourceSpans"'
"""Begins a file of spans, and no log."""
_HINT = (
    "give the file that holds the output of `vllm serve`, from process start to ready, or spans "
    "that --record wrote"
)


def read(path: str) -> StartLog:
    """Read the log, or the recorded spans, at `path`.

    Raises:
        UsageError: it cannot be read, or says nothing of a vLLM start.
    """
    try:
        lines = textfile.lines(path, _MOST)
        head = next(lines, "")  # it may be a pipe, which cannot be read twice
        if head.lstrip().startswith(_RECORDED):
            start = _recorded(path, _joined(path, head, lines))
        else:
            start = log.parse(itertools.chain([head], lines))
    except OSError as exc:
        raise UsageError(
            f"got {path}: {exc.strerror}, expected the log of a vLLM start",
            reason="log-unreadable",
            hint=_HINT,
        ) from exc
    if not start.recognised:
        raise UsageError(
            f"got {path}: {'empty' if not head else 'no line of a vLLM start'}, "
            "expected the log of a vLLM start",
            reason="log-empty" if not head else "log-foreign",
            hint=_HINT,
        )
    return start


def _joined(path: str, head: str, lines: Iterable[str]) -> str:
    """Put together what is read as a whole.

    Raises:
        UsageError: it is longer than any recording of a start.
    """
    parts, size = [head], len(head)
    for line in lines:
        size += len(line)
        if size > _SPANS:
            raise UsageError(
                f"got {path} of more than {_SPANS} characters, expected the recorded spans of a start",
                reason="too-large",
                hint="a Collector records requests too: stop it when the server is ready",
            )
        parts.append(line)
    return "".join(parts)


def _recorded(path: str, text: str) -> StartLog:
    """Read spans that --record, or a Collector, wrote.

    Raises:
        UsageError: they are broken.
    """
    from warmer.report import otlp as wire  # noqa: PLC0415 - 0.1 s of protobuf, not paid by logs

    try:
        return spans.read(wire.recorded(text))
    except wire.BodyError as exc:
        raise UsageError(
            f"got {path}: {exc}, expected recorded spans", reason="spans-broken", hint=_HINT
        ) from exc


def explained(start: StartLog, warm_dir: str) -> StartLog:
    """Add what the handoff in `warm_dir` knows; without one, the log alone has to do.

    Raises:
        UsageError: there is something that is no handoff.
    """
    path = os.path.join(
        WarmDir(settings.parse_directory(warm_dir, "--warm-dir", shared=True)).handoff,
        "handoff.json",
    )
    try:
        handoff: Any = json.loads(regular.read(path))
    except FileNotFoundError:
        return start
    except (OSError, ValueError, RecursionError) as exc:  # broken JSON, an odd file: ValueErrors
        raise UsageError(
            f"got {path}: {exc}, expected what warmer prefill wrote",
            reason="handoff-unreadable",
            hint="leave --warm-dir out, or run `warmer prefill` again",
        ) from exc
    if not isinstance(handoff, dict):
        return start
    crashed = handoff.get("crashed")
    return handed.explained(
        start,
        handoff,
        crashed=isinstance(crashed, str) and bool(crashed) and os.path.exists(crashed),
    )
