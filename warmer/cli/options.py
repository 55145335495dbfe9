"""The options every verb shares, and how they become one `Settings`."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from warmer import argv, freedoms, levers, settings, urls
from warmer.cli import config_file, trusting
from warmer.cli.typed import Finite, OneOf, Whole
from warmer.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from click.shell_completion import CompletionItem

_F = TypeVar("_F", bound="Callable[..., Any]")

EXIT_CODES: Final = """\b
Exit status:
  0   warm / done
  1   not warm: pieces are missing (named on stdout)
  2   usage or configuration error
  3   another owner is filling, or waiting for it ran past --wait
  4   the source or the lock's service failed: not found, denied, unreachable
  5   integrity: bytes are not what the source or the seal says
  6   the volume or the warm dir failed
  7   the engine run that builds kernels failed
  70  a bug in warmer
  130, 143  interrupted, terminated; staging is cleaned up
"""

_PATHS: Final = {"DIR": "dir", "FILE": "file", "PATH": "file"}
"""What help calls a value → what a shell completes it as."""


def common(function: _F) -> _F:
    """Add the options that say where things are and what the server will be."""
    for add in reversed(_COMMON):
        function = add(function)
    return function


def filling(function: _F) -> _F:
    """Add the options that say how missing pieces are filled."""
    for add in reversed(_FILLING):
        function = add(function)
    return function


def variable(name: str) -> str:
    """Name the environment variable of an option: ``--warm-dir`` → ``WARMER_WARM_DIR``."""
    return "WARMER_" + name.lstrip("-").replace("-", "_").upper()


def option(name: str, **kwargs: Any) -> Callable[[_F], _F]:
    """Declare an option together with its variable; shells complete those that name a path."""
    path = _PATHS.get(kwargs.get("metavar", "").partition("|")[0])
    if path:
        kwargs["shell_complete"] = lambda _ctx, _param, word: _path(word, path)
    return click.option(name, envvar=variable(name), show_envvar=True, **kwargs)


def _path(word: str, kind: str) -> list[CompletionItem]:
    """Leave it to the shell to complete a path; the program lists no directory."""
    from click.shell_completion import CompletionItem  # noqa: PLC0415 - help does without

    return [CompletionItem(word, type=kind)]


def trusted_keys(means: str) -> Callable[[_F], _F]:
    """Declare the option that says whose kernels count; `means` is what becomes of others."""
    text = f"Ed25519 public keys, PEM: {means}. The variable may hold the keys themselves."
    return option("--trusted-keys", metavar="FILE", help=text)


_COMMON: Final = (
    option(
        "--config",
        metavar="FILE",
        is_eager=True,
        expose_value=False,
        callback=config_file.load,
        help="YAML file with these options as keys; serve-args is a list.",
    ),
    option("--volume", metavar="DIR", required=True, help="The shared volume, as mounted here."),
    option(
        "--warm-dir",
        metavar="DIR",
        default=settings.DEFAULT_WARM_DIR,
        show_default=True,
        help="Pod-local directory, at the same path in warmer and in the server.",
    ),
    option(
        "--model",
        metavar="URI",
        required=True,
        help="hf://org/name[@revision], org/name, s3://bucket/prefix, or file:///dir.",
    ),
    option("--vllm", metavar="PATH", help="The vllm command that will serve; found by default."),
    option("--image", metavar="DIGEST", help="Digest of the container image; part of the keys."),
    option(
        "--compile",
        type=OneOf(["run", "harvest", "never"]),
        default="run",
        show_default=True,
        help="Build missing kernels by running the engine once here, leave them to the server and its "
        "sidecar (harvest), or never.",
    ),
    option(
        "--lever",
        multiple=True,
        metavar="NAME=on|off",
        help=f"Switch what makes a start faster: {', '.join(levers.NAMES)}. `plan --explain` "
        "tells what each does, and its risk.",
    ),
    option(
        "--read-ahead",
        default="auto",
        show_default=True,
        metavar="auto|off|SIZE",
        help="How much the server's start reads into the page cache while it imports; auto: as "
        "memory allows.",
    ),
    option(
        "--remote",
        metavar="URL",
        help="s3://bucket/prefix: kernels that the volume lacks are pulled from there before they "
        "are built, and what is built is pushed.",
    ),
    trusted_keys("kernels that none of them signed are never restored"),
    option(
        "--signing-key",
        metavar="FILE",
        help="Ed25519 private key, PEM: sign what is built here; trusted where no --trusted-keys "
        "are given. The variable may hold the key itself.",
    ),
    option(
        "--include",
        multiple=True,
        metavar="PATTERN",
        help="Fetch these files of the model too, though the engine does not load them.",
    ),
    option(
        "--exclude",
        multiple=True,
        metavar="PATTERN",
        help="Do not fetch these files of the model; wins over --include.",
    ),
    option(
        "--adopt",
        multiple=True,
        metavar="DIR",
        help="A Hugging Face cache or a folder to take files from, once they are verified.",
    ),
    option(
        "--retry",
        type=Finite(min=0),
        default=settings.DEFAULT_RETRY,
        show_default=True,
        metavar="SECONDS",
        help="How long a failing source is tried again.",
    ),
    option("--json", is_flag=True, help="Print one JSON object on stdout."),
    click.argument("serve_args", nargs=-1, type=click.UNPROCESSED, metavar="[-- VLLM SERVE ARGS]"),
)
_FILLING: Final = (
    option(
        "--lock",
        metavar="URL",
        default="file",
        show_default=True,
        help="Keeps pods from filling a piece twice: file, k8s://namespace/prefix, or "
        "s3://bucket/prefix; each may end in ?lease=SECONDS.",
    ),
    option(
        "--wait",
        type=Finite(min=0),
        metavar="SECONDS",
        help="How long to wait for another owner; by default as long as filling is predicted to "
        "take here, and for what the pod can start without no longer than --engine-timeout.",
    ),
    option(
        "--on-miss",
        multiple=True,
        metavar="[KIND=]fail|cold",
        help="What a piece that cannot be filled means; weights fail, kernels start cold.",
    ),
    option(
        "--workers",
        type=Whole(min=1),
        metavar="N",
        help="Processes that fetch weights; by default half of the CPUs there are, 4 at most.",
    ),
    option(
        "--direct",
        is_flag=True,
        help="Write weights past the page cache, for filesystems that gain from it.",
    ),
    option(
        "--no-page-cache",
        is_flag=True,
        help="Leave no fetched weights in the page cache: the server runs on another node.",
    ),
    option(
        "--engine-timeout",
        type=Finite(min=1),
        default=settings.DEFAULT_ENGINE_TIMEOUT,
        show_default=True,
        metavar="SECONDS",
        help="How long the engine run may take until it answers.",
    ),
    option(
        "--tune-loader",
        is_flag=True,
        help="Measure which of vLLM's loaders is fastest on this volume for this model, where that "
        "has not been done; the server uses it (--lever loader). Takes several loads.",
    ),
    option(
        "--prove",
        is_flag=True,
        help="Start the engine once more, as the server will, and fail (7) if it builds anything. "
        "Says whether it completes what the build run did.",
    ),
)


def read(values: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> Settings:
    """Turn option values into settings; the one reader of the process environment.

    Raises:
        UsageError: a value is wrong.
    """
    environment = os.environ if environment is None else environment
    words = tuple(values.get("serve_args") or ())
    flags = argv.parse(words)
    chosen = {
        name: values[name]
        for name in ("compile", "retry", "workers", "wait", "engine_timeout", "vllm", "image")
        if values.get(name) is not None
    }
    chosen_by_user = Settings(
        volume=settings.parse_directory(values["volume"], "--volume", shared=True),
        warm_dir=settings.parse_directory(values["warm_dir"], "--warm-dir", shared=True),
        model=urls.parse_model(values["model"]),
        serve_argv=words,
        flags=flags,
        on_miss=settings.parse_on_miss(values.get("on_miss") or ()),
        lock=urls.parse_lock(values.get("lock") or "file"),
        remote=urls.parse_remote(values["remote"]) if values.get("remote") else None,
        selection=settings.parse_selection(
            flags, include=values.get("include") or (), exclude=values.get("exclude") or ()
        ),
        adopt=tuple(
            settings.parse_directory(place, "--adopt") for place in values.get("adopt") or ()
        ),
        writing=settings.Writing(
            direct=bool(values.get("direct")), keep_cached=not values.get("no_page_cache")
        ),
        prove=bool(values.get("prove")),
        tune_loader=bool(values.get("tune_loader")),
        levers=levers.parse(values.get("lever") or ()),
        read_ahead=settings.parse_read_ahead(values.get("read_ahead") or "auto"),
        trust=trusting.read(values, environment),
        me=me(),
        environment={
            n: v
            for n, v in environment.items()
            if not freedoms.service_link(n, v) and n != variable("--signing-key")
        },
        **chosen,
    )
    return settings.consistent(chosen_by_user)


def me() -> str:
    """Name this process to waiters: the pod where there is one, else host and process."""
    pod = os.environ.get("POD_NAME") or os.environ.get("HOSTNAME") or socket.gethostname()
    return f"{pod}/{os.getpid()}"
