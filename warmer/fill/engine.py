"""One run of the real engine, to build kernels: start, wait until ready, ask once, stop cleanly.

What it says goes to a log file, each line stamped with the seconds since its start. What a run
that did not end well has written is not to be used.
"""

from __future__ import annotations

import contextlib
import http
import http.client
import json
import os
import re
import socket
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Final

from warmer.errors import EngineError, using
from warmer.fill import process

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Mapping, Sequence

_HOST: Final = "127.0.0.1"
_POLL: Final = 0.2
_SETTLE: Final = 60.0
"""Seconds a ready engine may go on writing kernels before it is asked to stop."""
_TAIL: Final = 12
"""Last lines of the log shown when the engine fails, after what they follow from."""
_CAUSE: Final = re.compile(r"(?:^|\] )((?:[\w.]*(?:Error|Exception)|Killed)\b: .*)")
"""The last line of a Python traceback, in a log line or alone."""

# Flags that say where the server listens: the build run listens where only we can ask.
_LISTENING: Final = ("--host", "--port", "--uds", "--ssl-", "--root-path", "--grpc")


@dataclass(frozen=True, slots=True)
class Run:
    """What a finished run took.

    Attributes:
        ready: seconds from start to the first 200 of ``/health``.
        status: of the answer to the one representative request; 0 where there was none.
        tokens: ids of what it completed; empty where vLLM does not tell.
        log: path of what the engine said.
        libraries: shared libraries that its processes had mapped.
    """

    ready: float
    status: int
    log: str
    libraries: tuple[str, ...] = ()
    tokens: tuple[int, ...] = ()

    @property
    def answered(self) -> bool:
        """Whether the request was answered as a language model does."""
        return self.status == http.HTTPStatus.OK

    @property
    def broke(self) -> bool:
        """Whether the engine failed at the request; a pooling model refuses it, and is well."""
        refused = self.status == http.HTTPStatus.NOT_IMPLEMENTED
        return not self.status or (
            self.status >= http.HTTPStatus.INTERNAL_SERVER_ERROR and not refused
        )


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
    with out, process.spawned(argv, environment) as server:
        reader = threading.Thread(
            target=_copy, args=(server.stdout, out, tail, started), daemon=True
        )
        reader.start()
        try:
            _wait_ready(server, port, deadline=started + timeout, tail=tail, tick=tick)
            ready = time.monotonic() - started
            status, tokens = _ask(port)
            libraries = process.libraries(server)
            _wait_settled(settled)
            process.stop(server)
        except EngineError as exc:
            process.kill(server)
            reader.join(5)
            raise EngineError(
                "\n".join([exc.message, *(f"  | {line}" for line in tail.shown())]),
                reason=exc.reason,
                hint=f"the whole log is at {log}",
            ) from exc
        finally:
            process.kill(server)
            reader.join(5)
    return Run(ready, status, log, libraries, tokens)


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
    """Drop the flags that say where and how the server listens; each takes one value at most."""
    kept: list[str] = []
    value = False
    for word in argv:
        if word.startswith("--") and word.replace("_", "-").startswith(_LISTENING):
            value = "=" not in word and word != "--grpc"
        elif value:
            value = False
        else:
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
    server: subprocess.Popen[bytes],
    port: int,
    *,
    deadline: float,
    tail: _Tail,
    tick: Callable[[str], None],
) -> None:
    while True:
        if server.poll() is not None:
            raise EngineError(
                f"the engine ended with status {server.returncode} before it was ready",
                reason="engine-exited",
            )
        # Where pods share a network, another engine may have been given the same port.
        if _status(port, "GET", "/health", None) == 200 and process.listens(server, port):
            return
        if time.monotonic() > deadline:
            raise EngineError(
                "the engine did not answer within --engine-timeout", reason="engine-timeout"
            )
        tick(tail.last)
        time.sleep(_POLL)


def _ask(port: int) -> tuple[int, tuple[int, ...]]:
    """Ask for one short greedy completion, so that kernels built on first use are built.

    Returns:
        The status of the answer, and its tokens where it tells them.
    """
    status, models = _request(port, "GET", "/v1/models", None, 30)
    with contextlib.suppress(ValueError, KeyError, IndexError, TypeError):
        name = json.loads(models)["data"][0]["id"]
        body = {"model": name, "prompt": "Hello, world", "max_tokens": 8, "temperature": 0}
        body["return_token_ids"] = True
        status, answer = _request(port, "POST", "/v1/completions", json.dumps(body), 600)
        return status, _tokens(answer) if status == http.HTTPStatus.OK else ()
    return (status if status != http.HTTPStatus.OK else http.HTTPStatus.NOT_FOUND), ()


def _tokens(answer: bytes) -> tuple[int, ...]:
    with contextlib.suppress(ValueError, KeyError, IndexError, TypeError):
        return tuple(int(token) for token in json.loads(answer)["choices"][0]["token_ids"])
    return ()


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
