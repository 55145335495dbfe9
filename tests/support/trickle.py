"""A link before a test server that lets a few bytes a second through, one way or the other."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from urllib.parse import urlsplit

_TURN = 0.05
"""Seconds between two drops."""


class Trickle:
    """Passes what comes to `url` on to `target`, an http:// URL, from construction to `close`.

    Of the server's answers `free` bytes of each connection pass at once, headers among them, and
    the rest at `down` bytes a second; what the client sends is taken at `up` bytes a second. None
    is at once. With `shared`, that is what all connections have together, not each. All may be
    changed at any time. With `tls`, a context, the client's side speaks TLS: each drop is a record.

    `taken` counts the connections, `sent` the bytes that went to clients.
    """

    def __init__(self, target, *, down=None, up=None, free=0, shared=False, tls=None):
        at = urlsplit(target)
        self.target = (at.hostname, at.port)
        self.down, self.up, self.free, self.shared = down, up, free, shared
        self.taken = self.sent = 0
        self._tls = tls
        self._closing = threading.Event()
        self._link = threading.Lock()
        self._mutex = threading.Lock()
        self._sockets = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        if up is not None:  # or the kernel takes what nobody reads
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        port = self._listener.getsockname()[1]
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{port}"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self._closing.set()
        for one in (self._listener, *self._sockets):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self):
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.taken += 1
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client):
        with suppress(OSError):
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls:
                client = self._tls.wrap_socket(client, server_side=True)
            server = socket.create_connection(self.target)
            self._sockets += [client, server]
            back = threading.Thread(target=self._answers, args=(server, client), daemon=True)
            back.start()
            self._pass(client, server, lambda: self.up)

    def _answers(self, server, client):
        left = self.free
        with suppress(OSError):
            while left and (data := server.recv(min(left, 1 << 16))):
                left -= len(data)
                self._give(client, data)
            self._pass(server, client, lambda: self.down)

    def _pass(self, source, sink, rate):
        try:
            while not self._closing.is_set():
                data = source.recv(1 << 16)
                if not data:
                    break
                while data:  # the rate may change at any drop
                    pace = rate()
                    drop = len(data) if pace is None else max(1, int(pace * _TURN))
                    drop, data = data[:drop], data[drop:]
                    if pace is not None and self.shared:
                        with self._link:  # as one wire: who has the turn sends
                            time.sleep(len(drop) / pace)
                    elif pace is not None and self._closing.wait(len(drop) / pace):
                        return
                    self._give(sink, drop)
        finally:
            with suppress(OSError):
                sink.shutdown(socket.SHUT_WR)

    def _give(self, sink, data):
        sink.sendall(data)
        with self._mutex:
            self.sent += len(data)
