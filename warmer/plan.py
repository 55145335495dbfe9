"""Wanted and held → what to do, in order, each step with its reason. Pure.

An empty plan is the definition of warm: `prefill` ends by observing and planning again, and is
done when nothing is left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from warmer.model import KERNEL_KINDS, Held, Inventory, Key, Kind, Plan, Step, Wanted

if TYPE_CHECKING:
    from collections.abc import Mapping

ASSUMED_RATE: Final = 200e6
"""Bytes per second taken for a download where the volume has no record of one."""


def plan(
    wanted: Wanted,
    held: Inventory,
    *,
    sizes: Mapping[Kind, int] | None = None,
    build: bool = True,
) -> Plan:
    """Decide what to do.

    Args:
        wanted: the pieces this pod needs.
        held: what is there.
        sizes: bytes still to move for kinds that are not sealed, where the source told.
        build: whether kernels may be built here (``--compile=run``).
    """
    steps: list[Step] = []
    without = dict(wanted.without)
    for kind, key in wanted.keys.items():
        have = held.held[kind]
        if have.verdict == "sealed":
            if kind in KERNEL_KINDS and not have.restored:
                steps.append(_restore(key, have))
        elif kind in KERNEL_KINDS and not build:
            without[kind] = f"{have.verdict}: {have.reason}; --compile=never builds none"
        else:
            steps.append(_fill(key, have, held, (sizes or {}).get(kind)))
    return Plan(tuple(steps), without)


def _restore(key: Key, have: Held) -> Step:
    reason = f"generation {have.generation} is sealed, but not unpacked in the warm dir"
    return Step(key.kind, "restore", key, have.verdict, reason, size=have.size)


def _fill(key: Key, have: Held, held: Inventory, size: int | None) -> Step:
    kind = key.kind
    rate = held.rates.get(kind)
    seconds: float | None = None
    basis = ""
    if kind == "weights":
        if size is not None:
            seconds = size / (rate or ASSUMED_RATE)
            basis = "earlier fills of this volume" if rate else "200 MB/s assumed"
    elif rate is not None:
        seconds, basis = rate, "earlier builds on this volume"
    return Step(
        kind,
        "download" if kind == "weights" else "build",
        key,
        have.verdict,
        _why(have, held, kind),
        size=size,
        seconds=seconds,
        basis=basis,
        nearest=held.nearest.get(kind),
    )


def _why(have: Held, held: Inventory, kind: Kind) -> str:
    nearest = held.nearest.get(kind)
    if have.verdict != "absent" or nearest is None or not nearest.differences:
        return have.reason
    names = [d.factor for d in nearest.differences]
    shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    return f"{have.reason}; the nearest differs in {shown}"
