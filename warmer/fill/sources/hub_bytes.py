"""Ranges of a hub's files over HTTP.

The token goes to the hub's own origin and nowhere else: redirects are followed here, one by one,
and another scheme, host or port is asked without it. Where a redirect led (a CDN's signed URL)
is remembered for the file's other ranges, until it is refused.

requests knows proxies, NO_PROXY and certificates from the environment as other tools do. Its
``.netrc`` rule, which would replace the token by somebody else's password, is kept out.
"""

from __future__ import annotations

import http.cookiejar
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urljoin, urlsplit

import requests
import urllib3

from warmer import __version__
from warmer.errors import SourceError
from warmer.fill.sources import hub_errors, trickle

if TYPE_CHECKING:
    from collections.abc import Mapping

    from warmer.fill.sources import SourceFile
    from warmer.model import ModelRef

_TIMEOUT: Final = (10.0, 30.0)
"""Seconds to connect, and between two arrivals; `trickle` ends what trickles."""
_REDIRECTS: Final = (301, 302, 303, 307, 308)
_HOPS: Final = 8
_POOL: Final = 32
_STALE: Final = (400, 401, 403, 404, 410)
"""What a signed URL answers once it has expired; Google's store says 400."""
_PLACE: Final = "https://huggingface.co"
_FAILURES: Final = (requests.RequestException, urllib3.exceptions.HTTPError, OSError)
_CERTIFICATES: Final = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")


class _Bearer(requests.auth.AuthBase):
    """Sends the token, or nothing; given explicitly, so that no ``.netrc`` is looked up."""

    def __init__(self, token: str | None) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._token:
            request.headers["Authorization"] = f"Bearer {self._token}"
        return request


class _Adapter(requests.adapters.HTTPAdapter):
    """Ends connections that trickle, those of proxies too."""

    def init_poolmanager(self, *arguments: Any, **more: Any) -> None:
        super().init_poolmanager(*arguments, **more)
        self.poolmanager.pool_classes_by_scheme = trickle.pools(
            self.poolmanager.pool_classes_by_scheme
        )

    def proxy_manager_for(self, proxy: str, **more: Any) -> Any:
        known = proxy in self.proxy_manager
        manager = super().proxy_manager_for(proxy, **more)
        if not known:
            manager.pool_classes_by_scheme = trickle.pools(manager.pool_classes_by_scheme)
        return manager


class HubBytes:
    """Opens ranges of files.

    Args:
        endpoint: the hub; None for the public one.
        token: sent to it alone.
        environment: names certificates.
    """

    def __init__(
        self, *, endpoint: str | None, token: str | None, environment: Mapping[str, str]
    ) -> None:
        self._endpoint = (endpoint or _PLACE).rstrip("/")
        self._mine = _Bearer(token)
        self._nobody = _Bearer(None)
        self._locations: dict[str, str] = {}
        self._session = requests.Session()
        self._session.cookies.set_policy(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
        adapter = _Adapter(pool_connections=_POOL, pool_maxsize=_POOL)
        for scheme in ("https://", "http://"):
            self._session.mount(scheme, adapter)
        found = [environment[name] for name in _CERTIFICATES if environment.get(name)]
        self._verify: bool | str = found[0] if found else True

    def open(self, model: ModelRef, file: SourceFile, start: int, end: int) -> HubReader:
        """Open the bytes from `start` up to `end` of a file of a commit.

        Raises:
            SourceError: not found, denied, unreachable; an answer that is not those bytes.
        """
        where = f"{file.path} of {model}"
        path = f"/{model.name}/resolve/{model.revision}/{quote(file.path)}"
        known = self._locations.get(path)
        try:
            response = self._follow(path, known, where, start, end)
            if known is not None and response.status_code in _STALE:
                response.close()
                self._locations.pop(path, None)
                response = self._follow(path, None, where, start, end)
        except _FAILURES as exc:
            raise hub_errors.unreachable(exc, where) from exc
        try:
            _insist(response, model, file, (start, end))
        except BaseException:
            response.close()
            raise
        return HubReader(response, where)

    def _follow(
        self, path: str, known: str | None, where: str, start: int, end: int
    ) -> requests.Response:
        url = known or self._endpoint + path
        headers = {
            "Range": f"bytes={start}-{end - 1}",
            "Accept-Encoding": "identity",
            "User-Agent": f"warmer/{__version__}",
        }
        for _ in range(_HOPS):
            mine = _origin(url) == _origin(self._endpoint)
            response = self._session.get(
                url,
                headers=headers,
                auth=self._mine if mine else self._nobody,
                allow_redirects=False,
                stream=True,
                timeout=_TIMEOUT,
                verify=self._verify,
            )
            if response.status_code not in _REDIRECTS:
                if not mine:
                    self._locations[path] = url
                return response
            response.close()
            before, url = url, urljoin(url, response.headers.get("Location") or "")
            if urlsplit(url).scheme not in ("https", urlsplit(before).scheme):
                raise hub_errors.bad_answer("a redirect away from https", where)
        raise hub_errors.bad_answer(f"more than {_HOPS} redirects", where)


class HubReader:
    """The body of one answer."""

    def __init__(self, response: requests.Response, where: str) -> None:
        self.digests: Mapping[str, str] = {}
        self._response = response
        self._where = where

    def readinto(self, buffer: memoryview) -> int:
        """Put the next bytes into the buffer.

        Raises:
            TransientSourceError: the connection broke.
        """
        try:
            count: int = self._response.raw.readinto(buffer)
        except _FAILURES as exc:
            raise hub_errors.unreachable(exc, self._where) from exc
        return count

    def close(self) -> None:
        """Let go of the connection."""
        self._response.close()


def _insist(
    response: requests.Response, model: ModelRef, file: SourceFile, span: tuple[int, int]
) -> None:
    """Insist that an answer is the bytes that were asked for."""
    start, end = span
    where = f"{file.path} of {model}"
    code, headers = response.status_code, response.headers
    if code not in (200, 206):
        found = hub_errors.refusal(headers.get("X-Error-Code") or "", model, where)
        if code == 416:
            raise _changed(file, where, headers.get("Content-Range") or "nothing of it")
        raise found or hub_errors.status(code, headers, where)
    whole = (start, end) == (0, file.size)
    if code == 200 and not whole:
        raise hub_errors.bad_answer("the whole file where a part was asked for", where)
    said = headers.get("Content-Range") or ""
    if code == 206 and said not in (f"bytes {start}-{end - 1}/{n}" for n in (file.size, "*")):
        raise _changed(file, where, said)
    length = headers.get("Content-Length")
    if length is not None and length != str(end - start):
        raise _changed(file, where, f"{length} bytes")
    if headers.get("Content-Encoding", "identity") != "identity":
        raise hub_errors.bad_answer(f"encoded as {headers['Content-Encoding']}", where)


def _changed(file: SourceFile, where: str, said: str) -> SourceError:
    return SourceError(
        f"got {said or 'an answer without a range'} for {where}, expected a file of {file.size} bytes",
        reason="size-mismatch",
        hint="run again; if it stays, the source or a proxy in between is broken",
    )


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    port = parts.port or {"https": 443, "http": 80}.get(parts.scheme)
    return parts.scheme, parts.hostname, port
