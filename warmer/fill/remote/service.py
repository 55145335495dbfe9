"""One question to a bucket: asked in time, and answered in warmer's words.

Credentials, region and endpoint come from where boto3 finds them. Nothing is retried by botocore.
"""

from __future__ import annotations

import io
import time
from typing import TYPE_CHECKING, Any, Final

import boto3
import botocore.exceptions as failures
import botocore.session
from botocore.config import Config

from warmer import __version__, regular
from warmer.errors import SourceError
from warmer.fill.deadline import OverdueError
from warmer.fill.sources import TransientSourceError, credentials, s3_errors, trickle

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from warmer.fill.sources.retry import Trying
    from warmer.urls import RemoteUrl

_CONFIG: Final = Config(
    connect_timeout=5,
    read_timeout=15,
    max_pool_connections=16,
    retries={"total_max_attempts": 1},  # `Trying` wraps it
    request_checksum_calculation="when_required",  # what is put says its sha256
    response_checksum_validation="when_required",  # we hash what passes
    user_agent_extra=f"warmer/{__version__}",
)
_ALLOW: Final = (
    "allow s3:GetObject and, to push, s3:PutObject on the prefix, and s3:ListBucket on the bucket"
)


class Service:
    """The service that keeps a bucket.

    Args:
        url: where.
        trying: how often what fails is tried again.

    Raises:
        SourceError: the endpoint is no URL, or the credentials are half of a pair or too slow.
    """

    def __init__(self, url: RemoteUrl, trying: Trying) -> None:
        self.url = url
        self.until = float("inf")
        """Monotonic time after which nothing more is asked, however well it goes."""
        self.trying = trying
        try:
            session = botocore.session.get_session()
            credentials.bound(session, window=trickle.SHORT_WINDOW)
            self.client = boto3.session.Session(botocore_session=session).client(
                "s3", config=_CONFIG
            )
            trickle.fit(self.client, window=trickle.SHORT_WINDOW)
        except (*s3_errors.NO_CREDENTIALS, OverdueError) as exc:
            raise s3_errors.translate(exc, str(url)) from exc
        except (failures.BotoCoreError, ValueError) as exc:
            raise SourceError(
                f"got no S3 client for {url} ({type(exc).__name__}), expected a region and the URL "
                "of an endpoint",
                reason="no-s3",
                hint="set AWS_REGION, and AWS_ENDPOINT_URL for a service that is not AWS",
            ) from exc

    def in_time(self) -> bool:
        """Whether there is time left."""
        return time.monotonic() < self.until

    def ask(self, name: str, call: Callable[..., Any], **more: Any) -> Any:
        """Ask once.

        Args:
            name: of the object, for errors.
            call: a method of the client.
            more: its arguments, but for the bucket.

        Raises:
            TakenError: a condition was not fulfilled.
            SourceError: no answer, a refusal, or no time left.
        """
        self.insist_on_time(name)
        try:
            return call(Bucket=self.url.bucket, **more)
        except failures.ClientError as exc:
            status = exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            if status == 412:
                raise TakenError(
                    f"got an object at {self.where(name)}, expected none",
                    reason="taken",
                    hint="something else writes there; use another prefix",
                ) from exc
            if status == 409:  # another one is putting it: soon it is there, or not
                raise TransientSourceError(
                    f"got 409 from S3 for {self.where(name)}, expected nobody else to put it",
                    reason="unavailable",
                    hint="try later, or raise --retry",
                ) from exc
            error = s3_errors.translate(exc, self.where(name), expected="to read or put it")
            if error.reason == "denied" and status == 403:
                error.hint = _ALLOW
            raise error from exc
        except Exception as exc:
            raise s3_errors.translate(exc, self.where(name)) from exc

    def length(self, name: str, found: Mapping[str, Any]) -> int:
        """How many bytes an answer has; S3 always says."""
        if (size := found.get("ContentLength")) is None:
            raise s3_errors.unanswered(EOFError(), self.where(name))
        return int(size)

    def insist_on_time(self, name: str) -> None:
        """Insist that there is time left.

        Raises:
            SourceError: there is none.
        """
        if not self.in_time():
            raise SourceError(
                f"got no end of {self.where(name)} in time, expected it sooner than a build",
                reason="too-slow",
                hint="look at the network between this node and the bucket",
            )

    def where(self, name: str) -> str:
        """Name an object for people."""
        return f"s3://{self.url.bucket}/{name}"


class TakenError(SourceError):
    """An object of this name is there."""


class Upload(io.FileIO):
    """A file on its way; it ends early where time has run out."""

    def __init__(self, path: str, service: Service) -> None:
        super().__init__(regular.opened(path), "rb")
        self._service = service

    def read(self, size: int | None = -1, /) -> bytes:
        """Read on, or fail: what sends it takes any failure for a broken connection."""
        if not self._service.in_time():
            raise TimeoutError
        return super().read(-1 if size is None else size)
