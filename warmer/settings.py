"""One frozen value holds everything the user chose; strings become values here, before any I/O.

Nothing below the command line reads the environment, parses a flag or has a default of its own.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from warmer.errors import UsageError
from warmer.model import KERNEL_KINDS, KINDS, Kind, ModelRef, OnMiss

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from warmer import argv

DEFAULT_WARM_DIR: Final = "/warm"
DEFAULT_WAIT: Final = 600.0
"""Seconds to wait for another owner; chosen, not measured. Where a cold start is shorter (180 s in
docs/benchmarks.md), a lower --wait keeps a pod from waiting longer than that."""
DEFAULT_ENGINE_TIMEOUT: Final = 1800.0
"""Seconds the engine run may take until it answers."""

DEFAULT_RETRY: Final = 60.0
"""Seconds within which a failing source is tried again."""

_REPO: Final = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Settings:
    """What the user chose.

    Attributes:
        volume: absolute path of the shared volume.
        warm_dir: absolute path of the pod-local directory.
        model: the model as asked for.
        serve_argv: the words after ``--``, as given.
        flags: the same, parsed.
        compile: ``run`` the engine here to build kernels, or ``never``.
        on_miss: kind → what to do when it cannot be filled.
        wait: seconds to wait for another owner.
        engine_timeout: seconds the engine run may take until it answers.
        retry: seconds within which a failing source is tried again.
        lock: which lock mechanism.
        me: how this process is named to waiters.
        vllm: path of the `vllm` command; None finds it.
        image: digest of the container image; part of the kernels' keys.
        environment: the process environment at start.
    """

    volume: str
    warm_dir: str
    model: ModelRef
    serve_argv: tuple[str, ...] = ()
    flags: argv.Flags = field(default_factory=dict)
    compile: str = "run"
    on_miss: Mapping[Kind, OnMiss] = field(default_factory=dict)
    wait: float = DEFAULT_WAIT
    engine_timeout: float = DEFAULT_ENGINE_TIMEOUT
    retry: float = DEFAULT_RETRY
    lock: str = "file"
    me: str = ""
    vllm: str | None = None
    image: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)

    def policy(self, kind: Kind) -> OnMiss:
        """What a missing piece means: weights fail the start, kernels let it be cold."""
        return self.on_miss.get(kind, "cold" if kind in KERNEL_KINDS else "fail")


def parse_model(uri: str) -> ModelRef:
    """Read a model URI: ``hf://org/name[@revision]``, bare ``org/name``, ``file:///dir``.

    Raises:
        UsageError: anything else.
    """
    scheme, sep, rest = uri.partition("://")
    if not sep:
        scheme, rest = "hf", uri
    if scheme == "file":
        if not rest.startswith("/"):
            raise _bad_model(uri, "file:// needs an absolute directory: file:///models/llama")
        return ModelRef("file", os.path.normpath(rest), "")
    if scheme != "hf":
        raise _bad_model(uri, "hf://org/name[@revision] and file:///dir are known")
    name, at, revision = rest.partition("@")
    if not _REPO.fullmatch(name) or ".." in name or (at and not revision):
        raise _bad_model(uri, "write hf://org/name or hf://org/name@revision")
    if revision and (
        revision.split() != [revision]
        or any(part in ("", ".", "..") for part in revision.split("/"))
    ):
        raise _bad_model(uri, "a revision is a commit, a branch or a tag")
    return ModelRef("hf", name, revision or "main")


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


def parse_directory(path: str, flag: str) -> str:
    """Read a directory that must be absolute.

    Raises:
        UsageError: it is relative.
    """
    if not os.path.isabs(path):
        raise UsageError(
            f"got {flag} {path}, expected an absolute path",
            reason="relative-path",
            hint="the same path must hold in the server's container: start it with /",
        )
    return os.path.normpath(path)


def _bad_model(uri: str, hint: str) -> UsageError:
    return UsageError(f"got the model {uri!r}, expected a model URI", reason="bad-model", hint=hint)
