"""The table: what one start changes, and whether an engine is started for it too."""

import os
import tempfile
from dataclasses import dataclass, field

PLACES = {"TEMPLATE": os.path.join(os.path.dirname(os.path.abspath(__file__)), "template.jinja")}
"""What stands for a path in the rows; ``MODEL`` is where the engine reads the model."""
OTHER = os.path.join(tempfile.gettempdir(), f"perturb-{os.getpid()}")
"""Another directory than the fill's; made anew for every start."""
ELSEWHERE = OTHER + "-warm"
"""Another warm dir than the fill's."""


@dataclass(frozen=True)
class Row:
    """One difference from the start that filled the cache.

    Attributes:
        name: what the tables call it.
        args: serve arguments; a flag that the fill had too is replaced.
        env: variables of the pod.
        engine: whether `make perturb` starts the engine, and not its configuration alone.
        flags: warmer's own.
    """

    name: str
    args: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    engine: bool = False
    flags: tuple[str, ...] = ()


def flag(*args, engine=False):
    return Row(" ".join(args), args=args, engine=engine)


def variable(name, value, *, engine=False):
    shown = value.replace(OTHER, "/another") if len(value) < 40 else "…"
    return Row(f"{name}={shown}", env={name: value}, engine=engine)


ROWS = (
    Row("nothing at all", engine=True),
    # Flags of which the compiled code depends, or vLLM's digest says so.
    flag("--max-model-len", "256", engine=True),
    flag("--dtype", "float32", engine=True),
    flag("--max-num-seqs", "8"),
    flag("--max-num-batched-tokens", "1024", engine=True),
    flag("--block-size", "64", engine=True),
    flag("--kv-cache-dtype", "fp8"),
    flag("--enforce-eager", engine=True),
    flag("--compilation-config", '{"compile_sizes": [8]}'),
    flag("--compilation-config", '{"cudagraph_capture_sizes": [1, 2, 4]}'),
    flag("--cudagraph-capture-sizes", "1", "2", "4"),
    flag("--additional-config", '{"mine": 1}'),
    flag("-O1"),
    flag("--enable-lora"),
    flag("--max-logprobs", "5"),
    flag("--generation-config", "vllm"),
    flag("--override-generation-config", '{"temperature": 0.5}'),
    flag("--trust-remote-code"),
    flag("--hf-overrides", '{"rope_theta": 10000.0}', engine=True),
    flag("--no-async-scheduling"),
    flag("--enable-prompt-embeds"),
    flag("--distributed-timeout-seconds", "600"),
    flag("--tensor-parallel-size", "2"),
    flag("--pipeline-parallel-size", "2"),
    flag("--data-parallel-size", "2"),
    flag("--revision", "main"),
    # Flags that vLLM leaves out of its digest.
    flag("-tp", "1"),
    flag("--distributed-executor-backend", "mp"),
    flag("--max_model_len=512"),
    flag("--port", "8123"),
    flag("--served-model-name", "another", engine=True),
    flag("--seed", "7", engine=True),
    flag("--load-format", "dummy"),
    flag("--chat-template", "TEMPLATE"),
    flag("--disable-log-stats"),
    flag("--gpu-memory-utilization", "0.5"),
    flag("--no-enable-prefix-caching", engine=True),
    flag("--kv-cache-memory-bytes", "268435456"),
    flag("--dtype", "bfloat16"),
    flag("-O2"),
    flag("--tokenizer", "MODEL"),
    flag("--num-gpu-blocks-override", "64"),
    flag("--scheduling-policy", "priority"),
    flag("--no-enable-chunked-prefill"),
    # vLLM's variables.
    variable("VLLM_LOGGING_LEVEL", "DEBUG", engine=True),
    variable("VLLM_DISABLE_LOG_LOGO", "1"),
    variable("VLLM_CONFIGURE_LOGGING", "0"),
    variable("VLLM_IMAGE_TAG", "v2"),
    variable("VLLM_PLUGINS", ""),
    variable("VLLM_API_KEY", "sesame"),
    variable("VLLM_PORT", "9123"),
    variable("VLLM_HOST_IP", "127.0.0.1"),
    variable("VLLM_USAGE_SOURCE", "perturb"),
    variable("VLLM_CPU_KVCACHE_SPACE", "2", engine=True),
    variable("VLLM_NO_USAGE_STATS", "0"),
    variable("VLLM_CACHE_ROOT", OTHER),
    variable("VLLM_USE_AOT_COMPILE", "1"),
    variable("VLLM_LLAMA_SERVICE_HOST", "10.0.0.1"),
    # The compilers' variables.
    variable("TORCHINDUCTOR_FREEZING", "1", engine=True),
    variable("TORCHINDUCTOR_MAX_AUTOTUNE", "1"),
    variable("TORCHINDUCTOR_COMPILE_THREADS", "2"),
    variable("TORCHINDUCTOR_CACHE_DIR", OTHER),
    variable("TORCHDYNAMO_AUTO_FUNCTIONALIZED_V2", "0", engine=True),
    variable("TORCHDYNAMO_VERBOSE", "1"),
    variable("TORCHDYNAMO_DISABLE", "1"),
    variable("TORCH_COMPILE_DISABLE", "1"),
    variable("AOT_INDUCTOR_DEBUG_SYMBOLS", "1"),
    variable("CC", "cc"),
    variable("CXX", "c++", engine=True),
    variable("FLASHINFER_EXTRA_CUDAFLAGS", "-lineinfo"),
    variable("CI", "true", engine=True),
    variable("ATEN_CPU_CAPABILITY", "avx2", engine=True),
    variable("OMP_NUM_THREADS", "1", engine=True),
    variable("TORCH_LOGS", "output_code", engine=True),
    variable("CUDA_HOME", "/usr/local/cuda-13"),
    variable("MAX_JOBS", "1"),
    variable("NVCC_THREADS", "2"),
    # The pod's variables.
    variable("HOME", OTHER, engine=True),
    variable("XDG_CACHE_HOME", OTHER, engine=True),
    variable("XDG_CONFIG_HOME", OTHER),
    variable("TMPDIR", OTHER, engine=True),
    variable("PYTHONHASHSEED", "7", engine=True),
    variable("LANG", "C", engine=True),
    variable("TZ", "Asia/Tokyo"),
    variable("USER", "another"),
    variable("HF_TOKEN", "hf_nothing"),
    variable("HF_HOME", OTHER),
    variable("HOSTNAME", "another"),
    variable("LD_LIBRARY_PATH", OTHER),
    variable("CUDA_VISIBLE_DEVICES", "0"),
    variable("NO_COLOR", "1"),
    # What warmer itself is told.
    Row("another warm dir", flags=("--warm-dir", ELSEWHERE)),
    Row("another image", flags=("--image", "sha256:" + "7" * 64)),
)


def merged(base, more):
    """The serve arguments of a start: those of the fill, less the flags that `more` gives anew."""

    def name(word):
        return word.partition("=")[0].replace("_", "-") if word.startswith("-") else None

    given = {name(word) for word in more} - {None}
    kept, dropping = [], False
    for word in base:
        if name(word):
            dropping = name(word) in given
        if not dropping:
            kept.append(word)
    return [*kept, *more]
