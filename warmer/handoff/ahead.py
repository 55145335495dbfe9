"""Read into the page cache what a start will read, in its order, while Python imports vLLM.

    python3 -IS ahead.py <bytes at most, or auto> <notes, or nothing> <bytecode tree> <model directory>

On a node that has not served this model, shared libraries, sources and weights come from a disk at
the moment they are needed, one after another. Here several threads read them at once: libraries and
sources first, then the shards as vLLM opens them. What is in memory already is passed over. No more
is read than memory holds beside the server, and nothing after the server has ended. One file, the
standard library alone, Python 3.9 or newer; whatever cannot be read is left out.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import sys
import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_BLOCK = 8 << 20
_THREADS = 8
_ROOM = 0.8
"""The part of the free memory that is filled at most."""
_GROUP = "/sys/fs/cgroup"
_DIGITS = re.compile(r"(\d+)")


class Budget:
    """Bytes that may still be read, shared by the threads."""

    def __init__(self, limit: int) -> None:
        self._left = limit
        self._guard = threading.Lock()

    def take(self, size: int) -> bool:
        """Take from what is left; nothing once it does not suffice."""
        with self._guard:
            if size > self._left:
                self._left = 0
                return False
            self._left -= size
            return True


def room() -> int:
    """Tell how many bytes of page cache fit beside what is running: the node's, the container's."""
    free = [_available()]
    with contextlib.suppress(OSError, ValueError):  # no limit
        cached = _stat("inactive_file") + _stat("active_file")
        free.append(_number("memory.max") - _number("memory.current") + cached)
    return max(0, int(min(free) * _ROOM))


def _available() -> int:
    with open("/proc/meminfo", encoding="ascii") as f:
        for line in f:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    return 0


def _number(name: str) -> int:
    with open(os.path.join(_GROUP, name), encoding="ascii") as f:
        return int(f.read())


def _stat(name: str) -> int:
    with open(os.path.join(_GROUP, "memory.stat"), encoding="ascii") as f:
        return next(int(line.split()[1]) for line in f if line.split()[0] == name)


def files(notes: str, tree: str, model: str) -> Iterator[str]:
    """Name what is read, in the order a start needs it."""
    yield from _libraries(notes)
    for directory, _, names in os.walk(tree):
        where = directory[len(tree.rstrip("/")) :]
        for name in sorted(names):
            yield os.path.join(where, f"{name.partition('.')[0]}.py")
    with contextlib.suppress(OSError):
        names = [entry.name for entry in os.scandir(model) if entry.is_file()]
        for name in sorted(names, key=_order):
            yield os.path.join(model, name)


def _libraries(notes: str) -> list[str]:
    try:
        with open(notes, encoding="utf-8") as f:
            return [str(path) for path in json.load(f)["libraries"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _order(name: str) -> tuple[bool, list[str | int]]:
    """Shards come last, by their numbers; what says how to read them comes first."""
    parts: list[str | int] = [int(part) if part.isdigit() else part for part in _DIGITS.split(name)]
    return name.endswith((".safetensors", ".bin", ".gguf", ".pt")), parts


def blocks(paths: Iterator[str], budget: Budget) -> Iterator[tuple[str, int]]:
    """Cut files into blocks, as long as the budget lasts."""
    for path in paths:
        try:
            size = os.stat(path).st_size
        except OSError:
            continue
        for offset in range(0, size, _BLOCK):
            if not budget.take(min(_BLOCK, size - offset)):
                return
            yield path, offset


def read(path: str, offset: int) -> None:
    """Read a block, unless its first byte is in memory."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            with contextlib.suppress(OSError):  # not in memory, or a filesystem that cannot say
                os.preadv(descriptor, [bytearray(1)], offset, os.RWF_NOWAIT)
                return
            os.pread(descriptor, _BLOCK, offset)
        finally:
            os.close(descriptor)


def main(limit: str, notes: str, tree: str, model: str) -> None:
    """Read all of it, with several threads, until the server is gone."""
    parent = os.getppid()
    todo: queue.Queue[tuple[str, int] | None] = queue.Queue(2 * _THREADS)

    def work() -> None:
        while (block := todo.get()) is not None:
            if os.getppid() == parent:
                read(*block)

    threads = [threading.Thread(target=work) for _ in range(_THREADS)]
    for thread in threads:
        thread.start()
    try:
        budget = Budget(room() if limit == "auto" else min(int(limit), room()))
        for block in blocks(files(notes, tree, model), budget):
            todo.put(block)
    finally:
        for _ in threads:
            todo.put(None)


if __name__ == "__main__":
    os.nice(5)
    main(*sys.argv[1:5])
