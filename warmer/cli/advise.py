"""`warmer advise`: a cache on a volume, or a download at every start?"""

from __future__ import annotations

import os
from json import dumps
from typing import TYPE_CHECKING, Any, Final

import click

from warmer import settings, urls
from warmer.cli import config_file, logs
from warmer.cli.options import option
from warmer.cli.typed import Finite, OneOf, Whole
from warmer.errors import EXIT_OK, UsageError
from warmer.quantities import parse_rate, parse_size, show_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from warmer.advise.case import Case, Figure, Needs
    from warmer.advise.measure import Rate

_SAMPLE: Final = "256M"
_ZONES: Final = 3
_DEAREST: Final = 1_000_000
_LONGEST: Final = 1_000_000
_OFTEN: Final = 1_000_000_000
_SIZES: Final = (10**6, 10**15)
_LEAST_KERNELS: Final = 10**3
_SPEEDS: Final = (1e4, 1e13)
"""Beyond these a unit was forgotten, or the numbers say nothing any more."""
_RATES: Final = ("network", "volume_bandwidth", "disk_bandwidth", "image_bandwidth")
_PRICES: Final = ("storage", "transfer", "download", "bucket", "registry", "pull", "gpu")


def _price(name: str, per: str) -> Callable[[Any], Any]:
    return option(f"--price-{name}", type=Finite(min=0, max=_DEAREST), metavar="DOLLARS", help=per)


def _rate(name: str, what: str) -> Callable[[Any], Any]:
    return option(f"--{name}", metavar="RATE", help=f"What one start gets {what}.")


@click.command(
    name="advise",
    epilog="""\b
Examples:
  warmer advise --size 16GB --starts 40 --price-storage 0.30 --price-transfer 0.03
  warmer advise --model meta-llama/Llama-3.1-8B-Instruct --starts 40 \\
      --volume /models --measure
\b
What is not given is assumed, and every answer says so. Rates are written as 500MB/s
or 10Gbit/s, sizes as 16GB or 15Gi.
\b
Exit status:
  0   the advice was printed, or that no way does what is needed
  2   usage or configuration error
  4   the source failed: not found, denied, unreachable
  6   the volume failed
  70  a bug in warmer
  130, 143  interrupted, terminated; the sample is removed""",
)
@option(
    "--config",
    metavar="FILE",
    is_eager=True,
    expose_value=False,
    callback=config_file.load,
    help="YAML file with these options as keys.",
)
@option("--model", metavar="URI", help="The model: its size is asked of its source.")
@option("--size", metavar="SIZE", help="Bytes of its weights, instead of asking.")
@option("--kernels", metavar="SIZE", help="Bytes of its kernel caches.")
@option(
    "--build",
    type=Finite(min=0, max=_LONGEST),
    metavar="SECONDS",
    help="How much longer a start takes that builds its kernels.",
)
@option(
    "--starts",
    type=Finite(min=0, max=_OFTEN),
    required=True,
    metavar="NUMBER",
    help="Starts of pods in a month.",
)
@_price("storage", "For a GB-month on the volume.")
@_price("transfer", "For a GB read from the volume.")
@_price("download", "For a GB that comes from the hub or the bucket.")
@_price("bucket", "For a GB-month in the bucket that --remote names.")
@_price("registry", "For a GB-month in the image registry.")
@_price("pull", "For a GB of an image that is pulled.")
@_price("gpu", "For an hour of a pod's GPUs, or what an hour of waiting for a pod is worth.")
@_rate("network", "from the hub or the bucket")
@_rate("volume-bandwidth", "from the volume")
@_rate("disk-bandwidth", "from its node's own disk")
@_rate("image-bandwidth", "of an image that is pulled and unpacked")
@option(
    "--node-hits",
    type=Finite(min=0, max=100),
    metavar="PERCENT",
    help="Share of the starts that come to a node which had the model before.",
)
@option(
    "--availability",
    type=OneOf(["single-zone", "multi-zone"]),
    default="single-zone",
    show_default=True,
    help="Whether pods must start in every zone.",
)
@option("--zonal", is_flag=True, help="The volume lives in one zone: each zone needs its own.")
@option(
    "--zones",
    type=Whole(min=1, max=100),
    default=_ZONES,
    show_default=True,
    metavar="N",
    help="Zones, where there must be several.",
)
@option(
    "--without-source",
    is_flag=True,
    help="A start must succeed while the hub or the bucket is away.",
)
@option(
    "--max-seconds",
    type=Finite(min=0),
    metavar="SECONDS",
    help="How long a start may take to get weights and kernels.",
)
@option(
    "--measure",
    is_flag=True,
    help="Time the real volume (--volume) and the real source (--model) with a sample.",
)
@option("--volume", metavar="DIR", help="The shared volume, as mounted here.")
@option(
    "--sample",
    metavar="SIZE",
    default=_SAMPLE,
    show_default=True,
    help="Bytes written, read and fetched by --measure.",
)
@option(
    "--retry",
    type=Finite(min=0),
    default=settings.DEFAULT_RETRY,
    show_default=True,
    metavar="SECONDS",
    help="How long a failing source is tried again.",
)
@option("--explain", is_flag=True, help="Show the formula behind every number.")
@option("--json", is_flag=True, help="Print one JSON object on stdout.")
def command(*, explain: bool, json: bool, **values: Any) -> int:
    """Compare ways to start: a shared volume, a download, the node's disk, an image.

    For each: dollars a month, seconds a start; then from how many starts on the volume pays, what
    an hour of waiting must be worth for it, and which way is recommended, with reasons.
    """
    logs.configure()
    from warmer.advise.advice import advise  # noqa: PLC0415 - help does without
    from warmer.cli import show_advise  # noqa: PLC0415 - as above

    case = _case(values)
    advice = advise(case, _needs(values))
    if json:
        click.echo(dumps(show_advise.as_json(case, advice), indent=1))
    else:
        click.echo(show_advise.screen(case, advice, explain=explain))
    return EXIT_OK


