"""``hf://org/name``: a model on the Hugging Face Hub, or on whatever HF_ENDPOINT names.

huggingface_hub asks what a revision means and what its files must hash to; the bytes come by
plain ranges (`hub_bytes`), which every hub and mirror serves. Its exceptions are translated where
they enter (`hub_errors`).
"""

from __future__ import annotations

import dataclasses
import logging
import os
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from warmer import __version__
from warmer.errors import SourceError
from warmer.fill.deadline import OverdueError, within
from warmer.fill.sources import SourceFile, hub_errors, trickle

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from warmer.fill.sources.hub_bytes import HubBytes, HubReader
    from warmer.model import ModelRef

_TIMEOUT: Final = 30.0
_YES: Final = ("1", "ON", "YES", "TRUE")


class Hub:
    """A model on the Hub.

    Args:
        model: as asked for.
        environment: HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE are read from it.
    """

    def __init__(self, model: ModelRef, *, environment: Mapping[str, str]) -> None:
        self._model = model
        self._environment = environment
        self._endpoint = environment.get("HF_ENDPOINT") or None
        # A Secret made --from-file ends with the file's line end, which no header may hold.
        self._token = environment.get("HF_TOKEN", "").strip() or None
        self._known: Any = None
        self._bytes: HubBytes | None = None

    def resolve(self) -> ModelRef:
        """Ask the hub which commit the revision means."""
        commit = str(self._info(self._model).sha)
        return dataclasses.replace(self._model, revision=commit)

    def files(self, model: ModelRef) -> tuple[SourceFile, ...]:
        """List a commit's files with the hashes the hub has of them."""
        siblings = self._info(model).siblings or []
        found = [SourceFile(str(s.rfilename), int(s.size or 0), _digests(s)) for s in siblings]
        if not found:
            raise SourceError(
                f"got no files in {model}, expected a model",
                reason="not-found",
                hint="look at the repository on the hub",
            )
        return tuple(sorted(found, key=lambda file: file.path))

    def describe(self, _model: ModelRef, file: SourceFile) -> SourceFile:
        """The listing says it all."""
        return file

    def open(self, model: ModelRef, file: SourceFile, start: int, end: int) -> HubReader:
        """Open a range of a file of a commit."""
        if self._environment.get("HF_HUB_OFFLINE", "").upper() in _YES:
            raise hub_errors.offline(f"{file.path} of {model}")
        if self._bytes is None:
            from warmer.fill.sources.hub_bytes import HubBytes  # noqa: PLC0415 - 0.1 s

            self._bytes = HubBytes(
                endpoint=self._endpoint, token=self._token, environment=self._environment
            )
        return self._bytes.open(model, file, start, end)

    def _info(self, model: ModelRef) -> Any:
        """Ask for a revision's listing once; it also says which commit it is."""
        known = self._known
        if known is not None and model.revision in (known.sha, self._model.revision):
            return known
        with _translated(model):
            api = _library().HfApi(
                endpoint=self._endpoint,
                token=self._token,
                library_name="warmer",
                library_version=__version__,
            )
            self._known = within(
                trickle.WINDOW,
                api.model_info,
                model.name,
                revision=model.revision,
                files_metadata=True,
                timeout=_TIMEOUT,
            )
        return self._known


def _digests(sibling: Any) -> dict[str, str]:
    if sibling.lfs:
        return {"sha256": str(sibling.lfs.sha256)}
    return {"git-sha1": str(sibling.blob_id)} if sibling.blob_id else {}


@contextmanager
def _translated(model: ModelRef) -> Iterator[None]:
    try:
        yield
    except SourceError:
        raise
    except OverdueError as exc:
        raise hub_errors.overdue(trickle.WINDOW, str(model)) from exc
    except Exception as exc:
        error = hub_errors.translate(exc, model, str(model))
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
    warnings.filterwarnings("ignore", module="huggingface_hub")  # of disks that fill up: we say it

    return huggingface_hub
