"""Numbers as options take them."""

from __future__ import annotations

import math
from typing import Any

import click


class Finite(click.FloatRange):
    """A number within a range, and none of ``inf`` and ``nan``, which no range keeps out."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Read it; anything else is a mistake of the user's."""
        try:
            number = float(str(value).strip())
        except ValueError:
            number = math.nan
        low, high = self.min, self.max
        fits = (low is None or low <= number) and (high is None or number <= high)
        if not (math.isfinite(number) and fits):
            least = "" if low is None else f" from {low:,.15g}"
            most = "" if high is None else f" to {high:,.15g}"
            self.fail(f"got {str(value)!r}, expected a number{least}{most}", param, ctx)
        return number
