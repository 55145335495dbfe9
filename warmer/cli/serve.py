"""`warmer serve`: become the server, now or once there is a handoff."""

from __future__ import annotations

import json
import os
import stat
import time
from contextlib import suppress
from importlib.resources import as_file, files
from typing import TYPE_CHECKING, Any, Final

import click

from warmer import regular, settings
from warmer.cli.options import option, variable
from warmer.cli.typed import Finite
from warmer.errors import BusyError, UsageError, near, using
from warmer.layout import WarmDir

if TYPE_CHECKING:
    from typing import NoReturn

_POLL: Final = 0.1
_NEAR: Final = 0.75


class _Serve(click.Command):
    """Leaves flags it does not know to vLLM, but for those that are nearly its own."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Refuse what is mistyped before ``--``: the default would be used in its place."""
        known = [name for param in self.get_params(ctx) for name in param.opts if name[:2] == "--"]
        for word in args[: args.index("--")] if "--" in args else args:
            name = word.partition("=")[0]
            if name[:2] == "--" and name not in known and (meant := near(name, known, alike=_NEAR)):
                raise click.NoSuchOption(name, possibilities=meant, ctx=ctx)
        return super().parse_args(ctx, args)


@click.command(
    name="serve",
    cls=_Serve,
    context_settings={"ignore_unknown_options": True},
    epilog="""\b
Examples:
  warmer serve --warm-dir /warm -- --port 8001
  warmer serve --wait 1800          # started beside `warmer prefill`, not after it

\b
Exit status: that of vllm serve; 2 where there is no handoff, 3 where there is none
within --wait, 6 where the warm dir cannot be read.
""",
)
@option(
    "--warm-dir",
    metavar="DIR",
    default=settings.DEFAULT_WARM_DIR,
    show_default=True,
    help="Where prefill wrote the handoff.",
)
@option(
    "--wait",
    type=Finite(min=0),
    default=0.0,
    metavar="SECONDS",
    help="Wait for a handoff that is not there yet, and import vLLM meanwhile. For a warm dir of this "
    "pod alone, as an emptyDir is.",
)
@click.argument("serve_args", nargs=-1, type=click.UNPROCESSED, metavar="[-- VLLM SERVE ARGS]")
def command(warm_dir: str, wait: float, serve_args: tuple[str, ...]) -> None:
    """Read the handoff and become `vllm serve` with its environment and flags.

    The same thing without warmer installed: <warm dir>/handoff/serve.
    """
    warm = WarmDir(settings.parse_directory(warm_dir, "--warm-dir", shared=True))
    until, tried = time.monotonic() + wait, False
    while not _there(os.path.join(warm.handoff, "handoff.json")):
        if not wait:
            raise UsageError(
                f"got no handoff in {warm.handoff}, expected one written by warmer prefill",
                reason="no-handoff",
                hint="run `warmer prefill` with the same --warm-dir first, or wait for it: --wait",
            )
        if time.monotonic() > until:
            raise BusyError(
                f"got no handoff in {warm.handoff} within {wait:.0f} s, expected one",
                reason="no-handoff",
                hint="the log of warmer prefill says why; --wait bounds the waiting",
            )
        if not tried and (early := _early(warm)) is not None:
            tried = True
            with suppress(OSError):  # then nothing is imported before its time
                _import(warm, early, until, serve_args)
        time.sleep(_POLL)
    script = os.path.join(warm.handoff, "serve")
    os.execv(script, [script, *serve_args])  # noqa: S606 - becoming the server is the point


def _there(path: str) -> bool:
    """Whether a file is there; one that may not be seen is no absent one."""
    with using("the warm dir"), suppress(FileNotFoundError, NotADirectoryError):
        return stat.S_ISREG(os.stat(path).st_mode)
    return False


def _early(warm: WarmDir) -> dict[str, Any] | None:
    """Read what the running prefill foretells; None where it does not, or no Python here can use it."""
    try:
        record = json.loads(regular.read(warm.early))
        usable = record["schema_version"] == 1 and os.access(record["interpreter"], os.X_OK)
        return dict(record) if usable and record["command"] and record["env"] else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _import(
    warm: WarmDir, early: dict[str, Any], until: float, serve_args: tuple[str, ...]
) -> NoReturn:
    """Become what imports now and is the server later (warmer/handoff/early.py).

    Python's own variables have to be there when it starts. What was there before goes along in
    memory, not in words or files: it may hold secrets.
    """
    original = {n: v for n, v in os.environ.items() if n != variable("--signing-key")}
    kept = os.memfd_create("told", 0)
    with open(kept, "w", encoding="ascii", closefd=False) as f:
        json.dump({**early, "original": original}, f)
    os.lseek(kept, 0, os.SEEK_SET)
    environment = original | {str(n): str(v) for n, v in early["env"].items()}
    if directory := os.path.dirname(early["command"][0]):
        environment["PATH"] = f"{original.get('PATH', '')}:{directory}"
    left = f"{max(0.0, until - time.monotonic()):.1f}"
    with as_file(files("warmer.handoff").joinpath("early.py")) as script:
        words = [early["interpreter"], str(script), warm.handoff, left, str(kept), *serve_args]
        os.execve(words[0], words, environment)  # noqa: S606 - it becomes the server
