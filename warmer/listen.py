"""Receive the spans of a vLLM start over OTLP/HTTP, until the start is over.

A listener is a small HTTP server for one purpose: ``POST /v1/traces``. What is broken or too large
gets a 4xx and changes nothing; what is kept is bounded, and so are the connections at a time and
the time one may take, for the port may be open to more than the engine.
"""

from __future__ import annotations

import contextlib
import http.server
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

import structlog

from warmer.errors import UsageError
from warmer.report import otlp, spans

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from warmer.report.spans import Span

_log = structlog.get_logger(__name__)
PATH: Final = "/v1/traces"
LINGER: Final = 7.0
"""Seconds to wait after the last span of a start: vLLM's processes each send every 5 s what ended."""
_LOOK: Final = 0.1
_MOST: Final = 20_000
"""Spans kept; a start of eight ranks has some 300."""
_CONNECTIONS: Final = 64
_WARNINGS: Final = 20
_PATIENCE: Final = 10.0
"""Seconds that a connection may be silent, and that the rest of a refused body is waited for."""
_FULL: Final = b"HTTP/1.0 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"
"""Exporters send again after it, so nothing is lost."""
_GRPC: Final = b"PRI"
UNTRACED: Final = (
    "start vLLM with OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=http/protobuf, and with "
    f"--otlp-traces-endpoint http://HOST:PORT{PATH}"
)
"""What has to be done that spans come."""


class Address(NamedTuple):
    """Where to listen.

    Attributes:
        host: a name or an address; loopback unless told otherwise.
        port: 0 takes a free one.
    """

    host: str
    port: int


def address(text: str) -> Address:
    """Read ``[HOST:]PORT``; an IPv6 address stands in brackets.

    Raises:
        UsageError: it is something else.
    """
    host, colon, port = text.rpartition(":")
    bare = host.startswith("[") and host.endswith("]")
    if (colon and not host) or (":" in host and not bare):
        port = ""
    if not (port.isascii() and port.isdecimal() and int(port) < 1 << 16):
        raise UsageError(
            f"got --otlp {text}, expected PORT or HOST:PORT",
            reason="otlp-address",
            hint="--otlp 4318 listens on 127.0.0.1; --otlp 0.0.0.0:4318 on every address",
        )
    return Address(host.strip("[]") or "127.0.0.1", int(port))


class Listener:
    """Collects spans from the moment it is entered; leaving closes the port.

    Attributes:
        url: what vLLM's ``--otlp-traces-endpoint`` must be.
    """

    def __init__(self, where: Address, *, linger: float = LINGER) -> None:
        """Open the port.

        Raises:
            UsageError: it cannot be opened.
        """
        self._spans: dict[tuple[str, str], Span] = {}
        self._changed = threading.Condition()
        self._linger = linger
        try:
            family = socket.getaddrinfo(*where, type=socket.SOCK_STREAM)[0][0]
            self._server = _Server(where, family, self._keep)
        except (OSError, UnicodeError) as exc:  # the latter for a name that can be none
            raise UsageError(
                f"got {getattr(exc, 'strerror', None) or exc} for --otlp {where.host}:{where.port}, "
                "expected a port to listen on",
                reason="otlp-port",
                hint="choose another port, or 0 for any that is free",
            ) from exc
        host = f"[{where.host}]" if ":" in where.host else where.host
        self.url = f"http://{host}:{self._server.server_address[1]}{PATH}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def spans(self) -> list[Span]:
        """What has come so far, each span once."""
        with self._changed:
            return list(self._spans.values())

    def wait(self, most: float, stopped: Callable[[], object] = lambda: False) -> bool:
        """Wait until a start is over and its processes have had the time to say so.

        Args:
            most: seconds to wait at most.
            stopped: asked a few times a second whether to wait no longer.

        Returns:
            Whether one was over.
        """
        until = time.monotonic() + most
        with self._changed:
            while not (over := spans.finished(self._spans.values())):
                left = until - time.monotonic()
                if left <= 0 or stopped():
                    return False
                self._changed.wait(min(left, _LOOK))
        until = time.monotonic() + self._linger
        while not stopped() and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, _LOOK))
        return over

    def _keep(self, came: Sequence[Span]) -> int:
        """Keep spans; a sender that saw no answer sends again. Returns how many found no room."""
        with self._changed:
            lost = 0
            for span in came:
                if len(self._spans) < _MOST or (span.trace, span.id) in self._spans:
                    self._spans[span.trace, span.id] = span
                else:
                    lost += 1
            self._changed.notify_all()
        return lost


