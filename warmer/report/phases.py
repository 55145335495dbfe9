"""The phases of a vLLM start: names for programs, titles for people, and which holds which."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Phase:
    """One part of a start.

    Attributes:
        name: stable, for programs.
        title: for people.
        parent: the phase this one happens inside, or None.
        unit: what its seconds count.
    """

    name: str
    title: str
    parent: str | None
    unit: str


PHASES: Final = (
    Phase("imports", "Python imports", None, "s, process start to the API server's first line"),
    Phase(
        "config", "config, engine spawn", None, "s, from there to the engine process's first line"
    ),
    Phase(
        "engine_process",
        "device, workers",
        None,
        "s, from there to the start of model loading, less the next",
    ),
    Phase(
        "distributed",
        "ranks connect (NCCL)",
        None,
        "s, first rank's call to last rank's answer; of several alone",
    ),
    Phase("download", "weights download", None, "s, as printed; slowest rank"),
    Phase("weights", "weights load", None, "s, as printed; slowest rank"),
    Phase("dynamo", "Dynamo trace", "engine_init", "s, as printed; slowest rank"),
    Phase(
        "compile",
        "graph compile or load",
        "engine_init",
        "s of torch.compile beyond Dynamo; slowest rank",
    ),
    Phase(
        "jit",
        "kernel builds, tuning",
        "engine_init",
        "s in JIT warmup, FlashInfer builds and autotune, and the dummy run after graph capture",
    ),
    Phase("warmup", "CPU compile, warm-up", "engine_init", "s between its two lines; any rank"),
    Phase(
        "memory_profile",
        "memory profile",
        "engine_init",
        "s, end of compile to the memory left for KV cache; first run included",
    ),
    Phase("graph_capture", "CUDA graph capture", "engine_init", "whole s, as printed"),
    Phase("engine_init", "engine init", None, "s, as printed; slowest rank; weights not included"),
    Phase("api_setup", "API set-up", None, "s, end of engine init to ready"),
    Phase("ready", "ready", None, "s, process start to ready; with clock 'stamps' from line one"),
)
"""In the order a start goes through them; a parent follows its children, the total is last."""
