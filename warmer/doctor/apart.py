"""The examination in a process of its own: a volume that hangs holds up that one alone.

What waits for a hanging mount heeds no signal but SIGKILL, and behind FUSE not even that. So the
doctor itself never touches the volume: it hears from the other process, one JSON object a line,
and ends when nothing came for too long. The other one tidies up when this one stops it, and also
when this one is killed, which ends its stdin.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
from typing import TYPE_CHECKING, Any, Final, NoReturn, Self

import structlog

from warmer import signals
from warmer.doctor.findings import Finding
from warmer.errors import TerminatedError, VolumeError
from warmer.fill.process import python
from warmer.layout import Volume
from warmer.urls import LockUrl

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping
    from types import TracebackType

SILENCE: Final = 180.0
"""Seconds without a word: a lock of NFS may take over a minute while its server restarts."""

_GRACE: Final = 10.0
"""Seconds the other process has to tidy up."""

_ALIVE: Final = 1.0
_TAIL: Final = 1 << 14

_HANGS: Final = (
    "it hangs: look at its server or its FUSE process, and at the node's kernel log; what this "
    "doctor leaves there is harmless, and a later one removes it"
)

_log = structlog.get_logger(__name__)


def examine(
    volume: Volume, url: LockUrl, *, join: float | None, show: Callable[[Finding], None]
) -> None:
    """Do as `warmer.doctor.examine.examine`, and end even where the volume hangs.

    Raises:
        VolumeError: there is no volume.
        TerminatedError: somebody ended the other process.
    """
    with _Other(json.dumps([volume.root, dataclasses.asdict(url), join])) as other:
        while (word := other.hear(SILENCE)) is not None:
            if "over" in word:
                return
            if "finding" in word:
                show(Finding(**word["finding"]))
            elif "error" in word:
                error = word["error"]
                raise VolumeError(error["message"], reason=error["reason"], hint=error["hint"])
            elif "log" in word:
                level = word["log"].pop("level")
                getattr(_log, level)(**word["log"])
        if not other.ended:
            found = f"none from the volume for {SILENCE:.0f} s"
            show(Finding("answers", "fail", found, _HANGS))
            return
        other.explain()


class _Other:
    """The other process for the block; told to stop at its end, and killed if it does not."""

    def __init__(self, words: str) -> None:
        self.ended = False
        self._said = b""
        self._complaints = os.memfd_create("complaints")
        # A request to stop waits until there is something that can be stopped.
        held = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
        try:
            self._process = subprocess.Popen(
                python("warmer.doctor.apart", words),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._complaints,
                start_new_session=True,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None  # noqa: S101 - it was asked for
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        for patience in (_GRACE, 1.0):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(patience)
                break
            self._process.kill()  # what hangs in the kernel is left behind
        os.close(self._complaints)

    def hear(self, patience: float) -> dict[str, Any] | None:
        """Return the next thing it says; None where it ended, or said nothing for `patience` s."""
        assert self._process.stdout is not None  # noqa: S101 - it was asked for
        deadline = time.monotonic() + patience
        while b"\n" not in self._said:
            left = max(0.0, deadline - time.monotonic())
            if not select.select([self._process.stdout], [], [], left)[0]:
                return None
            more = os.read(self._process.stdout.fileno(), 1 << 16)
            if not more:
                self.ended = True
                return None
            self._said += more
        line, _, self._said = self._said.partition(b"\n")
        word: dict[str, Any] = json.loads(line)
        return word

    def explain(self) -> NoReturn:
        """Say why it ended before its end.

        Raises:
            TerminatedError: by a signal.
            RuntimeError: it is a bug.
        """
        code = self._process.wait()
        if code < 0:
            raise TerminatedError(-code)
        size = os.fstat(self._complaints).st_size
        text = os.pread(self._complaints, _TAIL, max(0, size - _TAIL)).decode(errors="replace")
        raise RuntimeError(f"the examination ended with {code}:\n{text}")


def main(words: list[str]) -> None:
    """Be the other process."""
    root, url, join = json.loads(words[0])
    structlog.configure(processors=[structlog.processors.add_log_level, _pass_on])
    signals.heed(signal.SIGTERM)
    # It starts with our signals held, so that they reach the one that works.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    code = 1
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        _examine(Volume(root), LockUrl(**url), join)
        code = 0
    except TerminatedError as exc:
        code = -exc.signum
    except BaseException:  # noqa: BLE001 - all that nobody expected, for the parent to report
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        if code < 0:  # as if it had had no handler
            signal.signal(-code, signal.SIG_DFL)
            os.kill(os.getpid(), -code)
        os._exit(code)


def _examine(volume: Volume, url: LockUrl, join: float | None) -> None:
    from warmer.doctor.examine import examine as work  # noqa: PLC0415 - the parent does without

    said_at = 0.0

    def alive() -> None:
        nonlocal said_at
        if time.monotonic() - said_at > _ALIVE:
            _say(alive=True)
            said_at = time.monotonic()

    def show(finding: Finding) -> None:
        _say(finding=dataclasses.asdict(finding))

    try:
        work(volume, url, join=join, show=show, alive=alive)
    except VolumeError as exc:
        _say(error={"message": exc.message, "reason": exc.reason, "hint": exc.hint})
    else:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _say(over=True)


_mouth = threading.Lock()


def _say(**word: Any) -> None:
    data = json.dumps(word).encode() + b"\n"
    with _mouth:
        while data:
            data = data[os.write(1, data) :]


def _pass_on(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> NoReturn:
    """Have the parent log it, which knows how."""
    with contextlib.suppress(OSError):
        _say(log={name: _plain(value) for name, value in event.items()})
    raise structlog.DropEvent


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | None) else str(value)


def _end_with_parent() -> None:
    while os.read(0, 4096):
        pass
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
