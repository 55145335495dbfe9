"""One worker process of `warmer.fill.workers`: hears its order, fetches, says what it does.

It says one JSON object a line, ten times a second while bytes arrive. When its stdin ends, its
parent is gone, and so is it at once: what it leaves is what a killed prefill leaves.
"""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from typing import IO, TYPE_CHECKING, Any, Final, NoReturn

import structlog

from warmer.errors import as_record
from warmer.fill.sources import SourceFile
from warmer.fill.sources.registry import open_source
from warmer.fill.sources.retry import Patience, Retrying
from warmer.fill.transfer import Transfer
from warmer.model import ModelRef
from warmer.settings import Writing

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping

    from warmer.seal import SealedFile

_EVERY: Final = 0.1
"""Seconds between two reports."""


def main() -> None:
    """Be a worker: the order is the first line of stdin; without one there is nothing to do."""
    heard, said = _pipes()
    line = heard.readline()
    if not line:
        return
    report = _Report(said)
    try:
        done = _fetch(json.loads(line), heard, report)
    except BaseException as exc:  # noqa: BLE001 - said to the parent, which raises it
        report.say(failure=as_record(exc))
    else:
        report.say(done={path: (s.path, s.size, s.sha256) for path, s in done.items()})


def _pipes() -> tuple[IO[str], IO[str]]:
    """Keep the parent's pipes for us: nothing else may read orders, or print among reports."""
    heard, said = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return heard, said


def _fetch(order: Mapping[str, Any], heard: IO[str], report: _Report) -> dict[str, SealedFile]:
    model = ModelRef(**order["model"])
    structlog.configure(processors=[structlog.processors.add_log_level, report.log])
    source = Retrying(
        open_source(model, environment=os.environ), budget=order["retry"], patience=report.patience
    )
    report.source = source
    for function in (report.run, lambda: _obey(heard, source)):
        threading.Thread(target=function, daemon=True).start()
    transfer = Transfer(
        source,
        model,
        staging=order["staging"],
        moved=report.moved,
        writing=Writing(**order["writing"]),
        connections=order["connections"],
    )
    files = [SourceFile(**file) for file in order["files"]]
    spans = {p: tuple((a, b) for a, b in runs) for p, runs in order["present"].items()}
    return transfer.run(files, spans)


def _obey(heard: IO[str], source: Retrying) -> NoReturn:
    """Keep quiet when told to; end with the parent."""
    for line in heard:
        source.keep_quiet_for(json.loads(line)["quiet"])
    os._exit(1)


class _Report:
    """What the parent is to know and has not been told."""

    def __init__(self, said: IO[str]) -> None:
        self.source: Retrying | None = None
        self.patience = Patience()
        self._said = said
        self._mutex = threading.Lock()
        self._arrived: Counter[str] = Counter()
        self._logged: list[tuple[str, dict[str, Any]]] = []
        self._retries: Counter[str] = Counter()
        self._throttled_s = 0.0

    def moved(self, path: str, count: int) -> None:
        """Take note of bytes that arrived."""
        with self._mutex:
            self._arrived[path] += count

    def log(self, _logger: Any, level: str, event: MutableMapping[str, Any]) -> NoReturn:
        """Leave a line of the log to the parent, which knows how it is shown."""
        with self._mutex:
            self._logged.append((level, {n: v for n, v in event.items() if n != "level"}))
        raise structlog.DropEvent

    def run(self) -> NoReturn:
        """Report, until the process ends."""
        beat = threading.Event()
        while True:
            beat.wait(_EVERY)
            self.say()

    def say(self, **more: Any) -> None:
        """Say what is new, if anything is."""
        with self._mutex:
            retries, throttled_s = Counter(self.patience.retries), self.patience.throttled_s
            quiet = 0.0
            if self.source is not None and throttled_s > self._throttled_s:
                quiet = self.source.quiet_for
            said: Mapping[str, Any] = {
                "moved": self._arrived,
                "log": self._logged,
                "retries": retries - self._retries,
                "quiet": quiet,
                **more,
            }
            line = json.dumps(
                {name: value for name, value in said.items() if value or name in more}
            )
            if line == "{}":
                return
            self._arrived, self._logged = Counter(), []
            self._retries, self._throttled_s = retries, throttled_s
            self._said.write(line + "\n")
            self._said.flush()
