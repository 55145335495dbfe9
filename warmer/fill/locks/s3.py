"""S3 objects as a register, by conditional writes: ``If-None-Match: *`` and ``If-Match: <etag>``.

Guarantees: of two writers over one ETag, one wins and the other gets 412.

Does *not* guarantee it where the service ignores the conditions, as some that speak S3 do: a
probe at the start sees whether they are obeyed and refuses the bucket otherwise. The probe cannot
see a race in the service's own code.

One object per key, ``<prefix>/<kind>-<key>``; never deleted, so that the epoch goes on growing.
Needs ``s3:GetObject``, ``s3:PutObject``, and ``s3:ListBucket`` so that a missing object reads as
missing. Credentials, region and endpoint come from where boto3 finds them (AWS_* variables, a web
identity, the instance). Nothing is retried by botocore: a retried write would race with itself.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, NoReturn
from urllib.parse import urlsplit

import boto3
import botocore.exceptions as failures
from botocore.config import Config

from warmer.errors import LockError
from warmer.fill import locks, retryafter
from warmer.fill.deadline import OverdueError, within
from warmer.fill.locks import UnansweredError
from warmer.fill.locks.lease import ConflictError
from warmer.fill.locks.record import Owner, parse

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_CONFIG: Final = Config(
    retries={"total_max_attempts": 1}, connect_timeout=2, read_timeout=5, max_pool_connections=2
)
_CONFLICT: Final = (409, 412)
_BUSY: Final = ("SlowDown", "RequestTimeout")
_NOBODYS: Final = '"00000000000000000000000000000000"'
"""An ETag that no object has."""


class S3Register:
    """Records in objects of one bucket.

    Args:
        bucket: the bucket.
        prefix: what the objects' names start with; one per volume.

    Raises:
        UnansweredError: credentials did not come in time, or no answer did.
        LockError: the bucket cannot be used, or ignores conditions.
    """

    def __init__(self, bucket: str, prefix: str) -> None:
        self._bucket = bucket
        self._prefix = prefix
        try:
            session = boto3.session.Session()
            self._client = within(locks.ANSWER, session.client, "s3", config=_CONFIG)
        except OverdueError as exc:  # it asks for credentials, and who gives them may trickle
            raise _unanswered(exc) from exc
        except (failures.BotoCoreError, ValueError) as exc:
            raise LockError(
                f"got no S3 client for --lock s3://{bucket} ({type(exc).__name__}), expected a region "
                "and an endpoint",
                reason="no-s3",
                hint="set AWS_REGION, and AWS_ENDPOINT_URL for a service that is not AWS",
            ) from exc
        self._probe()

    def read(self, name: str) -> tuple[Owner, str] | None:
        """The record and its ETag; None where there is none.

        Raises:
            LockError: the service failed or refused.
        """
        try:
            found = self._call(self._client.get_object, self._path(name))
        except failures.ClientError as exc:
            if _code(exc) == "NoSuchKey":
                return None
            self._refused("read", exc)
        return parse(found["Body"]), _etag(found)

    def write(self, name: str, owner: Owner, version: str | None) -> str:
        """Write the record over one ETag, or as a new object; return its ETag.

        Raises:
            ConflictError: the object has another ETag.
            UnansweredError: it may be written or not.
            LockError: the service failed or refused.
        """
        record = {slot: getattr(owner, slot) for slot in Owner.__slots__}
        try:
            return self._put(self._path(name), json.dumps(record).encode(), version)
        except failures.ClientError as exc:
            if _status(exc) in _CONFLICT or _code(exc) == "NoSuchKey":
                raise ConflictError from exc
            self._refused("write", exc)

    def _probe(self) -> None:
        """See that the bucket obeys conditions; leaves one object, the same for all probes."""
        path = self._path("probe")
        tries: list[tuple[str, str | None]] = [
            ("made once", None),
            ("made twice", None),
            ("written over another version", _NOBODYS),
        ]
        refused = False
        for number, (what, version) in enumerate(tries):
            if refused and version is None:
                continue  # it was there: that a condition is obeyed has been seen
            try:
                self._put(path, b"{}", version)
            except failures.ClientError as exc:
                if _status(exc) not in _CONFLICT:
                    self._refused("write", exc)
                refused = _status(exc) == 412
            else:
                if number:
                    raise LockError(
                        f"got the object {path} of the bucket {self._bucket} {what}, expected the "
                        "condition to be obeyed (412)",
                        reason="no-conditional-writes",
                        hint="this S3 service ignores If-None-Match or If-Match and cannot keep a "
                        "lock; use another bucket or --lock k8s://",
                    )

    def _put(self, path: str, body: bytes, version: str | None) -> str:
        condition = {"IfMatch": version} if version is not None else {"IfNoneMatch": "*"}
        return _etag(self._call(self._client.put_object, path, Body=body, **condition))

    def _call(self, operation: Callable[..., Any], path: str, **more: Any) -> Mapping[str, Any]:
        try:
            return within(locks.ANSWER, _whole, operation, Bucket=self._bucket, Key=path, **more)
        except (failures.ClientError, UnansweredError):
            raise
        except (*_NO_CREDENTIALS, OSError) as exc:  # OSError: files that credentials are read from
            if isinstance(exc, failures.BotoCoreError) and not isinstance(exc, _NO_CREDENTIALS):
                raise _unanswered(exc) from exc  # as timeouts, which botocore makes OSErrors too
            raise LockError(
                f"got no AWS credentials for --lock s3://{self._bucket} ({type(exc).__name__}), "
                "expected some",
                reason="lock-denied",
                hint="give the pod a role, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
            ) from exc
        except Exception as exc:
            # As when a portal answers in HTML: botocore's parser raises what is no BotoCoreError.
            raise _unanswered(exc) from exc

    def _path(self, name: str) -> str:
        return f"{self._prefix}/{name}" if self._prefix else name

    def _refused(self, what: str, exc: failures.ClientError) -> NoReturn:
        status, code = _status(exc), _code(exc)
        if code not in _ADVICE and (status >= 500 or status == 429 or code in _BUSY):
            raise UnansweredError(
                f"the S3 service answered {status} {code}",
                reason="lock-unavailable",
                hint="run again when it is well",
                retry_after=_told(exc),
            ) from exc
        reason, hint = _ADVICE.get(code, ("lock-refused", "look at the bucket and its policy"))
        if status == 403 and code not in _ADVICE:
            reason, hint = _DENIED
        raise LockError(
            f"got {status} {code} for --lock s3://{self._bucket}, expected to {what} {self._prefix}",
            reason=reason,
            hint=hint,
        ) from exc


_NO_CREDENTIALS: Final = (
    failures.NoCredentialsError,
    failures.PartialCredentialsError,
    failures.CredentialRetrievalError,
    failures.TokenRetrievalError,
    failures.ProfileNotFound,
    failures.SSOError,
)
_DENIED: Final = (
    "lock-denied",
    "allow s3:GetObject and s3:PutObject on the prefix and s3:ListBucket on the bucket",
)
_EXPIRED: Final = ("lock-denied", "the credentials have expired: renew them or the pod's role")
_ADVICE: Final = {
    "ExpiredToken": _EXPIRED,
    "ExpiredTokenException": _EXPIRED,
    "RequestExpired": _EXPIRED,
    "NoSuchBucket": ("no-bucket", "make the bucket, or correct its name"),
    "NotImplemented": ("no-conditional-writes", "this S3 service has none; use --lock k8s://"),
}


def _whole(operation: Callable[..., Any], **call: Any) -> Mapping[str, Any]:
    """Ask, and read the answer's body too."""
    found: dict[str, Any] = operation(**call)
    if "Body" in found:
        try:
            found["Body"] = found["Body"].read()
        except (failures.BotoCoreError, OSError) as exc:  # the body broke off
            raise _unanswered(exc) from exc
    return found


def _status(exc: failures.ClientError) -> int:
    return int(exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _told(exc: failures.ClientError) -> float | None:
    headers = exc.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    return retryafter.seconds(str(headers.get("retry-after", "")))


def _code(exc: failures.ClientError) -> str:
    return str(exc.response.get("Error", {}).get("Code", ""))


def _etag(found: Mapping[str, Any]) -> str:
    if not (etag := found.get("ETag")):
        raise UnansweredError(
            "got an answer without an ETag from the S3 service, expected one",
            reason="lock-unreachable",
            hint="something between answers in its place: look at AWS_ENDPOINT_URL",
        )
    return str(etag)


def _unanswered(exc: Exception) -> UnansweredError:
    """The name of an error alone: its text may hold an endpoint's password, or a header's token."""
    at = urlsplit(str(getattr(exc, "kwargs", {}).get("endpoint_url", ""))).hostname
    return UnansweredError(
        f"got no answer from the S3 service ({type(exc).__name__}{f' at {at}' if at else ''})",
        reason="lock-unreachable",
        hint="look at the network, AWS_ENDPOINT_URL and the credentials; or use another --lock",
    )
