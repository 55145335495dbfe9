"""Read into the page cache what a start will read, in its order, while Python imports vLLM.

    python3 -IS ahead.py <server's pid> <bytes at most, or auto> <notes, or nothing> <bytecode tree>
        <model directory>

On a node that has not served this model, shared libraries, sources and weights come from a disk at
the moment they are needed, one after another. Here several threads read them at once: libraries and
sources first, then the shards as vLLM opens them, with fewer, which give way where the server waits for
the disk itself. What is in memory already is passed over. No more is read than memory holds beside the
server, and no further block once the server has ended. One file, the standard library alone, Python 3.9
or newer; whatever cannot be read is left out.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import queue
import re
import select
import stat
import sys
import threading
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_BLOCK = 8 << 20
_PIECE = 1 << 20
"""Read at once: so long the disk is taken at most when the server comes to need it."""
_THREADS = 8
_SHARDS = 2
"""Threads that read weights: eight made the imports beside them half as long again (benchmarks.md)."""
_ROOM = 0.8
"""The part of the free memory that is filled at most."""
_GROUPS = "/sys/fs/cgroup"
_LIMITS = {
    "": (("memory.max", "memory.high"), "memory.current", ("inactive_file", "active_file")),
    "memory": (
        ("memory.limit_in_bytes",),
        "memory.usage_in_bytes",
        ("total_inactive_file", "total_active_file"),
    ),
}
"""Where cgroup v2 and v1 say what a group may use, uses, and could give up of it."""
_DIGITS = re.compile(r"(\d+)")
_WEIGHTS = (".safetensors", ".bin", ".gguf", ".pt")
_OF_A_RANK = re.compile(r"-(?:rank|tp)-\d{1,9}-part-(\d{1,9})\.")
"""Checkpoints that are split by rank: the number of the part (vLLM's sharded_state_loader.py)."""


class Budget:
    """Bytes that may still be read."""

    def __init__(self, limit: int) -> None:
        self._left = limit

    def take(self, size: int) -> bool:
        """Take from what is left; nothing once it does not suffice."""
        enough = size <= self._left
        self._left = self._left - size if enough else 0
        return enough


def room() -> int:
    """Tell how many bytes of page cache fit beside what is running, on the node and in its groups."""
    return max(0, int(min([_available(), *_limits()]) * _ROOM))


def _available() -> int:
    with open("/proc/meminfo", encoding="ascii") as f:
        for line in f:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    return 0


def _limits() -> Iterator[int]:
    """Tell what each group leaves that this process is in: a container sees its own as the top."""
    mine: list[list[str]] = []
    with contextlib.suppress(OSError), open("/proc/self/cgroup", encoding="utf-8") as f:
        mine = [line.rstrip("\n").split(":", 2) for line in f]
    for _, controllers, path in mine:
        if controllers and "memory" not in controllers.split(","):
            continue
        most, used, cached = _LIMITS["memory" if controllers else ""]
        top = os.path.join(_GROUPS, "memory") if controllers else _GROUPS
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(parts) + 1):
            group = os.path.join(top, *parts[:depth])
            for name in most:
                with contextlib.suppress(OSError, ValueError):  # no limit, or not seen from here
                    free = _number(group, name) - _number(group, used)
                    yield free + _cached(group, cached)


def _number(group: str, name: str) -> int:
    with open(os.path.join(group, name), encoding="ascii") as f:
        return int(f.read())


def _cached(group: str, names: tuple[str, ...]) -> int:
    with open(os.path.join(group, "memory.stat"), encoding="ascii") as f:
        return sum(int(value) for name, value in map(str.split, f) if name in names)


def imported(notes: str, tree: str) -> Iterator[str]:
    """Name what imports read: the noted libraries, and the source of each entry of the tree."""
    yield from _libraries(notes)
    for directory, _, names in os.walk(tree):
        where = directory[len(tree.rstrip("/")) :]
        for name in sorted(names):
            yield os.path.join(where, f"{name.partition('.')[0]}.py")


