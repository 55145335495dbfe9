"""Wanted and held → what to do, in order, each step with its reason. Pure.

An empty plan is the definition of warm: `prefill` ends by observing and planning again, and is
done when nothing is left.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Final

from warmer.model import KERNEL_KINDS, Held, Inventory, Key, Kind, OnMiss, Plan, Step, Wanted
from warmer.secrecy import printable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from warmer.model import Action

ASSUMED_RATE: Final = 200e6
"""Bytes per second taken for a download where the volume has no record of one."""
_DERIVED: Final = ("argv.", "env.")
_SHOWN: Final = 80
"""Characters of a factor's name in a reason: a neighbour's may have any number."""
UNPREDICTED: Final = 600.0
"""Seconds to wait for a step of which nothing is known; chosen, not measured."""


def plan(
    wanted: Wanted,
    held: Inventory,
    *,
    sizes: Mapping[Kind, int] | None = None,
    forbidden: str = "",
    remote: str = "",
    left_out: Mapping[str, str] | None = None,
    saved: int = 0,
) -> Plan:
    """Decide what to do.

    Args:
        wanted: the pieces this pod needs.
        held: what is there.
        sizes: bytes still to move for kinds that are not sealed, where the source told.
        forbidden: why kernels may not be built here; empty where they may.
        remote: the bucket that is asked for kernels before they are built; empty for none.
        left_out: files of the source that are not wanted, with the reason.
        saved: bytes of those files.
    """
    steps: list[Step] = []
    without = dict(wanted.without)
    for kind, key in wanted.keys.items():
        have = held.held[kind]
        if have.verdict == "sealed":
            if kind in KERNEL_KINDS and not have.restored:
                steps.append(_restore(key, have))
        elif kind in KERNEL_KINDS and forbidden and not remote:
            without[kind] = f"{have.verdict}: {have.reason}; {forbidden}"
        else:
            step = _fill(key, have, held, (sizes or {}).get(kind))
            if kind == "weights":
                step = dataclasses.replace(step, left_out=left_out or {}, saved=saved)
            elif remote:
                step = _pull(step, remote, forbidden)
            steps.append(step)
    return Plan(tuple(steps), without, dict(wanted.unneeded))


def patience(
    step: Step, policy: OnMiss, *, chosen: float | None, lease: float, longest: float
) -> float:
    """Seconds to wait for another owner to do a step.

    No longer than doing it oneself is predicted to take, where the pod can start without: that
    is what a cold start would cost. A pod that cannot start without gains nothing by giving up
    early, and a dead owner must have time to be found dead.

    Args:
        step: what the other owner does.
        policy: what it means for the pod not to have it.
        chosen: ``--wait``, which settles it.
        lease: seconds after which a dead owner is succeeded.
        longest: seconds that a build may take here (``--engine-timeout``). What seals say of
            earlier ones is believed up to that, where the pod can start without.
    """
    if chosen is not None:
        return chosen
    if step.seconds is None:
        return UNPREDICTED
    if policy == "fail":
        return max(UNPREDICTED, 2 * step.seconds)
    return max(min(step.seconds, longest), 2 * lease)


def _restore(key: Key, have: Held) -> Step:
    where = f"the warm dir lacks {have.lacking}" if have.lacking else "not unpacked in the warm dir"
    reason = f"generation {have.generation} is sealed, but {where}"
    return Step(key.kind, "restore", key, have.verdict, reason, size=have.size)


def _pull(step: Step, remote: str, forbidden: str) -> Step:
    """Ask the bucket first; what a build was predicted to take is the most that costs."""
    reason = f"{step.reason}; {remote} is asked" + (f", and {forbidden}" if forbidden else "")
    action: Action = "pull" if forbidden else "pull or build"
    return dataclasses.replace(step, action=action, reason=reason)


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
    # Flags and variables come last: many of them may follow from the versions and the machine.
    names = sorted(
        (d.factor for d in nearest.differences), key=lambda name: name.startswith(_DERIVED)
    )
    shown = ", ".join(printable(name, _SHOWN) for name in names[:4]) + (
        f" and {len(names) - 4} more" if len(names) > 4 else ""
    )
    return f"{have.reason}; the nearest differs in {shown}"
