"""One frozen value holds everything the user chose; strings become values here, before any I/O.

Nothing below the command line reads the environment, parses a flag or has a default of its own.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

from warmer.errors import UsageError
from warmer.model import KERNEL_KINDS, KINDS, Kind, ModelRef, OnMiss
from warmer.selection import ENGINE, Selection
from warmer.trust import ANYBODY, Trust

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from warmer import argv

DEFAULT_WARM_DIR: Final = "/warm"
DEFAULT_ENGINE_TIMEOUT: Final = 1800.0
"""Seconds the engine run may take until it answers."""

DEFAULT_RETRY: Final = 60.0
"""Seconds within which a failing source is tried again."""

DEFAULT_LEASE: Final = 30.0
"""Seconds after which an owner that shows no life is taken to be gone."""

SHORTEST_LEASE: Final = 3.0
LONGEST_LEASE: Final = 600.0

_NAMESPACE: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)
_LEASE_PREFIX: Final = re.compile(
    r"(?=.{1,100}\Z)[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*", re.ASCII
)
_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", re.ASCII)
_OBJECT_PREFIX: Final = re.compile(r"[\w.!*'()-]+(/[\w.!*'()-]+){0,31}", re.ASCII)
_PLAIN_QUERY: Final = re.compile(r"\w*(=[\w.-]{0,6}([&?]\w*=[\w.-]{0,6})*)?", re.ASCII)
"""What is too short for a password."""

_REPO: Final = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class LockUrl:
    """Which lock, and where it is kept.

    Attributes:
        mechanism: ``file``, ``k8s`` or ``s3``.
        place: the namespace or the bucket; empty for ``file``, which is on the volume.
        prefix: what the names in that place start with; one per volume.
        lease: seconds after which an owner that shows no life is taken to be gone.
    """

    mechanism: Literal["file", "k8s", "s3"] = "file"
    place: str = ""
    prefix: str = ""
    lease: float = DEFAULT_LEASE


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
        compile: ``run`` the engine here to build kernels, or ``never``.
        on_miss: kind → what to do when it cannot be filled.
        wait: seconds to wait for another owner; None waits as long as filling would take.
        engine_timeout: seconds the engine run may take until it answers.
        retry: seconds within which a failing source is tried again.
        lock: which lock, and where it is kept.
        selection: which of the model's files are wanted.
        adopt: Hugging Face caches and folders whose files are taken instead of fetched ones.
        writing: how weights are written.
        workers: processes that fetch weights; None chooses by the CPUs there are.
        prove: start the engine once more before the handoff, and insist that it builds nothing.
        me: how this process is named to waiters.
        vllm: path of the `vllm` command; None finds it.
        image: digest of the container image; part of the kernels' keys.
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
    lock: LockUrl = LockUrl()
    selection: Selection = ENGINE
    adopt: tuple[str, ...] = ()
    writing: Writing = Writing()
    workers: int | None = None
    prove: bool = False
    me: str = ""
    vllm: str | None = None
    image: str | None = None
    trust: Trust = ANYBODY
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def forbidden(self) -> str:
        """Why kernels may not be built here; empty where they may."""
        if self.compile != "run":
            return f"--compile={self.compile} builds none"
        if self.trust.forbids_publishing:
            return "--trusted-keys without --signing-key build none: nobody would trust them"
        return ""

    def policy(self, kind: Kind) -> OnMiss:
        """What a missing piece means: weights fail the start, kernels let it be cold."""
        return self.on_miss.get(kind, "cold" if kind in KERNEL_KINDS else "fail")


def parse_model(uri: str) -> ModelRef:
    """Read a model URI: ``hf://org/name[@revision]``, ``s3://bucket/prefix``, ``file:///dir``.

    Bare ``org/name`` is of the hub. A listing of S3 can be pinned by its digest, as
    ``s3://bucket/prefix@<64 hex digits>``, which a plan shows.

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
    if scheme == "s3":
        return _s3_model(uri, rest)
    if scheme != "hf":
        known = "hf://org/name[@revision], s3://bucket/prefix and file:///dir are known"
        raise _bad_model(uri, known)
    name, at, revision = rest.partition("@")
    if not _REPO.fullmatch(name) or ".." in name or (at and not revision):
        raise _bad_model(uri, "write hf://org/name or hf://org/name@revision")
    if revision and (
        revision.split() != [revision]
        or any(part in ("", ".", "..") for part in revision.split("/"))
    ):
        raise _bad_model(uri, "a revision is a commit, a branch or a tag")
    return ModelRef("hf", name, revision or "main")


def _s3_model(uri: str, rest: str) -> ModelRef:
    base, at, revision = rest.rpartition("@")
    if not at or not ModelRef("s3", base, revision).pinned:
        base, revision = rest, ""
    bucket, _, prefix = base.partition("/")
    prefix = prefix.strip("/")
    parts = prefix.split("/")
    if not _BUCKET.fullmatch(bucket) or not prefix or {"", ".", ".."} & set(parts):
        raise _bad_model(uri, "s3://bucket/prefix: the prefix is the model's directory")
    return ModelRef("s3", f"{bucket}/{prefix}", revision.lower())


def parse_lock(url: str) -> LockUrl:
    """Read a lock URL: ``file``, ``k8s://namespace/prefix``, ``s3://bucket/prefix``.

    Each may end in ``?lease=SECONDS``.

    Raises:
        UsageError: anything else.
    """
    base, _, query = url.partition("?")
    lease = _lease(url, query) if "?" in url else DEFAULT_LEASE
    if base == "file":
        return LockUrl(lease=lease)
    scheme, _, rest = base.partition("://")
    place, slash, prefix = rest.partition("/")
    if scheme == "k8s":
        if not _NAMESPACE.fullmatch(place) or not _LEASE_PREFIX.fullmatch(prefix):
            raise _bad_lock(url, "k8s://namespace/prefix, both in lower case: k8s://ml/models")
        return LockUrl("k8s", place, prefix, lease)
    if scheme == "s3":
        prefix = prefix.rstrip("/")
        named = _OBJECT_PREFIX.fullmatch(prefix) and not {".", ".."} & set(prefix.split("/"))
        if not _BUCKET.fullmatch(place) or not slash or not named:
            raise _bad_lock(url, "s3://bucket/prefix, one prefix per volume: s3://locks/models")
        return LockUrl("s3", place, prefix, lease)
    raise _bad_lock(url, "file, k8s://namespace/prefix or s3://bucket/prefix")


def _lease(url: str, query: str) -> float:
    name, _, value = query.partition("=")
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if name != "lease" or not SHORTEST_LEASE <= seconds <= LONGEST_LEASE:
        raise _bad_lock(url, f"?lease=SECONDS, from {SHORTEST_LEASE:.0f} to {LONGEST_LEASE:.0f}")
    return seconds


def _bad_lock(url: str, hint: str) -> UsageError:
    shown = _without_passwords(url)
    return UsageError(f"got --lock {shown!r}, expected a lock URL", reason="bad-lock", hint=hint)


def _without_passwords(url: str) -> str:
    """Leave out what stands where people put passwords: around colons, before @, in a query."""
    base, mark, query = url.partition("?")
    scheme, sep, rest = base.partition("://")
    if "@" in base or ":" in rest or scheme.count(":") > 1:
        base = f"{scheme}{sep}..." if scheme.isalnum() else "..."
    return base + mark + (query if _PLAIN_QUERY.fullmatch(query) else "...")


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
