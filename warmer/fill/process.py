"""One process group: started so that it never outlives warmer, stopped so that it is whole.

A vLLM server that is merely killed leaves its EngineCore alive, holding the GPU's memory. So the
engine leads a group of its own, the group is killed at the end, and a watchdog kills it where
warmer itself was killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, Final

from warmer.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_STOP_GRACE: Final = 30.0
"""Seconds a stopping engine has to end by itself before its group is killed."""

# What the child does before it becomes the engine: take signals again (they are held while it is
# started), and ask the kernel to kill it when warmer dies (prctl(2), PR_SET_PDEATHSIG = 1).
_LAUNCH: Final = (
    "import ctypes, os, signal, sys;"
    "signal.pthread_sigmask(signal.SIG_SETMASK, ());"
    "ctypes.CDLL(None).prctl(1, 9, 0, 0, 0);"
    "os.getppid() == int(sys.argv[1]) or sys.exit(1);"
    "os.execvpe(sys.argv[2], sys.argv[2:], os.environ)"
)
# What outlives a killed warmer: the engine's own children do not die with the server, and hold
# the GPU's memory. A pipe that closes without a word means that warmer is gone.
_WATCH: Final = """\
import os, signal, sys
if not os.read(0, 1):
    try:
        os.killpg(int(sys.argv[1]), signal.SIGKILL)
    except ProcessLookupError:
        pass
"""


_LIBRARY: Final = re.compile(r" (/[^\n]*\.so(?:\.[0-9]+)*)$", re.MULTILINE)


def python(module: str, *words: str) -> list[str]:
    """Make the command of another process of this very warmer, wherever that is imported from.

    Args:
        module: whose ``main`` is called with the words.
        words: its arguments; whoever may list processes reads them.
    """
    package, _, name = module.rpartition(".")
    run = (
        "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1));"
        f"from {package} import {name}; {name}.main(sys.argv[1:])"
    )
    return [sys.executable, "-I", "-c", run, json.dumps(sys.path), *words]


@contextlib.contextmanager
def spawned(
    argv: Sequence[str], environment: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """Start the engine in a process group of its own, and a watchdog over the group.

    Raises:
        EngineError: there can be no more processes, or what they need.
    """
    held = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
    try:
        process = _popen(
            [sys.executable, "-I", "-c", _LAUNCH, str(os.getpid()), *argv],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        watchdog = None
        try:
            watchdog = _popen(
                [sys.executable, "-I", "-S", "-c", _WATCH, str(process.pid)],
                env=dict(environment),
                stdin=subprocess.PIPE,
            )
            signal.pthread_sigmask(signal.SIG_SETMASK, held)
            yield process
        finally:
            kill(process)
            if watchdog is not None:
                with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                    watchdog.communicate(b".", timeout=10)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


def _popen(argv: Sequence[str], **how: Any) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(argv, start_new_session=True, **how)
    except OSError as exc:
        raise EngineError(
            f"got no process for the engine ({exc.strerror or exc}), expected one",
            reason="no-process",
            hint="look at the container's limit of processes (pids) and at the node's memory",
        ) from exc


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ask the server to end as a pod's would: SIGTERM, then wait for the whole group.

    Raises:
        EngineError: it had ended by itself, or did not end: what it wrote may be torn.
    """
    if process.poll() is not None:
        raise EngineError(
            f"the engine ended with status {process.returncode} at its first request",
            reason="engine-exited",
        )
    process.terminate()
    deadline = time.monotonic() + _STOP_GRACE
    while time.monotonic() < deadline:
        if process.poll() is not None and not _group_alive(process.pid):
            return
        time.sleep(0.05)
    raise EngineError(f"the engine did not stop within {_STOP_GRACE:.0f} s", reason="engine-stuck")


def listens(process: subprocess.Popen[bytes], port: int) -> bool:
    """Whether some process of the group is the one that listens on a loopback port."""
    listening = f":{port:04X} 00000000:0000 0A "
    sockets = set()
    with contextlib.suppress(OSError), open("/proc/net/tcp", encoding="ascii") as f:
        sockets = {f"socket:[{line.split()[9]}]" for line in f if listening in line}
    for pid in _members(process):
        with contextlib.suppress(OSError):  # it ended meanwhile
            if {os.readlink(fd.path) for fd in os.scandir(f"/proc/{pid}/fd")} & sockets:
                return True
    return False


def libraries(process: subprocess.Popen[bytes]) -> tuple[str, ...]:
    """Name the shared libraries that processes of the group have mapped, sorted."""
    found: set[str] = set()
    for pid in _members(process):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/maps", "rb") as f:
            found.update(mapped(os.fsdecode(f.read())))
    return tuple(sorted(found))


def mapped(maps: str) -> set[str]:
    """Read the shared libraries out of what ``/proc/<pid>/maps`` says."""
    return {found[1] for found in _LIBRARY.finditer(maps)}


def _members(process: subprocess.Popen[bytes]) -> Iterator[str]:
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # it ended meanwhile
            if os.getpgid(int(pid)) == process.pid:
                yield pid


def _group_alive(group: int) -> bool:
    """Whether a process of the group is left; as PID 1, warmer inherits and reaps its orphans."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-group, os.WNOHANG)[0]:
            pass
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the whole group and reap its leader; harmless when it is gone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(10)
