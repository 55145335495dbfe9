"""Every cache a vLLM start writes: one table, from which keys, environment and archives follow.

Each family is a directory under ``<warm dir>/cache/<kind>/`` that one environment variable of
the engine points at. Where a family is not moved by its variable it lands under ``$HOME`` or
``/tmp`` and is lost with the pod; on an H200, kernel builds and
tuning were 88 s of a 170 s cold start (docs/benchmarks.md).
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from warmer.layout import WarmDir
    from warmer.machine import Stack
    from warmer.model import Kind


@dataclass(frozen=True, slots=True)
class Family:
    """One cache.

    Attributes:
        name: directory under the kind's tree.
        kind: the piece it belongs to.
        variable: the environment variable that moves it.
        default: where it lands when that is not set.
        on: ``gpu``, ``cpu`` or ``any``.
        packages: distributions whose versions decide whether its entries fit.
        also: further variables that go with it.
    """

    name: str
    kind: Kind
    variable: str
    default: str
    on: str = "gpu"
    packages: tuple[str, ...] = ()
    also: Mapping[str, str] = field(default_factory=dict)


FAMILIES: Final = (
    Family("vllm", "compile", "VLLM_CACHE_ROOT", "~/.cache/vllm", on="any"),
    Family("inductor", "compile", "TORCHINDUCTOR_CACHE_DIR", "/tmp/torchinductor_$USER", on="any"),  # noqa: S108 - documents a default
    Family("triton", "compile", "TRITON_CACHE_DIR", "~/.triton/cache", packages=("triton",)),
    Family(
        "workspace",
        "flashinfer",
        "FLASHINFER_WORKSPACE_BASE",
        "~",
        packages=("flashinfer-python", "flashinfer-cubin", "flashinfer-jit-cache"),
    ),
    Family(
        "autotune",
        "flashinfer",
        "VLLM_FLASHINFER_AUTOTUNE_CACHE_DIR",
        "$VLLM_CACHE_ROOT/flashinfer_autotune_cache",
        packages=("flashinfer-python",),
    ),
    Family("deep_gemm", "jit", "DG_JIT_CACHE_DIR", "$VLLM_CACHE_ROOT/deep_gemm"),
    Family("tilelang", "jit", "TILELANG_CACHE_DIR", "~/.tilelang/cache", packages=("tilelang",)),
    Family("tvm_ffi", "jit", "TVM_FFI_CACHE_DIR", "~/.cache/tvm-ffi", packages=("apache-tvm-ffi",)),
    Family(
        "quack",
        "jit",
        "QUACK_CACHE_DIR",
        "/tmp/$USER/quack_cache",  # noqa: S108 - documents a default
        packages=("quack-kernels", "nvidia-cutlass-dsl"),
    ),
    Family(
        "cute",
        "jit",
        "CUTE_DSL_CACHE_DIR",
        "/tmp/$USER/cutlass_python_cache",  # noqa: S108 - documents a default
        packages=("nvidia-cutlass-dsl",),
    ),
    Family(
        "fa_cute",
        "jit",
        "FLASH_ATTENTION_CUTE_DSL_CACHE_DIR",
        "/tmp/$USER/flash_attention_cute_dsl_cache",  # noqa: S108 - documents a default
        packages=("nvidia-cutlass-dsl",),
        also={"FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED": "1"},
    ),
    Family(
        "humming", "jit", "HUMMING_CACHE_DIR", "~/.humming/cache", packages=("humming-kernels",)
    ),
    Family("b12x", "jit", "B12X_COMPILE_CACHE_DIR", "~/.cache/b12x/compile", packages=("b12x",)),
    Family("fmha", "jit", "MINFER_FMHA_CACHE_DIR", "~/.cache/minfer/fmha_sm100"),
    Family("mm_sparse", "jit", "MM_SPARSE_ATTN_AOT_CACHE", "~/.cache/minfer/mm_sparse_attn"),
    Family(
        "helion", "jit", "HELION_CACHE_DIR", "$TORCHINDUCTOR_CACHE_DIR/helion", packages=("helion",)
    ),
    Family(
        "nv",
        "jit",
        "CUDA_CACHE_PATH",
        "~/.nv/ComputeCache",
        also={"CUDA_CACHE_MAXSIZE": "4294967296"},
    ),
    Family("torch_extensions", "jit", "TORCH_EXTENSIONS_DIR", "~/.cache/torch_extensions"),
    Family("torch_kernels", "jit", "PYTORCH_KERNEL_CACHE_PATH", "~/.cache/torch/kernels"),
    Family("numba", "jit", "NUMBA_CACHE_DIR", "__pycache__ beside the source", packages=("numba",)),
    Family(
        "pycache",
        "bytecode",
        "PYTHONPYCACHEPREFIX",
        "__pycache__ beside the source",
        on="any",
        # What a server writes would be trusted by time and size alone, in a tree that holds hashes.
        also={"PYTHONDONTWRITEBYTECODE": "1"},
    ),
)

EXCLUDED: Final = (
    "*.lock",  # kernel locks of builders; remade at need
    "*.tmp",
    "*.tmp.*",
    "tmp*/",  # compilers' scratch
    "locks/",  # Inductor's filelocks
    "gpu_p2p_access_cache_*",  # keyed by device ids alone: wrong on another node
    "usage_stats.json",
    "cache_key_factors.json",  # vLLM 0.20 writes VLLM_API_KEY into it in clear
)
"""fnmatch patterns of one path component (a trailing slash: directories) left out of archives."""

BUILDING: Final = {"PYTHONDONTWRITEBYTECODE": ""}
"""What the build run sets beyond the handoff's environment: it writes bytecode in every image."""

