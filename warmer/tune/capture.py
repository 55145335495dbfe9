"""What one captured size costs at a start, as the log of a start tells. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

_FINISHED: Final = re.compile(
    r"Graph capturing finished in (\d{1,6}) secs?, took (\d{1,6}\.\d{1,6}) GiB"
)
_PROGRESS: Final = re.compile(
    r"Capturing CUDA graphs[^:|]{0,60}:\s{1,8}\d{1,3}%\|[^|]{0,99}\| ?0/(\d{1,6}) "
)
"""vLLM's bar when it begins; each kind of graph has one, over the same sizes."""
_GIB: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class Price:
    """Of one size.

    Attributes:
        seconds: of every start.
        memory: bytes of the GPU's, taken from the KV cache.
        origin: where the figures come from.
    """

    seconds: float
    memory: float
    origin: str


ASSUMED: Final = Price(
    0.1, 20e6, "assumed: 51 sizes took 5 s and 0.98 GiB, 8B model on an H200, vLLM 0.26"
)


def from_log(lines: Iterable[str]) -> Price | None:
    """Divide what a start's graph capture took by its number of sizes.

    Returns:
        None where the log tells of no capture, or not of its sizes.
    """
    sizes = 0
    for line in lines:
        for bar in _PROGRESS.finditer(line):
            sizes = max(sizes, int(bar[1]))
        found = _FINISHED.search(line)
        if found is not None and sizes:
            seconds, memory = int(found[1]), float(found[2]) * _GIB
            return Price(seconds / sizes, memory / sizes, f"measured: {sizes} sizes in --log")
    return None
