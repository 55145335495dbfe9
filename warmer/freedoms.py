"""What may differ between two starts that share compiled kernels: a short, versioned, cited list.

A compile key includes every flag and every hashed variable *by default*; only what stands here
is left out. A name that is missing here costs a rebuild that was not needed; a name that should
not be here would hand off kernels that do not fit, so the list is short. Each entry gives the
first vLLM version it holds for.

Sources, read in vLLM 0.32.0 and checked on a running engine: ``vllm/envs.py``
(``compile_factors``, its ``ignored_factors``) for variables; ``compute_hash`` of the classes in
``vllm/config/`` for flags (front-end and loader flags reach no config that is hashed). vLLM's key
also holds torch's whole configuration for Inductor, and Triton has a key of its own: what torch
2.13 and Triton 3.9 read into them from the environment is a factor (docs/perturbations.md); so is
what FlashInfer 0.7 writes into its build files (``flashinfer/jit/cpp_ext.py``): ninja builds again
what another command line would build.

Not free although vLLM's compile hash ignores them: ``--gpu-memory-utilization`` and
``--kv-cache-memory-bytes``, because a startup plan (``vllm/v1/worker/startup_plan.py``) travels
with the compiled kernels, its fingerprint holds neither, and it would carry one pod's memory
budget into another.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from warmer.secrecy import secret_name, secret_value

if TYPE_CHECKING:
    from collections.abc import Mapping

Version = tuple[int, ...]

ALWAYS: Final[Version] = (0,)

FREE_FLAGS: Final[Mapping[str, Version]] = {
    # Where the server listens and what it calls itself (entrypoints, never in VllmConfig).
    "--host": ALWAYS,
    "--port": ALWAYS,
    "--uds": ALWAYS,
    "--root-path": ALWAYS,
    "--served-model-name": ALWAYS,
    "--allow-credentials": ALWAYS,
    "--allowed-origins": ALWAYS,
    "--allowed-methods": ALWAYS,
    "--allowed-headers": ALWAYS,
    "--ssl-keyfile": ALWAYS,
    "--ssl-certfile": ALWAYS,
    "--ssl-ca-certs": ALWAYS,
    "--ssl-cert-reqs": ALWAYS,
    # What it logs and reports (ObservabilityConfig hashes to a constant).
    "--uvicorn-log-level": ALWAYS,
    "--disable-uvicorn-access-log": ALWAYS,
    "--enable-log-requests": ALWAYS,
    "--disable-log-requests": ALWAYS,
    "--disable-log-stats": ALWAYS,
    "--max-log-len": ALWAYS,
    "--otlp-traces-endpoint": ALWAYS,
    # How requests and replies are dressed.
    "--chat-template": ALWAYS,
    "--chat-template-content-format": ALWAYS,
    "--response-role": ALWAYS,
    "--enable-auto-tool-choice": ALWAYS,
    "--tool-call-parser": ALWAYS,
    "--reasoning-parser": ALWAYS,
    "--return-tokens-as-token-ids": ALWAYS,
    "--enable-prompt-tokens-details": ALWAYS,
    # How weights reach memory (LoadConfig hashes to a constant).
    "--load-format": ALWAYS,
    "--safetensors-load-strategy": ALWAYS,
    "--model-loader-extra-config": ALWAYS,
    "--max-parallel-loading-workers": ALWAYS,
    "--seed": ALWAYS,
}

FREE_VARIABLES: Final[Mapping[str, Version]] = {
    # Where things are.
    "VLLM_CACHE_ROOT": ALWAYS,
    "VLLM_API_KEY": (0, 32),
    "VLLM_CONFIG_ROOT": (0, 32),
    "VLLM_XLA_CACHE_PATH": (0, 32),
    "VLLM_ASSETS_CACHE": ALWAYS,
    "VLLM_RPC_BASE_PATH": ALWAYS,
    "VLLM_FLASHINFER_AUTOTUNE_CACHE_DIR": (0, 32),
    "TORCHINDUCTOR_CACHE_DIR": ALWAYS,
    "TRITON_CACHE_DIR": ALWAYS,
    "FLASHINFER_WORKSPACE_BASE": ALWAYS,
    # Who and where this pod is.
    "VLLM_PORT": ALWAYS,
    "VLLM_HOST_IP": ALWAYS,
    "VLLM_DP_MASTER_IP": ALWAYS,
    "VLLM_DP_MASTER_PORT": ALWAYS,
    "VLLM_NIXL_SIDE_CHANNEL_HOST": (0, 32),
    # What it logs and reports.
    # Before torch 2.12, DEBUG compiles other code (vllm/config/compilation.py, `enable_asserts`).
    "VLLM_LOGGING_LEVEL": (0, 32),
    "VLLM_LOGGING_PREFIX": ALWAYS,
    "VLLM_LOGGING_STREAM": ALWAYS,
    "VLLM_LOGGING_CONFIG_PATH": ALWAYS,
    "VLLM_LOGGING_COLOR": ALWAYS,
    "VLLM_LOG_STATS_INTERVAL": ALWAYS,
    "VLLM_NO_USAGE_STATS": ALWAYS,
    "VLLM_DO_NOT_TRACK": ALWAYS,
    "VLLM_USAGE_STATS_SERVER": ALWAYS,
    # How it starts and serves, not what it compiles.
    "VLLM_WORKER_MULTIPROC_METHOD": ALWAYS,
    "VLLM_ENABLE_STARTUP_PLAN": (0, 26),
    "VLLM_FORCE_AOT_LOAD": ALWAYS,
    "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": ALWAYS,
    "VLLM_KEEP_ALIVE_ON_ENGINE_DEATH": ALWAYS,
    "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS": ALWAYS,
}

HASHED_PREFIXES: Final = (
    "VLLM_",
    "RAY_EXPERIMENTAL_NOSET_",
    # Read by torch into the configuration that keys Inductor's cache (its config modules).
    "AOTINDUCTOR_",
    "AOT_INDUCTOR_",
    "INDUCTOR_",
    "PARTITIONER_",
    "TORCHDYNAMO_",
    "TORCHINDUCTOR_",
    "TORCH_COMPILE",
    "TORCH_DYNAMO_",
    # In Triton's key (CACHE_INVALIDATING_ENV_VARS of libtriton).
    "AMDGCN_",
    "LLVM_",
    "MLIR_",
    "NVPTX_",
    "TRITON_",
    # In FlashInfer's build files, or deciding what it builds.
    "FLASHINFER_",
)
"""Variables with these prefixes are factors unless they stand in `FREE_VARIABLES`."""

HASHED_NAMES: Final = (
    # vLLM's own hash, or what decides for which machine a JIT builds.
    "CMAKE_BUILD_TYPE",
    "CC",
    "CUDACXX",
    "CUDA_HOME",
    "CUDA_PATH",
    "MAIN_CUDA_VERSION",
    "MOONCAKE_PREFERRED_SEGMENT",
    "MOONCAKE_REQUESTER_LOCAL_HOSTNAME",
    "NVCC_THREADS",
    "OMP_NUM_THREADS",
    "TORCH_CUDA_ARCH_LIST",
    "VERBOSE",
    # Torch's configuration, and what its C++ is compiled with.
    "AOT_PARTITIONER_DEBUG",
    "ATEN_CPU_CAPABILITY",
    "CI",
    "CUTEDSL_ENABLE_AUTOTUNING",
    "CUTLASS_EPILOGUE_FUSION",
    "CXX",
    "DUMP_AOTI_MINIFIER",
    "ENABLE_PERSISTENT_TMA_MATMUL",
    "ENABLE_TEMPLATE_TMA_STORE",
    "ENABLE_TMA_LOAD_FOR_TEMPLATE_EPILOGUE",
    "FAKE_ALLOW_META",
    "LOG_TLPARSE",
    "OMP_PREFIX",
    # Triton's.
    "ALLOW_LHS_TMEM_LAYOUT_CONVERSION",
    "DISABLE_LLVM_OPT",
    "DISABLE_MMA_V3",
    "DISABLE_MMA_V5",
    "DISABLE_PTXAS_OPT",
    "PTXAS_OPTIONS",
    "USE_IR_LOC",
)
"""Further names in a hash of vLLM, torch or Triton, or that decide what a JIT builds."""

BUILT_PREFIX: Final = "FLASHINFER_"
BUILT_NAMES: Final = ("CC", "CUDA_HOME", "CUDA_PATH", "CXX")
"""Of the factors, those of the kernels that every model on one stack shares."""

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
"""What a shell can export; vLLM reads no other, though a pod may hold some."""

# kubelet describes each Service of the namespace in variables that begin with its name: a Service
# called vllm-llama puts its address under VLLM_LLAMA_..., and vLLM reads none of it.
_SERVICE_LINK: Final = re.compile(
    r"_SERVICE_(?:HOST|PORT(?:_\w+)?)$|_PORT_\d+_(?:TCP|UDP|SCTP)(?:_\w+)?$"
)


def service_link(name: str, value: str) -> bool:
    """Whether a variable is kubelet's description of a Service, not anybody's setting."""
    if name.endswith("_PORT") and re.match(r"(?:tcp|udp|sctp)://", value):
        return True
    return _SERVICE_LINK.search(name) is not None


def free_flag(name: str, vllm: Version) -> bool:
    """Whether a flag may differ between two starts of this vLLM that share kernels."""
    plain = "--" + name[5:] if name.startswith("--no-") else name
    return _holds(FREE_FLAGS, plain, vllm)


def free_variable(name: str, vllm: Version) -> bool:
    """Whether a variable may differ between two starts of this vLLM that share kernels."""
    return _holds(FREE_VARIABLES, name, vllm)


def hashed_variable(name: str, value: str, vllm: Version) -> bool:
    """Whether a variable is a factor of the compile key (secrets never are)."""
    if (
        secret_name(name)
        or secret_value(value)
        or free_variable(name, vllm)
        or not _NAME.fullmatch(name)
    ):
        return False
    return name in HASHED_NAMES or name.startswith(HASHED_PREFIXES)


def built_variable(name: str, value: str, vllm: Version) -> bool:
    """Whether a variable is a factor of the kernels that every model on one stack shares."""
    named = name in BUILT_NAMES or name.startswith(BUILT_PREFIX)
    return named and hashed_variable(name, value, vllm)


def version(text: str) -> Version:
    """Read the leading numbers of a version: ``0.32.0rc1+cpu`` → ``(0, 32, 0)``."""
    match = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(int(part) for part in match.group().split(".")) if match else ALWAYS


def _holds(table: Mapping[str, Version], name: str, vllm: Version) -> bool:
    since = table.get(name)
    return since is not None and vllm >= since
