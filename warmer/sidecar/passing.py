"""Pass on to the remote bucket what was harvested; its failures are warnings."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import structlog

from warmer.errors import WarmerError
from warmer.fill.sources.retry import Trying

if TYPE_CHECKING:
    from collections.abc import Callable

    from warmer.model import Kind
    from warmer.sidecar.harvest import Harvest
    from warmer.urls import RemoteUrl

_log = structlog.get_logger(__name__)
LONGEST: Final = 600.0
"""Seconds that pushing may take: nobody waits for it."""
_ORDER: Final[tuple[Kind, ...]] = ("flashinfer", "jit", "compile")
"""What others need first."""


def push(url: RemoteUrl, harvest: Harvest, *, retry: float, alive: Callable[[], None]) -> bool:
    """Have in the bucket what is sealed under a harvest's keys.

    Args:
        url: the bucket.
        harvest: whose volume, keys and trust.
        retry: seconds within which a bucket that fails is tried again.
        alive: called between two steps.

    Returns:
        Whether all of it is there; where not, the log says why.
    """
    try:
        from warmer.fill.remote.bucket import Bucket  # noqa: PLC0415 - boto3
        from warmer.fill.remote.push import Pusher  # noqa: PLC0415 - as above

        bucket = Bucket(url, Trying(budget=retry, once=True))
        bucket.until = time.monotonic() + LONGEST
        pusher = Pusher(bucket, harvest.volume, harvest.trust)
        held = harvest.held()
        for kind in _ORDER:
            if kind in held and held[kind].verdict == "sealed":
                alive()
                pusher.push(harvest.job.keys[kind], held[kind].generation)
    except WarmerError as exc:
        _log.warning("not pushed, trying again later", failure=exc.message, hint=exc.hint)
        return False
    if pusher.pushed:
        _log.info("passed on", bucket=str(url), bytes=sum(pusher.pushed.values()))
    return True
