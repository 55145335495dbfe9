"""Kernels that crash the engine: told on the volume, acquitted, and moved aside.

What a server's start tells, `warmer.handoff.ready` writes; here is what warmer's own runs of the
engine tell. Who tells is not believed blindly: the worst that comes of it is one build.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from typing import TYPE_CHECKING

import structlog

from warmer.errors import using
from warmer.fill import publish
from warmer.observe import inventory, numbers

if TYPE_CHECKING:
    from collections.abc import Iterable

    from warmer.layout import Volume
    from warmer.model import Key
    from warmer.trust import Trust

_log = structlog.get_logger(__name__)


def tell(volume: Volume, pieces: Iterable[tuple[Key, int]]) -> None:
    """Tell that a run of the engine on these generations ended before it was ready."""
    run = secrets.token_hex(8)
    with contextlib.suppress(OSError):
        os.makedirs(volume.crashes, exist_ok=True)
        for key, number in pieces:
            path = os.path.join(volume.crashes, f"{_name(key, number)}.{run}")
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))


def acquit(volume: Volume, pieces: Iterable[tuple[Key, int]]) -> None:
    """Forget what was told of generations that the engine got ready on."""
    names = {_name(key, number) for key, number in pieces}
    with contextlib.suppress(OSError):
        for name in numbers.listing(volume, volume.crashes):
            if name.rpartition(".")[0] in names:
                os.unlink(os.path.join(volume.crashes, name))


def retire(volume: Volume, key: Key, last: int, *, trust: Trust) -> None:
    """Move a generation aside that crashed the engine, and those it grew from, under its key's grant.

    It goes last: killed before, the next look still finds it.

    Raises:
        VolumeError: the volume failed.
    """
    with using("the volume"):
        there = [
            n for n in reversed(numbers.generations(volume, key.kind, key.digest)) if n <= last
        ]
        usable = [
            number
            for number in there
            if inventory.judge_generation(volume, key, number, trust=trust)[0].verdict == "sealed"
        ]
    for number in usable:
        place = publish.quarantine(volume, key, number)
        _log.warning(
            "retired",
            kind=key.kind,
            key=key.short,
            generation=number,
            why=f"generation {last} crashed the engine at load",
            place=place,
        )


def _name(key: Key, number: int) -> str:
    return f"{key.kind}-{key.digest}-{number}"
