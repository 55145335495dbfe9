"""Where the server answers, and whether it does."""

from __future__ import annotations

import http.client
import ssl
import urllib.parse
from typing import Final

from warmer import argv
from warmer.errors import UsageError, WarmerError

_TIMEOUT: Final = 5.0
_PORT: Final = "8000"
"""Where vLLM listens by default."""

_EVERYWHERE: Final = ("", "0.0.0.0", "::")  # noqa: S104 - read, not bound


def url(words: tuple[str, ...]) -> str:
    """Say where a server with these arguments answers from within its pod; empty if by no port."""
    try:
        flags = argv.parse(words)
    except WarmerError:
        return ""

    def last(name: str, default: str) -> str:
        given = flags.get(name) or [[]]
        return given[-1][0] if given[-1] else default

    if "--uds" in flags:
        return ""
    host = last("--host", "")
    host = "127.0.0.1" if host in _EVERYWHERE else host
    scheme = "https" if "--ssl-certfile" in flags or "--ssl-keyfile" in flags else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{last('--port', _PORT)}"


def parse_url(text: str) -> str:
    """Read ``--server-url``.

    Raises:
        UsageError: it is no http URL.
    """
    try:
        parts = urllib.parse.urlsplit(text)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        good = False
    if not good or "@" in text:
        raise UsageError(
            "got a --server-url that is none, expected http://host:port",
            reason="bad-value",
            hint="as http://127.0.0.1:8000; /health is asked there",
        )
    return text.rstrip("/")


def ready(where: str) -> bool:
    """Whether the server answers ``/health`` with 200."""
    connection: http.client.HTTPConnection | None = None
    try:
        parts = urllib.parse.urlsplit(where)
        host, port = parts.hostname or "", parts.port
        if parts.scheme == "https":  # its certificate is for its clients' name of it, not for this
            context = ssl._create_unverified_context()  # noqa: S323, SLF001 - as above
            connection = http.client.HTTPSConnection(host, port, timeout=_TIMEOUT, context=context)
        else:
            connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT)
        connection.request("GET", f"{parts.path}/health")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, ValueError, http.client.HTTPException):  # a port may be any word
        return False
    finally:
        if connection is not None:
            connection.close()
