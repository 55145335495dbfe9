"""`warmer tune`: CUDA-graph capture sizes from the batch sizes that were observed."""

from __future__ import annotations

from json import dumps
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from warmer import argv, regular, textfile, wholefile
from warmer.cli import logs
from warmer.cli.options import option
from warmer.cli.typed import Finite, OneOf
from warmer.errors import EXIT_OK, UsageError
from warmer.quantities import parse_duration

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from warmer.tune.capture import Price
    from warmer.tune.proposal import Seen

_T = TypeVar("_T")
_LOG: Final = 512 << 20
"""Characters of a log that are looked at."""
_LONGEST: Final = 10 * 366 * 86400.0


@click.command(
    name="tune",
    epilog="""\b
Examples:
  curl -s http://pod:8000/metrics >before.txt; sleep 3600
  curl -s http://pod:8000/metrics >after.txt
  warmer tune --metrics before.txt --metrics after.txt -- --max-num-seqs 64
  warmer tune --prometheus http://prometheus:9090 --served-name llama \\
      --config warmer.yaml --write
\b
Exit status:
  0   the sizes were proposed; with --write, the file holds them
  2   usage or configuration error; a file that holds no metrics
  4   the server or Prometheus failed: not found, denied, unreachable, nothing observed
  70  a bug in warmer""",
)
@option(
    "--metrics",
    multiple=True,
    metavar="FILE|-|URL",
    help="What a server's /metrics says; given twice, earlier and later, only what happened in "
    "between counts.",
)
@option("--prometheus", metavar="URL", help="Ask this Prometheus instead.")
@option(
    "--metric",
    type=OneOf(["running", "tokens"]),
    default="running",
    show_default=True,
    help="Ask Prometheus for running requests, sampled over time, or for tokens per engine step.",
)
@option(
    "--query",
    metavar="PROMQL",
    help="Ask Prometheus this: series with the label le are a histogram's increase over $step, "
    "others are samples of running requests.",
)
@option(
    "--since",
    metavar="DURATION",
    default="7d",
    show_default=True,
    help="How far back Prometheus is asked.",
)
@option("--token-file", metavar="FILE", help="A bearer token for Prometheus.")
@option("--served-name", metavar="NAME", help="The model, where metrics tell of several.")
@option(
    "--cover",
    type=Finite(min=50, max=100),
    default=99,
    show_default=True,
    metavar="PERCENT",
    help="Share of the steps that run in a graph.",
)
@option(
    "--max-padding",
    type=Finite(min=0, max=90),
    default=10,
    show_default=True,
    metavar="PERCENT",
    help="Share of the tokens computed in graphs that may be padding.",
)
@option(
    "--log",
    metavar="FILE",
    help="Log of a start of this server: what a size costs is read from it, else assumed.",
)
@option("--config", metavar="FILE", help="YAML file of warmer's whose serve-args are to change.")
@option("--write", is_flag=True, help="Change it; without, the change is shown.")
@option("--json", is_flag=True, help="Print one JSON object on stdout.")
@click.argument("serve_args", nargs=-1, type=click.UNPROCESSED, metavar="[-- VLLM SERVE ARGS]")
def command(
    *, config: str | None, write: bool, json: bool, serve_args: tuple[str, ...], **values: Any
) -> int:
    """Propose --cudagraph-capture-sizes that fit the batches a server really runs.

    As few sizes as cover the wanted share of the steps and keep padding low: each size costs time
    and GPU memory at every start. The serve arguments, or those in --config, say how wide a step
    can be.
    """
    logs.configure()
    if write and config is None:
        raise UsageError(
            "got --write without --config, expected both", reason="usage", hint="name the file"
        )
    from warmer.cli import show_tune  # noqa: PLC0415 - help does without
    from warmer.tune import proposal, rewrite  # noqa: PLC0415 - as above

    before = None if config is None else _held(config)
    words = serve_args
    if config is not None and before is not None and not words:
        words = tuple(_edit(config, rewrite.words, before))
    flags = argv.parse(words)
    found = proposal.make(
        _look(values),
        flags,
        price=_price(values["log"]),
        cover=values["cover"] / 100,
        padding=values["max_padding"] / 100,
    )
    change = None
    if config is not None and before is not None:
        proposal.refuse_rivals(argv.parse(_edit(config, rewrite.words, before)), config)
        sizes = found.proposed.sizes
        after = _edit(config, lambda text: rewrite.rewrite(text, sizes), before).encode()
        change = show_tune.change(config, before, after)
        if write and after != before:
            _replace(config, before, after)
    if json:
        click.echo(dumps(show_tune.as_json(found, change=change, written=write), indent=1))
    else:
        click.echo(show_tune.screen(found, change=change, written=write))
    return EXIT_OK


