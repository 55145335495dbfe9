"""The nouns of warmer: frozen values that every stage speaks in. No I/O, no defaults.

A *piece* is a unit that can be missing and filled on its own. It has a *key*: named factors and
their digest. What the volume holds under a key is a *generation*, judged with a *verdict*. What
has to be done is a *plan* of *steps*, each with the reason for it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

if TYPE_CHECKING:
    from collections.abc import Mapping

Kind = Literal["weights", "compile", "flashinfer", "jit", "bytecode"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
KERNEL_KINDS: Final[tuple[Kind, ...]] = ("compile", "flashinfer", "jit", "bytecode")
"""What a start writes: every kind but the weights."""

Verdict = Literal["sealed", "partial", "absent", "foreign", "corrupt", "stale"]
"""What a look at the volume says of a piece:

sealed: complete; every file the seal names is there with its size.
partial: published, but a file the seal names is missing.
absent: nothing under this key.
foreign: something is there that warmer did not write, or a newer format.
corrupt: a file's size or content is not what the seal says, or the seal is unreadable.
stale: complete, but it was built beside a generation of another piece that is gone, or it crashed
    the engine at load twice.
"""

LEVELS: Final = 64
"""Levels that a JSON value of others may have: lists in objects in lists, and so on."""

Action = Literal["download", "pull", "pull or build", "build", "restore"]
OnMiss = Literal["fail", "cold"]


def canonical(value: object) -> str:
    """Render a JSON value with one spelling: sorted keys, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def too_deep(value: object) -> bool:
    """Whether a JSON value has more levels than anything of warmer's or of vLLM's.

    What reads one text may still be too deep to be compared or written a few calls further down.
    """
    level = [value]
    for _ in range(LEVELS):
        level = [
            inner
            for one in level
            if isinstance(one, (dict, list))
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            return False
    return True


@dataclass(frozen=True, slots=True)
class Key:
    """Named factors and the digest that stands for them.

    Attributes:
        kind: the kind of piece this is a key of.
        factors: factor name → JSON value. Equal factors, equal piece.
    """

    kind: Kind
    factors: Mapping[str, Any]
    digest: str = field(init=False)
    """sha256 of the canonical JSON of kind and factors, 64 hex digits."""

    def __post_init__(self) -> None:
        text = canonical({"kind": self.kind, "factors": dict(self.factors)})
        object.__setattr__(self, "digest", hashlib.sha256(text.encode()).hexdigest())

    @classmethod
    def known(cls, kind: Kind, digest: str) -> Key:
        """A key of which only the digest is known: enough to lock it, to find it and to name it."""
        key = cls(kind, {})
        object.__setattr__(key, "digest", digest)
        return key

    @property
    def short(self) -> str:
        """Enough of the digest for a person."""
        return self.digest[:12]


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A model at one place and, once resolved, at one revision.

    Attributes:
        scheme: ``hf``, ``s3`` or ``file``.
        name: ``org/name`` for ``hf``; ``bucket/prefix`` for ``s3``; an absolute directory for
            ``file``.
        revision: as asked for: a commit, a branch or a tag; ``main`` when not given. For
            ``s3`` and ``file`` it is the digest of the listing, once resolved.
    """

    scheme: Literal["hf", "s3", "file"]
    name: str
    revision: str

    @property
    def slug(self) -> str:
        """The name as one path component."""
        return self.name.strip("/").replace("/", "--")

    @property
    def pinned(self) -> bool:
        """Whether the revision names content for ever, so that no hub need be asked."""
        lower = self.revision.lower()
        return len(lower) in (40, 64) and all(c in "0123456789abcdef" for c in lower)

    def __str__(self) -> str:
        if self.scheme == "file":
            return f"file://{self.name}"
        at = f"@{self.revision}" if self.revision else ""
        return f"{self.scheme}://{self.name}{at}"


@dataclass(frozen=True, slots=True)
class Held:
    """What the volume holds under one key.

    Attributes:
        verdict: see `Verdict`.
        reason: one clause that says why the verdict is what it is.
        generation: the generation judged; 0 when absent.
        size: bytes of the files its seal names.
        broken: paths (relative to the generation) that are missing or of the wrong size.
        seal_sha256: digest of the seal's bytes.
        restored: for kernels, whether the warm dir holds this generation's tree.
        crashed: it crashed the engine at load twice: it is not to be used, nor built upon.
        source: where its bytes came from, as its seal says.
        lacking: whose compiled code the warm dir has lost since it was restored.
    """

    verdict: Verdict
    reason: str
    generation: int = 0
    size: int = 0
    broken: tuple[str, ...] = ()
    seal_sha256: str = ""
    restored: bool = False
    crashed: bool = False
    source: str = ""
    lacking: str = ""


@dataclass(frozen=True, slots=True)
class Difference:
    """One factor on which two keys differ; None where a side lacks it."""

    factor: str
    wanted: Any
    held: Any


@dataclass(frozen=True, slots=True)
class Nearest:
    """The held key of the same kind with the fewest differences to the wanted one."""

    digest: str
    differences: tuple[Difference, ...]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What this pod needs.

    Attributes:
        model: the model at its resolved revision.
        keys: the key of each piece, by kind.
        without: kinds that cannot be had here, with the reason.
        unneeded: kinds that would gain nothing here, with the reason.
    """

    model: ModelRef
    keys: Mapping[Kind, Key]
    without: Mapping[Kind, str] = field(default_factory=dict)
    unneeded: Mapping[Kind, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Inventory:
    """What the volume and the warm dir hold of what is wanted.

    Attributes:
        held: by kind.
        nearest: for kinds not sealed, the closest other key on the volume.
        rates: bytes per second (weights) and seconds (kernels) that earlier fills recorded in
            their seals, by kind, for predictions.
    """

    held: Mapping[Kind, Held]
    nearest: Mapping[Kind, Nearest] = field(default_factory=dict)
    rates: Mapping[Kind, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to do, and why.

    Attributes:
        kind: the piece it is about.
        action: ``download`` weights; ``pull`` kernels from the remote bucket, ``build`` them, or
            build what cannot be pulled; ``restore`` kernels into the warm dir.
        key: the piece's key.
        verdict: what the volume said.
        reason: why this step is needed.
        size: bytes to move, where known.
        seconds: predicted, where there is anything to predict from.
        basis: what the prediction rests on.
        nearest: the closest key held, for a miss.
        left_out: files of the source that are not wanted, with the reason.
        saved: bytes of those files.
    """

    kind: Kind
    action: Action
    key: Key
    verdict: Verdict
    reason: str
    size: int | None = None
    seconds: float | None = None
    basis: str = ""
    nearest: Nearest | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)
    saved: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything `prefill` will do, in order. Empty means warm.

    Attributes:
        steps: what to do.
        without: kinds the server will start without, with the reason.
        unneeded: kinds that would gain nothing here, with the reason; the start is warm all the same.
    """

    steps: tuple[Step, ...]
    without: Mapping[Kind, str] = field(default_factory=dict)
    unneeded: Mapping[Kind, str] = field(default_factory=dict)

    @property
    def empty(self) -> bool:
        """Whether nothing is left to do."""
        return not self.steps
