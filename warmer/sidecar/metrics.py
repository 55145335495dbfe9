"""What the sidecar knows, in Prometheus' words. No pod and no model is a label."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from warmer import __version__, check, regular, tally
from warmer.collect import removal
from warmer.model import KINDS
from warmer.sidecar import handed

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from prometheus_client import Metric

    from warmer.layout import Volume, WarmDir
    from warmer.sidecar.board import Board
    from warmer.tally import Tally

_EVERY: Final = 15.0
"""Seconds between two looks at the volume, unless somebody asks."""
_PATIENCE: Final = 1.0
"""Seconds that who asks waits for a look: then the last one has to do."""


class Survey:
    """Looks at the volume on a thread of its own: where the volume hangs, scrapes do not.

    Args:
        warm: whose handoff.
        volume: whose room.
    """

    def __init__(self, warm: WarmDir, volume: Volume) -> None:
        self._warm = warm
        self._volume = volume
        self._asked = threading.Event()
        self._looked = threading.Event()
        self.room: tuple[int, int] | None = None
        """Bytes free and bytes used, of the filesystem that the volume is on."""
        self.verdicts: Mapping[str, str] = {}
        """Kind → verdict: that of the handoff, or what has become of it since."""
        self.removed = 0
        """Bytes that every gc of the volume has removed in all."""

    def start(self) -> None:
        """Look every now and then, as long as the process lives."""
        threading.Thread(target=self._run, name="survey", daemon=True).start()

    def ask(self) -> None:
        """Have a look taken now, and wait for it for a while."""
        self._looked.clear()
        self._asked.set()
        self._looked.wait(_PATIENCE)

    def _run(self) -> None:
        while True:
            self._asked.wait(_EVERY)
            self._asked.clear()
            with contextlib.suppress(Exception):  # the next look is none the worse for it
                self._look()
            self._looked.set()

    def _look(self) -> None:
        try:
            found = os.statvfs(self._volume.root)
        except OSError:
            self.room = None
        else:
            unit = found.f_frsize
            self.room = (found.f_bavail * unit, (found.f_blocks - found.f_bfree) * unit)
        self.verdicts = _verdicts(self._warm)
        with contextlib.suppress(OSError):  # a counter that falls counts all of it once more
            self.removed = removal.counted(self._volume)


class Metrics(Collector):
    """Everything that is shown, gathered when it is asked for.

    Args:
        board: what the loop shows.
        survey: what is known of the volume.
        warm: where the last prefill left what it did.
    """

    def __init__(self, board: Board, survey: Survey, warm: WarmDir) -> None:
        self._board = board
        self._survey = survey
        self._warm = warm
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def page(self, accept: str) -> tuple[int, str, bytes]:
        """Render in the format that a scraper accepts."""
        self._survey.ask()
        encode, kind = choose_encoder(accept)
        return 200, kind, encode(self._registry)

    def describe(self) -> Iterable[Metric]:
        """Nothing is known beforehand; registering must look at nothing."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Yield every metric."""
        done = self._tally()
        build = GaugeMetricFamily("warmer_build_info", "The warmer at work.", labels=["version"])
        build.add_metric([__version__], 1)
        yield build
        verdict = GaugeMetricFamily(
            "warmer_verdict",
            "1 for the verdict on each piece of the handoff.",
            labels=["kind", "verdict"],
        )
        for kind, found in sorted(self._survey.verdicts.items()):
            verdict.add_metric([kind, found], 1)
        yield verdict
        yield from self._filled(done)
        waited = "Seconds spent waiting for locks, by the last prefill and by this sidecar."
        yield GaugeMetricFamily(
            "warmer_lock_wait_seconds", waited, value=done.waited + self._board.waited
        )
        yield CounterMetricFamily(
            "warmer_lock_takeovers",
            "Owners succeeded that had not given a lock back, by both.",
            value=done.takeovers + self._board.takeovers,
        )
        yield CounterMetricFamily(
            "warmer_gc_removed_bytes",
            "Bytes that every gc has removed from the volume.",
            value=self._survey.removed,
        )
        if self._survey.room is not None:
            free, used = self._survey.room
            yield GaugeMetricFamily("warmer_volume_free_bytes", "Bytes to be had.", value=free)
            yield GaugeMetricFamily("warmer_volume_used_bytes", "Bytes in use.", value=used)
        if self._board.ready_s is not None:
            start = GaugeMetricFamily(
                "warmer_server_start_seconds",
                "From the start of handoff/serve to a server that is well.",
                labels=["phase"],
            )
            start.add_metric(["ready"], round(self._board.ready_s, 3))
            yield start

    def _filled(self, done: Tally) -> Iterable[Metric]:
        """What the last prefill filled and restored, and what this sidecar published."""
        fills = CounterMetricFamily(
            "warmer_fills",
            "Pieces filled, restored or left out by the last prefill; harvests of this sidecar.",
            labels=["kind", "result"],
        )
        for result, kinds in (("filled", done.filled), ("restored", done.restored)):
            for kind in sorted(kinds):
                fills.add_metric([kind, result], 1)
        for kind in done.without:
            fills.add_metric([kind, "left_out"], 1)
        for (kind, result), count in sorted(self._board.results.copy().items()):
            fills.add_metric([kind, result], count)
        yield fills
        for name, text, by_kind in (
            ("warmer_fill_seconds", "Seconds the last prefill took to fill a piece.", done.filled),
            (
                "warmer_restore_seconds",
                "Seconds the last prefill took to restore a piece.",
                done.restored,
            ),
        ):
            seconds = GaugeMetricFamily(name, text, labels=["kind"])
            for kind, value in sorted(by_kind.items()):
                seconds.add_metric([kind], value)
            yield seconds
        size = CounterMetricFamily(
            "warmer_fill_bytes",
            "Bytes fetched and pulled by the last prefill, and published by this sidecar.",
            labels=["kind", "source"],
        )
        if done.source:
            size.add_metric(["weights", done.source], done.fetched)
        for kind, pulled in sorted(done.pulled.items()):
            size.add_metric([kind, "remote"], pulled)
        for kind, published in sorted(self._board.bytes.copy().items()):
            size.add_metric([kind, "server"], published)
        yield size
        yield from self._asked(done)

    @staticmethod
    def _asked(done: Tally) -> Iterable[Metric]:
        """How the source bore the last prefill."""
        retries = CounterMetricFamily(
            "warmer_retries", "Times a source was asked again.", labels=["source", "reason"]
        )
        for reason, count in sorted(done.retries.items()):
            retries.add_metric([done.source, reason], count)
        yield retries
        yield CounterMetricFamily(
            "warmer_rate_limit_wait_seconds",
            "Seconds in which the source was asked nothing, because it said so.",
            value=done.throttled,
        )

    def _tally(self) -> Tally:
        try:
            return tally.parse(regular.read(self._warm.outcome))
        except (OSError, ValueError):
            return tally.Tally()


def _verdicts(warm: WarmDir) -> dict[str, str]:
    try:
        handoff = handed.load(os.path.join(warm.handoff, "handoff.json"))
        told = {str(piece["kind"]): str(piece["verdict"]) for piece in handoff["pieces"]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    rows = {row["kind"]: row["verdict"] for row in check.check(warm.root, deep=False)[0]}
    bad = {kind: verdict for kind, verdict in rows.items() if verdict not in ("warm", "cold")}
    return {kind: bad.get(kind, verdict) for kind, verdict in told.items() if kind in KINDS}
