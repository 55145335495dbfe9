"""`warmer report`: what a start spent its time on, alone or beside a cold one."""

from __future__ import annotations

import json as jsonlib
import os
import signal
from typing import TYPE_CHECKING

import click

from warmer import signals, wholefile
from warmer.cli import logs, saved
from warmer.cli.options import option
from warmer.cli.typed import Finite
from warmer.errors import BusyError, TerminatedError, UsageError, VolumeError, volume_error
from warmer.report import page, spans, table, values

if TYPE_CHECKING:
    from collections.abc import Callable

    from warmer.listen import Listener
    from warmer.report.log import StartLog
    from warmer.report.spans import Span

_WAIT = 3600.0


@click.command(
    name="report",
    epilog="""\b
Examples:
  warmer report --baseline cold.log warm.log
  warmer report --baseline cold.log --html start.html warm.log
  warmer report --otlp 4318        # then: OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=http/protobuf \\
      vllm serve ... --otlp-traces-endpoint http://127.0.0.1:4318/v1/traces
\b
Exit status:
  0  the table was printed
  2  a file is missing, empty, or not the log of a vLLM start; the port cannot be opened
  3  no span of a start came within --wait
  6  --html or --record could not be written
  130, 143  interrupted, terminated, before a span of a start came""",
)
@click.argument("given", metavar="[LOG]", nargs=-1, type=click.Path(readable=False))
@option(
    "--baseline",
    metavar="LOG",
    type=click.Path(readable=False),
    help="The log, or the recorded spans, of a start without caches; becomes the cold column.",
)
@option(
    "--otlp",
    metavar="[HOST:]PORT",
    help="Instead of LOG: listen for the spans that vLLM sends of its start, until it is ready or "
    "interrupted; 127.0.0.1 unless a host is given.",
)
@option("--record", metavar="FILE", help="Write the spans that came, to be given as LOG later.")
@option(
    "--wait",
    type=Finite(min=0),
    default=_WAIT,
    show_default=True,
    metavar="SECONDS",
    help="How long to listen at most.",
)
@option(
    "--warm-dir",
    metavar="DIR",
    help="Where prefill wrote the handoff of this start: what it gave is then part of the reason "
    "for what was rebuilt.",
)
@option("--json", is_flag=True, help="Print JSON instead of a table.")
@option(
    "--html",
    metavar="FILE",
    help="Write a page with a timeline, in one file that needs no other; - for stdout, instead of "
    "the table.",
)
def command(
    given: tuple[str, ...],
    *,
    baseline: str | None,
    otlp: str | None,
    record: str | None,
    wait: float,
    warm_dir: str | None,
    json: bool,
    html: str | None,
) -> None:
    """Show where the time of a vLLM start went.

    LOG is what `vllm serve` printed. Lines that begin with "[+12.345] ", seconds since process
    start, give exact times; else vLLM's own stamps, in whole seconds, have to do. Spans are exact,
    but know nothing of Python's imports, of the HTTP server, and of what the cache did.
    """
    _insist(given, otlp, record, html, json=json)
    cold = None if baseline is None else saved.read(baseline)
    warm = _listened(otlp, record, wait) if otlp is not None else saved.read(given[0])
    if warm_dir is not None:
        warm = saved.explained(warm, warm_dir)
    if html is not None:
        drawn = page.page_of_one(warm) if cold is None else page.page(table.compare(cold, warm))
        if html == "-":
            click.echo(drawn, nl=False)
            return
        _write(html, drawn, "--html")
    if json:
        answer = (
            values.start_as_json(warm)
            if cold is None
            else values.as_json(table.compare(cold, warm))
        )
        click.echo(jsonlib.dumps(answer, indent=2))
    else:
        click.echo(
            table.render_one(warm) if cold is None else table.render(table.compare(cold, warm))
        )


def _insist(
    given: tuple[str, ...], otlp: str | None, record: str | None, html: str | None, *, json: bool
) -> None:
    """Refuse words that do not go together, before an hour is spent listening.

    Raises:
        UsageError: they do not.
    """
    wrong, hint = None, "warmer report --help"
    if len(given) > 1:
        wrong = f"got {len(given)} logs, expected one"
        hint = f"the log of the cold start goes to --baseline; {hint}"
    elif bool(given) == (otlp is not None):
        wrong = f"got {'neither a log nor' if otlp is None else 'a log and'} --otlp, expected one of them"
    elif record is not None and otlp is None:
        wrong = "got --record without --otlp, expected both: only spans that come are recorded"
    elif html == "-" and json:
        wrong = "got --html - with --json, expected one of them on stdout"
    if wrong:
        raise UsageError(wrong, reason="usage", hint=hint)
    for flag, path in (("--record", record), ("--html", html)):
        if path is not None and path != "-":
            _require_place(path, flag)


def _require_place(path: str, flag: str) -> None:
    """Insist on the directory of a file that will be written later.

    Raises:
        UsageError: it is not there, or `path` is itself a directory.
    """
    directory = os.path.dirname(path) or "."
    if not path or os.path.isdir(path) or not os.path.isdir(directory):
        raise UsageError(
            f"got {flag} {path or '(empty)'}, expected a file in a directory that exists",
            reason="no-such-directory",
            hint="make the directory first",
        )


def _write(path: str, text: str, flag: str) -> None:
    """Put a text where the user said.

    Raises:
        VolumeError: it cannot be written.
    """
    try:
        wholefile.put(path, text.encode())
    except OSError as exc:
        raise VolumeError(
            f"got {flag} {path}: {exc.strerror or exc}, expected a file that can be written",
            reason=volume_error(exc, path).reason,
            hint="name a file where there is room and write access, or - for stdout"
            if flag == "--html"
            else "name a file where there is room and write access",
        ) from exc


def _listened(where: str, record: str | None, wait: float) -> StartLog:
    """Collect the spans of a start; an interruption ends the listening, not the report.

    Raises:
        BusyError: none came within `wait`.
        TerminatedError: none came before the interruption.
    """
    from warmer import listen  # noqa: PLC0415 - sockets and protobuf, not paid by help

    logs.configure()
    with listen.Listener(listen.address(where)) as listener:
        stopped = _wait(listener, lambda: listen.announce(listener), wait)
        came = listener.spans()
    if record is not None and came:
        _record(record, came)
    start = spans.read(came)
    if not start.recognised:
        if stopped is not None:
            raise stopped
        raise BusyError(
            f"got no span of a vLLM start in {wait:g} s, expected some at {listener.url}",
            reason="no-spans",
            hint=listen.UNTRACED,
        )
    return start


def _wait(
    listener: Listener, announce: Callable[[], None], seconds: float
) -> TerminatedError | None:
    """Wait for the end of a start, or for a signal: noted, not raised, for a lock may be held."""
    came: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda signum, _frame: came.append(signum))
    announce()  # whoever knows of it may already send, and interrupt
    listener.wait(seconds, lambda: came)
    signals.leave()  # a second one ends it, whoever does not read what is printed
    return TerminatedError(came[0]) if came else None


def _record(path: str, came: list[Span]) -> None:
    from warmer.report import otlp as wire  # noqa: PLC0415 - as above

    _write(path, wire.recording(came), "--record")
