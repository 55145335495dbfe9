"""Become vLLM's command, with its imports made cheaper; run by the Python that vLLM runs on.

    python start.py <notes, or nothing> <command> [arguments]
    python start.py --notes

Most of a warm start is Python importing vLLM. Two things of that are avoidable. The garbage
collector goes over a million objects again and again that are all there to stay: it rests until the
imports are done, and leaves them alone afterwards, as vLLM itself does once it is ready. And
transformers asks which packages are installed, for which Python reads the metadata of each: the
notes hold the answer of the build run, and are used where the same distributions are installed;
``--notes`` prints them.

One file, the standard library alone, Python 3.9 or newer. Whatever fails here is left to the command.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import json
import os
import runpy
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# What `vllm serve` imports before it looks at its arguments, in its order.
_IMPORTS = (
    "vllm.entrypoints.cli.benchmark.main",
    "vllm.entrypoints.cli.serve",
    "vllm.entrypoints.openai.api_server",
)


def installed(path: Sequence[str]) -> dict[str, list[str]]:
    """Name the distributions in each directory of a Python path that has any."""
    found: dict[str, list[str]] = {}
    for entry in path:
        try:
            names = os.listdir(entry or ".")
        except OSError:
            continue
        some = sorted(n for n in names if n.endswith((".dist-info", ".egg-info", ".egg-link")))
        if some:
            found[entry] = some
    return found


def remember(notes: str) -> None:
    """Have Python know which packages are installed, where the notes are of this very path."""
    with open(notes, encoding="utf-8") as f:
        noted = json.load(f)
    packages: Mapping[str, list[str]] = noted["packages"]
    if not packages or noted["installed"] != installed(sys.path):
        return

    def packages_distributions() -> dict[str, list[str]]:
        return {name: list(of) for name, of in packages.items()}

    importlib.metadata.packages_distributions = packages_distributions


def main(notes: str, command: Sequence[str]) -> None:
    """Import, then run the command as Python itself would have."""
    module = command[2] if command[1:2] == ["-m"] else ""
    sys.argv[:] = command[2:] if module else command
    if not getattr(sys.flags, "safe_path", False):
        script = os.path.realpath(command[0])
        sys.path[0] = os.getcwd() if module else os.path.dirname(script)
    gc.disable()
    with contextlib.suppress(Exception):
        remember(notes)
    with contextlib.suppress(Exception):
        for name in _IMPORTS:
            __import__(name)
    gc.enable()
    gc.freeze()
    if module:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(command[0], run_name="__main__")


def take() -> dict[str, object]:
    """Ask which packages are installed, as `remember` will answer."""
    ask = getattr(importlib.metadata, "packages_distributions", dict)
    packages = {name: sorted(set(of)) for name, of in sorted(ask().items())}
    return {"installed": installed(sys.path), "packages": packages}


if __name__ == "__main__":
    if sys.argv[1:] == ["--notes"]:
        print(json.dumps(take()))  # noqa: T201 - the answer
    else:
        main(sys.argv[1], sys.argv[2:])
