"""`warmer gc`: free the volume of what nobody needs."""

from __future__ import annotations

import os
from json import dumps
from typing import TYPE_CHECKING, Any

import click

from warmer import settings, urls
from warmer.cli import logs, modes, options, trusting
from warmer.cli.options import option
from warmer.errors import EXIT_NOT_WARM, EXIT_OK
from warmer.layout import Volume
from warmer.quantities import parse_duration, parse_size, show_bytes
from warmer.secrecy import printable

if TYPE_CHECKING:
    from warmer.collect.decide import Step
    from warmer.gc import Outcome

SCHEMA_VERSION = 1


@click.command(
    name="gc",
    epilog="""\b
Examples:
  warmer gc --volume /models --dry-run
  warmer gc --volume /models --keep 30d --min-free 500G
\b
Exit status:
  0   done; what another owner is busy with is left for the next run
  1   a record of use cannot be read: nothing was hidden that it may name
  2   usage or configuration error
  3   another gc is at work on the volume
  4   the service that keeps the lock failed
  6   the volume failed
  70  a bug in warmer
  130, 143  interrupted, terminated; the next run goes on""",
)
@option("--volume", metavar="DIR", required=True, help="The shared volume, as mounted here.")
@option(
    "--lock",
    metavar="URL",
    default="file",
    show_default=True,
    help="The lock that prefills use: file, k8s://namespace/prefix, or s3://bucket/prefix.",
)
@option(
    "--keep",
    metavar="DURATION",
    default="14d",
    show_default=True,
    help="How long a piece stays after its last use; where locks exclude no other node, longer "
    "than any pod runs.",
)
@option(
    "--grace",
    metavar="DURATION",
    default="1h",
    show_default=True,
    help="How long a piece stays hidden before it is removed.",
)
@option(
    "--min-free",
    metavar="SIZE",
    help="Hide models that nobody uses only until so much is free, least recently used first.",
)
@options.trusted_keys(
    "give gc what the pods get, or it takes a newer piece that they do not trust for the one they use"
)
@option("--dry-run", is_flag=True, help="Print what would be done; do nothing.")
@option("--json", is_flag=True, help="Print one JSON object on stdout.")
def command(*, volume: str, lock: str, json: bool, dry_run: bool, **values: Any) -> int:
    """Remove what nothing needs from the volume: hide it first, remove it after a grace.

    What a running pod was handed stays, and of every key in use what the next pod will take. Run
    it as a CronJob.
    """
    logs.configure()
    modes.let_the_group_read()
    root = Volume(settings.parse_directory(volume, "--volume"))
    url = urls.parse_lock(lock)
    limits: dict[str, Any] = {
        name: parse_duration(values[name], f"--{name}") for name in ("keep", "grace")
    }
    if values["min_free"] is not None:
        limits["min_free"] = parse_size(values["min_free"], "--min-free")
    from warmer.gc import collect  # noqa: PLC0415 - after the options are known to be right

    whom = trusting.read(values, os.environ)
    outcome = collect(root, url, trust=whom, me=options.me(), dry=dry_run, **limits)
    if json:
        click.echo(dumps(_as_json(outcome), indent=1))
    else:
        _table(outcome)
    return EXIT_NOT_WARM if outcome.decision.doubts else EXIT_OK


def _table(outcome: Outcome) -> None:
    steps = outcome.decision.steps if outcome.dry else outcome.done
    rows: list[tuple[str, str, int, str]]
    rows = [(step.action, step.name, step.size, step.reason) for step in steps]
    rows += [("skip", step.name, step.size, why) for step, why in outcome.skipped]
    kept = outcome.decision.kept.items()
    rows += [("keep", str(piece), size, why) for piece, (size, why) in kept]
    wide = max((len(name) for _, name, _, _ in rows), default=0)
    for action, name, size, why in rows:
        weight = show_bytes(size) if size else ""
        line = f"{action:<9} {name:<{wide}}  {weight:>9}  {why}".rstrip()
        click.echo(printable(line))  # owners and strays are named by others
    for doubt in outcome.decision.doubts:
        click.echo(printable(f"cannot read the record of use {doubt}"))
    would = "would be " if outcome.dry else ""
    click.echo(
        f"{show_bytes(outcome.size('hide'))} {would}hidden, "
        f"{show_bytes(outcome.size('remove'))} {would}removed, "
        f"{show_bytes(outcome.free)} free"
    )


def _as_json(outcome: Outcome) -> dict[str, Any]:
    steps = outcome.decision.steps if outcome.dry else outcome.done
    return {
        "schema_version": SCHEMA_VERSION,
        "dry_run": outcome.dry,
        "steps": [_step(step) for step in steps],
        "skipped": [_step(step) | {"skipped": why} for step, why in outcome.skipped],
        "kept": [
            {"kind": p.kind, "key": p.digest, "generation": p.number, "bytes": size, "reason": why}
            for p, (size, why) in outcome.decision.kept.items()
        ],
        "unreadable": list(outcome.decision.doubts),
        "hidden_bytes": outcome.size("hide"),
        "removed_bytes": outcome.size("remove"),
        "free_bytes": outcome.free,
    }


def _step(step: Step) -> dict[str, Any]:
    piece = step.piece
    return {
        "action": step.action,
        "what": "generation" if step.action == "hide" else _sort(step),
        "name": step.name,
        "kind": piece.kind if piece else None,
        "key": piece.digest if piece else None,
        "generation": piece.number if piece and piece.number else None,
        "bytes": step.size,
        "reason": step.reason,
    }


def _sort(step: Step) -> str:
    return step.aside.sort if step.aside is not None else "record"
