"""Become vLLM's command, with its imports made cheaper; run by the Python that vLLM runs on.

    python start.py <notes, or nothing> <command> [arguments]
    python start.py --notes

Most of a warm start is Python importing vLLM. Two things of that are avoidable. The garbage
collector goes over a million objects again and again that are all there to stay: it rests until the
imports are done, and leaves them alone afterwards, as vLLM itself does once it is ready. And
transformers asks which packages are installed, for which Python reads the metadata of each: the
notes hold the answer of the build run, and are used where the same distributions are installed;
``--notes`` prints them.

One file, the standard library alone, Python 3.9 or newer. Whatever fails here is left to the command:
one that does not begin with this very Python, a wrapper say, is run as it is. What differs from Python
running it: its process is named after this file, and a traceback begins with two lines of it.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import json
import os
import shutil
import sys
from importlib.machinery import SourceFileLoader
from types import ModuleType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

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
    packages = {str(name): [str(one) for one in of] for name, of in noted["packages"].items()}
    if not packages or noted["installed"] != installed(sys.path):
        return

    def packages_distributions() -> dict[str, list[str]]:
        return {name: list(of) for name, of in packages.items()}

    importlib.metadata.packages_distributions = packages_distributions


def begins_with(script: str, python: str) -> bool:
    """Whether a script is run by `python` and without options: as installers write it.

    Long paths stand in the second line: ``'''exec' /long/path/python "$0" "$@"``.
    """
    with open(script, "rb") as f:
        first, second = (os.fsdecode(f.readline(4096)).strip() for _ in range(2))
    words = first[2:].split() if first.startswith("#!") else []
    if len(words) == 2 and os.path.basename(words[0]) == "env":
        return shutil.which(words[1]) == python
    forms = [f"'''exec' {path} \"$0\" \"$@\"" for path in (python, f'"{python}"')]
    return first == f"#!{python}" or (first == "#!/bin/sh" and second in forms)


def main(notes: str, command: Sequence[str]) -> None:
    """Import, then run the command as Python itself would have."""
    module = command[2] if command[1:2] == ["-m"] else ""
    if not (module or begins_with(command[0], sys.executable)):
        os.execv(command[0], [*command])  # noqa: S606 - not ours to run
    sys.argv[:] = command[2:] if module else command
    if hasattr(sys, "orig_argv"):  # since 3.10
        sys.orig_argv[:] = command if module else [sys.executable, *command]
    if not getattr(sys.flags, "safe_path", False):
        script = os.path.realpath(command[0])
        sys.path[0] = os.getcwd() if module else os.path.dirname(script)
    collects = gc.isenabled()
    gc.disable()
    with contextlib.suppress(Exception):
        remember(notes)
    with contextlib.suppress(Exception):
        for name in _IMPORTS:
            __import__(name)
    if collects:
        gc.enable()
    gc.freeze()
    run(module, command[0])


def run(module: str, script: str) -> None:
    """Be ``__main__`` as Python makes it, which starts of further processes read."""
    fresh = ModuleType("__main__")
    fresh.__dict__["__builtins__"] = __builtins__
    sys.modules["__main__"] = fresh
    if module:
        import runpy  # noqa: PLC0415 - what Python itself calls for -m

        runpy._run_module_as_main(module)  # type: ignore[attr-defined]  # noqa: SLF001
        return
    path = os.path.abspath(script)
    loader = SourceFileLoader("__main__", path)
    fresh.__dict__.update(__file__=path, __cached__=None, __loader__=loader)
    exec(loader.source_to_code(loader.get_data(path), path), fresh.__dict__)  # noqa: S102


def take() -> dict[str, object]:
    """Ask which packages are installed, as `remember` will answer."""
    ask = getattr(importlib.metadata, "packages_distributions", dict)
    return {"installed": installed(sys.path), "packages": ask()}


if __name__ == "__main__":
    if sys.argv[1:] == ["--notes"]:
        print(json.dumps(take()))  # noqa: T201 - the answer
    else:
        main(sys.argv[1], sys.argv[2:])
