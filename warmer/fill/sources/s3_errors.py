"""What S3's refusals and failures mean, in warmer's words.

Bodies are not passed on: one that says that a token has expired repeats the token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import botocore.exceptions as failures

from warmer.errors import SourceError
from warmer.fill import retryafter
from warmer.fill.deadline import OverdueError
from warmer.fill.sources import TransientSourceError, credentials, trickle

if TYPE_CHECKING:
    from collections.abc import Mapping

NO_CREDENTIALS: Final = (
    failures.NoCredentialsError,
    failures.PartialCredentialsError,
    failures.CredentialRetrievalError,
    failures.TokenRetrievalError,
    failures.ProfileNotFound,
    failures.SSOError,
)
_EXPIRED: Final = (
    "ExpiredToken",
    "ExpiredTokenException",
    "RequestExpired",
    "TokenRefreshRequired",
)
_BUSY: Final = ("SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded")


def translate(
    exc: Exception, where: str, *, expected: str = "its bytes or its listing"
) -> SourceError:
    """Say what a call of boto3 met.

    Args:
        exc: what it raised.
        where: names what was asked for.
        expected: instead.
    """
    if isinstance(exc, SourceError):
        return exc
    if isinstance(exc, OverdueError):  # nothing else of S3's is asked like that
        return credentials.overdue(exc, where)
    if isinstance(exc, NO_CREDENTIALS):
        return SourceError(
            f"got no AWS credentials for {where} ({type(exc).__name__}), expected some",
            reason="denied",
            hint="give the pod a role, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        )
    if isinstance(exc, failures.ClientError):
        answer: Any = exc.response
        meta = answer.get("ResponseMetadata", {})
        status = int(meta.get("HTTPStatusCode", 0))
        said = str(answer.get("Error", {}).get("Code", ""))
        said = "" if said == str(status) else said  # botocore's own, where S3 says none
        return _refusal(status, said, meta.get("HTTPHeaders", {}), where, expected)
    # As when a portal answers in HTML: botocore's parser raises what is no BotoCoreError.
    return unanswered(exc, where)


def unanswered(exc: Exception, where: str) -> TransientSourceError:
    """The error where no answer came, it broke off, or trickled."""
    if (found := trickle.trickled(exc)) is not None:
        return TransientSourceError(
            trickle.message(found, where), reason="too-slow", hint=trickle.HINT
        )
    return TransientSourceError(
        f"got no answer from S3 for {where} ({type(exc).__name__}), expected one",
        reason="unreachable",
        hint="check the network and AWS_ENDPOINT_URL",
    )


def _refusal(
    status: int, code: str, headers: Mapping[str, str], where: str, expected: str
) -> SourceError:
    """The error for an answer that is no success.

    Args:
        status: of HTTP.
        code: S3's own.
        headers: of the answer; ``Retry-After`` counts.
        where: names what was asked for.
        expected: instead.
    """
    said = f"{status} {code}".rstrip()
    message = f"got {said} from S3 for {where}, expected {expected}"
    if code in _EXPIRED or (status == 400 and not code):
        # AWS says no code where the answer has no body, as one to HEAD.
        may = "" if code else "probably "
        hint = f"the credentials have {may}expired: renew them or the pod's role"
        return SourceError(message, reason="denied", hint=hint)
    if status == 412:
        return SourceError(
            f"got another object at {where} than was listed, expected it to stay",
            reason="source-changed",
            hint="somebody replaced it meanwhile; run again",
        )
    if status == 404 or code in ("NoSuchKey", "NoSuchBucket"):
        return SourceError(message, reason="not-found", hint="check the bucket and the prefix")
    if status in (401, 403):
        hint = "allow s3:GetObject on the prefix and s3:ListBucket on the bucket"
        return SourceError(message, reason="denied", hint=hint)
    if status == 429 or status >= 500 or code in (*_BUSY, "RequestTimeout"):
        return TransientSourceError(
            message,
            reason="rate-limited" if status == 429 or code in _BUSY else "unavailable",
            hint="try later, or raise --retry",
            retry_after=retryafter.seconds(headers.get("retry-after") or ""),
            throttled=status in (429, 503),
        )
    return SourceError(message, reason="http", hint="look at the bucket, its region and its policy")
