"""What a handoff says of a start that compiled all the same. Pure.

The log names what was built; the handoff names what the start was given to build less. Together they
tell a cache that was never handed from one that did not fit.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from warmer.secrecy import printable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from warmer.report.log import StartLog

_LONGEST = 200
_COMPILE = "compile"


def explained(start: StartLog, handoff: Mapping[str, Any], *, crashed: bool) -> StartLog:
    """Add to what was rebuilt what the handoff knows of it.

    Args:
        start: read from the log.
        handoff: the content of ``handoff.json``; what is not as warmer writes it is passed over.
        crashed: whether the kernels are kept from the server since it crashed over them.
    """
    if start.cache != "rebuilt":
        return start
    pieces = handoff.get("pieces")
    for piece in pieces if isinstance(pieces, list) else ():
        if isinstance(piece, dict) and piece.get("kind") == _COMPILE:
            return replace(start, built=(*start.built, _clause(start, piece, crashed=crashed)))
    return start


def _clause(start: StartLog, piece: Mapping[str, Any], *, crashed: bool) -> str:
    if crashed:
        return "the handoff's kernels were kept back: the engine crashed over them before"
    if piece.get("verdict") != "sealed":
        why = piece.get("reason") or piece.get("verdict") or "no reason given"
        return f"the handoff had no compiled code to give: {printable(str(why), _LONGEST)}"
    given = f"the handoff gave compiled code of generation {printable(str(piece.get('generation')), 20)}"
    if any("failed to load" in clause for clause in start.built):
        return given
    return (
        f"{given}, made for other flags, variables or another image than this start had; "
        "`warmer plan --explain` with this start's own names the difference"
    )
