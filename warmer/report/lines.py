"""The lines of a vLLM start that say something about time or caches: one table.

Read from vLLM 0.20, 0.32 and 0.33. A pattern matches from the start of a message, behind the
optional ``[backbone] `` tag that 0.32 puts before compile lines, and asks for the text after a
number too, so that a line cut short is not read as a smaller number. Repetitions in a head have a
bound: a head may begin anywhere, and a line that begins many and ends none is read once, not as
often as it begins one.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

_PROCESS: Final = r"\((?P<{0}name>[^()]{{0,200}}) pid=(?P<{0}pid>\d{{1,20}})\) "
_DIGITS: Final = r"(?P<s>\d{1,9}(?:\.\d+)?)"

HEAD: Final = re.compile(
    rf"(?:{_PROCESS.format('')})?"
    r"(?:"
    r"(?:DEBUG|INFO|WARNING|ERROR|CRITICAL) \d\d-\d\d (?P<vllm>\d\d:\d\d:\d\d) "
    rf"(?:{_PROCESS.format('inner_')})?\[[^\]]{{0,200}}\] "
    r"|\d{4}-\d\d-\d\d (?P<flashinfer>\d\d:\d\d:\d\d),(?P<ms>\d{3}) - \w{1,20} - "
    r"(?:\S{1,200} - )?flashinfer\S{0,200}: "
    r"|(?P<uvicorn>INFO: +)"
    r")(?P<message>.*)"
)
"""What stands before a message. vLLM: ``(Name pid=N) INFO MM-DD HH:MM:SS [file:line] `` (logger.py);
0.20 writes the process from outside (utils/system_utils.py), so it may also be absent. FlashInfer
and uvicorn bring their own."""


class Line(NamedTuple):
    """One line vLLM prints.

    Attributes:
        mark: what the line is called in `warmer.report.log`; several lines may share one.
        regex: matched at the start of the message; group ``s`` is seconds, ``version`` is vLLM's,
            ``rank`` whose of ``world`` ranks the process is.
        source: the file under ``vllm/`` that prints it; where it moved, with the version.
    """

    mark: str
    regex: re.Pattern[str]
    source: str


def _line(mark: str, pattern: str, source: str) -> Line:
    """Compile `pattern`, in which ``N`` between angle brackets is a number of seconds."""
    return Line(mark, re.compile(r"(?:\[[^\]]+\] )?" + pattern.replace("<N>", _DIGITS)), source)


LINES: Final = (
    _line(
        "banner",
        r"(?:[ ▀▄█]+version |vLLM (?:API )?server version )(?P<version>\d[^\s,]*)",
        "entrypoints/serve/utils/api_utils.py; 0.20: entrypoints/utils.py",
    ),
    _line(
        "args",
        r"non-default args: ",
        "entrypoints/common/startup.py; 0.32: entrypoints/serve/utils/api_utils.py; "
        "0.20: entrypoints/utils.py",
    ),
    _line(
        "engine", r"Initializing a V\d LLM engine \(v(?P<version>[^)\s]+)\)", "v1/engine/core.py"
    ),
    _line(
        "rank",
        r"world_size=(?P<world>\d{1,6}) rank=(?P<rank>\d{1,6}) local_rank=",
        "distributed/parallel_state.py",
    ),
    _line(
        "connected",
        r"rank \d{1,6} in world size \d{1,6} is assigned as ",
        "distributed/parallel_state.py",
    ),
    _line(
        "model",
        r"Starting to load model ",
        "v1/worker/gpu_model_runner.py; CPU: v1/worker/cpu_model_runner.py",
    ),
    _line(
        "downloaded",
        r"Time spent downloading weights for .*: <N> seconds",
        "model_executor/model_loader/weight_utils.py",
    ),
    _line(
        "weights",
        r"Loading weights took <N> seconds",
        "model_executor/model_loader/default_loader.py, sharded_state_loader.py",
    ),
    _line(
        "loaded",
        r"Model loading took \S+ GiB(?: memory)? and <N> seconds",
        "v1/worker/gpu_model_runner.py, v1/worker/gpu/model_runner.py",
    ),
    _line("cache_off", r"vLLM's torch\.compile cache is disabled", "compilation/backends.py"),
    _line("dynamo", r"Dynamo bytecode transform time: <N> s", "compilation/backends.py"),
    _line(
        "graph_built",
        r"Compiling a graph for compile range .* takes <N> s",
        "compilation/backends.py",
    ),
    _line(
        "graph_loaded",
        r"Directly load the compiled graph\(s\) for .* from the cache, took <N> s",
        "compilation/backends.py",
    ),
    _line("aot_loaded", r"Directly load AOT compilation from path ", "compilation/decorators.py"),
    _line("aot_saved", r"saved AOT compiled function to ", "compilation/decorators.py"),
    _line("aot_unsaved", r"unable to save AOT compiled function to ", "compilation/decorators.py"),
    _line(
        "aot_failed",
        r"Compiling model again due to a load failure from ",
        "compilation/decorators.py",
    ),
    _line("compiled", r"torch\.compile took <N> s in total", "compilation/monitor.py"),
    _line(
        "compiled_and_run",  # with AOT off: the first run is inside, so it is no compile time
        r"torch\.compile and initial profiling/warmup run together took <N> s in total",
        "compilation/monitor.py",
    ),
    _line(
        "memory",
        r"(?:Available KV cache memory: |Initial free memory .* skipped memory profiling)",
        "v1/worker/gpu_worker.py",
    ),
    _line(
        "jit",
        r"JIT kernel warmup finished in <N>s",
        "model_executor/warmup/kernel_warmup.py; not in 0.20",
    ),
    _line("build", r"Building JIT module \S", "FlashInfer 0.7: jit/core.py"),
    _line("tune", r"\[Autotuner\]: Autotuning process starts", "FlashInfer: autotuner.py"),
    _line("tuned", r"\[Autotuner\]: Autotuning process ends", "FlashInfer: autotuner.py"),
    _line(
        "warming",
        r"Warming up model for the compilation\.\.\.",
        "v1/worker/cpu_model_runner.py",
    ),
    _line("warmed", r"Warming up done\.", "v1/worker/cpu_model_runner.py"),
    _line(
        "captured",
        r"Graph capturing finished in <N> secs",
        "v1/worker/gpu_model_runner.py, v1/worker/gpu/model_runner.py",
    ),
    _line(
        "initialised",
        r"init engine \(profile, create kv cache, warmup model\) took <N> s",
        "v1/engine/core.py",
    ),
    _line(
        "serving",
        r"Starting vLLM (?:API )?server ",
        "entrypoints/launchers/api_server/entry.py; 0.20: entrypoints/openai/api_server.py",
    ),
    _line("ready", r"Application startup complete\.", "uvicorn: lifespan/on.py"),
)
"""In the order a start prints them; the first match wins."""

ANY: Final = re.compile(
    "|".join(re.sub(r"\(\?P<\w+>", "(?:", line.regex.pattern) for line in LINES)
)
"""Whether a message is any of them: one look, where days of serving follow a start."""
