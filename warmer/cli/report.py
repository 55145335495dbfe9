"""`warmer report`: what a start spent its time on, alone or beside a cold one."""

from __future__ import annotations

import os
from json import dumps

import click

from warmer.cli.options import option
from warmer.errors import UsageError
from warmer.report import log, table

_HINT = "give the file that holds the output of `vllm serve`, from process start to ready"


@click.command(
    name="report",
    epilog="""\b
Example:
  warmer report --baseline cold.log warm.log
\b
Exit status:
  0  the table was printed
  2  a file is missing, empty, or not the log of a vLLM start""",
)
@click.argument("start", metavar="LOG", type=click.Path())
@option(
    "--baseline",
    metavar="LOG",
    type=click.Path(),
    help="The log of a start without caches; becomes the cold column.",
)
@option("--json", is_flag=True, help="Print JSON instead of a table.")
def command(start: str, baseline: str | None, *, json: bool) -> None:
    """Show where the time of a vLLM start went.

    LOG is what `vllm serve` printed. Lines that begin with "[+12.345] ", seconds since process
    start, give exact times; else vLLM's own stamps, in whole seconds, have to do.
    """
    warm = _read(start)
    if baseline is None:
        answer = table.start_as_json(warm) if json else table.render_one(warm)
    else:
        rows = table.compare(_read(baseline), warm)
        answer = table.as_json(rows) if json else table.render(rows)
    click.echo(dumps(answer, indent=2) if json else answer)


def _read(path: str) -> log.StartLog:
    """Parse the log at `path`.

    Raises:
        UsageError: it cannot be read, or says nothing of a vLLM start.
    """
    try:
        with open(path, encoding="utf-8", errors="replace", newline="\n") as file:
            start = log.parse(file)
            empty = os.fstat(file.fileno()).st_size == 0
    except OSError as exc:
        raise UsageError(
            f"got {path}: {exc.strerror}, expected the log of a vLLM start",
            reason="log-unreadable",
            hint=_HINT,
        ) from exc
    if not start.recognised:
        raise UsageError(
            f"got {path}: {'empty' if empty else 'no line of a vLLM start'}, "
            "expected the log of a vLLM start",
            reason="log-empty" if empty else "log-foreign",
            hint=_HINT,
        )
    return start
