"""What a prefill did: seconds, bytes, and what is left out and why."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from warmer.model import KINDS
from warmer.tally import Tally

if TYPE_CHECKING:
    from collections.abc import Container, Iterator

    from warmer.loaders import Trial
    from warmer.model import Kind, Plan
    from warmer.proof import Proof


@dataclass(slots=True)
class Outcome:
    """What a prefill did.

    Attributes:
        seconds: stage → seconds it took, where it ran; ``waiting`` for owners is within others.
        bytes: kind → bytes filled.
        restored: kind → seconds it took to unpack.
        waited: seconds spent waiting for locks.
        takeovers: times that the owner before had not given a lock back.
        taken_over: bytes of weights that were on the machine already.
        retries: reason → times the source was asked again.
        throttled_s: seconds in which it was asked nothing, because it said so.
        pulled: kind → bytes that came from the remote bucket.
        pushed: kind → bytes that were put there.
        built: whether kernels were built here.
        without: kinds the server starts without, with the reason.
        proof: what the engine's second run showed, where that was asked for.
        trial: what was measured of vLLM's loaders, where that was asked for.
        left: the second plan; empty unless something is wrong.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    bytes: dict[Kind, int] = field(default_factory=dict)
    restored: dict[Kind, float] = field(default_factory=dict)
    waited: float = 0.0
    takeovers: int = 0
    taken_over: int = 0
    retries: dict[str, int] = field(default_factory=dict)
    throttled_s: float = 0.0
    pulled: dict[Kind, int] = field(default_factory=dict)
    pushed: dict[Kind, int] = field(default_factory=dict)
    built: bool = False
    without: dict[Kind, str] = field(default_factory=dict)
    proof: Proof | None = None
    trial: Trial | None = None
    left: Plan | None = None

    @property
    def built_s(self) -> float:
        """Seconds that building took."""
        return self.seconds.get("kernels", 0.0) + self.seconds.get("bytecode", 0.0)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the block's duration to a stage."""
        started = time.monotonic()
        try:
            yield
        finally:
            spent = time.monotonic() - started
            self.seconds[stage] = round(self.seconds.get(stage, 0.0) + spent, 3)

    def tally(self, source: str, keyed: Container[Kind]) -> Tally:
        """Sum up for the sidecar.

        Args:
            source: the scheme that weights come from.
            keyed: kinds that have a key here: one run of the engine fills all kernels of them.
        """
        filled = {kind: self.seconds[kind] for kind in KINDS if kind in self.seconds}
        if "kernels" in self.seconds:
            run = [k for k in KINDS if k in keyed and k not in ("weights", "bytecode")]
            filled |= {kind: self.seconds["kernels"] for kind in run if kind not in self.without}
        return Tally(
            source=source,
            filled=filled,
            fetched=self.bytes.get("weights", 0),
            restored=self.restored,
            without=tuple(sorted(self.without)),
            retries=self.retries,
            throttled=self.throttled_s,
            waited=round(self.waited, 3),
            takeovers=self.takeovers,
            pulled=self.pulled,
        )
