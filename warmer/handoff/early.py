"""Import vLLM before the handoff is there, and become its server once it is.

    python early.py <handoff directory> <seconds> <what is foretold> [arguments]
    python3 -IS early.py --hold <socket> <cold> <record, or nothing> <command> [arguments]

`warmer serve --wait` runs the first, by the Python that vLLM runs on, in the environment that a prefill
which is still at work has foretold. It imports as `start.py` does, waits for the handoff, and has the
handed-off `serve` decide as at any start; but instead of becoming vLLM, `serve` becomes the second,
which tells what it would have run, and in which environment. Where that is the environment that was
foretold, and no start has crashed, this process goes on to be the server. Else it is thrown away: it
runs what `serve` would have run, as a fresh program. It never goes on in an environment that is not
the handoff's, and no start is counted twice.

The second holds what a server inherits from `serve`: the locks, and being the process that is watched. It
ends when the server does, by the other end of its socket.

One file, the standard library alone, Python 3.9 or newer.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import NoReturn

HOLD = "WARMER_HOLD"
"""The variable by which `serve` learns to hold; its value is the socket's number."""
_LATE = ("INSTANTTENSOR_BACKEND", "VLLM_ENABLE_STARTUP_PLAN", "VLLM_WORKER_MULTIPROC_METHOD")
"""What is read when vLLM starts its engine, and not while it is imported."""
_PLAIN = ("_", "LC_CTYPE", "OLDPWD", "PWD", "SHLVL", HOLD)
"""What shells and Python itself set."""
_POLL, _ANSWER = 0.1, 120.0
_ANSWERED = ("cold", "record", "command", "environment")
_LATE_CODE = 3


def hold(number: str, cold: str, record: str, *command: str) -> None:
    """Tell what would be run, then hold on to what was inherited until the server ends."""
    with socket.socket(fileno=int(number)) as server:
        environment = {name: value for name, value in os.environ.items() if name != HOLD}
        answer = {"cold": cold, "record": record, "command": command, "environment": environment}
        try:
            server.sendall(json.dumps(answer).encode())
            server.shutdown(socket.SHUT_WR)
        except OSError:  # who asked is gone, and has loaded no kernel
            forget(record)
            return
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's is for the server
        with contextlib.suppress(OSError):
            server.recv(1)


def forget(record: str) -> None:
    """Remove the record of a start that is none; empty where it has none."""
    with contextlib.suppress(OSError):
        os.unlink(record)


