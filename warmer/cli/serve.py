"""`warmer serve`: become the server."""

from __future__ import annotations

import os

import click

from warmer import settings
from warmer.cli.options import option
from warmer.errors import UsageError
from warmer.layout import WarmDir


@click.command(
    name="serve",
    context_settings={"ignore_unknown_options": True},
    epilog="""\b
Example:
  warmer serve --warm-dir /warm -- --port 8001

\b
Exit status: that of vllm serve; 2 where there is no handoff.
""",
)
@option(
    "--warm-dir",
    metavar="DIR",
    default=settings.DEFAULT_WARM_DIR,
    show_default=True,
    help="Where prefill wrote the handoff.",
)
@click.argument("serve_args", nargs=-1, type=click.UNPROCESSED, metavar="[-- VLLM SERVE ARGS]")
def command(warm_dir: str, serve_args: tuple[str, ...]) -> None:
    """Read the handoff and become `vllm serve` with its environment and flags.

    The same thing without warmer installed: <warm dir>/handoff/serve.
    """
    handoff = WarmDir(settings.parse_directory(warm_dir, "--warm-dir")).handoff
    script = os.path.join(handoff, "serve")
    if not os.path.isfile(os.path.join(handoff, "handoff.json")):
        raise UsageError(
            f"got no handoff in {handoff}, expected one written by warmer prefill",
            reason="no-handoff",
            hint="run `warmer prefill` with the same --warm-dir first",
        )
    os.execv(script, [script, *serve_args])  # noqa: S606 - becoming the server is the point
