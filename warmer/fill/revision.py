"""What a moving revision means: asked of the source, remembered on the volume.

A pinned revision is never asked about. Another one costs one round trip per prefill; when the
hub is unreachable, what it last meant on this volume serves, and the log says so.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
from typing import TYPE_CHECKING, Final

import structlog

from warmer import regular
from warmer.fill.sources import TransientSourceError
from warmer.fill.sources.retry import Retrying

if TYPE_CHECKING:
    from warmer.fill.sources import Source
    from warmer.fill.sources.retry import Patience
    from warmer.layout import Volume
    from warmer.model import ModelRef

_log = structlog.get_logger(__name__)


_PATIENCE: Final = 5.0
"""Seconds a source is tried again when there is an answer from before."""


def resolve(
    model: ModelRef,
    source: Source,
    volume: Volume,
    *,
    retry: float,
    patience: Patience | None = None,
) -> ModelRef:
    """Resolve a model's revision.

    Args:
        model: as asked for.
        source: whom to ask, without retries.
        volume: where earlier answers are.
        retry: seconds within which a failing source is tried again.
        patience: where the waiting for it is added up.

    Raises:
        SourceError: not found, denied, or unreachable with nothing remembered.
    """
    if model.pinned:
        return dataclasses.replace(model, revision=model.revision.lower())
    if model.scheme == "file":
        return source.resolve()
    remembered = _read(volume, model)
    budget = retry if remembered is None else min(retry, _PATIENCE)
    try:
        resolved = Retrying(source, budget=budget, patience=patience).resolve()
    except TransientSourceError as exc:
        if remembered is None:
            raise
        _log.warning(
            "source unreachable, using what the revision last meant on this volume",
            model=str(model),
            revision=remembered,
            failure=exc.message,
        )
        return dataclasses.replace(model, revision=remembered)
    if resolved.revision != remembered:
        _remember(volume, model, resolved.revision)
    return resolved


def _read(volume: Volume, model: ModelRef) -> str | None:
    try:
        commit = json.loads(regular.read(volume.ref(model.slug)))[model.revision]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    found = dataclasses.replace(model, revision=str(commit))
    return found.revision if found.pinned else None


def _remember(volume: Volume, model: ModelRef, commit: str) -> None:
    """Note the answer; a hint for a worse day, so that failing to write it is no failure."""
    path = volume.ref(model.slug)
    known: dict[str, str] = {}
    with contextlib.suppress(OSError, ValueError, RecursionError):
        loaded = json.loads(regular.read(path))
        texts = loaded if isinstance(loaded, dict) else {}
        known = {name: said for name, said in texts.items() if isinstance(said, str)}
    fresh = f"{path}.{secrets.token_hex(4)}"
    with contextlib.suppress(OSError):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(fresh, "x", encoding="utf-8") as f:
            json.dump(known | {model.revision: commit}, f, indent=1)
        os.replace(fresh, path)
