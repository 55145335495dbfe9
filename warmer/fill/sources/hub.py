"""``hf://org/name``: a model on the Hugging Face Hub, or on whatever HF_ENDPOINT names.

huggingface_hub does the talking; its own cache, its lock files and its partial downloads stay in
the private directory each file is fetched into. Its exceptions are translated here and chained;
their texts are not passed on, because they may quote a request.
"""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from warmer.errors import SourceError
from warmer.fill.sources import SourceFile, TransientSourceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from warmer.model import ModelRef

_TIMEOUT: Final = 30.0
_OF_THE_DISK: Final = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.ESTALE,
)


class Hub:
    """A model on the Hub.

    Args:
        model: as asked for.
        environment: HF_ENDPOINT and HF_TOKEN are read from it.
    """

    def __init__(self, model: ModelRef, *, environment: Mapping[str, str]) -> None:
        self._model = model
        self._endpoint = environment.get("HF_ENDPOINT") or None
        self._token = environment.get("HF_TOKEN") or None
        self._known: Any = None

    def resolve(self) -> ModelRef:
        """Ask the hub which commit the revision means."""
        commit = str(self._info(self._model).sha)
        return dataclasses.replace(self._model, revision=commit)

    def files(self, model: ModelRef) -> tuple[SourceFile, ...]:
        """List a commit's files with the hashes the hub has of them."""
        siblings = self._info(model).siblings or []
        found = [
            SourceFile(
                path=str(sibling.rfilename),
                size=int(sibling.size or 0),
                sha256=str(sibling.lfs.sha256) if sibling.lfs else None,
                git_sha1=str(sibling.blob_id) if sibling.blob_id and not sibling.lfs else None,
            )
            for sibling in siblings
        ]
        if not found:
            raise SourceError(
                f"got no files in {model}, expected a model",
                reason="not-found",
                hint="look at the repository on the hub",
            )
        return tuple(sorted(found, key=lambda file: file.path))

    def fetch(
        self, model: ModelRef, file: SourceFile, target: str, progress: Callable[[int], None]
    ) -> None:
        """Download one file of a commit."""
        hf_hub_download = _library().hf_hub_download
        directory = os.path.join(os.path.dirname(target), "hub")
        with self._translated(model, file.path):
            path = hf_hub_download(
                model.name,
                file.path,
                revision=model.revision,
                local_dir=directory,
                endpoint=self._endpoint,
                token=self._token,
                tqdm_class=_bar(progress),
            )
        os.rename(path, target)

    def _info(self, model: ModelRef) -> Any:
        """Ask for a revision's listing once; it also says which commit it is."""
        known = self._known
        if known is not None and model.revision in (known.sha, self._model.revision):
            return known
        with self._translated(model):
            api = _library().HfApi(
                endpoint=self._endpoint, token=self._token, library_name="warmer"
            )
            self._known = api.model_info(
                model.name, revision=model.revision, files_metadata=True, timeout=_TIMEOUT
            )
        return self._known

    @contextmanager
    def _translated(self, model: ModelRef, path: str = "") -> Iterator[None]:
        where = f"{path} of {model}" if path else str(model)
        try:
            yield
        except SourceError:
            raise
        except Exception as exc:
            error = _translate(exc, model, where)
            if error is None:
                raise
            raise error from exc


