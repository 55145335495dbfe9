"""The messages of one start out of a log of any length. Pure.

A log may hold days of serving behind its start, starts that crashed before it, and the lines of
other containers. What is kept is bounded: the messages that say something of a start, and of the others
those that end a build or tell a new name of a process.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from warmer.report.lines import ANY, HEAD, LINES
from warmer.report.wrapping import bare

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from warmer.report.clock import Timer

_ANSI: Final = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\))")
_SUPERVISOR: Final = re.compile(r"\[\+(\d{1,9}(?:\.\d+)?)\] ?")
_BEGIN: Final = frozenset({"banner", "args"})
"""What a server says first, and once."""
_BEFORE: Final = frozenset({"", "api", "ready", *_BEGIN})
_DONE: Final = frozenset({"initialised", "serving"})
_SILENCE: Final = 10_000
"""Messages after the engine is up that say nothing of a start: it serves, whether it said so or not."""
_MOST: Final = 100_000
"""Messages kept; a start of eight ranks has some hundreds."""
_LONGEST: Final = 4000
"""Characters kept of one."""


class Event(NamedTuple):
    """One message: which, from which process, when, and what it says.

    A worker changes its name while it starts, so a process is its pid; empty when not given.
    """

    mark: str
    pid: str
    at: float
    took: float
    version: str | None
    text: str
    name: str = ""
    rank: int | None = None


@dataclass(slots=True)
class Events:
    """The messages of the first start that got ready, or else of the last.

    Attributes:
        kept: in the order of the log.
        earlier: starts before it in the log, which did not get ready.
        mixed: whether another server spoke between its lines.
        pods: names of others whose lines are left out.
    """

    kept: list[Event] = field(default_factory=list)
    earlier: int = 0
    mixed: bool = False
    pods: set[str] = field(default_factory=set)

    def notes(self) -> tuple[str, ...]:
        """Say what of the log is left out, a clause each."""
        told = []
        if self.pods:
            told.append(f"lines of {_count(len(self.pods), 'other container')} are left out")
        if self.earlier:
            told.append(f"{_count(self.earlier, 'start')} before it did not get ready: left out")
        if self.mixed:
            told.append("lines of several servers are mixed: trust no figure of it")
        return tuple(told)


def read(lines: Iterable[str], timer: Timer) -> Events:
    """Read messages through the first that says ready.

    Args:
        lines: of the log.
        timer: follows its clock; when it ends it counts from the start that is returned.
    """
    reader = _Reader(timer)
    for event in _messages(lines, timer, reader.found):
        if reader.take(event):
            break
    return reader.found


class _Reader:
    """Keeps what matters of one start, and begins anew where another begins."""

    def __init__(self, timer: Timer) -> None:
        self.found = Events()
        self._timer = timer
        self._server = ""
        self._before: set[str] = set()  # the servers of earlier starts
        self._forget()

    def _forget(self) -> None:
        self.found.kept.clear()
        self._names: dict[str, str] = {}
        self._building: set[str] = set()
        self._begun = self._up = False
        self._silent = 0

    def take(self, event: Event) -> bool:
        """Take the next message; return whether nothing more has to be read."""
        if event.mark in _BEGIN:
            if self._begun:
                self._forget()
                self.found.earlier += 1
                self._before.add(self._server)
                self._timer.restart()
                event = event._replace(at=self._timer.now)
            self._server = event.pid
        elif event.pid in self._before - {self._server, ""} and event.name.startswith("APIServer"):
            self.found.mixed = True
        said = event.mark not in ("", "api")
        self._begun = self._begun or event.mark not in _BEFORE
        self._up = self._up or event.mark in _DONE
        self._silent = 0 if said else self._silent + 1
        self._keep(event, said=said)
        silent = self._up and self._silent > _SILENCE
        return event.mark == "ready" or silent or len(self.found.kept) >= _MOST

    def _keep(self, event: Event, *, said: bool) -> None:
        ended = self._building & {event.pid, ""}
        if said or ended or self._names.get(event.pid) != event.name:
            self.found.kept.append(event)
            self._names[event.pid] = event.name
        self._building -= ended
        if event.mark == "build":
            self._building.add(event.pid)


def _messages(lines: Iterable[str], timer: Timer, found: Events) -> Iterator[Event]:
    """Every message with a logger's head, of one pod."""
    own: str | None = None
    for line in lines:
        text, pod = bare(_ANSI.sub("", line).rstrip("\r\n"))
        if own and pod != own:  # where nobody says whose lines are, `a | b` is no name before one
            if pod and len(found.pods) < _MOST:
                found.pods.add(pod)
            continue
        text = _ANSI.sub("", text).rstrip("\r\n") if "{" in line[:400] else text
        if ours := _SUPERVISOR.match(text):
            timer.process(float(ours[1]))
            text = text[ours.end() :]
        for piece in text.split("\r"):  # a progress bar rewrites its line, and a message may follow
            head = HEAD.search(piece)
            if head is None:
                continue
            if clock := head["vllm"] or head["flashinfer"]:
                timer.stamp(clock, head["ms"] or "0")
            event = _event(head, timer.now)
            if own is None and event.mark not in _BEFORE - _BEGIN:
                own = pod
            yield event


def _event(head: re.Match[str], at: float) -> Event:
    """Name one message; an unknown one is ``api`` when the API server says it, else empty."""
    pid = head["pid"] or head["inner_pid"] or ""
    name = head["name"] or head["inner_name"] or ""
    text = head[0][:_LONGEST]
    for line in LINES if ANY.match(head["message"]) else ():
        if said := line.regex.match(head["message"]):
            groups = said.groupdict()
            took, version = float(groups.get("s") or 0), groups.get("version")
            several = int(groups.get("world") or 0) > 1
            rank = int(groups["rank"]) if several else None
            return Event(line.mark, pid, at, took, version, text, name, rank)
    return Event("api" if name.startswith("APIServer") else "", pid, at, 0.0, None, text, name)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