class Waiter:
    """A process that waits for the handoff and knows what it was started with."""

    def __init__(self, directory: str, seconds: float) -> None:
        self.directory = directory
        self.until = time.monotonic() + seconds
        self.original: Mapping[str, str] = {}
        self.foretold = dict(os.environ)
        self.record = ""
        self.asking = False
        self.stopped = 0

    def ends(self, number: int, _frame: object) -> None:
        """End as a process that waits: one that is the first of its container has no default.

        Not while `serve` is asked, unless at the second signal: what it says tells what to take back.
        """
        if self.asking and not self.stopped:
            self.stopped = number
            return
        forget(self.record)
        os._exit(128 + number)

    def wait(self) -> None:
        """Wait until the handoff is there; without one in time, end with 3."""
        record = os.path.join(self.directory, "handoff.json")
        while not os.path.exists(record):
            if time.monotonic() > self.until:
                sys.stderr.write(
                    f"warmer: got no handoff in {self.directory} in time, expected one\n"
                    "hint: the log of warmer prefill says why; --wait bounds the waiting\n"
                )
                sys.stderr.flush()
                os._exit(_LATE_CODE)
            time.sleep(_POLL)

    def ask(self, words: Sequence[str]) -> tuple[dict[str, object], socket.socket] | None:
        """Run `serve`, which decides and holds; None where it does not say how it decided."""
        self.asking = True
        try:
            return self._ask(words)
        finally:
            self.asking = False
            if self.stopped:
                self.ends(self.stopped, None)

    def _ask(self, words: Sequence[str]) -> tuple[dict[str, object], socket.socket] | None:
        mine, theirs = socket.socketpair()
        number = theirs.fileno()
        environment = {**self.original, HOLD: str(number)}
        script = os.path.join(self.directory, "serve")
        try:
            child = subprocess.Popen(
                [script, *words], env=environment, pass_fds=(number,), stdin=subprocess.DEVNULL
            )
        except OSError:
            return None
        finally:
            theirs.close()
        mine.settimeout(_ANSWER)
        said = b""
        try:
            while more := mine.recv(1 << 16):
                said += more
            answer = json.loads(said)
            found = {name: answer[name] for name in _ANSWERED}
        except (OSError, ValueError, KeyError, TypeError):
            mine.close()
            child.kill()
            child.wait()
            return None
        self.record = str(found["record"])
        return found, mine

    def same(self, environment: Mapping[str, str]) -> bool:
        """Whether this process was started in the environment that the server must have."""
        apart = (*_PLAIN, *_LATE)
        one, two = (
            {n: v for n, v in some.items() if n not in apart}
            for some in (self.foretold, environment)
        )
        return one == two

    def become(self, command: Sequence[str], words: Sequence[str]) -> list[str]:
        """Return the command that this process goes on as, or become a fresh one.

        Args:
            command: what was foretold to run, and imported for.
            words: further arguments.
        """
        self.wait()
        found = self.ask(words)
        if found is None:
            self.afresh(os.path.join(self.directory, "serve"), words, self.original)
        answer, held = found
        whole: list[str] = list(map(str, answer["command"]))  # type: ignore[call-overload]
        environment: dict[str, str] = dict(answer["environment"])  # type: ignore[call-overload]
        other = whole[: len(command)] != list(command) or answer["cold"] != "0"
        if other or not self.same(environment):
            os.set_inheritable(held.fileno(), True)  # noqa: FBT003 - its only parameter
            self.afresh(whole[0], whole[1:], environment)
        held.detach()  # open until this process, and whatever it forks, has ended
        for name in _LATE:
            os.environ.pop(name, None)
            if name in environment:
                os.environ[name] = environment[name]
        return whole

    @staticmethod
    def afresh(program: str, words: Sequence[str], environment: Mapping[str, str]) -> NoReturn:
        """Throw away what was imported, and run a program in this process's place."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        os.execvpe(program, [program, *words], dict(environment))  # noqa: S606 - to become it


def main(directory: str, seconds: str, told: str, *words: str) -> None:
    """Import, wait, and become the server.

    Args:
        directory: where the handoff will be.
        seconds: how long to wait for it.
        told: a descriptor from which is read what is foretold, and the environment without it.
        words: further arguments of `vllm serve`.
    """
    waiter = Waiter(directory, float(seconds))
    stops = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, waiter.ends) for number in stops}
    with open(int(told), encoding="utf-8") as f:
        early = json.load(f)
    waiter.original = early["original"]
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    import start  # type: ignore[import-not-found]  # noqa: PLC0415 - the file beside this one

    del sys.path[0], sys.modules["start"]

    becoming = False

    def handed(command: Sequence[str]) -> Sequence[str]:
        nonlocal becoming
        whole = waiter.become(command, words)
        for number, handler in before.items():
            signal.signal(number, handler)
        becoming = True
        if waiter.record:
            start.heed(waiter.record)
        return whole

    command = [str(word) for word in early["command"]]
    if command[1:2] == ["-m"] or start.begins_with(command[0], sys.executable):
        try:
            start.main(early["notes"], command, handed=handed)
        except BaseException as exc:
            if becoming:
                raise
            sys.stderr.write(f"warmer: {exc!r} while vLLM was imported: it is started anew\n")
        else:
            return
    waiter.wait()
    waiter.afresh(os.path.join(directory, "serve"), words, waiter.original)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--hold"]:
        hold(*sys.argv[2:])
    else:
        main(*sys.argv[1:])
