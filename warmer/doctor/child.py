"""The doctor's other process: it looks while its parent writes, tries locks and holds them.

It says one JSON object a line. It stops when its stdin ends, and so when its parent does.
"""

from __future__ import annotations

import functools
import json
import os
import select
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, Final, Self

from warmer.doctor import place, watching
from warmer.errors import VolumeError, WarmerError
from warmer.fill.locks import file
from warmer.fill.locks.record import Owner
from warmer.fill.process import python

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

_PATIENCE: Final = 60.0
"""Seconds for an answer: a lock of NFS may take a minute while its server restarts."""

_GRACE: Final = 10.0


class Child:
    """A child process for the block; killed at its end.

    Args:
        act: what it does: ``read``, ``try`` or ``hold``.
        words: the act's arguments.
    """

    def __init__(self, act: str, *words: str) -> None:
        self._said = b""
        # A request to stop waits until there is something that can be stopped.
        held = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
        try:
            self._process = subprocess.Popen(
                python("warmer.doctor.child", act, *words),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.kill()

    def hear(self) -> dict[str, Any]:
        """Return the next thing it says.

        Raises:
            VolumeError: it met one, or the volume holds it up.
        """
        assert self._process.stdout is not None  # noqa: S101 - it was asked for
        deadline = time.monotonic() + _PATIENCE
        while b"\n" not in self._said:
            left = max(0.0, deadline - time.monotonic())
            if not select.select([self._process.stdout], [], [], left)[0]:
                raise VolumeError(
                    f"got no answer from a process on the volume in {_PATIENCE:.0f} s, expected one",
                    reason="io",
                    hint="the volume hangs: look at its server and the node's kernel log",
                )
            more = os.read(self._process.stdout.fileno(), 4096)
            if not more:
                raise RuntimeError("the doctor's child ended without a word")
            self._said += more
        line, _, self._said = self._said.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        if "message" in answer:
            raise VolumeError(answer["message"], reason=answer["reason"], hint=answer["hint"])
        return answer

    def stop(self) -> dict[str, Any]:
        """Tell it to stop; return its last word.

        Raises:
            VolumeError: as `hear`.
        """
        assert self._process.stdin is not None  # noqa: S101 - it was asked for
        self._process.stdin.close()
        return self.hear()

    def kill(self) -> None:
        """Kill it with -9, and wait until it is gone."""
        self._process.kill()
        try:
            self._process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            return  # it hangs in the kernel; so does the volume
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def main(words: list[str]) -> None:
    """Be the child."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    act, *rest = words
    try:
        _ACTS[act](*rest)
    except WarmerError as exc:
        _say({"message": exc.message, "reason": exc.reason, "hint": exc.hint})


def _read(path: str, size: str) -> None:
    """Read a file that is being replaced, until stdin ends."""
    say_so = functools.partial(_say, {"looking": True})
    _say(watching.file(path, int(size), started=say_so, stopped=_stopped))


def _try(path: str) -> None:
    """Try for a lock that another process holds."""
    found = file.acquire(path, me=Owner(name="the doctor's child"), place=place.VOLUME)
    _say({"got": not isinstance(found, Owner)})


def _hold(path: str) -> None:
    """Take a lock and keep it until killed."""
    found = file.acquire(path, me=Owner(name="the doctor's child"), place=place.VOLUME)
    _say({"got": not isinstance(found, Owner)})
    sys.stdin.read()


def _say(answer: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def _stopped() -> bool:
    return bool(select.select([sys.stdin], [], [], 0)[0])


_ACTS: Final[Mapping[str, Callable[..., None]]] = {
    "read": _read,
    "try": _try,
    "hold": _hold,
}