def _case(values: Mapping[str, Any]) -> Case:
    """Put the figures together: measured before given, given before assumed.

    Raises:
        UsageError: one is none, or the model's size is not told.
        SourceError: the source does not say what the model is.
    """
    from warmer.advise.case import DEFAULTS, GIVEN, Case, Figure  # noqa: PLC0415 - help does without

    figures = dict(DEFAULTS)
    for name in _RATES:
        if values[name] is not None:
            flag = f"--{name.replace('_', '-')}"
            rate = parse_rate(values[name], flag)
            figures[name] = Figure(_within(rate, _SPEEDS, flag, values[name]), GIVEN)
    if values["kernels"] is not None:
        held = float(parse_size(values["kernels"], "--kernels"))
        least = _LEAST_KERNELS if held else 0
        figures["kernels"] = Figure(
            _within(held, (least, _SIZES[1]), "--kernels", values["kernels"]), GIVEN
        )
    plain = {f"price_{name}": values[f"price_{name}"] for name in _PRICES}
    plain |= {"build": values["build"]}
    if values["node_hits"] is not None:
        plain["node_hits"] = values["node_hits"] / 100
    figures |= {name: Figure(value, GIVEN) for name, value in plain.items() if value is not None}
    size, measured = _reality(values, figures)
    figures |= measured
    return Case(weights=size, starts=Figure(values["starts"], GIVEN), **figures)


def _needs(values: Mapping[str, Any]) -> Needs:
    from warmer.advise.case import Needs  # noqa: PLC0415 - help does without

    several = values["availability"] == "multi-zone" and values["zonal"]
    return Needs(
        copies=values["zones"] if several else 1,
        without_source=values["without_source"],
        seconds=values["max_seconds"],
    )


def _reality(
    values: Mapping[str, Any], figures: Mapping[str, Figure]
) -> tuple[Figure, dict[str, Figure]]:
    """Ask the source how large the model is, and time what is to be timed."""
    from warmer.advise.case import GIVEN, Figure  # noqa: PLC0415 - help does without

    size = None if values["size"] is None else parse_size(values["size"], "--size")
    if size == 0 or (size is None and values["model"] is None):
        raise UsageError(
            "got neither --model nor a --size above 0, expected one of them",
            reason="usage",
            hint="as --size 16GB, or --model org/name",
        )
    if size is not None:
        _within(size, _SIZES, "--size", values["size"])
    timed: dict[str, Figure] = {}
    sample = _sample(values) if values["measure"] else 0
    if values["model"] is not None and (size is None or sample):
        from warmer.advise import origin  # noqa: PLC0415 - only where a source is asked

        model = urls.parse_model(values["model"])
        found = origin.ask(model, os.environ, retry=values["retry"])
        weights = Figure(float(found.size), f"measured: {found.count} files of {model}")
        if sample:
            timed["network"] = _timed(found.time(sample), figures["network"])
    if size is not None:
        weights = Figure(float(size), GIVEN)
    if sample and values["volume"] is not None:
        from warmer.advise import measure  # noqa: PLC0415 - as above
        from warmer.layout import Volume  # noqa: PLC0415 - as above

        root = Volume(settings.parse_directory(values["volume"], "--volume"))
        _, read = measure.volume(root, sample)
        timed["volume_bandwidth"] = _timed(read, figures["volume_bandwidth"])
    return weights, timed


def _within(value: float, bounds: tuple[float, float], flag: str, text: str) -> float:
    """Insist on a figure that can be one: `16` for sixteen gigabytes is sixteen bytes.

    Raises:
        UsageError: it is out of bounds.
    """
    low, high = (show_bytes(bound) for bound in bounds)
    if bounds[0] <= value <= bounds[1]:
        return value
    speed = "/s" if bounds is _SPEEDS else ""
    raise UsageError(
        f"got {flag} {text!r}, {show_bytes(value)}{speed}, expected {low}{speed} to {high}{speed}",
        reason="bad-value",
        hint="is its unit missing? as 500MB/s or 10Gbit/s"
        if speed
        else "is its unit missing? as 16GB",
    )


def _sample(values: Mapping[str, Any]) -> int:
    from warmer.advise import measure  # noqa: PLC0415 - help does without

    size = parse_size(values["sample"], "--sample")
    if not measure.SMALLEST <= size <= measure.LARGEST:
        raise UsageError(
            f"got --sample {values['sample']}, expected 1Mi to 16Gi",
            reason="bad-value",
            hint="a few hundred megabytes tell a rate",
        )
    if values["model"] is None and values["volume"] is None:
        raise UsageError(
            "got --measure without --volume and --model, expected at least one of them",
            reason="usage",
            hint="--volume is timed as it is mounted here, --model as it is fetched from here",
        )
    return size


def _timed(rate: Rate, before: Figure) -> Figure:
    from warmer.advise.case import GIVEN, Figure  # noqa: PLC0415 - help does without

    was = f"; {before.value / 1e6:,.0f} MB/s were given" if before.origin == GIVEN else ""
    return Figure(rate.value, f"measured: {rate.how}{was}")
