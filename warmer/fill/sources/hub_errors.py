"""What a hub's refusals and failures mean, in warmer's words.

Texts of other libraries' exceptions are not passed on: they may quote a request, and the token
with it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from warmer.errors import SourceError
from warmer.fill import retryafter
from warmer.fill.sources import TransientSourceError, trickle

if TYPE_CHECKING:
    from collections.abc import Mapping

    from warmer.model import ModelRef

_OFFLINE: Final = "offline"
_RESET: Final = re.compile(r"(?:^|;)\s*t=(\d+)")
"""``RateLimit: "api";r=0;t=55``: seconds until the hub counts anew."""


def refusal(code: str, model: ModelRef, where: str) -> SourceError | None:
    """The error for one of the hub's own codes (``X-Error-Code``); None for an unknown one."""
    match code:
        case "GatedRepo":
            return SourceError(
                f"got access to {where} denied by the hub (the model is gated), expected access",
                reason="gated",
                hint="accept the model's terms on the hub, and give HF_TOKEN from a Secret",
            )
        case "RevisionNotFound":
            return SourceError(
                f"got no revision {model.revision!r} of {model.name} on the hub, expected one",
                reason="no-such-revision",
                hint="a revision is a commit (40 hex digits), a branch or a tag of the repository",
            )
        case "RepoNotFound":
            return SourceError(
                f"got no model {model.name} on the hub, or none that this token may see; "
                "expected one",
                reason="not-found",
                hint="check the name; for a private model give HF_TOKEN from a Secret",
            )
        case "EntryNotFound":
            return SourceError(f"got no {where} on the hub, expected the file", reason="not-found")
    return None


def offline(where: str) -> SourceError:
    """The error where HF_HUB_OFFLINE forbids to ask."""
    return SourceError(
        f"got HF_HUB_OFFLINE set, expected leave to ask the hub for {where}",
        reason=_OFFLINE,
        hint="unset it for warmer; the handoff sets it for the server",
    )


def status(code: int, headers: Mapping[str, str], where: str) -> SourceError:
    """The error for an HTTP status that says no more than itself."""
    message = f"got HTTP {code} from the hub for {where}, expected its bytes or its listing"
    if code == 429 or code >= 500 or code == 0:
        after = _retry_after(headers)
        return TransientSourceError(
            message,
            reason="rate-limited" if code == 429 else "unavailable",
            hint="try later, or raise --retry",
            retry_after=after,
            throttled=code == 429 or (code == 503 and after is not None),
        )
    if code in (401, 403):
        return SourceError(message, reason="denied", hint="give HF_TOKEN from a Secret")
    return SourceError(message, reason="http")


def unreachable(exc: Exception, where: str) -> TransientSourceError:
    """The error where no answer came, it broke off, or trickled."""
    if (found := trickle.trickled(exc)) is not None:
        return TransientSourceError(
            trickle.message(found, where), reason="too-slow", hint=trickle.HINT
        )
    return TransientSourceError(
        f"got no answer from the hub for {where} ({type(exc).__name__}), expected one",
        reason="unreachable",
        hint="check the network and HF_ENDPOINT; a pinned revision that is sealed needs no hub",
    )


def overdue(seconds: float, where: str) -> TransientSourceError:
    """The error where an answer came too slowly to be waited for."""
    return TransientSourceError(
        f"got no whole answer from the hub for {where} in {seconds:.0f} s, expected its listing",
        reason="too-slow",
        hint="look at the network, the proxy or the firewall on the way there, and at HF_ENDPOINT",
    )


def bad_answer(what: str, where: str) -> TransientSourceError:
    """The error where an answer cannot be the hub's."""
    return TransientSourceError(
        f"got an answer for {where} that is not the hub's ({what}), expected one",
        reason="bad-answer",
        hint="check HF_ENDPOINT, and what stands between it and here",
    )


def translate(  # noqa: PLR0911 - one return per failure reads best
    exc: Exception, model: ModelRef, where: str
) -> SourceError | None:
    """Say what huggingface_hub met; None for what is not the hub's fault."""
    from huggingface_hub import errors  # noqa: PLC0415 - paid already when it raised

    # A gated repository is a subclass of one that is not found: the order matters.
    known: tuple[tuple[type[Exception], str], ...] = (
        (errors.GatedRepoError, "GatedRepo"),
        (errors.RevisionNotFoundError, "RevisionNotFound"),
        (errors.RepositoryNotFoundError, "RepoNotFound"),
        (errors.RemoteEntryNotFoundError, "EntryNotFound"),
    )
    for kind, code in known:
        if isinstance(exc, kind):
            return refusal(code, model, where)
    if isinstance(exc, errors.OfflineModeIsEnabled):
        return offline(where)
    if isinstance(exc, errors.HFValidationError):
        return SourceError(f"got {where}, expected a repository's name", reason="not-found")
    if isinstance(exc, errors.HfHubHTTPError):
        response: Any = exc.response
        return status(int(response.status_code), response.headers, where)
    if isinstance(exc, OSError):
        return unreachable(exc, where)
    if isinstance(exc, ValueError):
        return bad_answer(type(exc).__name__, where)
    # The HTTP client's own errors, whichever client the installed huggingface_hub uses.
    foreign = type(exc).__module__.startswith(("httpx", "httpcore", "requests"))
    return unreachable(exc, where) if foreign else None


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Read ``Retry-After``, else the hub's ``RateLimit``."""
    told = retryafter.seconds(headers.get("Retry-After") or "")
    if told is not None:
        return told
    found = _RESET.search(headers.get("RateLimit") or "")
    return float(found[1]) if found else None
