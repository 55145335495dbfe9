"""A transfer as bars on a terminal: one for each file on its way, and one for all."""

from __future__ import annotations

import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_SHOWN: Final = 8
"""Files shown at a time; more would scroll."""
_FIGURES: Final = 52
"""Columns for the bar and the figures; a name has the others, its end before its beginning."""


def console() -> Console:
    """Make the console of stderr; a line that is longer than it is wide is left to the terminal."""
    return Console(file=sys.stderr, soft_wrap=True)


class Bars:
    """Bars on stderr; what is logged meanwhile is written above them."""

    def __init__(self, terminal: Console) -> None:
        self._mutex = threading.Lock()
        self._sizes: Mapping[str, int] = {}
        self._left: dict[str, int] = {}
        self._tasks: dict[str, TaskID] = {}
        self._width = max(8, terminal.width - _FIGURES)
        # rich puts itself in stderr's place, so that what others print there keeps clear of it.
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=terminal,
            redirect_stdout=False,
        )
        self._all: TaskID | None = None

    @contextmanager
    def running(self, coming: Mapping[str, int], /) -> Iterator[None]:
        """Show them during the block; see `Meter.running`."""
        self._sizes, self._left = coming, dict(coming)
        with self._progress:
            self._all = self._progress.add_task("weights", total=sum(coming.values()))
            yield

    def moved(self, path: str, count: int, /) -> None:
        """Take note of bytes that arrived; see `Meter.moved`."""
        with self._mutex:
            if self._all is not None:
                self._progress.advance(self._all, count)
            self._left[path] = self._left.get(path, 0) - count
            task = self._tasks.get(path)
            if task is None and self._left[path] > 0 and len(self._tasks) < _SHOWN:
                name = path if len(path) <= self._width else f"…{path[1 - self._width :]}"
                task = self._progress.add_task(escape(name), total=self._sizes.get(path))
                self._tasks[path] = task
            if task is None:
                return
            self._progress.advance(task, count)
            if self._left[path] <= 0:
                self._progress.remove_task(task)
                del self._tasks[path]
