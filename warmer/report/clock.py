"""The clocks of a log: the supervisor's, which counts from process start, or vLLM's own stamps."""

from __future__ import annotations

from typing import Final, Literal

Clock = Literal["process", "stamps", "spans", "none"]
_DAY: Final = 86_400


class Timer:
    """Seconds on one axis, from whichever clock the log's first timed line carries."""

    def __init__(self) -> None:
        self.kind: Clock = "none"
        self.now = 0.0
        self._of_day: float | None = None

    def process(self, seconds: float) -> None:
        """The supervisor says it is `seconds` after process start."""
        if self.kind == "none":
            self.kind = "process"
        if self.kind == "process":
            self.now = seconds

    def stamp(self, clock: str, ms: str) -> None:
        """A logger says it is `clock` o'clock; a jump back by over half a day is midnight."""
        if self.kind == "process":
            return
        self.kind = "stamps"
        hours, minutes, seconds = map(int, clock.split(":"))
        of_day = hours * 3600 + minutes * 60 + seconds + int(ms) / 1000
        if self._of_day is not None:
            step = of_day - self._of_day
            self.now += (step + _DAY / 2) % _DAY - _DAY / 2
        self._of_day = of_day

    def restart(self) -> None:
        """A start begins here; a supervisor's clock counts from its own process start."""
        if self.kind == "stamps":
            self.now = 0.0
