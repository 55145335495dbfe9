"""Ranges of S3's objects over HTTP, in requests that botocore signs.

A call of boto3 costs milliseconds of CPU before its first byte, most of them in what only an API
call needs. So botocore's signer signs a plain request, its HTTP session sends it, and its parser
reads refusals. Where the answer points elsewhere (a bucket of another region), boto3, which knows
how to follow, makes the calls from then on; so it does for buckets with signatures of their own.
"""

from __future__ import annotations

import contextlib
import os
import re
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlsplit

import botocore.exceptions as failures
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest, AWSResponse
from botocore.httpsession import URLLib3Session
from botocore.parsers import create_parser
from botocore.response import StreamingBody
from botocore.utils import get_environ_proxies

from warmer import __version__
from warmer.fill.sources import trickle

if TYPE_CHECKING:
    from collections.abc import Mapping

_SIGNABLE: Final = re.compile(r"(?!.*--xa?-s3$)[a-z0-9.-]+")
"""Names of general purpose buckets: neither of a directory bucket or its access point, nor an ARN."""
_EVERYWHERE: Final = (None, "aws-global")
"""Regions in which nothing is signed."""
_MOVED: Final = (301, 302, 307, 308)
_ELSEWHERE: Final = (*_MOVED, 400)
"""What another region answers; 400 is what it says of a signature for this one."""
_REGION: Final = "x-amz-bucket-region"
_SENDING: Final = "before-send.s3.GetObject"
_HEADERS: Final = {"IfMatch": "If-Match", "Range": "Range", "ChecksumMode": "x-amz-checksum-mode"}
"""Arguments of GetObject → the headers they are sent as."""


class S3Bytes:
    """Opens objects of one bucket.

    Args:
        session: of botocore; it has the credentials, and knows the certificates to trust.
        client: of boto3; it knows where the bucket is, and makes the calls that are not plain.
        bucket: which.
    """

    def __init__(self, session: Any, client: Any, bucket: str) -> None:
        self._session = session
        self._client = client
        self._bucket = bucket
        plain = _SIGNABLE.fullmatch(bucket) and client.meta.region_name not in _EVERYWHERE
        self._plainly = bool(plain and session.get_credentials())
        self._top = self._place() if self._plainly else ""
        self._http = self._connect() if self._plainly else None

    def get(self, key: str, **call: str) -> tuple[Mapping[str, str], StreamingBody]:
        """Get an object or a range of it, as boto3's ``get_object`` would.

        Args:
            key: of the object.
            call: more arguments of GetObject.

        Returns:
            The answer's headers, with names in lower case, and its body.

        Raises:
            ClientError: S3 refused.
            BotoCoreError: no answer, or no credentials.
        """
        if self._plainly and self._http is not None:
            answer = self._send(self._http, key, call)
            headers = {name.lower(): value for name, value in answer.headers.items()}
            if answer.status_code in (200, 206):
                return headers, StreamingBody(answer.raw, headers.get("content-length"))
            body = answer.content
            if answer.status_code not in _ELSEWHERE:
                raise _refusal(answer.status_code, headers, body)
            for_good = answer.status_code in _MOVED or _REGION in headers
            found = self._client.get_object(Bucket=self._bucket, Key=key, **call)
            if for_good:
                self._plainly = False
        else:
            found = self._client.get_object(Bucket=self._bucket, Key=key, **call)
        return found["ResponseMetadata"]["HTTPHeaders"], found["Body"]

    def _send(self, http: URLLib3Session, key: str, call: Mapping[str, str]) -> Any:
        headers = {_HEADERS[name]: value for name, value in call.items()}
        headers["User-Agent"] = f"warmer/{__version__}"
        request = AWSRequest("GET", self._top + quote(key), headers=headers, stream_output=True)
        credentials = self._session.get_credentials().get_frozen_credentials()
        S3SigV4Auth(credentials, "s3", self._client.meta.region_name).add_auth(request)
        return http.send(request.prepare())

    def _place(self) -> str:
        """Say where the bucket's objects are: what boto3 would ask, were it let."""
        asked: list[str] = []

        def answer(request: Any, **_: Any) -> AWSResponse:
            asked.append(request.url)
            return AWSResponse(request.url, 200, {}, None)

        events = self._client.meta.events
        events.register_first(_SENDING, answer)
        try:
            self._client.get_object(Bucket=self._bucket, Key="-")
        finally:
            events.unregister(_SENDING, answer)
        return asked[0].partition("?")[0].removesuffix("-")

    def _connect(self) -> URLLib3Session:
        config = self._client.meta.config
        parts = urlsplit(self._top)
        proxies = config.proxies or get_environ_proxies(f"{parts.scheme}://{parts.netloc}")
        bundle = self._session.get_config_variable("ca_bundle")
        http = URLLib3Session(
            verify=bundle or os.environ.get("REQUESTS_CA_BUNDLE") or True,
            proxies=proxies,
            timeout=(config.connect_timeout, config.read_timeout),
            max_pool_connections=config.max_pool_connections,
        )
        with contextlib.suppress(AttributeError):  # as in `trickle.fit`
            trickle.fit_session(http)
        return http


def _refusal(status: int, headers: Mapping[str, str], body: bytes) -> failures.ClientError:
    answer = {"status_code": status, "headers": headers, "body": body}
    parsed = create_parser("rest-xml").parse(answer, None)
    return failures.ClientError(parsed, "GetObject")
