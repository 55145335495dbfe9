"""A proxy before a test server, which loses, delays, spoils or answers the requests it is told to.

What passes is passed byte for byte, headers too: a signed request still verifies, since a client
signs the host it connects to, which is the proxy's, and sends that very Host header.
"""

from __future__ import annotations

import re
import select
import socket
import threading
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import urlsplit

from server import free_port

_CHUNK = 1 << 18  # larger ones fall out of the CPU's cache


class Head(NamedTuple):
    """The first line and the headers of a message; their names in lower case."""

    raw: bytes
    first: list[str]
    headers: dict[str, str]

    @property
    def status(self) -> int:
        return int(self.first[1])


@dataclass(kw_only=True)
class Fault:
    """What happens to the requests it hits, `times` times (None: always).

    After `delay` seconds one of: `status` is answered, with `body` and `headers`, and the target
    hears nothing; the request is dropped (closed without an answer) or hangs (stays open without
    one), each either "before" the target hears of it or "after" the target has answered in full;
    or it passes, and of the answer's body only `truncate` bytes come before the connection
    closes, or the middle byte of a known length is wrong (`corrupt`).
    """

    path: str = ""  # a regex, searched in the path with its query; "" is in every one
    method: str | None = None
    times: int | None = None
    delay: float = 0.0
    drop: str | None = None
    hang: str | None = None
    status: int | None = None
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    truncate: int | None = None
    corrupt: bool = False

    def __post_init__(self):
        assert {self.drop, self.hang} <= {None, "before", "after"}

    def hits(self, method: str, path: str):
        return self.times != 0 and self.method in {None, method} and re.search(self.path, path)


class Proxy:
    """Passes what comes to `url` on to `target`, an http:// URL, from construction to `close`.

    Every request goes over a connection of its own to the target; if the target refuses it, the
    client sees its connection closed. `requests` are (method, path with query) of all that came;
    `up` and `down` the bytes sent to the target and got from it, what `drop` throws away too.
    Clear `faults` to end them all.
    """

    def __init__(self, target: str):
        at = urlsplit(target)
        self.target = (at.hostname, at.port)
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []
        self.up = self.down = 0
        self._lock = threading.Lock()
        self._closing, self._open = threading.Event(), threading.Event()
        self._sockets: set[socket.socket] = set()
        # A port that was asked for by its number is kept while nobody listens on it.
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(("127.0.0.1", free_port()))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.accept()
        threading.Thread(target=self._listen, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self) -> None:
        """Refuse new connections and drop the open ones; done twice is done once."""
        self._closing.set()
        self.refuse()
        self._open.set()
        self._listener.close()

    def fault(self, path: str = "", **what) -> Fault:
        """Add a `Fault` made of these fields; the first of all which hits a request happens."""
        with self._lock:
            self.faults.append(fault := Fault(path=path, **what))
        return fault

    def refuse(self) -> None:
        """Drop every connection and refuse new ones, as where no server runs."""
        self._open.clear()
        with self._lock:
            for opened in (self._listener, *self._sockets):
                with suppress(OSError):
                    opened.shutdown(socket.SHUT_RDWR)

    def accept(self) -> None:
        """Take connections again."""
        self._listener.listen(128)
        self._open.set()

    @property
    def methods(self) -> Counter[str]:
        """How many requests came, by method."""
        return Counter(method for method, _ in tuple(self.requests))

    def take(self, head: Head) -> Fault:
        """Note a request; return what is to happen to it."""
        method, path = head.first[:2]
        with self._lock:
            self.requests.append((method, path))
            fault = next((fault for fault in self.faults if fault.hits(method, path)), Fault())
            if fault.times is not None:
                fault.times -= 1
            return fault

    def _listen(self):
        while not self._closing.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                self._open.wait()
            else:
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    @contextmanager
    def _kept(self, connection):
        """Use a connection, which `refuse` drops, and close it."""
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._sockets.add(connection)
            try:
                if not self._open.is_set():
                    raise ConnectionAbortedError("refused since it was taken")
                yield connection
            finally:
                with self._lock:
                    self._sockets.discard(connection)

    def _serve(self, client):
        with suppress(OSError, ValueError), self._kept(client), client.makefile("rb") as stream:
            while head := _read_head(stream):
                fault = self.take(head)
                self._closing.wait(fault.delay)
                if not self._exchange(client, stream, head, fault):
                    return

    def _exchange(self, client, stream, head, fault) -> bool:
        """Deal with one request; return whether another may follow on the connection."""
        if fault.drop == "before":
            return False
        if fault.hang == "before":
            return _wait_for_end(client)
        if fault.status is not None:
            client.sendall(_answer(fault, head))
            client.shutdown(socket.SHUT_WR)
            return _wait_for_end(client)  # a body unread at the end would take the answer along
        connection = socket.create_connection(self.target)
        with self._kept(connection) as target, target.makefile("rb") as answers:
            target.sendall(head.raw)
            self._count(up=len(head.raw))
            answer, heard_out = None, head.headers.get("content-length") == "0"
            # A client that expects "100 Continue" sends its body only then, or after a second.
            if "expect" in head.headers and select.select([target], [], [], 1.0)[0]:
                answer = self._hear(answers, client)
            if answer is None or answer.status < 200:
                heard_out = self._send_body(stream, head, target)
                answer = self._hear(answers, client)
            while answer and answer.status < 200:
                answer = self._hear(answers, client)
            passed = answer and self._pass(client, head, answer, answers, fault)
            return bool(passed and heard_out)

    def _send_body(self, stream, head, target) -> bool:
        """Pass a request's body on, to its end unless the target has enough before."""
        for data in _body(stream, head):
            try:
                target.sendall(data)
            except OSError:
                return False
            self._count(up=len(data))
        return True

    def _hear(self, answers, client) -> Head | None:
        """Read the head of the target's next answer; one which is not the last goes on at once."""
        if answer := _read_head(answers):
            self._count(down=len(answer.raw))
            if answer.status < 200:
                client.sendall(answer.raw)
        return answer

    def _pass(self, client, head, answer, answers, fault) -> bool:
        """Pass an answer on; return whether its end is clear and the connection stays."""
        mute = fault.drop or fault.hang
        if not mute:
            client.sendall(answer.raw)
        bodiless = head.first[0] == "HEAD" or answer.status in {204, 304}
        done, middle = 0, int(answer.headers.get("content-length", -1)) // 2
        for data in () if bodiless else _body(answers, answer, to_end=True):
            self._count(down=len(data))
            if mute:
                continue
            if fault.corrupt and done <= middle < done + len(data):
                data[middle - done] ^= 1
            done += len(data)
            if fault.truncate is not None and done >= fault.truncate:
                client.sendall(data[: len(data) - (done - fault.truncate)])
                return False
            client.sendall(data)
        if fault.hang:
            return _wait_for_end(client)
        framed = bodiless or {"content-length", "transfer-encoding"} & set(answer.headers)
        ends = any("close" in one.headers.get("connection", "") for one in (head, answer))
        return bool(framed and not ends and not mute)

    def _count(self, *, up=0, down=0):
        with self._lock:
            self.up += up
            self.down += down


