"""`warmer check` for help and completion; the verb itself runs without this module."""

from __future__ import annotations

import os
import re
import sys
from typing import TYPE_CHECKING

import click

from warmer import check

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


class _Probe(click.Command):
    """Completes the options that the probe's own help names: click knows none of them."""

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Offer those that begin with what is typed."""
        from click.shell_completion import CompletionItem  # noqa: PLC0415 - help does without

        del ctx
        named = re.findall(r"^ +(--[a-z-]+)", check.USAGE, re.MULTILINE)
        return [CompletionItem(name) for name in named if name.startswith(incomplete or "-")]


@click.command(
    name="check",
    cls=_Probe,
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
)
@click.pass_context
def command(ctx: click.Context) -> int:
    """Readiness: is every piece this pod needs sealed on the volume and restored here?"""
    return check.main(ctx.args or sys.argv[2:], os.environ)
