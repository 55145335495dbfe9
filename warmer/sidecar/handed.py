"""What the server beside this sidecar was handed, and under which keys its building may go."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from warmer import regular, seal
from warmer.model import KERNEL_KINDS, Key, Kind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from warmer.layout import WarmDir

MOST: Final = 1 << 20
"""Bytes that are read of a file that the server may write."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A generation that was handed off: its key's digest, its number, the sha256 of its seal."""

    digest: str
    generation: int
    seal_sha256: str


@dataclass(frozen=True, slots=True)
class Job:
    """What the handoff says of harvesting.

    Attributes:
        identity: of the handoff.
        keys: kernel kind → its key.
        handed: kind → what was handed off of it, weights too; kinds without are not in it.
        env: what the handoff sets for the server.
        argv: the server's arguments.
        command: what starts it.
        interpreter: the Python that the engine of the keys runs on.
        trusted: ids of the keys that this pod's prefill insists on; none where it trusts anybody.
    """

    identity: str
    keys: Mapping[Kind, Key]
    handed: Mapping[Kind, Piece]
    env: Mapping[str, str]
    argv: tuple[str, ...]
    command: str
    interpreter: str
    trusted: tuple[str, ...]

    @property
    def source(self) -> str:
        """What a seal says of pieces that this server built."""
        offline = any(name.endswith("_OFFLINE") for name in self.env)
        return seal.HARVEST_OFFLINE if offline else seal.HARVEST


def read(warm: WarmDir) -> Job | str:
    """Read what may be harvested, or why nothing may."""
    try:
        said = load(warm.keys)
        handoff = load(os.path.join(warm.handoff, "handoff.json"))
        identity = said.pop("handoff")
        if identity != hashlib.sha256(json.dumps([handoff, said]).encode()).hexdigest():
            return "the handoff is being written"
        if said["schema_version"] != 1 or handoff["schema_version"] != 1:
            return "the handoff is of another version of warmer"
        if said["forbidden"]:
            return str(said["forbidden"])
        keys = {
            kind: Key(kind, said["keys"][kind]) for kind in KERNEL_KINDS if kind in said["keys"]
        }
        return Job(
            identity=str(identity),
            keys=keys,
            handed={
                piece["kind"]: Piece(
                    str(piece["key"]), int(piece["generation"]), str(piece["seal_sha256"])
                )
                for piece in handoff["pieces"]
                if piece["verdict"] == "sealed"
            },
            env={str(name): str(value) for name, value in dict(handoff["env"]).items()},
            argv=tuple(map(str, handoff["argv"])),
            command=str(said["command"]),
            interpreter=str(said["interpreter"]),
            trusted=tuple(map(str, said["trusted"])),
        )
    except FileNotFoundError:
        return "there is no handoff yet, or a prefill is at work"
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,  # a number without end
        RecursionError,
    ) as exc:
        return f"the handoff cannot be read: {type(exc).__name__}"


def load(path: str) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        OSError: it cannot be read.
        ValueError: it is none.
    """
    value = json.loads(regular.read(path, most=MOST))
    if not isinstance(value, dict):
        raise ValueError(f"got {type(value).__name__} in {path}, expected an object")  # noqa: TRY004 - as json's own
    return value
