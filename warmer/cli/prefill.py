"""`warmer prefill`: the whole pipeline."""

from __future__ import annotations

from typing import Any

import click

from warmer.cli import logs, modes, options, show, termination


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
@options.option(
    "--termination-log",
    metavar="FILE",
    default=termination.DEFAULT,
    show_default=True,
    help="Where to leave one line of JSON about what was done, if that file is there: Kubernetes "
    "shows it as the state of the container that ended.",
)
def command(*, json: bool, termination_log: str, **values: Any) -> int:
    """Plan, then fill only what is missing under the lock, verify, restore, write the handoff.

    Used as an init container, as a Job before a scale event, and by hand.
    """
    logs.configure()
    modes.let_the_group_read()
    from warmer.prefill import prefill  # noqa: PLC0415 - after the options are known to be right

    with termination.told(termination_log) as note:
        settings = options.read(values)
        outcome = prefill(settings)
        code = note.done(outcome)
        show.outcome(outcome, settings, as_json=json)
    return code
