"""Which compute capability a GPU has, by the name that NVML tells. Pure.

Kernels are built for one capability. The GPU itself is asked for it (`observe/accelerator`); this table
is for those that cannot answer, nvidia-smi of old drivers among them, and for people who choose
nodes (deploy/docker/README.md is made from it).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Gpu:
    """One product.

    Attributes:
        name: as it is sold; a word of what NVML calls it.
        capability: compute capability, which is also its entry of `TORCH_CUDA_ARCH_LIST`.
        nodes: types of machines of the large clouds that have it.
    """

    name: str
    capability: str
    nodes: tuple[str, ...] = ()


GPUS: Final = (
    Gpu("V100", "7.0", ("AWS p3", "Google n1 + V100", "Azure NCv3")),
    Gpu("T4", "7.5", ("AWS g4dn", "Google n1 + T4", "Azure NCasT4_v3")),
    Gpu("A100", "8.0", ("AWS p4d, p4de", "Google a2", "Azure NC, ND A100 v4")),
    Gpu("A10G", "8.6", ("AWS g5",)),
    Gpu("L4", "8.9", ("AWS g6", "Google g2")),
    Gpu("L40S", "8.9", ("AWS g6e",)),
    Gpu("H100", "9.0", ("AWS p5", "Google a3", "Azure NC, ND H100 v5")),
    Gpu("H200", "9.0", ("AWS p5e, p5en", "Google a3-ultragpu", "Azure ND H200 v5")),
    Gpu("B200", "10.0", ("AWS p6-b200", "Google a4")),
    Gpu("RTX 50", "12.0"),
)
"""Source: https://developer.nvidia.com/cuda-gpus, and the clouds' pages on their machines."""

_SERIES: Final = re.compile(r"\bGeForce RTX 50[5-9]0\b")  # an RTX 5000 is older


def capability(name: str) -> str | None:
    """Find the compute capability of a GPU by NVML's name of it; None where it is not known.

    Args:
        name: as ``NVIDIA A100-SXM4-80GB`` or ``Tesla T4``.
    """
    words = set(re.split(r"[\s\-_]+", name))
    if _SERIES.search(name):
        words.add("RTX 50")
    found = {gpu.capability for gpu in GPUS if gpu.name in words}
    return found.pop() if len(found) == 1 else None
