"""A question that is answered in time, or counts as unanswered.

Clients time out on silence alone: an answer that comes byte by byte, its headers too, holds them
for ever. So the question is asked in a thread of its own, which nobody waits for past the end.
What it asked for may still be done: that is for the asker to find out.

Such threads last for as long as their answers trickle, and an owner asks for hours. So where many are
left, a question waits until one of them ends, and counts as unanswered where none does.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")
MOST: Final = 32
"""Questions of this process that may be under way: of one that is left, the answer may take an hour."""
_under_way: Final = threading.BoundedSemaphore(MOST)


class OverdueError(Exception):
    """There was no whole answer in time.

    No `OSError`, of which every client makes something of its own.
    """


def within(seconds: float, call: Callable[..., _T], *arguments: object, **more: object) -> _T:
    """Call, and wait for what it returns or raises.

    Args:
        seconds: for the whole of it; thereafter it is left to itself.
        call: asks one small question; not for bytes that need long.
        arguments: for it.
        more: for it, by name.

    Raises:
        OverdueError: it took longer, or too many before it still do.
    """
    until, turns = time.monotonic() + seconds, _under_way
    if not turns.acquire(timeout=seconds):
        raise OverdueError(f"{MOST} questions before it are without a whole answer")
    returned: list[_T] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            returned.append(call(*arguments, **more))
        except BaseException as exc:  # noqa: BLE001 - it is raised where it is waited for
            raised.append(exc)
        finally:
            turns.release()

    thread = threading.Thread(target=run, name="question", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # no more threads to be had
        turns.release()
        raise
    thread.join(max(0.0, until - time.monotonic()))
    if raised:
        raise raised[0]
    if not returned:
        raise OverdueError(f"no whole answer in {seconds:.0f} s")
    return returned[0]
