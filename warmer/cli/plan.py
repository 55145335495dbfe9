"""`warmer plan`: what is missing, and why."""

from __future__ import annotations

from typing import Any

import click

from warmer.cli import logs, options, show
from warmer.errors import EXIT_NOT_WARM, EXIT_OK


@click.command(
    name="plan",
    epilog="""\b
Example:
  warmer plan --volume /models --model meta-llama/Llama-3.1-8B-Instruct -- --max-model-len 8192

"""
    + options.EXIT_CODES,
)
@options.common
@click.option(
    "--explain",
    is_flag=True,
    help="Name every factor that differs from the nearest key, and every lever with its risk.",
)
def command(*, explain: bool, json: bool, **values: Any) -> int:
    """Observe and print what is missing, why, and what filling it takes. Changes nothing."""
    logs.configure()
    from warmer.situation import look  # noqa: PLC0415 - after the options are known to be right

    situation = look(options.read(values))
    show.plan(situation, as_json=json, explain=explain)
    return EXIT_OK if situation.plan.empty else EXIT_NOT_WARM
