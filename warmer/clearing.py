"""What no server may run, and no sidecar may publish, is taken out of the warm dir."""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import TYPE_CHECKING

import structlog

from warmer import regular
from warmer.errors import VolumeError, using
from warmer.fill import restore
from warmer.handoff import write
from warmer.model import KERNEL_KINDS

if TYPE_CHECKING:
    from collections.abc import Container

    from warmer.layout import WarmDir
    from warmer.model import Kind
    from warmer.situation import Situation

_log = structlog.get_logger(__name__)
_PLACE = "the warm dir"


def anew(warm: WarmDir) -> None:
    """Make the trees anew where a server has run in them that is gone: it may have torn what it wrote.

    Only the first server in a warm dir is harvested. This makes the next one the first; where it
    fails, that one is not harvested, and starts all the same.
    """
    try:
        descriptor = regular.opened(warm.server)
    except (OSError, regular.OddFileError):
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        for kind in KERNEL_KINDS:
            restore.forget(warm, kind)
        for path in (warm.server, warm.served):  # the latter last: it is what counts
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
    except BlockingIOError:  # it runs
        return
    except (OSError, VolumeError) as exc:
        _log.warning("the next server here will not be harvested", failure=str(exc))
    finally:
        os.close(descriptor)


def drop_foreign(s: Situation) -> None:
    """Where kernels must be signed, empty at once the trees of which the look knows no such thing.

    They may be from before keys were asked for, and whatever fails from here on, no server may run
    them. The trees go first: without them, what the old handoff starts is cold.
    """
    if not s.settings.trust.keys:
        return
    held = s.held.held
    trees = [kind for kind in KERNEL_KINDS if kind not in held or not held[kind].restored]
    dropped = [kind for kind in trees if restore.forget(s.warm, kind)]
    if dropped:
        _log.warning("kernels that are not known to be trusted are removed", kinds=dropped)
        write.withdraw(s.warm)


def clear(s: Situation, without: Container[Kind]) -> None:
    """Empty the trees of kinds that are not handed off: the server's variables point there.

    Raises:
        VolumeError: the warm dir failed.
    """
    for kind in KERNEL_KINDS:
        held = s.held.held.get(kind)
        if kind in without or held is None or not held.restored:
            restore.forget(s.warm, kind)
            if s.settings.compile == "harvest" and kind in s.wanted.keys:
                with using(_PLACE):
                    os.makedirs(s.warm.tree(kind))
