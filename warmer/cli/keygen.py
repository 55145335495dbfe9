"""`warmer keygen`: a key to sign kernel pieces with."""

from __future__ import annotations

from json import dumps

import click

from warmer.cli import logs
from warmer.cli.options import option
from warmer.errors import EXIT_OK

SCHEMA_VERSION = 1


@click.command(
    name="keygen",
    epilog="""\b
Examples:
  warmer keygen /secrets/warmer
  warmer prefill --signing-key /secrets/warmer ...          the Job that builds
  warmer prefill --trusted-keys /keys/warmer.pub ...        every pod
\b
Exit status:
  0   done
  2   one of the files is there already
  6   they cannot be written""",
)
@click.argument("file", type=click.Path())
@option("--json", is_flag=True, help="Print one JSON object on stdout.")
def command(*, file: str, json: bool) -> int:
    """Make an Ed25519 key: FILE, to sign with, for its owner alone, and FILE.pub, to trust.

    Both are PEM. Where --trusted-keys are given, kernel pieces that none of them signed are never
    restored. Several public keys may follow each other in one file.
    """
    logs.configure()
    from warmer import trust  # noqa: PLC0415 - help does without

    name = trust.generate(file)
    made = {"key": name, "private": file, "public": f"{file}.pub"}
    text = f"key {name}: sign with {file}, trust {file}.pub"
    click.echo(dumps({"schema_version": SCHEMA_VERSION} | made) if json else text)
    return EXIT_OK
