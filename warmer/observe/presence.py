"""Whether compiled code is there of every rank: in a published generation, and in the warm dir.

Asked only of engines with several ranks. A generation's manifest is read only where its tree is to
be restored, which reads it too; of a restored tree the record names what is one rank's alone.
"""

from __future__ import annotations

import dataclasses
import json
import os
from typing import TYPE_CHECKING, Final

from warmer import ranks, regular
from warmer.layout import MANIFEST

if TYPE_CHECKING:
    from collections.abc import Iterator

    from warmer.layout import Volume, WarmDir
    from warmer.model import Held, Key

_LONGEST: Final = 64 << 20
"""Bytes of a manifest that is read for a look."""


def judge(volume: Volume, warm: WarmDir, key: Key, held: Held) -> Held:
    """Judge a sealed compile generation anew: partial, or not restored, where a rank's code is gone."""
    if not ranks.world(key.factors).several:
        return held
    if held.restored:
        gone = {rank for path in _gone(warm, key) if (rank := ranks.owner(path))}
        return dataclasses.replace(held, restored=not gone, lacking=ranks.named(gone))
    if missing := lacking(volume.generation(key.kind, key.digest, held.generation), key):
        reason = f"generation {held.generation} lacks the compiled code of {missing}"
        return dataclasses.replace(held, verdict="partial", reason=reason)
    return held


def lacking(directory: str, key: Key) -> str:
    """Name the ranks whose compiled code a generation or a staging lacks; empty for other kinds."""
    if key.kind != "compile":
        return ""
    return ranks.named(ranks.lacking(_members(directory), ranks.world(key.factors)))


def _gone(warm: WarmDir, key: Key) -> Iterator[str]:
    """Name what a restored tree has lost of what is one rank's alone."""
    try:
        with open(warm.restored(key.kind), "rb") as f:
            paths = json.load(f).get("ranks", [])
        for path in paths:
            if not os.path.exists(os.path.join(warm.tree(key.kind), path)):
                yield path
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return  # a record that cannot be read is none: the next look says so


def _members(directory: str) -> list[str]:
    """What a generation holds; nothing where its manifest cannot be read: to restore it will tell."""
    try:
        found = json.loads(regular.read(os.path.join(directory, MANIFEST), most=_LONGEST))
        return [file["path"] + "" for file in found["files"]]
    except (OSError, ValueError, TypeError, KeyError, RecursionError, regular.OddFileError):
        return []
