"""Three pages over HTTP: ``/livez``, ``/readyz``, ``/metrics``. Nothing is changed, no secret told.

It listens on every address, as probes and scrapers come from outside the pod.
"""

from __future__ import annotations

import contextlib
import errno
import http
import json
import socket
import sys
import threading
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Final

import structlog

from warmer import __version__, check
from warmer.errors import UsageError
from warmer.sidecar.metrics import Metrics, Survey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from warmer.layout import Volume, WarmDir
    from warmer.sidecar.board import Board

    Page = tuple[int, str, bytes]

_log = structlog.get_logger(__name__)
_TEXT: Final = "text/plain; charset=utf-8"
_JSON: Final = "application/json"
_PATIENCE: Final = 5.0
"""Seconds for a look that another probe is at: a volume that hangs holds up one thread, not all."""


class Readiness:
    """What `warmer check` answers, one look at a time.

    Args:
        warm_dir: whose handoff.
    """

    def __init__(self, warm_dir: str) -> None:
        self._warm_dir = warm_dir
        self._mutex = threading.Lock()

    def page(self) -> Page:
        """200 where all that is handed off is sealed and restored; 503 with the reasons if not.

        Of the server it says nothing: the server has a probe of its own.
        """
        rows: list[dict[str, Any]] = []
        code = check.BROKEN
        if self._mutex.acquire(timeout=_PATIENCE):
            try:
                rows, code = check.check(self._warm_dir, deep=False)
            finally:
                self._mutex.release()
        warm = code == check.WARM
        answer = {"schema_version": 1, "warm": warm, "code": code, "pieces": rows}
        status = http.HTTPStatus.OK if warm else http.HTTPStatus.SERVICE_UNAVAILABLE
        return status, _JSON, json.dumps(answer).encode() + b"\n"


def live(board: Board) -> Page:
    """200 while the loop takes its turns; 503 where it has been at one for too long."""
    if stuck := board.stuck():
        return http.HTTPStatus.SERVICE_UNAVAILABLE, _TEXT, f"{stuck}\n".encode()
    return http.HTTPStatus.OK, _TEXT, b"ok\n"


@contextlib.contextmanager
def serving(port: int, *, board: Board, warm: WarmDir, volume: Volume) -> Iterator[int]:
    """Answer for the block, on threads of its own; yields the port.

    Args:
        port: where to listen; 0 takes any.
        board: what the loop shows.
        warm: whose handoff.
        volume: whose room.

    Raises:
        UsageError: the port cannot be had.
    """
    survey = Survey(warm, volume)
    metrics = Metrics(board, survey, warm)
    ready = Readiness(warm.root)
    pages: dict[str, Callable[[str], Page]] = {
        "/livez": lambda _: live(board),
        "/readyz": lambda _: ready.page(),
        "/metrics": metrics.page,
    }
    try:
        server = _Server(port, pages)
    except (OSError, OverflowError) as exc:
        taken = isinstance(exc, OSError) and exc.errno == errno.EADDRINUSE
        raise UsageError(
            f"got --http-port {port}, which {'is taken' if taken else 'cannot be had'}, expected a "
            "free one",
            reason="port-taken" if taken else "bad-port",
            hint="choose another with --http-port",
        ) from exc
    threading.Thread(target=server.serve_forever, name="http", daemon=True).start()
    survey.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, port: int, pages: dict[str, Callable[[str], Page]]) -> None:
        self.pages = pages
        both = socket.has_dualstack_ipv6()
        self.address_family = socket.AF_INET6 if both else socket.AF_INET
        super().__init__(("::" if both else "0.0.0.0", port), _Handler)  # noqa: S104 - see above

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = "warmer", self.server_address[1]

    def handle_error(self, *_: object) -> None:
        """Say what is a mistake of ours, not that a probe hung up."""
        if not isinstance(sys.exception(), OSError):
            _log.error("this is a bug in warmer; please report it", trace=traceback.format_exc())


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version = f"warmer/{__version__}"
    sys_version = ""
    timeout = 10

    def do_GET(self) -> None:
        """Answer with a page."""
        page = self.server.pages.get(self.path.partition("?")[0])
        status, kind, body = (
            page(self.headers.get("Accept", ""))
            if page
            else (http.HTTPStatus.NOT_FOUND, _TEXT, b"")
        )
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815 - as above

    def log_message(self, *_: object) -> None:
        """Probes come every few seconds: nothing is said of them."""