def _look(values: Mapping[str, Any]) -> Seen:
    """Get the metrics from where the options say."""
    from warmer.tune import fetch, look  # noqa: PLC0415 - help does without

    if bool(values["metrics"]) == bool(values["prometheus"]):
        both = "both" if values["metrics"] else "neither"
        raise UsageError(
            f"got {both} of --metrics and --prometheus, expected one of them",
            reason="usage",
            hint="--metrics reads what a server's /metrics says, --prometheus asks for its history",
        )
    if values["metrics"]:
        return look.scrapes(values["metrics"], model=values["served_name"])
    return look.history(
        fetch.parse_url(values["prometheus"], "--prometheus"),
        metric=values["metric"],
        question=values["query"],
        seconds=_positive(values["since"]),
        model=values["served_name"],
        token_file=values["token_file"],
    )


def _positive(text: str) -> float:
    seconds = parse_duration(text, "--since")
    if not 60 <= seconds <= _LONGEST:
        raise UsageError(
            f"got --since {text!r}, expected a minute to ten years",
            reason="bad-value",
            hint="as 24h, 7d or 4w",
        )
    return seconds


def _price(path: str | None) -> Price:
    """Read from a log what a size costs."""
    from warmer.tune import capture  # noqa: PLC0415 - help does without

    if path is None:
        return capture.ASSUMED
    try:
        price = capture.from_log(textfile.lines(path, _LOG))
    except OSError as exc:
        raise UsageError(
            f"got --log {path}: {exc.strerror}, expected the log of a vLLM start",
            reason="log-unreadable",
            hint="give the file that holds the output of `vllm serve`",
        ) from exc
    if price is None:
        raise UsageError(
            f"got --log {path} without a graph capture, expected the log of a start on a GPU",
            reason="log-foreign",
            hint="it has a bar `Capturing CUDA graphs` and the line `Graph capturing finished`",
        )
    return price


def _held(path: str) -> bytes:
    """Read the configuration file.

    Raises:
        UsageError: it cannot be read, or is no file of that kind.
    """
    try:
        return wholefile.read(path)
    except (OSError, regular.OddFileError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else exc
        raise UsageError(
            f"got --config {path}: {why}, expected a YAML file",
            reason="bad-config",
            hint="name the file that `warmer prefill --config` reads",
        ) from exc


def _replace(path: str, before: bytes, after: bytes) -> None:
    """Put the edited text into the configuration file.

    Raises:
        UsageError: it was changed meanwhile, or cannot be written.
    """
    try:
        wholefile.put(path, after, before=before)
    except (wholefile.ChangedError, regular.OddFileError) as exc:
        raise UsageError(
            f"got --config {path} changed while it was edited, expected it to stay still",
            reason="config-changed",
            hint="run again",
        ) from exc
    except OSError as exc:
        raise UsageError(
            f"got --config {path}, which cannot be written ({exc.strerror}), expected a writable file",
            reason="bad-config",
            hint="a ConfigMap or a file mounted by itself is changed at its source: put the sizes there "
            "by hand, or run it on that file",
        ) from exc


def _edit(path: str, work: Callable[[str], _T], body: bytes) -> _T:
    """Work on the text of the configuration file."""
    from warmer.tune.rewrite import NotEditableError  # noqa: PLC0415 - help does without

    try:
        return work(body.decode())
    except (NotEditableError, UnicodeDecodeError) as exc:
        why = exc if isinstance(exc, NotEditableError) else "what is not UTF-8"
        raise UsageError(
            f"got --config {path}: {why}, expected a YAML file of warmer's",
            reason="bad-config",
            hint="serve-args is a list of words, one a line; or put the sizes there by hand",
        ) from exc
