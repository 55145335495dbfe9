"""Make a tree of bytecode, and bind it to its sources: both by the engine's own Python.

Only the Python that will load the entries knows their format and its own path. What makes them
safe to share is in `warmer/fill/rehash.py`, the script it is given.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from dataclasses import dataclass
from importlib.resources import as_file, files
from typing import TYPE_CHECKING, Final

from warmer.errors import EngineError, using
from warmer.fill import process

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

FAMILY: Final = "pycache"
"""The directory under the kind's tree that PYTHONPYCACHEPREFIX names (warmer/families.py)."""
_BINDING: Final = 600.0
"""Seconds for binding a tree; 4,500 entries take a few."""
_TAIL: Final = 12
"""Last lines shown of a Python that fails."""
# What `vllm serve` imports before it looks at its arguments. The working directory, which `-c`
# puts on the path, may hold a directory named vllm.
_IMPORT: Final = (
    "import sys; '' in sys.path and sys.path.remove('');"
    "import vllm.entrypoints.cli.main, vllm.entrypoints.openai.api_server;"
    "print(open('/proc/self/maps').read())"
)


@dataclass(frozen=True, slots=True)
class Bound:
    """What became of a tree's entries.

    Attributes:
        kept: entries that hold the hash of their source.
        dropped: reason → entries removed for it.
    """

    kept: int
    dropped: Mapping[str, int]


def import_server(interpreter: str, *, environment: Mapping[str, str], timeout: float) -> set[str]:
    """Import what vLLM's server imports, so that Python writes its bytecode.

    Returns:
        The shared libraries that it mapped.

    Args:
        interpreter: the engine's Python.
        environment: the whole environment of the build run; it says where bytecode goes.
        timeout: seconds.

    Raises:
        EngineError: the import failed or took too long; its last lines are shown.
    """
    words = [interpreter, "-c", _IMPORT]
    said = _run(words, environment, timeout=timeout, doing="importing vLLM's server")
    return process.mapped("\n".join(said))


def take_notes(
    place: str,
    interpreter: str,
    *,
    libraries: Iterable[str],
    environment: Mapping[str, str],
    beside: str,
) -> None:
    """Write down what a start finds out and maps, for the starts to come (warmer/handoff/start.py).

    Without notes a start is slower, and nothing else: what fails here is no failure.

    Args:
        place: the file.
        interpreter: the engine's Python.
        libraries: shared libraries that it maps.
        environment: the whole environment of the build run.
        beside: the warm dir, whose own files are not noted: a restore has just written them.
    """
    quiet = {**environment, "PYTHONDONTWRITEBYTECODE": "1"}
    notes: dict[str, object] = {}
    with (
        contextlib.suppress(EngineError, ValueError, TypeError, IndexError),
        as_file(files("warmer.handoff").joinpath("start.py")) as script,
    ):
        words = [interpreter, str(script), "--notes"]
        said = _run(words, quiet, timeout=_BINDING, doing="asking which packages are installed")
        notes = dict(json.loads(said[-1]))
    inside = os.path.join(beside, "")
    notes["libraries"] = sorted(path for path in libraries if not path.startswith(inside))
    with using("the warm dir"), open(place, "w", encoding="utf-8") as f:
        json.dump({"schema_version": 1, **notes}, f, sort_keys=True)


def by_content(
    tree: str, interpreter: str, *, package: str, environment: Mapping[str, str]
) -> Bound:
    """Bind every entry to the content of its source, and remove what cannot be bound.

    Args:
        tree: what PYTHONPYCACHEPREFIX named; nobody else writes to it now.
        interpreter: the engine's Python.
        package: what the tree was made for.
        environment: the whole environment of the build run; it decides Python's path.

    Raises:
        EngineError: it failed, or nothing of the package is left: no tree to publish.
    """
    quiet = {n: v for n, v in environment.items() if n != "PYTHONPYCACHEPREFIX"}
    quiet["PYTHONDONTWRITEBYTECODE"] = "1"
    with as_file(files("warmer.fill").joinpath("rehash.py")) as script:
        words = [interpreter, str(script), tree, package]
        said = _run(words, quiet, timeout=_BINDING, doing="binding bytecode to its sources")
    try:
        record = json.loads(said[-1])
        bound, found = Bound(int(record["kept"]), dict(record["dropped"])), record["found"]
    except (ValueError, TypeError, KeyError, IndexError) as exc:
        raise _failed("binding bytecode to its sources", "no answer", said) from exc
    if not found:
        raise EngineError(
            f"got {bound.kept} files of bytecode and none of {package}, expected its own",
            reason="no-bytecode",
            hint="does something in the image keep Python from writing any (-B, sitecustomize)?",
        )
    return bound


def _run(
    words: Sequence[str], environment: Mapping[str, str], *, timeout: float, doing: str
) -> list[str]:
    with process.spawned(words, environment) as python:
        try:
            out, _ = python.communicate(timeout=timeout)
        except subprocess.TimeoutExpired as exc:
            raise _failed(doing, f"no end within {timeout:.0f} s", []) from exc
    said = out.decode(errors="replace").splitlines()
    if python.returncode:
        raise _failed(doing, f"status {python.returncode}", said)
    return said


def _failed(doing: str, got: str, said: Sequence[str]) -> EngineError:
    tail = [f"  | {line[:400]}" for line in said[-_TAIL:]]
    return EngineError(
        "\n".join([f"got {got} from {doing}, expected it to succeed", *tail]),
        reason="bytecode-failed",
        hint="the server starts without; it compiles its sources at every start",
    )
