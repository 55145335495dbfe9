"""`warmer sidecar`: beside the server."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import click

from warmer import secrecy, settings, urls
from warmer.cli import logs, modes, options, trusting
from warmer.cli.options import option
from warmer.cli.typed import Finite, Whole
from warmer.layout import Volume, WarmDir

DEFAULT_PORT = 9650
DEFAULT_QUIET = 30.0
"""Seconds; chosen, not measured: an engine that compiles pauses for less."""
DEFAULT_EVERY = 600.0
DEFAULT_MOST = 20


@click.command(
    name="sidecar",
    epilog="""\b
Example:
  warmer sidecar --volume /models --lock k8s://default/warmer
\b
Exit status:
  2   usage or configuration error, or the port is taken
  3   another sidecar is at work in the warm dir
  6   the warm dir failed at the start
  70  a bug in warmer
  130, 143  interrupted, terminated; staging is cleaned up""",
)
@option("--volume", metavar="DIR", required=True, help="The shared volume, mounted writable here.")
@option(
    "--warm-dir",
    metavar="DIR",
    default=settings.DEFAULT_WARM_DIR,
    show_default=True,
    help="Pod-local directory, at the same path here and in the server.",
)
@option(
    "--lock",
    metavar="URL",
    default="file",
    show_default=True,
    help="The lock that prefills use: file, k8s://namespace/prefix, or s3://bucket/prefix.",
)
@option(
    "--server-url",
    metavar="URL",
    help="Where the server answers; by default port --port of its arguments, else 8000, of this pod.",
)
@option(
    "--quiet",
    type=Finite(min=0),
    default=DEFAULT_QUIET,
    show_default=True,
    metavar="SECONDS",
    help="How long the caches of a ready server must not have changed before they are harvested.",
)
@option(
    "--harvest-every",
    type=Finite(min=0),
    default=DEFAULT_EVERY,
    show_default=True,
    metavar="SECONDS",
    help="How long after a harvest the next may come.",
)
@option(
    "--harvest-most",
    type=Whole(min=0),
    default=DEFAULT_MOST,
    show_default=True,
    metavar="N",
    help="How many harvests may publish, in all; 0 harvests never.",
)
@option(
    "--remote",
    metavar="URL",
    help="s3://bucket/prefix: what is harvested is pushed there.",
)
@option(
    "--retry",
    type=Finite(min=0),
    default=settings.DEFAULT_RETRY,
    show_default=True,
    metavar="SECONDS",
    help="How long a bucket that fails is tried again, each time.",
)
@option(
    "--http-port",
    type=Whole(0, 65535),
    default=DEFAULT_PORT,
    show_default=True,
    metavar="PORT",
    help="Where /livez, /readyz and /metrics answer; 0 nowhere.",
)
@options.trusted_keys("without --signing-key nothing is harvested, and HTTP alone is answered")
@option(
    "--signing-key",
    metavar="FILE",
    help="Ed25519 private key, PEM: sign what the server built (docs/sidecar.md says what that means).",
)
def command(*, volume: str, warm_dir: str, lock: str, **values: Any) -> int:
    """Harvest what a quiet server built, as the next generation; answer probes and metrics.

    Runs beside the server until it is stopped. Nothing that fails ends it, and it never writes into
    the caches of the server.
    """
    logs.configure()
    modes.let_the_group_read()
    url, remote = values["server_url"], values["remote"]
    from warmer.sidecar import health, http, loop  # noqa: PLC0415 - help needs none
    from warmer.sidecar.board import Board  # noqa: PLC0415 - as above

    chosen = loop.Options(
        volume=Volume(settings.parse_directory(volume, "--volume")),
        warm=WarmDir(settings.parse_directory(warm_dir, "--warm-dir", shared=True)),
        lock=urls.parse_lock(lock),
        remote=urls.parse_remote(remote) if remote else None,
        retry=values["retry"],
        trust=trusting.read(values, os.environ),
        server_url=None if url is None else health.parse_url(url),
        quiet=values["quiet"],
        every=values["harvest_every"],
        most=values["harvest_most"],
        me=options.me(),
        secrets=secrecy.secrets(os.environ),
    )
    board = Board()
    with contextlib.ExitStack() as stack:
        if port := values["http_port"]:
            stack.enter_context(
                http.serving(port, board=board, warm=chosen.warm, volume=chosen.volume)
            )
        loop.run(chosen, board)
