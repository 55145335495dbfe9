"""`warmer check` for help and completion; the verb itself runs without this module."""

from __future__ import annotations

import os
import sys

import click

from warmer import check


@click.command(
    name="check",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
)
@click.pass_context
def command(ctx: click.Context) -> int:
    """Readiness: is every piece this pod needs sealed on the volume and restored here?"""
    return check.main(ctx.args or sys.argv[2:], os.environ)
