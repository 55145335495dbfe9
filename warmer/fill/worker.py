"""One worker process of `warmer.fill.workers`: hears its order, fetches, says what it does.

It says one JSON object a line, ten times a second while bytes arrive. When its stdin ends, its
parent is gone, and so is it at once: what it leaves is what a killed prefill leaves.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, NoReturn

import structlog

from warmer.fill.sources import SourceFile
from warmer.fill.sources.registry import open_source
from warmer.fill.sources.retry import Retrying
from warmer.fill.transfer import Transfer
from warmer.fill.workers import failure
from warmer.model import ModelRef
from warmer.settings import Writing

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping

_EVERY: Final = 0.1
"""Seconds between two reports."""


def main() -> None:
    """Be a worker: the order is the first line of stdin."""
    line = sys.stdin.readline()
    if not line:
        return
    order = json.loads(line)
    model = ModelRef(**order["model"])
    source = Retrying(open_source(model, environment=os.environ), budget=order["retry"])
    report = _Report(source)
    structlog.configure(processors=[structlog.processors.add_log_level, report.log])
    for function in (report.run, lambda: _obey(source)):
        threading.Thread(target=function, daemon=True).start()
    try:
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
        done = transfer.run(files, spans)
    except BaseException as exc:  # noqa: BLE001 - said to the parent, which raises it
        report.say(failure=failure(exc))
    else:
        report.say(done={path: (s.path, s.size, s.sha256) for path, s in done.items()})


def _obey(source: Retrying) -> NoReturn:
    """Keep quiet when told to; end with the parent."""
    for line in sys.stdin:
        source.keep_quiet_for(json.loads(line)["quiet"])
    os._exit(1)


class _Report:
    """What the parent is to know and has not been told."""

    def __init__(self, source: Retrying) -> None:
        self._source = source
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
            patience = self._source.patience
            retries, throttled_s = Counter(patience.retries), patience.throttled_s
            said: Mapping[str, Any] = {
                "moved": self._arrived,
                "log": self._logged,
                "retries": retries - self._retries,
                "throttled_s": throttled_s - self._throttled_s,
                **more,
            }
            if said["throttled_s"]:
                said = {**said, "quiet": self._source.quiet_for}
            line = json.dumps(
                {name: value for name, value in said.items() if value or name in more}
            )
            if line == "{}":
                return
            self._arrived, self._logged = Counter(), []
            self._retries, self._throttled_s = retries, throttled_s
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