# What a start sets besides paths, on every accelerator; none is in vLLM's compile hash.
_ALWAYS: Final = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_ENABLE_STARTUP_PLAN": "1",
}
# The CPU engine recompiles at every start with AOT on (its loader calls a method that mode 2's
# artifact lacks, vllm/compilation/decorators.py); Inductor's own cache hits without it. The
# precompiled header would be rebuilt in every new pod's /tmp (torch/_inductor/codecache.py).
_CPU: Final = {
    "VLLM_USE_AOT_COMPILE": "0",
    "TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS": "0",
}

# Before 0.32 vLLM hashes where these are, and by default they follow HOME: an init container that
# runs as another user than the server would build what the server never hits.
_PLACES: Final = {"VLLM_CONFIG_ROOT": "vllm", "VLLM_XLA_CACHE_PATH": "xla"}

OTHER_REPOSITORIES: Final = (
    "--hf-config-path",
    "--lora-modules",
    "--spec-model",
    "--speculative-config",
    "--tokenizer",
)
"""Flags that may name another repository than the model's: the engine must then be able to fetch."""

ENVIRONMENT_VERSION: Final = 2
"""Raised whenever `environment` changes: kernels built under another block are another key."""


def families(accelerator: str) -> tuple[Family, ...]:
    """The families that matter on ``gpu`` or ``cpu``."""
    return tuple(f for f in FAMILIES if f.on in ("any", accelerator))


def kinds(accelerator: str) -> tuple[Kind, ...]:
    """The kernel kinds that exist on ``gpu`` or ``cpu``, in the order they are restored."""
    return tuple(dict.fromkeys(f.kind for f in families(accelerator)))


def excluded(kind: Kind) -> tuple[str, ...]:
    """What is left out of a kind's archive; of bytecode nothing, for packages bear such names."""
    return () if kind == "bytecode" else EXCLUDED


def variables(kind: Kind) -> frozenset[str]:
    """Every variable that a kind's families set."""
    mine = [family for family in FAMILIES if family.kind == kind]
    return frozenset(name for family in mine for name in (family.variable, *family.also))


def unneeded(kind: Kind, stack: Stack) -> str | None:
    """Say why a kind would gain nothing on this stack; None where it would.

    Where vLLM has bytecode beside its sources, a tree elsewhere would only hide it.
    """
    if kind != "bytecode":
        return None
    if stack.precompiled:
        return "vLLM is installed with its bytecode"
    return None if stack.cache_tag else "this Python keeps no bytecode"


def packages(kind: Kind, accelerator: str) -> tuple[str, ...]:
    """Distributions whose versions are factors of a kind's key, sorted."""
    return tuple(
        sorted({name for f in families(accelerator) if f.kind == kind for name in f.packages})
    )


def environment(
    warm: WarmDir, accelerator: str, *, stack: Stack, capability: str, inherited: Mapping[str, str]
) -> dict[str, str]:
    """Build the one environment block that the build run and the server share.

    Args:
        warm: the warm dir, at its final absolute path.
        accelerator: ``gpu`` or ``cpu``.
        stack: the software, for quirks of a build.
        capability: CUDA compute capability, for the arch list.
        inherited: what this process has; a user's own TORCH_CUDA_ARCH_LIST and vLLM places are
            kept, and PYTHONPATH is extended.

    Returns:
        Variable → value; no secrets, nothing that differs between pods.
    """
    block = dict(_ALWAYS)
    for name, place in _PLACES.items():
        block[name] = inherited.get(name) or os.path.join(warm.config, place)
    for family in families(accelerator):
        if unneeded(family.kind, stack):
            continue
        block[family.variable] = os.path.join(warm.tree(family.kind), family.name)
        block.update(family.also)
    if accelerator == "cpu":
        block.update(_CPU)
    else:
        block["TORCH_CUDA_ARCH_LIST"] = inherited.get("TORCH_CUDA_ARCH_LIST") or capability
    if stack.shim:
        block["PYTHONPATH"] = os.pathsep.join(
            part for part in (warm.shim, inherited.get("PYTHONPATH", "")) if part
        )
    return block
