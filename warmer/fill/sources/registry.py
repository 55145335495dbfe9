"""Scheme → source; only the one that is asked for is imported."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
    if model.scheme == "s3":
        from warmer.fill.sources.s3 import S3  # noqa: PLC0415 - as above

        return S3(model)
    from warmer.fill.sources.directory import Directory  # noqa: PLC0415 - as above

    return Directory(model)
