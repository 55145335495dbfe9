"""The handoff as text: environment, argv, a `serve` script, a record for the probe. Pure.

It works in an image without warmer: `serve` is POSIX sh, `check.py` and `ready.py` are the standard
library.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from warmer import __version__, families, freedoms
from warmer.handoff import script

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from warmer.layout import WarmDir
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
        harvest: what a sidecar may publish.
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
    harvest: Harvest = Harvest()

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


def render(
    handoff: Handoff, *, directory: str, probe: str, counter: str, noter: str
) -> dict[str, str]:
    """Render every file of the handoff.

    Args:
        handoff: the values.
        directory: where the files will be, absolute.
        probe: the source of the readiness probe.
        noter: text of what notes how the server was started.
        counter: the source of what counts the starts.

    Returns:
        File name → text.
    """
    record = as_json(handoff)
    keys = _keys(handoff)
    keys["handoff"] = hashlib.sha256(json.dumps([record, keys]).encode()).hexdigest()
    serve = script.SERVE.format(
        version=__version__,
        known=" ".join(sorted({*handoff.env, *handoff.known})),
        hashed=_hashed(),
        note=_note(handoff, directory, keys["handoff"]),
        env=shlex.quote(os.path.join(directory, "env")),
        hold=_hold(handoff),
        watch=_watch(handoff, os.path.join(directory, "ready.py")),
        bin=_beside(handoff.command[0]),
        words=shlex.join([handoff.model_path, *handoff.argv]),
        program=shlex.quote(handoff.command[0]),
        command=shlex.join(handoff.command),
    )
    return {
        "check.py": probe,
        "ready.py": counter,
        "installed.py": noter,
        "env": _env(handoff.env),
        "keys.json": json.dumps(keys, indent=1) + "\n",
        "serve": serve,
        "handoff.json": json.dumps(record, indent=1) + "\n",
    }


def _hold(handoff: Handoff) -> str:
    """What keeps the record of use locked; the same text in every pod."""
    if not handoff.use:
        return ""
    return script.HOLD.format(use=shlex.quote(handoff.use), uses=shlex.quote(handoff.uses))


def _watch(handoff: Handoff, ready: str) -> str:
    """What counts the starts with these kernels, and what a start without them is given."""
    if handoff.warm is None or not handoff.suspects:
        return ""
    warm, lines = handoff.warm, []
    for name, value in sorted(handoff.env.items()):
        # As a handoff without them: a fetch may be needed, and bytecode is not written anew.
        if name.endswith("_OFFLINE") or name in families.variables("bytecode"):
            lines.append(f"    unset {name}\n")
        elif value.startswith(warm.cache + os.sep):
            moved = os.path.join(warm.cold, handoff.mark) + value.removeprefix(warm.cache)
            lines.append(f"    export {name}={shlex.quote(moved)}\n")
    words = (warm.starts, warm.cold, handoff.crashes, handoff.mark, *handoff.suspects)
    return script.WATCH.format(
        ready=shlex.quote(ready), words=shlex.join(words), without="".join(lines) or "    :\n"
    )


def _note(handoff: Handoff, directory: str, identity: str) -> str:
    """What leaves a note of how the server was started."""
    if handoff.warm is None:
        return ""
    return script.NOTE.format(
        served=shlex.quote(handoff.warm.served),
        server=shlex.quote(handoff.warm.server),
        interpreter=shlex.quote(handoff.harvest.interpreter),
        installed=shlex.quote(os.path.join(directory, "installed.py")),
        identity=identity,
        program=shlex.quote(handoff.command[0]),
    )


def _hashed() -> str:
    """What sed prints of `env`: the names that decide what is built, if they are not known."""
    names = [rf"{prefix}[A-Za-z0-9_]*" for prefix in freedoms.HASHED_PREFIXES]
    names += freedoms.HASHED_NAMES
    return " ".join(rf"-e 's/^\({name}\)=.*/\1/p'" for name in names)


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


def _beside(command: str) -> str:
    """What goes on the end of PATH for a command's tools; an empty entry would mean "here"."""
    directory = os.path.dirname(command)
    return ":" + shlex.quote(directory) if directory else ""


def _env(env: Mapping[str, str]) -> str:
    lines = [f"# Written by warmer {__version__}: the environment the kernels were built in."]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in sorted(env.items())]
    return "\n".join(lines) + "\n"
