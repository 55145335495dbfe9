"""A record of use: which pieces one warm dir was handed. Pure.

The wire format is one JSON object. Unlike a seal, a record that cannot be read, or is of another
`schema_version`, is never taken for none: it may name anything (`warmer.collect.need`).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from warmer import __version__
from warmer.model import KINDS, Kind

if TYPE_CHECKING:
    from collections.abc import Iterable

SCHEMA_VERSION: Final = 1
ANY: Final = 0
"""In place of a generation: whichever of the key's."""

_DIGEST: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)


class Piece(NamedTuple):
    """A generation by its name; number `ANY` stands for all of its key."""

    kind: Kind
    digest: str
    number: int

    @property
    def key(self) -> tuple[Kind, str]:
        """What it is a generation of."""
        return self.kind, self.digest

    def __str__(self) -> str:
        return f"{self.kind} {self.digest[:12]} generation {self.number}"


@dataclass(frozen=True, slots=True)
class Use:
    """One record as it was found.

    Attributes:
        name: of the warm dir.
        at: when it was written last, in seconds of the server's clock.
        live: whether a server that runs keeps it locked.
        pieces: what it names; None where it cannot be read.
        owner: how the prefill called itself.
        why: what is wrong with a record that cannot be read.
    """

    name: str
    at: float
    live: bool
    pieces: frozenset[Piece] | None
    owner: str = ""
    why: str = ""


def encode(pieces: Iterable[Piece], *, warm: str, owner: str) -> bytes:
    """Render a record.

    Args:
        pieces: what is used.
        warm: the warm dir's path, for people.
        owner: how the prefill called itself, for people.
    """
    listed = [{"kind": p.kind, "key": p.digest, "generation": p.number} for p in sorted(pieces)]
    entry = {
        "schema_version": SCHEMA_VERSION,
        "by": f"warmer {__version__}",
        "owner": owner,
        "warm_dir": warm,
        "pieces": listed,
    }
    return json.dumps(entry, indent=1).encode() + b"\n"


def parse(data: bytes) -> tuple[frozenset[Piece], str]:
    """Read a record.

    Returns:
        What it names, and its owner.

    Raises:
        ValueError: it is malformed, or of a format this warmer does not know.
    """
    try:
        found = json.loads(data)
        version = found["schema_version"]
        pieces = frozenset(_piece(one) for one in found["pieces"])
        owner = str(found["owner"])
        shown = repr(version)[:40]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as exc:
        raise ValueError(f"no record of use ({type(exc).__name__}: {exc})") from exc
    if version != SCHEMA_VERSION:
        raise ValueError(f"schema_version {shown}, expected {SCHEMA_VERSION}")
    return pieces, owner


def covers(before: frozenset[Piece], piece: Piece) -> bool:
    """Whether a record protects a piece already; of `ANY`, its key is enough."""
    if piece.number == ANY:
        return any(one.key == piece.key for one in before)
    return piece in before


def _piece(record: Any) -> Piece:
    piece = Piece(record["kind"], record["key"], record["generation"])
    whole = type(piece.number) is int and piece.number >= ANY
    if piece.kind not in KINDS or not whole or not _DIGEST.fullmatch(piece.digest):
        raise ValueError(f"{record!r} names no piece")
    return piece
