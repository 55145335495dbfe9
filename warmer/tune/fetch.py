"""Metrics from a file, from stdin or over HTTP, within limits of size and time."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import requests
import urllib3

from warmer import __version__, textfile
from warmer.errors import SourceError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

SCRAPE: Final = 16 << 20
"""Bytes of one ``/metrics`` at most; a vLLM has fifty thousand."""
ANSWER: Final = 32 << 20
"""Bytes of one answer of Prometheus at most."""

_TIMEOUT: Final = (10.0, 60.0)
"""Seconds to connect, and between two arrivals."""
_WHOLE: Final = 120.0
"""Seconds for a whole answer."""
_CHUNK: Final = 1 << 16
_HINT: Final = "check the URL and that the server answers it: curl shows what it says"


def is_url(place: str) -> bool:
    """Whether metrics are asked for over HTTP."""
    return place.startswith(("http://", "https://"))


def parse_url(text: str, flag: str) -> str:
    """Check an address.

    Raises:
        UsageError: it is none of HTTP.
    """
    try:
        host = urlsplit(text).hostname if is_url(text) else None
    except ValueError:
        host = None
    if not host:
        raise UsageError(
            f"got {flag} {shown(text)!r}, expected a URL",
            reason="bad-value",
            hint="as http://prometheus.monitoring:9090",
        )
    return text


def local(place: str) -> bytes:
    """Read a file, or stdin for ``-``.

    Raises:
        UsageError: it cannot be read, or is too long.
    """
    hint = "save what curl prints of the server's /metrics"
    try:
        stdin = place == "-"
        body = sys.stdin.buffer.read(SCRAPE + 1) if stdin else textfile.read(place, SCRAPE)
    except OSError as exc:
        raise UsageError(
            f"got --metrics {place}: {exc.strerror or exc}, expected metrics",
            reason="metrics-unreadable",
            hint=hint,
        ) from exc
    if len(body) > SCRAPE:
        raise UsageError(
            f"got --metrics {place} of more than {SCRAPE} bytes, expected one scrape",
            reason="too-large",
            hint=hint,
        )
    return body


def over_http(
    url: str, *, most: int, fields: Mapping[str, str] | None = None, token: str | None = None
) -> bytes:
    """Ask for metrics.

    Args:
        url: which; redirects are not followed.
        most: bytes of the answer at most.
        fields: sent as a form, as Prometheus takes long queries; None asks by GET.
        token: sent as a bearer token.

    Raises:
        SourceError: unreachable, denied, not found, too slow, too long.
    """
    headers = {"User-Agent": f"warmer/{__version__}", "Accept-Encoding": "identity"}
    try:
        with (
            requests.Session() as session,
            session.request(
                "GET" if fields is None else "POST",
                url,
                data=fields,
                headers=headers,
                auth=_Bearer(token) if token else None,
                timeout=_TIMEOUT,
                stream=True,
                allow_redirects=False,
            ) as answer,
        ):
            return _body(answer, url, most)
    except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as exc:
        raise SourceError(
            f"got no answer from {shown(url)} ({type(exc).__name__}), expected metrics",
            reason="unreachable",
            hint=_HINT,
        ) from exc


class _Bearer(requests.auth.AuthBase):
    """Sends the token, whatever ``.netrc`` says of the host."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


def _body(answer: requests.Response, url: str, most: int) -> bytes:
    # Prometheus says what is wrong with a query in a body of status 400 or 422.
    if answer.status_code not in (200, 400, 422):
        reasons = {401: "denied", 403: "denied", 404: "not-found"}
        raise SourceError(
            f"got status {answer.status_code} from {shown(url)}, expected metrics",
            reason=reasons.get(answer.status_code, "unreachable"),
            hint="give a token with --token-file" if answer.status_code in (401, 403) else _HINT,
        )
    deadline = time.monotonic() + _WHOLE
    body = bytearray()
    # What has come, and not a chunk that is full: a server that drips would never meet the deadline.
    read = getattr(answer.raw, "read1", answer.raw.read)  # urllib3 has it since 2.2
    while chunk := read(_CHUNK, decode_content=True):
        body += chunk
        if len(body) > most or time.monotonic() > deadline:
            what = f"more than {most} bytes" if len(body) > most else f"no end in {_WHOLE:.0f} s"
            raise SourceError(
                f"got {what} from {shown(url)}, expected an answer within both limits",
                reason="too-large" if len(body) > most else "too-slow",
                hint="ask for less: a shorter --since, or one model with --served-name",
            )
    return bytes(body)


def shown(url: str) -> str:
    """Write an address without what may be a password in it."""
    if not is_url(url):
        return url if "://" not in url else url.rpartition("@")[2].partition("?")[0]
    scheme, _, rest = url.partition("?")[0].partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"
