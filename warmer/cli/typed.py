"""Values as options take them; what is none is told as `warmer.cli.misuse` needs it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from typing import NoReturn


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
            bounds = _range(low, high)
            seconds = param is not None and param.metavar == "SECONDS"
            wanted = f" of seconds,{bounds.removeprefix(' of')}" if seconds else bounds
            _refuse(value, f"a number{wanted}", param, ctx)
        return number


class Whole(click.IntRange):
    """A whole number within a range."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read it; anything else is a mistake of the user's."""
        try:
            return int(super().convert(value, param, ctx))
        except click.BadParameter:
            _refuse(value, f"a whole number{_range(self.min, self.max, '.15g')}", param, ctx)


class OneOf(click.Choice[str]):
    """One of a few words."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Read it; anything else is a mistake of the user's."""
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter:
            _refuse(value, f"one of {', '.join(self.choices)}", param, ctx)


def _range(low: float | None, high: float | None, form: str = ",.15g") -> str:
    if high is None:
        return "" if low is None else f" of at least {low:{form}}"
    least = "" if low is None else f" from {low:{form}}"
    return f"{least} to {high:{form}}"


def _refuse(
    value: Any, wanted: str, param: click.Parameter | None, ctx: click.Context | None
) -> NoReturn:
    raise click.BadParameter(f"got {str(value)!r}, expected {wanted}", ctx, param)
