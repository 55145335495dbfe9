"""Count the starts that end before the server is ready: after two, start without the kernels.

A kernel that crashes the engine at load does so at every start, and the kubelet starts the server's
container again, never warmer's. So `serve` asks here before it becomes vLLM. One file, the standard
library alone, Python 3.9 or newer, run as ``python3 -IS ready.py``.

A start leaves a record, by rename, never half there. A process that stays behind keeps it locked and
takes it away when the server answers ``/health``, or lives after an hour, and ends. A record that
nobody locks is of a start that ended too early. A later start names it on the volume, where it may
write there, so that other pods learn of it; a start that is ready acquits its kernels. Printed is
the record's path: `start.py` takes it away when somebody stops the server.

Exit status: 9 start without the kernels; 8 with them, without the levers on trial: a start crashed, or
would not be counted; 0 with both. Whatever else Python ends with counts as 8.
"""

from __future__ import annotations

import fcntl
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

WITH, PLAIN, WITHOUT = 0, 8, 9
_CRASHES = 2
_PATIENCE, _POLL, _ANSWER = 3600.0, 0.1, 5.0  # s; what lives for an hour did not crash at load
_HERE = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - asked from here
_READY, _ENDED, _OLD = "ready", "ended", "old"


class Server:
    """Where a server will answer: a TCP port, or the path of a socket.

    Of one that is not `plain` HTTP the open port alone is seen: vLLM listens when it is ready.
    """

    def __init__(self, host: str, port: int, uds: str, *, plain: bool) -> None:
        self.address, self.uds, self.plain = (host, port), uds, plain

    def ready(self) -> bool:
        """Ask once."""
        import socket  # noqa: PLC0415 - the start does not wait for it

        try:
            if self.uds:
                connection = socket.socket(socket.AF_UNIX)
                connection.settimeout(_ANSWER)
                connection.connect(self.uds)
            else:
                connection = socket.create_connection(self.address, _ANSWER)
            with connection:
                if not self.plain:
                    return True
                connection.sendall(b"GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n")
                return connection.recv(64).split(b" ")[1:2] == [b"200"]
        except (OSError, ValueError):
            return False


def find(words: Sequence[str]) -> Server | None:
    """Read from the words after `vllm` where it will listen; None where they do not say."""
    given: dict[str, str] = {}
    for n, word in enumerate(words):  # vLLM takes both - and _
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            given[name[2:].replace("_", "-")] = value if equals else "".join(words[n + 1 : n + 2])
    try:
        given = {**_configured(given.get("config", "")), **given}
        port = int(given.get("port", "8000"))
    except (OSError, ValueError):
        return None
    if "headless" in given or not 0 < port < 1 << 16:
        return None
    host, uds = given.get("host", ""), given.get("uds", "")
    plain = not any(name == "grpc" or name.startswith("ssl-") for name in given)
    return Server(_HERE.get(host, host), port, uds and os.path.abspath(uds), plain=plain)


def _configured(path: str) -> dict[str, str]:
    """Read vLLM's YAML file, whose top level is all that can say where to listen."""
    found: dict[str, str] = {}
    with open(path or os.devnull, encoding="utf-8") as f:
        for line in f:
            name, colon, value = (s.strip(" \n\"'") for s in line.partition(" #")[0].partition(":"))
            if colon and not line[0].isspace() and value.lower() not in ("false", "no", "off"):
                found[name.replace("_", "-")] = value
    return found


class Starts:
    """The starts from one warm dir whose handoff has the kernels that `mark` names."""

    def __init__(self, directory: str, mark: str) -> None:
        self.directory = directory
        self.mark = mark
        self.note = os.path.join(directory, f"{mark}.crashed")
        self.plain = os.path.join(directory, f"{mark}.plain")

    def path(self, sort: str, start: str) -> str:
        """Name the record of a start with (``warm``) or without (``cold``) the kernels."""
        return os.path.join(self.directory, f"{self.mark}-{sort}-{start}")

    def ended(self, sort: str) -> list[str]:
        """Name the starts that ended before they were ready."""
        head = f"{self.mark}-{sort}-"
        names = [name for name in os.listdir(self.directory) if name.startswith(head)]
        return [name[len(head) :] for name in names if self._ended(name)]

    def sweep(self) -> None:
        """Remove what is left of other kernels, and of records that were on their way."""
        for name in os.listdir(self.directory):
            if not name.startswith(self.mark) and self._ended(name):
                forget(os.path.join(self.directory, name))

    def begin(self, path: str, pieces: Iterable[str]) -> None:
        """Leave the record of a start, locked until this process and its children end."""
        fresh = os.path.join(self.directory, f".{os.path.basename(path)}")
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.write(descriptor, "".join(f"{piece}\n" for piece in pieces).encode())
        os.rename(fresh, path)

    def _ended(self, name: str) -> bool:
        try:
            descriptor = os.open(os.path.join(self.directory, name), os.O_RDONLY | os.O_NONBLOCK)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            finally:
                os.close(descriptor)
        except OSError:
            return False
        return True