def shards(model: str, stages: int = 1) -> Iterator[str]:
    """Name the model's files in the order that the engine's ranks come to need them.

    vLLM's ranks all open all files, by their numbers, and map them (0.32:
    ``model_loader/weight_utils.py``, safetensors_weights_iterator): those of one pipeline stage need
    pages of each, side by side; a stage passes over the layers of those before it without a page of
    them, and begins at its own. Of files that are split by rank each rank reads its own.
    """
    names: list[str] = []
    with contextlib.suppress(OSError):
        names = sorted(os.listdir(model), key=_order)
    heavy = [name for name in names if name.endswith(_WEIGHTS)]
    for name in names[: len(names) - len(heavy)]:
        yield os.path.join(model, name)
    stages = max(1, min(stages, len(heavy)))
    parts = [
        heavy[len(heavy) * n // stages : len(heavy) * (n + 1) // stages] for n in range(stages)
    ]
    for turn in range(max(map(len, parts))):
        for part in parts:
            if turn < len(part):
                yield os.path.join(model, part[turn])


def _libraries(notes: str) -> list[str]:
    try:
        with open(notes, encoding="utf-8") as f:
            return [str(path) for path in json.load(f)["libraries"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []


def _order(name: str) -> tuple[bool, int, list[tuple[int, str]]]:
    """Shards come last, by their numbers; what says how to read them comes first."""
    parts = _DIGITS.split(name)
    split = _OF_A_RANK.search(name)
    # Text is at the even places, digits are at the odd ones.
    by_number = [(int(part), "") if n % 2 else (0, part) for n, part in enumerate(parts)]
    return name.endswith(_WEIGHTS), int(split[1]) if split else -1, by_number


def blocks(paths: Iterator[str], budget: Budget) -> Iterator[tuple[str, int]]:
    """Cut regular files into blocks, as long as the budget lasts."""
    for path in paths:
        try:
            found = os.stat(path)
        except (OSError, ValueError):
            continue
        if not stat.S_ISREG(found.st_mode):
            continue
        for offset in range(0, found.st_size, _BLOCK):
            if not budget.take(min(_BLOCK, found.st_size - offset)):
                return
            yield path, offset


def read(path: str, offset: int, give_way: Callable[[], None]) -> None:
    """Read a block, unless its first byte and its last are in memory.

    One is not enough: asking for it has the kernel fetch some pages, and where the disk is quick
    it is there before the answer.
    """
    # Should a pipe be there by now, nobody waits for it.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        end = min(offset + _BLOCK, os.fstat(descriptor).st_size)
        with contextlib.suppress(OSError, NotImplementedError):  # not in memory, or cannot say
            for at in (offset, end - 1):
                os.preadv(descriptor, [bytearray(1)], at, os.RWF_NOWAIT)
            return
        while offset < end:
            give_way()
            offset = fetch(descriptor, offset, min(offset + _PIECE, end))
    finally:
        os.close(descriptor)


def fetch(descriptor: int, offset: int, end: int) -> int:
    """Have the kernel read a part of a file, copied nowhere if the filesystem can do that.

    A copy costs the processors, which import meanwhile, ten times as much as all the rest.

    Returns:
        The end of the part.
    """
    with contextlib.suppress(OSError):  # it cannot, or the disk is broken
        at = offset
        while at < end and (sent := os.sendfile(_nowhere(), descriptor, at, end - at)):
            at += sent
        return end
    os.pread(descriptor, end - offset, offset)
    return end


@functools.cache
def _nowhere() -> int:
    return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)


def politely(pid: int) -> Callable[[], None]:
    """Make what waits, a few ms at most, while a process's main thread waits for a disk."""

    def give_way() -> None:
        with contextlib.suppress(OSError, IndexError):
            for _ in range(10):
                with open(f"/proc/{pid}/stat", "rb") as f:
                    if f.read().rpartition(b")")[2].split()[0] != b"D":
                        return
                time.sleep(0.0005)

    return give_way


def living(pid: int) -> Callable[[], bool]:
    """Make what tells whether a process lives: by a descriptor, where the kernel has such."""
    try:
        held = os.pidfd_open(pid)
    except (OSError, AttributeError):
        return lambda: os.path.exists(f"/proc/{pid}")
    end = select.poll()
    end.register(held, select.POLLIN)
    return lambda: not end.poll(0)


def spread(
    work: Iterator[tuple[str, int]],
    threads: int,
    lives: Callable[[], bool],
    give_way: Callable[[], None] = lambda: None,
) -> None:
    """Read blocks with several threads, until the server is gone."""
    todo: queue.Queue[tuple[str, int] | None] = queue.Queue(2 * threads)

    def reader() -> None:
        while (block := todo.get()) is not None:
            with contextlib.suppress(Exception):  # whoever ended here would be waited for
                read(*block, give_way)

    readers = [threading.Thread(target=reader) for _ in range(threads)]
    for one in readers:
        one.start()
    try:
        for block in work:
            if not lives():
                break
            todo.put(block)
    finally:
        for _ in readers:
            todo.put(None)
        for one in readers:
            one.join()


def main(server: str, limit: str, *places: str) -> None:
    """Read all of it: first what imports read, at once; then the shards, which must not delay them."""
    notes, tree, model, *stages = places
    lives = living(int(server))
    budget = Budget(room() if limit == "auto" else min(int(limit), room()))
    spread(blocks(imported(notes, tree), budget), _THREADS, lives)
    spread(blocks(shards(model, *map(int, stages)), budget), _SHARDS, lives, politely(int(server)))


if __name__ == "__main__":
    os.nice(5)
    main(*sys.argv[1:7])
