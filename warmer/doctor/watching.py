"""Looks at what another process renames, over and over; counts what should never be seen."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final

from warmer.doctor import place

if TYPE_CHECKING:
    from collections.abc import Callable

_ASK: Final = 0.05
"""Seconds between two questions whether to stop: looking is what the time is for."""


def directories(
    parent: str, count: int, *, started: Callable[[], None], stopped: Callable[[], bool]
) -> dict[str, int]:
    """Look for the directories 0, 1, 2, ... until each is there.

    Args:
        parent: where they appear.
        count: names each of them must have when it does.
        started: called at the first look.
        stopped: asked now and then; what is there already is looked at before this returns.

    Returns:
        How many were seen, and how many of them with some of their names missing.
    """
    seen = {"directories": 0, "partial": 0}
    started()
    ask_at, last = 0.0, False
    while True:
        if not last and time.monotonic() >= ask_at:
            last = stopped()
            ask_at = time.monotonic() + _ASK
        try:
            place.reopen(parent)
            names = place.listing(os.path.join(parent, str(seen["directories"])))
        except OSError:  # not there yet; or NFS lost it and opens it anew at the next look
            if last:
                return seen
            continue
        seen["partial"] += len(names) != count
        seen["directories"] += 1


def file(
    path: str, size: int, *, started: Callable[[], None], stopped: Callable[[], bool]
) -> dict[str, int]:
    """Read a file that is replaced by others of one size, each of one byte repeated.

    Args:
        path: the file.
        size: bytes each has.
        started: called when it was read once.
        stopped: asked now and then.

    Returns:
        How many looks there were, how many found no file, and how many something else than one
        whole file.
    """
    seen = {"looks": 0, "absent": 0, "torn": 0}
    ask_at = 0.0
    while True:
        if time.monotonic() >= ask_at:
            if stopped():
                return seen
            ask_at = time.monotonic() + _ASK
        try:
            with open(path, "rb") as f:
                data = f.read()
        except FileNotFoundError:
            seen["absent"] += 1
        except OSError:  # ESTALE of an NFS: the next look opens it anew
            continue
        else:
            seen["torn"] += len(data) != size or data.count(data[:1]) != size
        seen["looks"] += 1
        if seen["looks"] == 1:
            started()