def _library() -> Any:
    """Import huggingface_hub, 0.2 s, which a warm start does not pay.

    Its telemetry is a request of its own, to huggingface.co whatever the endpoint; it is off. Its
    logger prints requests as they are, with what their URLs hold; it is silent.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import huggingface_hub  # noqa: PLC0415 - see above

    logger = logging.getLogger("huggingface_hub")
    logger.handlers = [logging.NullHandler()]
    logger.propagate = False

    return huggingface_hub


def _translate(exc: Exception, model: ModelRef, where: str) -> SourceError | None:
    """Say in warmer's words what huggingface_hub met; None for what is not the hub's fault."""
    from huggingface_hub import errors  # noqa: PLC0415 - paid already when it raised

    # A gated repository is a subclass of one that is not found: the order matters.
    known: tuple[tuple[type[Exception], str, str, str], ...] = (
        (
            errors.GatedRepoError,
            "gated",
            f"got access to {where} denied by the hub (the model is gated), expected access",
            "accept the model's terms on the hub, and give HF_TOKEN from a Secret",
        ),
        (
            errors.RevisionNotFoundError,
            "no-such-revision",
            f"got no revision {model.revision!r} of {model.name} on the hub, expected one",
            "a revision is a commit (40 hex digits), a branch or a tag of the repository",
        ),
        (
            errors.RepositoryNotFoundError,
            "not-found",
            f"got no model {model.name} on the hub, or none that this token may see; expected one",
            "check the name; for a private model give HF_TOKEN from a Secret",
        ),
        (
            errors.RemoteEntryNotFoundError,
            "not-found",
            f"got no {where} on the hub, expected the file",
            "",
        ),
        (
            errors.OfflineModeIsEnabled,
            "offline",
            f"got HF_HUB_OFFLINE set, expected leave to ask the hub for {where}",
            "unset it for warmer; the handoff sets it for the server",
        ),
        (errors.HFValidationError, "not-found", f"got {where}, expected a repository's name", ""),
    )
    for kind, reason, message, hint in known:
        if isinstance(exc, kind):
            return SourceError(message, reason=reason, hint=hint)
    if isinstance(exc, errors.HfHubHTTPError):
        return _status(exc, where)
    if isinstance(exc, errors.LocalEntryNotFoundError):
        # "Not found locally" stands for whatever kept it from asking; the cause says which.
        cause = exc.__cause__
        return (
            _status(cause, where)
            if isinstance(cause, errors.HfHubHTTPError)
            else _unreachable(exc, where)
        )
    if isinstance(exc, OSError):
        return None if exc.errno in _OF_THE_DISK else _unreachable(exc, where)
    if isinstance(exc, ValueError):
        return TransientSourceError(
            f"got an answer for {where} that is not the hub's ({type(exc).__name__}), expected one",
            reason="bad-answer",
            hint="check HF_ENDPOINT, and what stands between it and here",
        )
    # The HTTP client's own errors, whichever client the installed huggingface_hub uses.
    foreign = type(exc).__module__.startswith(("httpx", "httpcore", "requests"))
    return _unreachable(exc, where) if foreign else None


def _status(exc: Any, where: str) -> SourceError:
    response = exc.response
    status = int(response.status_code) if response is not None else 0
    message = f"got HTTP {status} from the hub for {where}, expected 200"
    if status == 429 or status >= 500 or status == 0:
        reason = "rate-limited" if status == 429 else "unavailable"
        return TransientSourceError(
            message,
            reason=reason,
            hint="try later, or raise --retry",
            retry_after=_seconds(response.headers.get("Retry-After")) if response else None,
        )
    if status in (401, 403):
        return SourceError(message, reason="denied", hint="give HF_TOKEN from a Secret")
    return SourceError(message, reason="http")


def _unreachable(exc: Exception, where: str) -> TransientSourceError:
    return TransientSourceError(
        f"got no answer from the hub for {where} ({type(exc).__name__}), expected one",
        reason="unreachable",
        hint="check the network and HF_ENDPOINT; a pinned revision that is sealed needs no hub",
    )


def _seconds(text: str | None) -> float | None:
    return float(text) if text and text.isdecimal() else None


def _bar(progress: Callable[[int], None]) -> Any:
    """Make the class huggingface_hub calls instead of tqdm; it reports bytes and draws nothing."""
    from tqdm import tqdm  # noqa: PLC0415 - comes with huggingface_hub

    class Bar(tqdm):  # type: ignore[misc, type-arg, unused-ignore] # untyped tqdm
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs["disable"] = True
            kwargs.pop("name", None)
            super().__init__(*args, **kwargs)

        def update(self, n: float | None = 1) -> bool | None:
            progress(int(n or 0))
            return None

    return Bar