def announce(listener: Listener) -> None:
    """Say where spans are expected."""
    _log.info("listening for the spans of a start", url=listener.url, hint=UNTRACED)


class _Server(http.server.ThreadingHTTPServer):
    """Serves few connections at a time; the next ones are asked to come again."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128  # ranks send at the same moment, and a dropped SYN comes again in 1 s

    def __init__(
        self, where: Address, family: socket.AddressFamily, keep: Callable[[Sequence[Span]], int]
    ) -> None:
        self.address_family = family
        self.keep = keep
        self.unpacking = threading.Lock()  # a body may grow a hundredfold: one at a time
        self._told: set[str] = set()
        self._room = threading.BoundedSemaphore(_CONNECTIONS)
        super().__init__(where, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._room.acquire(blocking=False):
            try:
                super().process_request(request, client_address)
            except BaseException:  # no thread was to be had
                self._room.release()
                raise
            return
        with contextlib.suppress(OSError):
            request.settimeout(0)
            request.send(_FULL)
        self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def warn(self, text: str, **more: Any) -> None:
        """Warn of a thing once: who sends what is refused sends it again."""
        if text not in self._told and len(self._told) < _WARNINGS:
            self._told.add(text)
            _log.warning(text, **more)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - its signature
        """A connection that broke off is none of ours; anything else is a bug, and is shown."""
        if not isinstance(sys.exc_info()[1], OSError):
            _log.exception("a request was not understood")


class _Handler(http.server.BaseHTTPRequestHandler):
    """One connection, for one request: kept open, idle ones would take the room of others."""

    server: _Server
    raw_requestline: bytes
    server_version, sys_version = "warmer", ""
    timeout = _PATIENCE

    def parse_request(self) -> bool:
        """Tell a gRPC exporter, which speaks HTTP/2, from noise."""
        if self.raw_requestline.startswith(_GRPC):
            self.server.warn("spans came over gRPC, which is not understood here", hint=UNTRACED)
        return super().parse_request()

    def do_POST(self) -> None:
        """Keep the spans of a body."""
        try:
            found = self._spans()
        except otlp.BodyError as exc:
            self.server.warn(f"a body was refused: {exc}", status=exc.status)
            self._answer(exc.status, "text/plain", str(exc).encode())
            self._drain()
            return
        lost = self.server.keep(found)
        as_json = self.headers.get_content_type() == otlp.JSON
        self._answer(
            200, *((otlp.JSON, b"{}") if as_json else (otlp.PROTOBUF, otlp.rejecting(lost)))
        )

    def _spans(self) -> list[Span]:
        if self.path.partition("?")[0] != PATH:
            raise otlp.BodyError(404, f"expected POST {PATH}")
        said = self.headers.get("Content-Length", "")
        if not (said.isascii() and said.isdecimal()):
            raise otlp.BodyError(411, "got a body of unknown length, expected Content-Length")
        if len(said) > 12 or int(said) > otlp.MOST:
            raise otlp.BodyError(413, f"got a body of more than {otlp.MOST} bytes")
        body = self.rfile.read(int(said))
        if len(body) != int(said):
            raise otlp.BodyError(400, f"got {len(body)} of {said} bytes")
        kind, encoding = (self.headers.get(f"Content-{name}", "") for name in ("Type", "Encoding"))
        with self.server.unpacking:
            return otlp.decode(body, kind=kind, encoding=encoding)

    def _drain(self) -> None:
        """Read on: closed while a sender sends, a connection is reset, and the answer is lost."""
        until = time.monotonic() + _PATIENCE
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            while time.monotonic() < until and self.rfile.read1(1 << 16):
                pass

    def _answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(OSError):  # whoever does not wait for the answer does without
            self.wfile.write(body)
            self.wfile.flush()

    def log_message(self, *_: Any) -> None:
        """Say nothing of every request."""
