"""`warmer report`: what a start spent its time on, alone or beside a cold one."""

from __future__ import annotations

import itertools
import json as jsonlib
import os
import signal
from typing import TYPE_CHECKING, Any

import click

from warmer import regular, settings, textfile
from warmer.cli import leave_at_signals, logs, writing
from warmer.cli.options import option
from warmer.errors import BusyError, TerminatedError, UsageError
from warmer.layout import WarmDir
from warmer.report import handed, log, page, spans, table, values

if TYPE_CHECKING:
    from collections.abc import Callable

    from warmer.listen import Listener
    from warmer.report.log import StartLog
    from warmer.report.spans import Span

_WAIT = 3600.0
_MOST = 512 << 20
"""Characters of a log that are looked at; days of serving behind a start are never read."""
_RECORDED = '{"resourceSpans"'
"""Begins a file of spans, and no log."""
_HINT = (
    "give the file that holds the output of `vllm serve`, from process start to ready, or spans "
    "that --record wrote"
)


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
@click.argument("start", metavar="[LOG]", required=False, type=click.Path())
@option(
    "--baseline",
    metavar="LOG",
    type=click.Path(),
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
    type=click.FloatRange(min=0),
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
    start: str | None,
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
    _insist(start, otlp, record, html, json=json)
    cold = None if baseline is None else _read(baseline)
    warm = _listened(otlp, record, wait) if otlp is not None else _read(start or "")
    if warm_dir is not None:
        warm = _explained(warm, warm_dir)
    if html is not None:
        drawn = page.page_of_one(warm) if cold is None else page.page(table.compare(cold, warm))
        if html == "-":
            click.echo(drawn, nl=False)
            return
        writing.write(html, drawn)
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
    start: str | None, otlp: str | None, record: str | None, html: str | None, *, json: bool
) -> None:
    """Refuse words that do not go together, before an hour is spent listening.

    Raises:
        UsageError: they do not.
    """
    wrong = None
    if (start is None) == (otlp is None):
        wrong = f"got {'neither a log nor' if otlp is None else 'a log and'} --otlp, expected one of them"
    elif record is not None and otlp is None:
        wrong = "got --record without --otlp, expected both: only spans that come are recorded"
    elif html == "-" and json:
        wrong = "got --html - with --json, expected one of them on stdout"
    if wrong:
        raise UsageError(wrong, reason="usage", hint="warmer report --help")
    for flag, path in (("--record", record), ("--html", html)):
        if path is not None and path != "-":
            writing.require_place(path, flag)


def _read(path: str) -> StartLog:
    """Read the log, or the recorded spans, at `path`.

    Raises:
        UsageError: it cannot be read, or says nothing of a vLLM start.
    """
    try:
        lines = textfile.lines(path, _MOST)
        head = next(lines, "")  # it may be a pipe, which cannot be read twice
        if head.lstrip().startswith(_RECORDED):
            start = _recorded(path, "".join([head, *lines]))
        else:
            start = log.parse(itertools.chain([head], lines))
    except OSError as exc:
        raise UsageError(
            f"got {path}: {exc.strerror}, expected the log of a vLLM start",
            reason="log-unreadable",
            hint=_HINT,
        ) from exc
    if not start.recognised:
        raise UsageError(
            f"got {path}: {'empty' if not head else 'no line of a vLLM start'}, "
            "expected the log of a vLLM start",
            reason="log-empty" if not head else "log-foreign",
            hint=_HINT,
        )
    return start


def _recorded(path: str, text: str) -> StartLog:
    """Read spans that --record, or a Collector, wrote.

    Raises:
        UsageError: they are broken.
    """
    from warmer.report import otlp as wire  # noqa: PLC0415 - 0.1 s of protobuf, not paid by logs

    try:
        return spans.read(wire.recorded(text))
    except wire.BodyError as exc:
        raise UsageError(
            f"got {path}: {exc}, expected recorded spans", reason="spans-broken", hint=_HINT
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
    leave_at_signals()  # a second one ends it, whoever does not read what is printed
    return TerminatedError(came[0]) if came else None


def _record(path: str, came: list[Span]) -> None:
    from warmer.report import otlp as wire  # noqa: PLC0415 - as above

    writing.write(path, wire.recording(came))


def _explained(start: StartLog, warm_dir: str) -> StartLog:
    """Add what the handoff in `warm_dir` knows; without one, the log alone has to do.

    Raises:
        UsageError: there is something that is no handoff.
    """
    path = os.path.join(
        WarmDir(settings.parse_directory(warm_dir, "--warm-dir")).handoff, "handoff.json"
    )
    try:
        handoff: Any = jsonlib.loads(regular.read(path))
    except FileNotFoundError:
        return start
    except (OSError, ValueError, RecursionError) as exc:  # broken JSON, an odd file: ValueErrors
        raise UsageError(
            f"got {path}: {exc}, expected what warmer prefill wrote",
            reason="handoff-unreadable",
            hint="leave --warm-dir out, or run `warmer prefill` again",
        ) from exc
    if not isinstance(handoff, dict):
        return start
    crashed = handoff.get("crashed")
    return handed.explained(
        start,
        handoff,
        crashed=isinstance(crashed, str) and bool(crashed) and os.path.exists(crashed),
    )
