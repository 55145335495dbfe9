"""What engine is installed, read from its files; and the note of it that a server's start leaves.

One file, the standard library alone, Python 3.9 or newer: `warmer.observe.stack` asks it here, and
a copy in the handoff is run in the server's container, by the Python that the server runs on. There
it writes ``server.json``: how this server was started, and on what. Names, versions and counts are
noted, no words and no values: those may be secrets.

The note is locked (flock) by a descriptor that the server inherits, before it has its name. Nothing
here may keep a server from starting; a start that is not noted is not harvested.
"""

from __future__ import annotations

import os
import re
import shutil
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

_VERSION = re.compile(r"^__version__\s*(?:=\s*version\s*)?=\s*['\"]([^'\"]+)['\"]", re.MULTILINE)
_CUDA = re.compile(r"^cuda\b[^=\n]*=\s*['\"]([^'\"]+)['\"]", re.MULTILINE)
_EXEC = re.compile(r"""'''exec' (?:"([^"]+)"|(\S+)) """)
_DIST_INFO = re.compile(r"(.+?)-([^-]+)\.(?:dist|egg)-info$")


def engine(paths: Sequence[str]) -> dict[str, Any] | None:
    """Read which vLLM these import paths lead to; None where there is none.

    Returns:
        `site`, the directory it is in; the versions `vllm`, `torch` and `cuda`; `packages`, the
        version of every installed distribution.
    """
    site = next((p for p in paths if os.path.isfile(os.path.join(p, "vllm", "_version.py"))), None)
    if site is None:
        return None
    torch = next((f for p in paths if os.path.isfile(f := _torch_version(p))), None)
    return {
        "site": site,
        "vllm": _match(_VERSION, os.path.join(site, "vllm", "_version.py")) or "unknown",
        "torch": (torch and _match(_VERSION, torch)) or "none",
        "cuda": _match(_CUDA, torch) if torch else None,
        "packages": packages(paths),
    }


def python() -> str:
    """Name the version of this interpreter, without what a build adds."""
    return ".".join(str(part) for part in sys.version_info[:3])


def libc() -> str:
    """Name this image's C library and its version."""
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or "unknown"
    except (OSError, ValueError):  # musl has no such name
        return "unknown"


def interpreter(script: str) -> str | None:
    """Read which Python a script runs on; None where its first lines do not say.

    Both forms that installers write are read: ``#!/path/python``, and for long paths
    ``#!/bin/sh`` with ``'''exec' /path/python "$0" "$@"`` on the second line.

    Raises:
        OSError: it cannot be read.
    """
    with open(script, "rb") as f:
        first, second = f.readline(4096), f.readline(4096)
    words = os.fsdecode(first)[2:].split() if first.startswith(b"#!") else []
    if words and os.path.basename(words[0]) == "env" and len(words) > 1:
        return shutil.which(words[-1])
    if words and os.path.basename(words[0]) in ("sh", "bash", "dash"):
        match = _EXEC.match(os.fsdecode(second))
        words = [match[1] or match[2]] if match else []
    if words and os.path.basename(words[0]).startswith("python"):
        return words[0]
    return None


def packages(paths: Iterable[str]) -> dict[str, str]:
    """Name every installed distribution by its metadata directory; the first on the path wins."""
    found: dict[str, str] = {}
    for path in paths:
        try:
            names = sorted(os.listdir(path or "."))
        except OSError:
            continue
        for name in names:
            match = _DIST_INFO.match(name)
            if match:
                found.setdefault(re.sub(r"[-_.]+", "-", match[1]).lower(), match[2])
    return found


def _torch_version(path: str) -> str:
    return os.path.join(path, "torch", "version.py")


def _match(pattern: re.Pattern[str], path: str) -> str | None:
    with open(path, encoding="utf-8", errors="replace") as f:
        match = pattern.search(f.read())
    return match[1] if match else None


def seen(program: str) -> dict[str, Any]:
    """Describe what a server started here by `program` runs on; its Python is the one that asks.

    Where the program runs on another Python, `interpreter` says which, and what else is told is of
    no use.
    """
    runs_on = sys.executable if os.path.basename(program).startswith("python") else None
    return {
        **(engine(sys.path[1:]) or {}),  # without the directory that this file is in
        "command": program,
        "interpreter": runs_on or interpreter(program),
        "python": python(),
        "libc": libc(),
        "threads": len(os.sched_getaffinity(0)),
    }


def files(keys: str) -> dict[str, str | None]:
    """Hash the files that the keys name, such as vLLM's own YAML: path → sha256, None without it.

    Raises:
        OSError: the keys cannot be read.
        ValueError: as above.
    """
    import hashlib  # noqa: PLC0415 - a look needs none
    import json  # noqa: PLC0415 - as above

    with open(keys, encoding="utf-8") as f:
        factors = [name for key in json.load(f)["keys"].values() for name in key]
    found: dict[str, str | None] = {}
    for name in factors:
        if name.startswith("file."):
            path = name[len("file.") :]
            found[path] = None
            if os.path.isfile(path):
                with open(path, "rb") as file:
                    found[path] = hashlib.sha256(file.read()).hexdigest()
    return found


def note(descriptor: int, fresh: str, path: str, record: Mapping[str, Any]) -> None:
    """Write a note through a descriptor that the server inherits, lock it, and give it its name.

    Raises:
        OSError: the warm dir failed.
    """
    import fcntl  # noqa: PLC0415 - a look needs none
    import json  # noqa: PLC0415 - as above

    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    data = (json.dumps(record) + "\n").encode()
    while data:
        data = data[os.write(descriptor, data) :]
    os.rename(fresh, path)


def main(words: Sequence[str]) -> int:
    """Note one start.

    Args:
        words: the descriptor, the path it was opened by, and the note's; the handoff's identity;
            how many arguments the server is given besides; whether this is the first start in the
            warm dir (``yes``); whether its caches are elsewhere (9); the program, empty where it
            is not there; names of variables that no key holds.
    """
    descriptor, fresh, path, handoff, extra, first, cold, program, *unknown = words
    record = {
        "schema_version": 1,
        "handoff": handoff,
        "extra": int(extra),
        "unknown": unknown,
        "first": first == "yes",
        "cold": cold == "9",
    }
    try:
        record["engine"] = seen(program)
        record["files"] = files(os.path.join(os.path.dirname(__file__), "keys.json"))
    except (OSError, ValueError, KeyError) as exc:
        record["engine"] = {"unreadable": type(exc).__name__}
    try:
        note(int(descriptor), fresh, path, record)
    except OSError as exc:
        sys.stderr.write(f"warmer: {exc.strerror}: what this server builds is not harvested\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
