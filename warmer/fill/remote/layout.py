"""Every name warmer uses in a remote bucket, drawn in one place. Pure.

::

    <prefix>/v1/                             a new format gets a new one
        blobs/<sha256>                       an archive, a manifest, a key.json: named by its bytes
        seals/<kind>/<key>/<number>.json     put last, once all blobs that it names are there

A seal here is one of a volume (`warmer.seal`), but its number and its `needs` are the bucket's
own: a volume that pulls it gives it the next number of its own.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from warmer.model import Key

FORMAT: Final = "v1"
_SEAL: Final = re.compile(r"([1-9][0-9]{0,17})\.json", re.ASCII)


def blob(prefix: str, sha256: str) -> str:
    """Name the object with these bytes."""
    return f"{prefix}/{FORMAT}/blobs/{sha256}"


def seals(prefix: str, key: Key) -> str:
    """What the names of all seals of a key start with."""
    return f"{prefix}/{FORMAT}/seals/{key.kind}/{key.digest}/"


def seal(prefix: str, key: Key, number: int) -> str:
    """Name one seal of a key."""
    return f"{seals(prefix, key)}{number}.json"


def number(name: str) -> int | None:
    """Read the number of a seal off the end of its name; None where it is not warmer's."""
    found = _SEAL.fullmatch(name)
    return int(found[1]) if found else None
