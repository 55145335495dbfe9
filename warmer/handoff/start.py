"""Become vLLM's command, with its imports made cheaper; run by the Python that vLLM runs on.

    python start.py [--record=FILE] <notes, or nothing> <command> [arguments]
    python start.py --notes

Most of a warm start is Python importing vLLM. Four things of that are avoidable. The garbage
collector goes over a million objects again and again that are all there to stay: it rests until the
imports are done, and leaves them alone afterwards, as vLLM itself does once it is ready.
transformers asks which packages are installed, for which Python reads the metadata of each; and it
reads the source of each of its models to know what they define. The notes hold both answers of the
build run, and are used where the same distributions are installed, and the models' files are as
many and as long; ``--notes`` prints them. Python's own stack, at last, gets room (`main`).

A start that somebody stops, a node that is drained, has not crashed. Only the process itself hears
of it: at SIGTERM the record of the start (`ready.py`) goes, and then the command is told. Not after
`_SOON`, when it may be a startup probe that gives up on kernels which hang the engine.

One file, the standard library alone, Python 3.9 or newer. Whatever fails here is left to the command:
one that does not begin with this very Python, a wrapper say, is run as it is. What differs from Python
running it: its process is named after this file, and a traceback begins with two lines of it.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import importlib.metadata
import json
import os
import shutil
import signal
import sys
import time
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import FrameType, ModuleType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Any

# What `vllm serve` imports before it looks at its arguments, in its order.
_IMPORTS = (
    "vllm.entrypoints.cli.benchmark.main",
    "vllm.entrypoints.cli.serve",
    "vllm.entrypoints.openai.api_server",
)
_SOON = 300.0
"""Seconds; startup probes that let a first compile pass wait longer."""


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
    """Have Python and transformers know what the notes say, where they are of this very path."""
    with open(notes, encoding="utf-8") as f:
        noted = json.load(f)
    if noted["installed"] != installed(sys.path):
        return
    if packages := {str(name): [str(one) for one in of] for name, of in noted["packages"].items()}:
        importlib.metadata.packages_distributions = lambda: {n: [*of] for n, of in packages.items()}
    if noted.get("models"):
        sys.meta_path.insert(0, Models(noted["models"]))


class Models:
    """Finds one module of transformers as Python does, and has it know what the models define.

    Args:
        noted: what `models` returned.
    """

    NAME = "transformers.utils.import_utils"

    def __init__(self, noted: Mapping[str, Any]) -> None:
        self._noted = noted

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find it, once; Python's own finders find all others."""
        if name != self.NAME:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and type(spec.loader) is SourceFileLoader:
            load = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                load(module)
                with contextlib.suppress(Exception):
                    self._tell(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]  # of this loader
        return spec

    def _tell(self, module: ModuleType) -> None:
        """Replace the answer for the one directory that holds all models, if it is the noted one."""
        where = os.path.join(os.path.dirname(os.path.dirname(str(module.__file__))), "models")
        if self._noted["files"] != counted(where):
            return
        ask = module.create_import_structure_from_path
        answer = unpacked(self._noted["found"])

        def create_import_structure_from_path(module_path: str | os.PathLike[str]) -> object:
            return answer if os.fspath(module_path) == where else ask(module_path)

        module.create_import_structure_from_path = create_import_structure_from_path  # type: ignore[attr-defined]


def counted(where: str) -> str:
    """Digest the names and lengths of all sources below a directory."""

    def below(path: str) -> Iterator[str]:
        with os.scandir(path) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.is_dir():
                    yield from below(entry.path)
                elif entry.name.endswith(".py"):
                    yield f"{entry.path[len(where) :]} {entry.stat().st_size}\n"

    return hashlib.sha256("".join(below(where)).encode()).hexdigest()


def packed(found: Mapping[Any, Any]) -> list[list[Any]]:
    """Make JSON of what transformers says of a directory: its keys are names, or sets of backends."""
    rows: list[list[Any]] = []
    for key, value in found.items():
        if isinstance(key, str):
            rows.append([key, packed(value)])
        else:
            rows.append([sorted(key), {name: sorted(of) for name, of in value.items()}])
    return rows


