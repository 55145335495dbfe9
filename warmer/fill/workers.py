"""A transfer by several processes: one is as fast as one interpreter, which is not the wire.

All threads of a process take turns at its interpreter. However many connections it has, it moves
less than a GB/s, and hardly more with more cores. So files are dealt out to worker processes, each
of which runs a `warmer.fill.transfer.Transfer` of its own over its share into the same staging.

They are forked off before anything here has a second thread (`standing_by`), and wait for their
orders. What holds for the connections of one transfer holds for them: the first failure stops all;
when one is told to slow down, none asks; they end with this process. A worker that is killed
leaves what a killed prefill leaves, so it is the way to stop one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import selectors
import signal
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import structlog

from warmer.errors import SourceError, from_record
from warmer.fill import worker
from warmer.fill.forked import Forked, end, fork, how_ended
from warmer.fill.sources.retry import Patience
from warmer.fill.transfer import Transfer
from warmer.seal import SealedFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from warmer.fill.partial import Span
    from warmer.fill.sources import Source, SourceFile
    from warmer.model import ModelRef
    from warmer.settings import Writing

MOST: Final = 4
"""Workers, unless asked for: with them all, a prefill stays below 300 MB, of which they share much."""
ROOM: Final = 512 << 20
"""Bytes of memory below which a container is left with one process."""
_WORTH: Final = 256 << 20
"""Bytes that are worth another worker."""
_FILE: Final = 2 << 20
"""Bytes that take an interpreter as long as a file does by being one."""
_TURN: Final = 0.5
_END: Final = 5.0
"""Seconds given to one that closed its mouth to end."""
# All ask for the pod's credentials at once; by default botocore asks once, for a second.
_PATIENT: Final = {"AWS_METADATA_SERVICE_NUM_ATTEMPTS": "5", "AWS_METADATA_SERVICE_TIMEOUT": "2"}
_CHUNK: Final = 1 << 16

_KILLED: Final = "raise the container's memory limit, or set --workers 1"
_FAILED: Final = "what it printed says why; or set --workers 1"
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Workers:
    """How many processes a transfer may take, and what they need to know.

    Attributes:
        most: processes; with one, all is done in this one.
        retry: seconds within which a failing source is tried again.
        patience: where the waiting is added up.
        environment: the workers'.
        standing: those that wait for their orders.
    """

    most: int = 1
    retry: float = 0.0
    patience: Patience = dataclasses.field(default_factory=Patience)
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    standing: tuple[Forked, ...] = ()

    @contextlib.contextmanager
    def standing_by(self, files: Sequence[SourceFile] | None) -> Iterator[Workers]:
        """Fork workers off, for a transfer inside the block; they end with it.

        Args:
            files: which it will be at most; None where that is not known.

        Raises:
            SourceError: there are no more processes to be had.
        """
        count = self.most if files is None else len(deal(files, self.most))
        standing: list[Forked] = []
        try:
            while len(standing) < count > 1:
                standing.append(self._fork())
            yield dataclasses.replace(self, standing=tuple(standing))
        finally:
            end(standing)

    def _fork(self) -> Forked:
        try:
            return fork(worker.main, _PATIENT | dict(self.environment or os.environ))
        except OSError as exc:
            raise SourceError(
                f"got no worker process ({exc.strerror}), expected one",
                reason="no-worker",
                hint="raise the container's limit on processes or memory, or set --workers 1",
            ) from exc

    def run(
        self,
        source: Source,
        model: ModelRef,
        files: Sequence[SourceFile],
        present: Mapping[str, tuple[Span, ...]],
        *,
        staging: str,
        moved: Callable[[str, int], None],
        writing: Writing,
        connections: int,
    ) -> dict[str, SealedFile]:
        """Fetch files; the first failure stops all.

        Args:
            source: where from, for this process; workers open their own.
            model: the resolved revision.
            files: which.
            present: path → runs of bytes that the file in staging has already.
            staging: the claim's private directory.
            moved: called with a path and the bytes of it that arrived; may raise to stop all.
            writing: how files are written.
            connections: how many at a time, of each process.

        Returns:
            Path → what is to be sealed.

        Raises:
            SourceError: the source failed, or a worker was killed.
            IntegrityError: bytes are not what the source says.
            VolumeError: the volume failed.
        """
        shares = deal(files, self.most)
        if len(shares) < 2:
            transfer = Transfer(
                source,
                model,
                staging=staging,
                moved=moved,
                writing=writing,
                connections=connections,
            )
            return transfer.run(files, present)
        common = {
            "model": dataclasses.asdict(model),
            "staging": staging,
            "writing": dataclasses.asdict(writing),
            "connections": connections,
            "retry": self.retry,
        }
        team = _Team(self.patience, moved)
        standing = list(self.standing)
        try:
            for share in shares:
                order = common | {
                    "files": [dataclasses.asdict(file) for file in share],
                    "present": {f.path: present[f.path] for f in share if f.path in present},
                }
                # None stands by where the plan grew: a fork from several threads is the lesser evil.
                team.start(standing.pop() if standing else self._fork(), order)
            return team.wait()
        finally:
            team.end()


def deal(files: Sequence[SourceFile], most: int) -> list[list[SourceFile]]:
    """Deal files out so that every share is about as much work; as many shares as are worth it."""
    work = {file.path: file.size + _FILE for file in files}
    count = max(1, min(most, len(files), sum(work.values()) // _WORTH))
    shares: list[list[SourceFile]] = [[] for _ in range(count)]
    loads = [0] * count
    for file in sorted(files, key=lambda file: (-file.size, file.path)):
        least = loads.index(min(loads))
        shares[least].append(file)
        loads[least] += work[file.path]
    return shares


class _Team:
    """Workers at work, and what they have said so far."""

    def __init__(self, patience: Patience, moved: Callable[[str, int], None]) -> None:
        self._patience = patience
        self._moved = moved
        self._selector = selectors.DefaultSelector()
        self._running: list[Forked] = []
        self._said: dict[int, bytes] = {}
        self._done: dict[str, SealedFile] = {}
        self._ended: Counter[int] = Counter()
        self._quiet_until = 0.0

    def start(self, one: Forked, order: Mapping[str, Any]) -> None:
        self._running.append(one)
        self._said[one.pid] = b""
        self._selector.register(one.reports, selectors.EVENT_READ, one)
        _tell(one, order)

    def wait(self) -> dict[str, SealedFile]:
        """Hear the workers out.

        Raises:
            WarmerError: the first failure.
        """
        while self._selector.get_map():
            for key, _ in self._selector.select(_TURN):
                one: Forked = key.data
                more = os.read(key.fd, _CHUNK)
                *lines, self._said[one.pid] = (self._said[one.pid] + more).split(b"\n")
                for line in lines:
                    self._hear(one, json.loads(line))
                if self._ended[one.pid]:
                    self._selector.unregister(key.fileobj)
                elif not more:
                    raise _died(one)
        return self._done

    def end(self) -> None:
        """Kill those that are left, and wait until they are gone: they write where we look next."""
        end(self._running)
        self._selector.close()

    def _hear(self, one: Forked, said: Mapping[str, Any]) -> None:
        for path, count in said.get("moved", {}).items():
            self._moved(path, count)
        self._patience.retries.update(said.get("retries", {}))
        if seconds := said.get("quiet", 0.0):
            now = time.monotonic()
            # Several are told at once; what counts is how long nobody asked.
            self._patience.throttled_s += max(0.0, now + seconds - max(now, self._quiet_until))
            self._quiet_until = max(self._quiet_until, now + seconds)
            for other in self._running:
                if other is not one:
                    _tell(other, {"quiet": seconds})
        for level, event in said.get("log", ()):
            getattr(_log, level)(**event)
        if "failure" in said:
            raise from_record(said["failure"])
        for path, sealed in said.get("done", {}).items():
            self._done[path] = SealedFile(*sealed)
        self._ended[one.pid] += "done" in said


def _died(one: Forked) -> SourceError:
    """Say of a worker that closed its mouth how it ended before it was done."""
    status = one.wait(_END)
    return SourceError(
        f"got a worker process ended by {how_ended(status)}, expected it to fetch its files",
        reason="worker-died",
        hint="what arrived is kept; " + (_KILLED if status == -signal.SIGKILL else _FAILED),
    )


def _tell(one: Forked, what: Mapping[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError):  # it ended; what it said last tells why
        one.orders.write(json.dumps(what).encode() + b"\n")
        one.orders.flush()