def forget(path: str) -> None:
    """Remove a file, where that is possible."""
    try:
        os.unlink(path)
    except OSError:
        return


def tell(crashes: str, pieces: Iterable[str], starts: Iterable[str]) -> None:
    """Name starts that ended on the volume, where it may be written here."""
    names = [f"{piece}.{start}" for start in starts for piece in pieces]
    try:
        if names and not os.path.isdir(crashes):
            os.mkdir(crashes)
        for name in names:
            _touch(os.path.join(crashes, name))
    except OSError:
        return


def acquit(crashes: str, pieces: Iterable[str]) -> None:
    """Forget on the volume what was told of kernels that a server is ready with."""
    for name in _names(crashes):
        if name.rpartition(".")[0] in pieces:
            forget(os.path.join(crashes, name))


def main(words: Sequence[str]) -> int:
    """Decide for one start, and leave a process behind that watches it.

    Args:
        words: the server's process; where the records are; where the trees of starts without kernels
            are; where the volume is told; the kernels' mark; the levers on trial, as people say
            them, or nothing; the kernels' names; ``--``; the words after `vllm`.
    """
    at = words.index("--")
    parent, directory, trees, crashes, mark, levers, *pieces = words[:at]
    server = find(words[at + 1 :])
    starts = Starts(directory, mark)
    start = os.urandom(8).hex()
    answer, record = WITH, ""
    try:
        os.makedirs(directory, exist_ok=True)
        starts.sweep()
        answer, told = _decide(starts, os.path.join(trees, mark), start, levers)
        if server is None:
            _say("no port is known: a crash at load would not count", "give --port a number")
            return max(answer, PLAIN)
        record = starts.path("cold" if answer == WITHOUT else "warm", start)
        starts.begin(record, pieces)
        process = _opened(int(parent))
        os.write(1, os.fsencode(record))  # for `serve`; no locale has a say
        if os.fork():
            return answer
    except OSError as exc:
        forget(record)
        _say(f"{exc.strerror}: a crash at load would not count", f"look at {exc.filename}")
        return max(answer, PLAIN)
    try:
        _detach()
        tell(crashes, pieces, told)
        if answer == WITHOUT:
            _touch(starts.note)
        _clear(trees, keep=mark)
        seen = _watch(server, parent, process)
        if seen == _READY and answer != WITHOUT:
            for other in starts.ended("warm"):
                forget(starts.path("warm", other))
            acquit(crashes, pieces)
        if seen != _ENDED:
            forget(record)
    except BaseException:  # noqa: BLE001 - who cannot watch does not count
        forget(record)
    finally:
        os._exit(0)


def _decide(starts: Starts, tree: str, start: str, levers: str) -> tuple[int, list[str]]:
    """Say how this start goes, and which that ended too early the volume is told of."""
    known = os.path.exists(starts.note)
    ended = [] if known else starts.ended("warm")
    if known or len(ended) >= _CRASHES:
        _renew(starts, tree, start)
        what = "these kernels crashed the engine at load twice: starting without them"
        _say(what, "the next prefill retires them; the log of the container before says why")
        return WITHOUT, ended
    if levers and (ended or os.path.exists(starts.plain)):
        _touch(starts.plain)
        _say(f"a start crashed: now without {levers}", "docs/levers.md says how to switch them off")
        return PLAIN, []  # that crash may be a lever's, and no kernel's
    return WITH, ended


def _renew(starts: Starts, tree: str, start: str) -> None:
    """Have a place for a start without kernels; one that was not ready may have torn the last."""
    torn = starts.ended("cold")
    if torn and os.path.isdir(tree):
        os.rename(tree, f"{tree}.{start}")
    os.makedirs(tree, exist_ok=True)
    for other in torn:
        forget(starts.path("cold", other))


def _opened(process: int) -> int | None:
    """Hold on to a process, so that its end is seen at once; None where the kernel cannot."""
    try:
        return os.pidfd_open(process)
    except (OSError, AttributeError):
        return None


def _detach() -> None:
    """Leave the server's session, output and directory; no other descriptor came with `serve`."""
    os.setsid()
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)


def _clear(trees: str, *, keep: str) -> None:
    """Remove what starts without kernels have left."""
    import shutil  # noqa: PLC0415 - as socket

    for name in _names(trees):
        if name != keep:
            shutil.rmtree(os.path.join(trees, name), ignore_errors=True)


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []


def _touch(path: str) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))


def _watch(server: Server, parent: int | str, process: int | None) -> str:
    """Wait until the server is ready, has ended, or has lived for long."""
    import select  # noqa: PLC0415 - as socket
    import time  # noqa: PLC0415 - as socket

    until = time.monotonic() + _PATIENCE
    end = select.poll()
    if process is not None:
        end.register(process, select.POLLIN)
    while time.monotonic() < until:
        if server.ready():
            return _READY
        if end.poll(_POLL * 1000) or (process is None and not os.path.exists(f"/proc/{parent}")):
            return _ENDED
    return _OLD


def _say(what: str, hint: str) -> None:
    sys.stderr.write(f"warmer: {what}\nhint: {hint}\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
