"""`warmer doctor`: what this mount and this lock can do."""

from __future__ import annotations

import dataclasses
from json import dumps
from typing import TYPE_CHECKING

import click

from warmer import settings, urls
from warmer.cli import logs
from warmer.cli.options import option
from warmer.cli.typed import Finite
from warmer.layout import Volume

if TYPE_CHECKING:
    from warmer.doctor.findings import Finding

SCHEMA_VERSION = 1
_TIMEOUT = 120.0
_NAME = 20


@click.command(
    name="doctor",
    epilog="""\b
Examples:
  warmer doctor --volume /models
  warmer doctor --volume /models --lock k8s://ml/models --join     # in two pods, on two nodes
\b
Exit status:
  0   nothing failed; a warning says what it costs
  2   usage or configuration error
  3   the other pod did not come within --timeout, or left
  4   the service that keeps the lock failed, or does not exclude
  6   the volume cannot be filled safely, or hangs
  70  a bug in warmer
  130, 143  interrupted, terminated; what was written is removed""",
)
@option("--volume", metavar="DIR", required=True, help="The shared volume, as mounted here.")
@option(
    "--lock",
    metavar="URL",
    default="file",
    show_default=True,
    help="The lock that pods would use: file, k8s://namespace/prefix, or s3://bucket/prefix.",
)
@option("--join", is_flag=True, help="Wait for a second doctor in another pod; try things with it.")
@option(
    "--timeout",
    type=Finite(min=0),
    default=_TIMEOUT,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for that one.",
)
@option("--json", is_flag=True, help="Print one JSON object on stdout.")
def command(volume: str, lock: str, *, join: bool, timeout: float, json: bool) -> int:
    """Try what a volume and a lock can do, on this pod's own mount.

    Renames, fsync, locks, times and links are tried in a directory of the doctor's own, which is
    removed afterwards. Run it in two pods with --join to see what holds across nodes.
    """
    logs.configure()
    root = Volume(settings.parse_directory(volume, "--volume"))
    url = urls.parse_lock(lock)
    from warmer.doctor.apart import examine  # noqa: PLC0415 - after the options are known to be right
    from warmer.doctor.findings import exit_code  # noqa: PLC0415 - as above

    findings: list[Finding] = []

    def show(finding: Finding) -> None:
        findings.append(finding)
        if not json:
            click.echo(logs.redact(_row(finding)))

    examine(root, url, join=timeout if join else None, show=show)
    code = exit_code(findings)
    if json:
        rows = [
            {name: logs.redact(value) for name, value in dataclasses.asdict(finding).items()}
            for finding in findings
        ]
        answer = {"schema_version": SCHEMA_VERSION, "exit_code": code, "findings": rows}
        click.echo(dumps(answer, indent=1))
    return code


def _row(finding: Finding) -> str:
    """Write a finding as a row of the table, and its hint below it."""
    row = f"{finding.verdict:<5} {finding.name:<{_NAME}} {finding.found}"
    if finding.hint and finding.verdict != "ok":
        row += f"\n{'':<{_NAME + 7}}{finding.hint}"
    return row
