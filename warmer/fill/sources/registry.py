"""Scheme → source; only the one that is asked for is imported."""

from __future__ import annotations

from typing import TYPE_CHECKING

from warmer.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from warmer.fill.sources import Source
    from warmer.model import ModelRef


def open_source(model: ModelRef, *, environment: Mapping[str, str]) -> Source:
    """Choose a source by the model's scheme.

    Args:
        model: as asked for.
        environment: for the source's own variables (HF_ENDPOINT, HF_TOKEN).
    """
    if model.scheme == "hf":
        from warmer.fill.sources.hub import Hub  # noqa: PLC0415 - pay for one source

        return Hub(model, environment=environment)
    if model.scheme == "file":
        from warmer.fill.sources.directory import Directory  # noqa: PLC0415 - as above

        return Directory(model)
    raise UsageError(f"got the scheme {model.scheme!r}, expected hf or file", reason="bad-model")
