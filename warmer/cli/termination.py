"""One line for `kubectl describe pod`: what a prefill did, in the container's termination log.

The kubelet puts the file into the container before it starts, reads it when the container has ended,
and shows it as the state's message. A file that is not there is not made, and nothing that goes wrong
here changes what the prefill ends with.
"""

from __future__ import annotations

import json
import os
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from warmer.cli import logs
from warmer.errors import EXIT_BUG, EXIT_NOT_WARM, EXIT_OK, TerminatedError, WarmerError
from warmer.model import KERNEL_KINDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from warmer.outcome import Outcome

DEFAULT: Final = "/dev/termination-log"
"""Where the kubelet puts it, unless `terminationMessagePath` says otherwise."""

_MOST: Final = 4096
"""Bytes that Kubernetes keeps of one container's message
(https://kubernetes.io/docs/tasks/debug/debug-application/determine-reason-pod-failure/)."""

_CUTS: Final = (1000, 400, 150, 50, 10)
"""Characters left of each text, tried in turn until all of it fits."""


class Note:
    """What will be written when the verb ends."""

    def __init__(self) -> None:
        self.record: dict[str, Any] = {}

    def done(self, outcome: Outcome) -> int:
        """Note what was done; return the exit status that says whether it is all there."""
        left = outcome.left is not None and not outcome.left.empty
        code = EXIT_NOT_WARM if left else EXIT_OK
        kernels = {kind: n for kind, n in outcome.bytes.items() if kind in KERNEL_KINDS}
        fetched = {kind: n for kind, n in outcome.bytes.items() if kind not in kernels}
        self.record = {
            "code": code,
            "warm": not left and not outcome.without,
            "fetched_bytes": fetched,
            "taken_over_bytes": outcome.taken_over,
            "pulled_bytes": outcome.pulled,
            "built": outcome.built,
            "restored_bytes": kernels,
            "waited_seconds": outcome.seconds.get("waiting", 0.0),
            "seconds": outcome.seconds,
            "without": dict(outcome.without),
        }
        return code

    def failed(self, code: int, reason: str, message: str, hint: str = "") -> None:
        """Note why nothing was handed off."""
        error = {"reason": reason, "message": message, "hint": hint}
        self.record = {"code": code, "warm": False, "error": error}


@contextmanager
def told(path: str) -> Iterator[Note]:
    """Write the note when the block ends, however it ends.

    Args:
        path: the termination log.
    """
    note = Note()
    try:
        yield note
    except WarmerError as exc:
        note.failed(exc.exit_code, exc.reason, exc.message, exc.hint)
        raise
    except TerminatedError as exc:
        note.failed(128 + exc.signum, "terminated", f"stopped by signal {exc.signum}")
        raise
    except BrokenPipeError:  # nobody reads what was printed; what was noted stands
        raise
    except Exception as exc:
        note.failed(EXIT_BUG, "bug", f"{type(exc).__name__}: the log has a traceback")
        raise
    finally:
        if note.record:
            _write(path, note.record)


def line(record: dict[str, Any]) -> bytes:
    """Render a record as one line that Kubernetes keeps whole."""
    text = b""
    for most in _CUTS:
        text = json.dumps(_cut(record, most), separators=(",", ":")).encode() + b"\n"
        if len(text) <= _MOST:
            break
    return text


def _cut(value: Any, most: int) -> Any:
    if isinstance(value, dict):
        return {key: _cut(inner, most) for key, inner in value.items()}
    if isinstance(value, str):
        text = logs.redact(value)  # before it is cut: half a secret is not found
        return text if len(text) <= most else text[: most - 1] + "…"
    return value


def _write(path: str, record: dict[str, Any]) -> None:
    """Replace what the file says, if it is there and a file: a pipe would wait for a reader."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if stat.S_ISREG(os.fstat(fd).st_mode):
                os.ftruncate(fd, 0)
                os.write(fd, line(record))
        finally:
            os.close(fd)
    except FileNotFoundError:
        pass
    except OSError as exc:
        import structlog  # noqa: PLC0415 - not paid by help

        log = structlog.get_logger(__name__)
        log.warning("the termination log cannot be written", path=path, why=exc.strerror)