def unpacked(rows: Sequence[Any]) -> dict[Any, Any]:
    """Make of it what transformers said."""
    found: dict[Any, Any] = {}
    for key, value in rows:
        if isinstance(key, str):
            found[key] = unpacked(value)
        else:
            found[frozenset(key)] = {name: set(of) for name, of in value.items()}
    return found


def heed(record: str) -> None:
    """Have SIGTERM take the record of this start away, whatever handler the command installs.

    Until it installs one, the process ends as without any: also as a container's first process,
    which a signal does not end by itself.
    """
    mine, began, install = os.getpid(), time.monotonic(), signal.signal

    def forget() -> None:
        if os.getpid() == mine and time.monotonic() - began < _SOON:
            with contextlib.suppress(OSError):
                os.unlink(record)

    def end(number: int, _frame: FrameType | None) -> None:
        forget()
        install(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        os._exit(128 + number)

    def noted(number: int, handler: Any) -> Any:
        if number != signal.SIGTERM or not callable(handler):
            return install(number, handler)

        def note(signum: int, frame: FrameType | None) -> None:
            forget()
            handler(signum, frame)

        return install(number, note)

    def in_child() -> None:
        if signal.getsignal(signal.SIGTERM) is end:
            install(signal.SIGTERM, signal.SIG_DFL)

    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        install(signal.SIGTERM, end)
        os.register_at_fork(after_in_child=in_child)
    signal.signal = noted  # type: ignore[assignment]  # its own names what handlers there are


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


def main(
    notes: str,
    command: Sequence[str],
    record: str = "",
    handed: Callable[[Sequence[str]], Sequence[str]] = lambda command: command,
) -> None:
    """Import, then run the command as Python itself would have.

    Args:
        notes: the file of them.
        command: the command.
        record: that of this start, which goes where somebody stops it; empty without.
        handed: called once all is imported; returns the command to run, of the same program.
    """
    module = command[2] if command[1:2] == ["-m"] else ""
    if not (module or begins_with(command[0], sys.executable)):
        os.execv(command[0], [*command])  # noqa: S606 - not ours to run
    pose(command, module)
    if not getattr(sys.flags, "safe_path", False):
        script = os.path.realpath(command[0])
        sys.path[0] = os.getcwd() if module else os.path.dirname(script)
    if record:
        heed(record)
    collects = gc.isenabled()
    gc.disable()
    with contextlib.suppress(Exception):
        remember(notes)
    with contextlib.suppress(Exception):
        for name in _IMPORTS:
            __import__(name)
    command = handed(command)
    pose(command, module)
    if collects:
        gc.enable()
    gc.freeze()
    run(module, command[0])


# Python keeps frames in chunks of 16 KiB, and until late in 3.13 maps and unmaps one for each call that
# crosses an end: a graph was unpickled three times as slowly just there (CPython's issue 142183). A
# frame that wants half of a larger chunk gets one, untouched, and all that it calls has the rest.
main.__code__ = main.__code__.replace(co_stacksize=1 << 15)


def pose(command: Sequence[str], module: str) -> None:
    """Have the arguments that Python gives to this command."""
    sys.argv[:] = command[2:] if module else command
    if hasattr(sys, "orig_argv"):  # since 3.10
        sys.orig_argv[:] = command if module else [sys.executable, *command]


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
    """Ask what `remember` will answer."""
    ask = getattr(importlib.metadata, "packages_distributions", dict)
    noted = {"installed": installed(sys.path), "packages": ask()}
    with contextlib.suppress(Exception):  # no transformers, or one that does not ask
        module = importlib.import_module(Models.NAME)
        where = os.path.join(os.path.dirname(os.path.dirname(str(module.__file__))), "models")
        found = module.create_import_structure_from_path(where)
        noted["models"] = {"files": counted(where), "found": packed(found)}
    return noted


if __name__ == "__main__":
    if sys.argv[1:] == ["--notes"]:
        print(json.dumps(take()))  # noqa: T201 - the answer
    else:
        given = sys.argv[1:]
        of = given.pop(0).partition("=")[2] if given[0].startswith("--record=") else ""
        main(given[0], given[1:], of)
