"""`warmer prefill`: the whole pipeline."""

from __future__ import annotations

from typing import Any

import click

from warmer.cli import logs, modes, options, show
from warmer.errors import EXIT_NOT_WARM, EXIT_OK


@click.command(
    name="prefill",
    epilog="""\b
Examples:
  warmer prefill --volume /models --model meta-llama/Llama-3.1-8B-Instruct -- --max-model-len 8192
  warmer prefill --config /etc/warmer/warmer.yaml --on-miss kernels=fail

"""
    + options.EXIT_CODES,
)
@options.common
@options.filling
def command(*, json: bool, **values: Any) -> int:
    """Plan, then fill only what is missing under the lock, verify, restore, write the handoff.

    Used as an init container, as a Job before a scale event, and by hand.
    """
    logs.configure()
    modes.let_the_group_read()
    from warmer.prefill import prefill  # noqa: PLC0415 - after the options are known to be right

    settings = options.read(values)
    outcome = prefill(settings)
    show.outcome(outcome, settings, as_json=json)
    return EXIT_OK if outcome.left is None or outcome.left.empty else EXIT_NOT_WARM
