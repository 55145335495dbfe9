"""Secrets that an engine wrote into its caches: such files are removed before anything is packed.

The build run is given no variable that is named like a secret, and the file that vLLM 0.20 writes
VLLM_API_KEY into is never packed (`warmer.families`). But an engine may read a token from elsewhere
and write it anywhere, and what goes to the volume is read by everybody. A cache without one of its
files is colder, never wrong.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Final

from warmer.fill import members

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_SMALL: Final = 1 << 20
"""Bytes up to which a file is searched whatever it is called; larger objects hold machine code."""
_TEXTS: Final = (".json", ".py", ".txt", ".log", ".cpp", ".cu", ".h", ".hpp", ".ninja", ".yaml")
_CHUNK: Final = 1 << 20


def remove(tree: str, excluded: Sequence[str], secrets: Mapping[str, str]) -> dict[str, str]:
    """Remove the files that hold a secret, in their bytes or their path.

    Args:
        tree: absolute directory; one that does not exist has none.
        excluded: what is not packed anyway (`members.scan`).
        secrets: name → value.

    Returns:
        Path, relative to the tree → name of the secret.

    Raises:
        OSError: a file cannot be read or removed.
    """
    needles = {name: _spellings(value) for name, value in secrets.items()}
    if not needles:
        return {}
    found: dict[str, str] = {}
    for path, _ in list(members.changed(tree, excluded)):
        place = os.path.join(tree, path)
        if (name := _named(os.fsencode(path), needles) or _inside(place, needles)) is not None:
            os.unlink(place)
            found[path] = name
    return found


def _spellings(value: str) -> tuple[bytes, ...]:
    """How a value stands in a text, and in JSON; who reads one drops the line's end that a file gave it."""
    plain = (value.strip() or value).encode(errors="surrogateescape")
    return tuple({plain, json.dumps(value)[1:-1].encode()})


def _inside(path: str, needles: Mapping[str, tuple[bytes, ...]]) -> str | None:
    overlap = max(len(one) for some in needles.values() for one in some)
    with open(path, "rb") as f:
        if os.fstat(f.fileno()).st_size > _SMALL and not path.endswith(_TEXTS):
            return None
        end = b""
        while chunk := f.read(_CHUNK):
            if (name := _named(end + chunk, needles)) is not None:
                return name
            end = (end + chunk)[-overlap:]
    return None


def _named(data: bytes, needles: Mapping[str, tuple[bytes, ...]]) -> str | None:
    return next((name for name, some in needles.items() if any(one in data for one in some)), None)
