"""The command line: verbs, signals, and the one place that turns errors into exit codes."""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import traceback
from typing import Final, NoReturn

import click

from warmer import __version__, secrecy, signals
from warmer.cli import logs, misuse
from warmer.errors import EXIT_BUG, EXIT_OK, TerminatedError, UsageError, WarmerError

# Verb → module and summary, as strings: help imports no verb, and a verb imports only itself.
VERBS: Final = {
    "advise": ("warmer.cli.advise", "Volume or download at start? Cost and seconds of each."),
    "check": ("warmer.cli.check", "Readiness: is everything this pod needs sealed and restored?"),
    "doctor": ("warmer.cli.doctor", "Try what this mount and this lock can do."),
    "gc": ("warmer.cli.gc", "Remove what nothing needs: hide it first, remove it later."),
    "keygen": ("warmer.cli.keygen", "Make a key to sign kernels with."),
    "plan": ("warmer.cli.plan", "Say what is missing and why; change nothing."),
    "prefill": ("warmer.cli.prefill", "Fill what is missing, restore it, write the handoff."),
    "report": (
        "warmer.cli.report",
        "Phase table of a start, alone or beside a cold one; timeline.",
    ),
    "serve": ("warmer.cli.serve", "Start vLLM as its kernels were built."),
    "sidecar": ("warmer.cli.sidecar", "Harvest what the server builds; probes and metrics."),
    "tune": ("warmer.cli.tune", "Propose CUDA-graph capture sizes from observed batches."),
}


class _Verbs(click.Group):
    """Loads a verb's module when the verb is named."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - as above
        if cmd_name not in VERBS:
            return None
        command = importlib.import_module(VERBS[cmd_name][0]).command
        assert isinstance(command, click.Command)  # noqa: S101 - a mistake in the table
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - as above
        with formatter.section("Verbs"):
            formatter.write_dl([(verb, summary) for verb, (_, summary) in VERBS.items()])


_EPILOG: Final = """\b
Examples:
  warmer plan --volume /models --model org/name -- --max-model-len 8192
  warmer prefill --volume /models --model org/name -- --max-model-len 8192
  warmer serve -- --port 8000
\b
Exit status, of every verb (`warmer VERB --help` says which it has):
  0   done, warm
  1   not warm
  2   usage or configuration error
  3   another owner is at work
  4   the source or the lock's service failed
  5   integrity
  6   the volume or the warm dir failed
  7   the engine run that builds kernels failed
  70  a bug in warmer
  130, 143  interrupted, terminated"""


@click.command(cls=_Verbs, no_args_is_help=True, epilog=_EPILOG)
@click.version_option(__version__, prog_name="warmer")
def group() -> None:
    """Fill the caches that make vLLM start slowly, once per fleet, and hand them on.

    Every option has a variable of the same name (--warm-dir is WARMER_WARM_DIR), and a key in
    the YAML file named by --config; options win over variables, those over the file.
    """


def main() -> NoReturn:
    """Run one verb; ends the process with the verb's exit status.

    It ends by ``os._exit``: after a failure, threads may still be blocked in a download that
    nothing is waiting for.
    """
    code = EXIT_BUG
    try:
        code = _outcome(as_json="--json" in _own_words(sys.argv[1:]))
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:  # nobody reads what we say; the exit status says it too
        pass
    finally:
        os._exit(code)


def _outcome(*, as_json: bool) -> int:
    """Run the verb; turn whatever it raises into an exit status and a line on stderr."""
    signals.heed()
    failure: BaseException
    try:
        code = _run()
        signals.leave()
    except BaseException as exc:  # noqa: BLE001 - this is the one place that knows what to do
        signals.leave()
        failure = signals.unwrapped(exc)
    else:
        return code
    if isinstance(failure, WarmerError):
        _explain(failure, as_json=as_json)
        return failure.exit_code
    if isinstance(failure, TerminatedError):
        # Who asked us to stop does not wait for a reader of our output that may be gone.
        signal.signal(signal.SIGALRM, lambda *_: os._exit(128 + failure.signum))
        signal.alarm(1)
        sys.stderr.write(f"warmer: stopped by {signal.Signals(failure.signum).name}\n")
        return 128 + failure.signum
    if isinstance(failure, BrokenPipeError):
        return EXIT_OK
    lines = traceback.format_exception(failure)
    sys.stderr.write(logs.redact("".join(lines)))
    sys.stderr.write("warmer: this is a bug in warmer; please report it with these lines\n")
    return EXIT_BUG


def _run() -> int:
    try:
        code = group.main(prog_name="warmer", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as exc:
        sys.stdout.write(exc.ctx.get_help() + "\n")
        return UsageError.exit_code
    except click.ClickException as exc:
        raise misuse.translate(exc) from exc
    except SystemExit as exc:  # click's answer where nobody reads what is printed
        raise BrokenPipeError(*exc.args) from exc
    except click.exceptions.Abort as exc:
        raise TerminatedError(signal.SIGINT) from exc
    return code if isinstance(code, int) else EXIT_OK


def _explain(exc: WarmerError, *, as_json: bool) -> None:
    message, hint = logs.redact(exc.message), logs.redact(exc.hint)
    if as_json:
        error = {"code": exc.exit_code, "reason": exc.reason, "message": message, "hint": hint}
        sys.stdout.write(json.dumps({"error": error}) + "\n")
    lines = map(secrecy.printable, message.split("\n"))  # the engine's last lines may follow
    sys.stderr.write("\n".join(["warmer: " + next(lines), *lines]) + "\n")
    if hint:
        sys.stderr.write(f"hint: {hint}\n")


def _own_words(words: list[str]) -> list[str]:
    """Drop what comes after ``--``: those are vLLM's words."""
    return words[: words.index("--")] if "--" in words else words
