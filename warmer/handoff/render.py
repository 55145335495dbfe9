"""The handoff as text: environment, argv, a `serve` script, a record for the probe. Pure."""

from __future__ import annotations

import hashlib
import json
import shlex
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from warmer import __version__
from warmer.handoff import script

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from warmer.layout import WarmDir
    from warmer.loaders import Loader
    from warmer.model import Key, Kind

SCHEMA_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Piece:
    """One piece as the server finds it.

    Attributes:
        kind: the kind.
        key: its digest; empty where no key could be made.
        verdict: ``sealed``, or what it was when the handoff was written without it.
        reason: why it is missing, if it is.
        generation: the generation handed off; 0 without.
        directory: that generation's path on the volume; empty without.
        size: bytes on the volume.
        seal_sha256: digest of its seal.
        restored: the record in the warm dir that says it is unpacked; None for weights.
    """

    kind: Kind
    key: str
    verdict: str
    reason: str = ""
    generation: int = 0
    directory: str = ""
    size: int = 0
    seal_sha256: str = ""
    restored: str | None = None


@dataclass(frozen=True, slots=True)
class Harvest:
    """What a sidecar may publish of what the server builds.

    Attributes:
        forbidden: why it may publish nothing; empty where it may.
        keys: kernel kind → its key.
        interpreter: the Python that the engine of the keys runs on.
        trusted: ids of the keys by one of which kernels must be signed; none where they need not.
    """

    forbidden: str = "nothing was said of it"
    keys: Mapping[Kind, Key] = field(default_factory=dict)
    interpreter: str = ""
    trusted: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Handoff:
    """Everything the server is started with.

    Attributes:
        model_path: the model argument.
        model_files: the directory on the volume that `model_path` links to.
        served_name: the name clients use.
        env: variable → value; no secrets.
        argv: `vllm serve` arguments after the model.
        pieces: what is there, and what is not.
        command: what started vLLM for the build; where it is not there, `vllm` of the PATH.
        known: names of variables that are free to differ; `serve` warns of others.
        use: the file that names this pod's record of use; empty without.
        uses: the directory on the volume where `serve` locks that record for the server.
        warm: where starts are counted, and go on without kernels; None: they are not.
        crashes: the directory on the volume where starts that crashed are told.
        levers: names of those this start uses (warmer/levers.py).
        loader: how a start that has not crashed loads weights, where not by default.
        interpreter: the Python that `command` runs on; empty where it is not known.
        read_ahead: bytes to read into the page cache at most; None as memory allows.
        harvest: what a sidecar may publish.
        stages: the engine's pipeline stages, each of which begins to read at its own shards.
    """

    model_path: str
    model_files: str
    served_name: str
    env: Mapping[str, str]
    argv: Sequence[str]
    pieces: Sequence[Piece]
    command: Sequence[str] = ("vllm",)
    known: Iterable[str] = ()
    use: str = ""
    uses: str = ""
    warm: WarmDir | None = None
    crashes: str = ""
    levers: Collection[str] = ()
    loader: Loader | None = None
    interpreter: str = ""
    read_ahead: int | None = None
    harvest: Harvest = Harvest()
    stages: int = 1

    @property
    def suspects(self) -> tuple[str, ...]:
        """Names of the kernel generations that are handed off."""
        kernels = (p for p in self.pieces if p.verdict == "sealed" and p.restored)
        return tuple(f"{p.kind}-{p.key}-{p.generation}" for p in kernels)

    @property
    def mark(self) -> str:
        """A name for these very generations."""
        seals = ",".join(piece.seal_sha256 for piece in self.pieces if piece.restored)
        return hashlib.sha256(f"{self.suspects} {seals}".encode()).hexdigest()[:16]

    @property
    def crashed(self) -> str:
        """The file that is there once these generations are not given to the server any more."""
        return self.warm.crashed(self.mark) if self.warm and self.suspects else ""


def render(handoff: Handoff, *, directory: str) -> dict[str, str]:
    """Render what is not the same in every handoff.

    Args:
        handoff: the values.
        directory: where the files will be, absolute.

    Returns:
        File name → text.
    """
    record = as_json(handoff)
    keys = _keys(handoff)
    keys["handoff"] = hashlib.sha256(json.dumps([record, keys]).encode()).hexdigest()
    return {
        "env": _env(handoff.env),
        "keys.json": json.dumps(keys, indent=1) + "\n",
        "serve": script.serve(handoff, directory, keys["handoff"]),
        "handoff.json": json.dumps(record, indent=1) + "\n",
    }


def _keys(handoff: Handoff) -> dict[str, Any]:
    """Render what a sidecar needs that a server does not: factors, to publish under their key."""
    return {
        "schema_version": SCHEMA_VERSION,
        "forbidden": handoff.harvest.forbidden,
        "trusted": list(handoff.harvest.trusted),
        "command": handoff.command[0],
        "interpreter": handoff.harvest.interpreter,
        "keys": {kind: dict(key.factors) for kind, key in handoff.harvest.keys.items()},
    }


def as_json(handoff: Handoff) -> dict[str, Any]:
    """Render the machine-readable part; programs ignore fields they do not know."""
    return {
        "schema_version": SCHEMA_VERSION,
        "by": f"warmer {__version__}",
        "model_path": handoff.model_path,
        "model_files": handoff.model_files,
        "served_name": handoff.served_name,
        "env": dict(sorted(handoff.env.items())),
        "argv": list(handoff.argv),
        "levers": sorted(handoff.levers),
        "loader": list(handoff.loader.flags) if handoff.loader else [],
        "pieces": [_piece(piece) for piece in handoff.pieces],
        "crashed": handoff.crashed,
    }


def _piece(piece: Piece) -> dict[str, Any]:
    return {
        "kind": piece.kind,
        "key": piece.key,
        "verdict": piece.verdict,
        "reason": piece.reason,
        "generation": piece.generation,
        "directory": piece.directory,
        "bytes": piece.size,
        "seal_sha256": piece.seal_sha256,
        "restored": piece.restored,
    }


def _env(env: Mapping[str, str]) -> str:
    lines = [f"# Written by warmer {__version__}: the environment the kernels were built in."]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in sorted(env.items())]
    return "\n".join(lines) + "\n"
