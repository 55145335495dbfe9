"""One run of the real engine, to build kernels: start, wait until ready, ask once, stop cleanly.

The engine runs in its own process group and dies with warmer: a vLLM server that is merely
killed leaves its EngineCore alive, holding the GPU's memory. What it says goes to a log file,
each line stamped with the seconds since its start.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Final

from warmer.errors import EngineError, using

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_HOST: Final = "127.0.0.1"
_POLL: Final = 0.2
_STOP_GRACE: Final = 30.0
"""Seconds a stopping engine has to end by itself before its group is killed."""
_SETTLE: Final = 60.0
"""Seconds a ready engine may go on writing kernels before it is asked to stop."""
_TAIL: Final = 12
"""Last lines of the log shown when the engine fails, after what they follow from."""
_CAUSE: Final = re.compile(r"(?:^|\] )((?:[\w.]*(?:Error|Exception)|Killed)\b: .*)")
"""The last line of a Python traceback, in a log line or alone."""

# Run by the child before it becomes the engine: ask the kernel to kill it when warmer dies
# (prctl(2), PR_SET_PDEATHSIG = 1), then exec. Without it `kill -9` of warmer leaves a GPU taken.
_LAUNCH: Final = (
    "import ctypes, os, sys;"
    "ctypes.CDLL(None, use_errno=True).prctl(1, 9, 0, 0, 0);"
    "os.execvpe(sys.argv[1], sys.argv[1:], os.environ)"
)
# Flags that say where the server listens: the build run listens where only we can ask.
_LISTENING: Final = ("--host", "--port", "--uds", "--ssl-", "--root-path")


@dataclass(frozen=True, slots=True)
class Run:
    """What a finished run took.

    Attributes:
        ready: seconds from start to the first 200 of ``/health``.
        answered: whether the one representative request was answered with 200.
        log: path of what the engine said.
    """

    ready: float
    answered: bool
    log: str


def run(
    *,
    command: Sequence[str],
    model_path: str,
    serve_argv: Sequence[str],
    environment: Mapping[str, str],
    log: str,
    timeout: float,
    settled: Callable[[], object],
    tick: Callable[[str], None],
) -> Run:
    """Run the engine once with the user's arguments and stop it.

    Args:
        command: what starts vLLM's command line.
        model_path: the model argument, at the path the server will use.
        serve_argv: the user's `vllm serve` arguments.
        environment: the whole environment of the engine.
        log: where its output goes.
        timeout: seconds until it must answer.
        settled: a snapshot of what the engine has written; taken until it stays the same.
        tick: called with the engine's latest line about five times a second.

    Raises:
        EngineError: it ended early, did not answer in time or did not stop; its last lines are
            shown. What it wrote is not to be used.
    """
    port = _free_port()
    argv = [*command, "serve", model_path, *_not_listening(serve_argv)]
    argv += ["--host", _HOST, "--port", str(port)]
    with using("the warm dir"):
        os.makedirs(os.path.dirname(log), exist_ok=True)
        out = open(log, "w", encoding="utf-8")  # noqa: SIM115 - closed below, after the reader
    tail = _Tail()
    started = time.monotonic()
    with out:
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", _LAUNCH, *argv],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        reader = threading.Thread(
            target=_copy, args=(process.stdout, out, tail, started), daemon=True
        )
        reader.start()
        try:
            _wait_ready(process, port, deadline=started + timeout, tail=tail, tick=tick)
            ready = time.monotonic() - started
            answered = _ask(port)
            _wait_settled(settled)
            _stop(process)
        except EngineError as exc:
            _kill(process)
            reader.join(5)
            raise EngineError(
                "\n".join([exc.message, *(f"  | {line}" for line in tail.shown())]),
                reason=exc.reason,
                hint=f"the whole log is at {log}",
            ) from exc
        finally:
            _kill(process)
            reader.join(5)
    return Run(ready, answered, log)


class _Tail:
    """What to show of a failed engine: the exceptions it named, then its last lines."""

    def __init__(self) -> None:
        self.last = ""
        self._lines: deque[str] = deque(maxlen=_TAIL)
        self._causes: dict[str, None] = {}

    def add(self, line: str) -> None:
        self.last = line[:400]
        self._lines.append(self.last)
        cause = _CAUSE.search(self.last)
        if cause and len(self._causes) < _TAIL:
            self._causes[cause[1]] = None

    def shown(self) -> list[str]:
        return [*self._causes, *self._lines]


def _not_listening(argv: Sequence[str]) -> list[str]:
    """Drop the flags that say where the server listens; each takes one value."""
    kept: list[str] = []
    words = iter(argv)
    for word in words:
        if word.startswith("--") and word.replace("_", "-").startswith(_LISTENING):
            if "=" not in word:
                next(words, None)
            continue
        kept.append(word)
    return kept


def _free_port() -> int:
    with socket.socket() as s:
        s.bind((_HOST, 0))
        return int(s.getsockname()[1])


def _copy(source: IO[bytes], out: IO[str], tail: _Tail, started: float) -> None:
    for raw in source:
        line = raw.decode(errors="replace").rstrip("\r\n")
        tail.add(line)
        with contextlib.suppress(ValueError, OSError):  # the log's disk is full: go on reading
            out.write(f"[+{time.monotonic() - started:.3f}] {line}\n")
            out.flush()


def _wait_ready(
    process: subprocess.Popen[bytes],
    port: int,
    *,
    deadline: float,
    tail: _Tail,
    tick: Callable[[str], None],
) -> None:
    while True:
        if process.poll() is not None:
            raise EngineError(
                f"the engine ended with status {process.returncode} before it was ready",
                reason="engine-exited",
            )
        if _status(port, "GET", "/health", None) == 200:
            return
        if time.monotonic() > deadline:
            raise EngineError(
                "the engine did not answer within --engine-timeout", reason="engine-timeout"
            )
        tick(tail.last)
        time.sleep(_POLL)


def _ask(port: int) -> bool:
    """Send one short greedy completion, so that kernels built on first use are built."""
    models = _request(port, "GET", "/v1/models", None, 30)
    with contextlib.suppress(ValueError, KeyError, IndexError, TypeError):
        name = json.loads(models[1])["data"][0]["id"]
        body = {"model": name, "prompt": "Hello, world", "max_tokens": 8, "temperature": 0}
        return _request(port, "POST", "/v1/completions", json.dumps(body), 600)[0] == 200
    return False


def _status(port: int, method: str, path: str, body: str | None) -> int:
    return _request(port, method, path, body, 5)[0]


def _request(
    port: int, method: str, path: str, body: str | None, timeout: float
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(_HOST, port, timeout=timeout)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"})
        reply = connection.getresponse()
        return reply.status, reply.read()
    except (OSError, http.client.HTTPException):
        return 0, b""
    finally:
        connection.close()


def _wait_settled(snapshot: Callable[[], object]) -> None:
    """Wait until two looks at the caches, half a second apart, see the same."""
    deadline = time.monotonic() + _SETTLE
    before = snapshot()
    while time.monotonic() < deadline:
        time.sleep(0.5)
        after = snapshot()
        if after == before:
            return
        before = after
    raise EngineError(
        f"the engine was still writing kernels after {_SETTLE:.0f} s of rest",
        reason="engine-restless",
    )


def _stop(process: subprocess.Popen[bytes]) -> None:
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


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(10)