def _read_head(stream) -> Head | None:
    lines = [stream.readline()]
    while lines[-1] not in {b"", b"\r\n"}:
        lines.append(stream.readline())
    if not lines[-1]:
        return None
    first, *rest = (line.decode("latin-1").rstrip("\r\n") for line in lines[:-1])
    pairs = (line.split(":", 1) for line in rest)
    headers = {name.lower(): value.strip() for name, value in pairs}
    return Head(b"".join(lines), first.split(" ", 2), headers)


def _body(stream, head: Head, *, to_end: bool = False):
    """Yield a body as it is on the wire; without a length, one which goes `to_end` or none."""
    if "chunked" in head.headers.get("transfer-encoding", "").lower():
        size = None
        while size != 0:
            line = stream.readline()
            yield bytearray(line)
            size = int(line.split(b";")[0] or b"-1", 16)
            yield from _exactly(stream, size + 2 if size else 0)
        while (line := stream.readline()) not in {b"", b"\r\n"}:
            yield bytearray(line)
        yield bytearray(line)
    elif "content-length" in head.headers:
        yield from _exactly(stream, int(head.headers["content-length"]))
    elif to_end:
        while data := stream.read1(_CHUNK):
            yield bytearray(data)


def _exactly(stream, count: int):
    while count:
        data = bytearray(stream.read1(min(count, _CHUNK)) if count > 0 else b"")
        if not data:
            raise ConnectionAbortedError("the message ends early")
        count -= len(data)
        yield data


def _answer(fault: Fault, head: Head) -> bytes:
    lines = [f"HTTP/1.1 {fault.status} {HTTPStatus(fault.status).phrase}"]
    headers = {"Content-Length": len(fault.body), "Connection": "close"} | fault.headers
    lines += [f"{name}: {value}" for name, value in headers.items()]
    raw = "\r\n".join([*lines, "", ""]).encode("latin-1")
    return raw if head.first[0] == "HEAD" else raw + fault.body


def _wait_for_end(client) -> bool:
    while client.recv(_CHUNK):
        pass
    return False
