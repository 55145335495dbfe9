"""A model at its source: how large it is, and how fast it comes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from warmer.advise import measure
from warmer.fill import weights
from warmer.fill.sources.registry import open_source
from warmer.fill.sources.retry import Retrying
from warmer.selection import ENGINE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from warmer.fill.sources import SourceFile
    from warmer.model import ModelRef


@dataclass(frozen=True, slots=True)
class Found:
    """What a source says of a model.

    Attributes:
        source: it, its transient failures tried again.
        model: resolved.
        files: those that the engine loads.
    """

    source: Retrying
    model: ModelRef
    files: tuple[SourceFile, ...]

    @property
    def size(self) -> int:
        """Bytes that the engine loads."""
        return sum(file.size for file in self.files)

    @property
    def count(self) -> int:
        """Files that the engine loads."""
        return len(self.files)

    def time(self, sample: int) -> measure.Rate:
        """Fetch a sample.

        Raises:
            SourceError: the source failed.
        """
        rate = measure.source(self.source, self.model, self.files, sample)
        if self.model.scheme == "file":
            rate = dataclasses.replace(rate, how=f"{rate.how}, from memory where it is there")
        return rate


def ask(model: ModelRef, environment: Mapping[str, str], *, retry: float) -> Found:
    """Ask which files a model has.

    Raises:
        SourceError: not found, denied, unreachable.
        UsageError: it has nothing that an engine could load.
    """
    source = Retrying(open_source(model, environment=environment), budget=retry)
    resolved = source.resolve()
    files = weights.listing(source, resolved, ENGINE).files
    return Found(source, resolved, files)
