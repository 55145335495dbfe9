"""The whole examination, in order: look, try alone, try the lock's service, try with another pod."""

from __future__ import annotations

import contextlib
import functools
import os
from typing import TYPE_CHECKING

from warmer.doctor import judging, locking, place, single, together, turns, writers
from warmer.doctor.findings import Finding, of_error
from warmer.doctor.pair import Pair, meet
from warmer.errors import BusyError, VolumeError, using
from warmer.observe import inventory
from warmer.observe import mount as mounts

if TYPE_CHECKING:
    from collections.abc import Callable

    from warmer.layout import Volume
    from warmer.urls import LockUrl


def examine(
    volume: Volume,
    url: LockUrl,
    *,
    join: float | None,
    show: Callable[[Finding], None],
    alive: Callable[[], None],
) -> None:
    """Find out what a volume and a lock can do; nothing is left on the volume.

    Args:
        volume: what to try.
        url: the lock that pods would use.
        join: seconds to wait for another pod's doctor; None tries alone.
        show: is given each finding as soon as it is there.
        alive: called now and then while there is none, whenever the volume has answered.

    Raises:
        VolumeError: there is no volume, or it does not even say how full it is.
    """
    inventory.require(volume)
    mount = mounts.find(volume.root)
    for finding in single.look(volume, mount, url):
        show(finding)
    show(writers.others(volume))
    with contextlib.ExitStack() as stack:
        mine: str | None = None
        try:
            before = place.others(volume)
            made = stack.enter_context(place.private(volume))
            alone = os.path.join(made, "alone")
            with using(place.VOLUME):
                os.mkdir(alone)
            mine = made
        except VolumeError as exc:
            for finding in single.unwritable(exc):
                show(finding)
        else:
            show(single.writable())
            for trial in single.trials(mount, url):
                show(trial(alone))
        if url.mechanism != "file":
            show(locking.service(url, volume))
        if mine is None:
            return
        known = {os.path.basename(mine)}
        if join is not None:
            me = together.card(mount, url)
            meeting = functools.partial(meet, volume, mine, me=me, timeout=join, alive=alive)
            known.add(_together(meeting, volume, url, show=show))
        left = single.leftovers(volume, before - known, newer=mine)
        if left is not None:
            show(left)


def _together(
    meeting: Callable[[], Pair],
    volume: Volume,
    url: LockUrl,
    *,
    show: Callable[[Finding], None],
) -> str:
    """Meet another doctor, and find out the rest with it; return the name of its directory."""
    pair: Pair | None = None
    failure: Finding | None = None
    try:
        pair = meeting()
        with using(place.VOLUME):
            _steps(pair, volume, url)
    except BusyError as exc:
        failure = of_error("joining", exc, part="partner")
    except VolumeError as exc:
        failure = of_error("joining", exc)
    if pair is not None:
        for finding in judging.judge(pair.facts, role=pair.role, url=url):
            show(finding)
    if failure is not None:
        show(failure)
    return os.path.basename(pair.theirs) if pair is not None else ""


def _steps(pair: Pair, volume: Volume, url: LockUrl) -> None:
    a, b = pair.facts["a"], pair.facts["b"]
    if a["protocol"] != b["protocol"]:
        raise BusyError(
            f"got doctors of two kinds, warmer {a['warmer']} and {b['warmer']}, expected one",
            reason="partner-version",
            hint="run one version of warmer in both pods",
        )
    turns.file_locks(pair)
    if not judging.one_client(pair.facts):  # such nodes starve each other
        together.names(pair)
        together.renamed(pair)
        together.replaced(pair)
        together.publishing(pair)
        if url.mechanism != "file" and a["lock"] == b["lock"]:
            turns.service(pair, url, volume)
    with contextlib.suppress(BusyError):  # all that there was to learn is learnt
        pair.part()
