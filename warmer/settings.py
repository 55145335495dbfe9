"""One frozen value holds everything the user chose; strings become values here, before any I/O.

Nothing below the command line reads the environment, parses a flag or has a default of its own.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from warmer.errors import UsageError
from warmer.model import KERNEL_KINDS, KINDS, Kind, OnMiss
from warmer.quantities import parse_size
from warmer.selection import ENGINE, Selection
from warmer.trust import ANYBODY, Trust
from warmer.urls import ON_THE_VOLUME, LockUrl, RemoteUrl

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from warmer import argv
    from warmer.model import ModelRef

DEFAULT_WARM_DIR: Final = "/warm"
DEFAULT_ENGINE_TIMEOUT: Final = 1800.0
"""Seconds the engine run may take until it answers."""

DEFAULT_RETRY: Final = 60.0
"""Seconds within which a failing source is tried again."""


@dataclass(frozen=True, slots=True)
class Writing:
    """How weights are written.

    Attributes:
        direct: past the page cache (O_DIRECT), for filesystems that gain from it.
        keep_cached: leave what was written in the page cache, for the server to read.
    """

    direct: bool = False
    keep_cached: bool = True


@dataclass(frozen=True, slots=True)
class Settings:
    """What the user chose.

    Attributes:
        volume: absolute path of the shared volume.
        warm_dir: absolute path of the pod-local directory.
        model: the model as asked for.
        serve_argv: the words after ``--``, as given.
        flags: the same, parsed.
        compile: ``run`` the engine here to build kernels, leave it to the server and ``harvest`` what it
            builds, or ``never``.
        on_miss: kind → what to do when it cannot be filled.
        wait: seconds to wait for another owner; None waits as long as filling would take.
        engine_timeout: seconds the engine run may take until it answers.
        retry: seconds within which a failing source is tried again.
        lock: which lock, and where it is kept.
        remote: the bucket that kernels are pulled from and pushed to; None for none.
        selection: which of the model's files are wanted.
        adopt: Hugging Face caches and folders whose files are taken instead of fetched ones.
        writing: how weights are written.
        workers: processes that fetch weights; None chooses by the CPUs there are.
        tune_loader: measure vLLM's loaders on the volume, where that has not been done.
        prove: start the engine once more before the handoff, and insist that it builds nothing.
        me: how this process is named to waiters.
        vllm: path of the `vllm` command; None finds it.
        image: digest of the container image; part of the kernels' keys.
        levers: lever → whether it is used, where the user said so.
        read_ahead: bytes the server's start reads into the page cache at most; None as memory
            allows.
        trust: whose kernels are restored, and as whom this warmer signs.
        environment: the process environment at start.
    """

    volume: str
    warm_dir: str
    model: ModelRef
    serve_argv: tuple[str, ...] = ()
    flags: argv.Flags = field(default_factory=dict)
    compile: str = "run"
    on_miss: Mapping[Kind, OnMiss] = field(default_factory=dict)
    wait: float | None = None
    engine_timeout: float = DEFAULT_ENGINE_TIMEOUT
    retry: float = DEFAULT_RETRY
    lock: LockUrl = ON_THE_VOLUME
    remote: RemoteUrl | None = None
    selection: Selection = ENGINE
    adopt: tuple[str, ...] = ()
    writing: Writing = Writing()
    workers: int | None = None
    tune_loader: bool = False
    prove: bool = False
    me: str = ""
    vllm: str | None = None
    image: str | None = None
    levers: Mapping[str, bool] = field(default_factory=dict)
    read_ahead: int | None = None
    trust: Trust = ANYBODY
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def forbidden(self) -> str:
        """Why kernels may not be built here; empty where they may."""
        if self.compile == "harvest":
            return (
                "--compile=harvest builds none here: what the server builds, its sidecar publishes"
            )
        if self.compile != "run":
            return f"--compile={self.compile} builds none"
        if self.trust.forbids_publishing:
            return "--trusted-keys without --signing-key build none: nobody would trust them"
        return ""

    def policy(self, kind: Kind) -> OnMiss:
        """What a missing piece means: weights fail the start, kernels let it be cold."""
        return self.on_miss.get(kind, "cold" if kind in KERNEL_KINDS else "fail")


def consistent(chosen: Settings) -> Settings:
    """Insist that the choices go together.

    Raises:
        UsageError: they do not.
    """
    denied = [kind for kind in KERNEL_KINDS if chosen.policy(kind) == "fail"]
    if chosen.compile == "harvest" and denied:
        raise UsageError(
            f"got --compile=harvest and --on-miss {denied[0]}=fail, expected one of them: the server "
            "that is to build what is missing would never start",
            reason="harvest-or-fail",
            hint="--on-miss kernels=cold; or --compile=run, which builds before the start",
        )
    if chosen.compile == "harvest" and chosen.prove:
        raise UsageError(
            "got --compile=harvest and --prove, expected one of them: there may be nothing to prove",
            reason="harvest-or-prove",
            hint="--compile=run builds before the start, and can be proved",
        )
    return chosen


def parse_selection(
    flags: argv.Flags, *, include: Sequence[str], exclude: Sequence[str]
) -> Selection:
    """Read which files are wanted: ``--load-format`` of the serve arguments, and patterns.

    Raises:
        UsageError: a pattern that can match no path.
    """
    for pattern in (*include, *exclude):
        if not pattern or pattern.startswith("/") or "\0" in pattern:
            raise UsageError(
                f"got the pattern {pattern!r}, expected one of paths inside the model",
                reason="bad-value",
                hint="as *.safetensors, or original/*",
            )
    given = flags.get("--load-format") or [[]]
    load_format = given[-1][0] if given[-1] else "auto"
    include, exclude = (
        tuple(f"{one}*" if one.endswith("/") else one for one in some)
        for some in (include, exclude)
    )
    return Selection(load_format, include, exclude)


def parse_on_miss(words: Sequence[str]) -> dict[Kind, OnMiss]:
    """Read ``--on-miss`` values: ``cold``, ``weights=fail``, ``kernels=cold``, ``compile=fail``.

    Raises:
        UsageError: an unknown kind or policy.
    """
    groups: dict[str, tuple[Kind, ...]] = {"kernels": KERNEL_KINDS, "": KINDS}
    groups |= {kind: (kind,) for kind in KINDS}
    policies: dict[Kind, OnMiss] = {}
    for word in (part for value in words for part in value.split(",")):
        name, sep, policy = word.rpartition("=")
        if policy not in ("fail", "cold") or name not in groups or (sep and not name):
            raise UsageError(
                f"got --on-miss {word!r}, expected [KIND=]fail or [KIND=]cold",
                reason="bad-value",
                hint=f"kinds: {', '.join(KINDS)}, or kernels for all but weights",
            )
        policies |= dict.fromkeys(groups[name], "fail" if policy == "fail" else "cold")
    return policies


def parse_read_ahead(text: str) -> int | None:
    """Read ``--read-ahead``: None as memory allows, else bytes at most.

    Raises:
        UsageError: it is neither ``auto``, ``off`` nor a size.
    """
    if text in ("auto", "off"):
        return None if text == "auto" else 0
    try:
        return parse_size(text, "--read-ahead")
    except UsageError as exc:
        message = f"got --read-ahead {text!r}, expected auto, off or a size"
        raise UsageError(message, reason=exc.reason, hint=exc.hint) from exc


def parse_directory(path: str, flag: str, *, shared: bool = False) -> str:
    """Read a directory that must be absolute.

    Args:
        path: as given.
        flag: the option, for the error.
        shared: whether the server's container has it at the same path.

    Raises:
        UsageError: it is relative.
    """
    if not os.path.isabs(path):
        raise UsageError(
            f"got {flag} {path}, expected an absolute path",
            reason="relative-path",
            hint=("the same path must hold in the server's container: " if shared else "")
            + "start it with /",
        )
    return os.path.normpath(path)
