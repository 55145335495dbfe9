"""What makes a start faster beyond its caches: named levers, each with its risk. Pure.

None of them is in any compile key, none changes what is computed, and a server that ended before
it was ready is started again without those of `ON_TRIAL` (warmer/handoff/ready.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from warmer import families, loaders, ranks
from warmer.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from warmer import argv

PLAN: Final = "VLLM_ENABLE_STARTUP_PLAN"
_FORK: Final = "VLLM_WORKER_MULTIPROC_METHOD"
_WORDS: Final = {True: "on", False: "off"}


@dataclass(frozen=True, slots=True)
class Lever:
    """One lever.

    Attributes:
        name: how it is switched: ``--lever NAME=off``.
        does: what it does.
        risk: what can go wrong, and what becomes of it then.
    """

    name: str
    does: str
    risk: str


LEVERS: Final = (
    Lever(
        "bytecode",
        "vLLM's sources are compiled once and not at every start",
        "none known: each entry is compared with its source",
    ),
    Lever(
        "fork",
        "the processes of the engine are forked and do not import everything again",
        "what uses CUDA before the fork breaks it: vLLM then spawns, or the start crashes and the "
        "next one goes without",
    ),
    Lever(
        "imports",
        "no garbage is collected while vLLM is imported, nobody asks again which packages are "
        "installed, and Python's stack has room",
        "memory of the imports is kept from the collector, as vLLM does itself once it is ready",
    ),
    Lever(
        "loader",
        "weights are loaded as was measured to be fastest on this volume by prefill --tune-loader",
        "other code is in the way of the weights, and some takes more memory of the node; the start "
        "after one that crashed goes without",
    ),
    Lever(
        "read-ahead",
        "libraries, sources and weights are read into the page cache while vLLM is imported",
        "it may push out of memory what others have cached on the node; bounded by --read-ahead",
    ),
    Lever(
        "startup-plan",
        "the memory that the build run measured is not measured again",
        "vLLM measures anew where less memory is free; its plan gives the KV cache a little less, and "
        "a model that only just fits may crash: the next start goes without",
    ),
)
NAMES: Final = tuple(lever.name for lever in LEVERS)

VARIABLES: Final = {
    "bytecode": families.variables("bytecode"),
    "startup-plan": frozenset({PLAN}),
}
"""Those that are variables of the environment block, which a start without them lacks."""

ON_TRIAL: Final = ("fork", "imports", "loader", "startup-plan")
"""Those that a start which crashed goes without."""


@dataclass(frozen=True, slots=True)
class State:
    """Whether a lever is used for this start.

    Attributes:
        on: whether it is.
        why: the reason, where it was not simply the default.
    """

    on: bool
    why: str = ""


def parse(words: Sequence[str]) -> dict[str, bool]:
    """Read ``--lever`` values: ``fork=off``; the last one of a name counts.

    Raises:
        UsageError: no such lever, or neither ``on`` nor ``off``.
    """
    chosen: dict[str, bool] = {}
    for word in (part for value in words for part in value.split(",")):
        name, sep, state = word.partition("=")
        if name not in NAMES or state not in ("on", "off"):
            expected, hint = "NAME=on or NAME=off", f"levers: {', '.join(NAMES)}"
            if name not in NAMES:
                expected = "a lever's name before =" if sep else expected
                hint = " ".join(filter(None, [did_you_mean(name, NAMES), hint]))
            elif state:
                expected, hint = "on or off after =", f"as {name}=off"
            raise UsageError(
                f"got --lever {word!r}, expected {expected}", reason="bad-value", hint=hint
            )
        chosen[name] = state == "on"
    return chosen


def decide(
    chosen: Mapping[str, bool],
    *,
    accelerator: str,
    flags: argv.Flags,
    inherited: Mapping[str, str],
    read_ahead: int | None,
    configured: Collection[str],
    trial: loaders.Trial | None = None,
) -> dict[str, State]:
    """Say of every lever whether this start uses it.

    Args:
        chosen: what the user switched.
        accelerator: ``gpu``, ``cpu``, or empty where there is none.
        flags: the server's arguments.
        inherited: the environment; who sets a lever's variable has decided.
        read_ahead: bytes at most; None as memory allows, 0 none.
        configured: flags that a YAML file of vLLM's own sets.
        trial: what was measured of loaders on this volume.
    """
    states = {name: State(on=True) for name in NAMES}
    spread = ranks.several(flags, configured)
    apart = ranks.several(flags, configured, beside=(ranks.TENSOR,))
    apart = apart or (ranks.launched(flags, configured) if spread else "")
    states["fork"] = _fork(accelerator, inherited, apart)
    if spread:
        # vLLM decides for each rank by itself whether to measure (v1/worker/gpu_worker.py,
        # determine_available_memory): one that does captures graphs and waits for the others in
        # their collectives, and those that do not have gone on.
        why = f"{spread}: where one rank measures and another does not, they wait for each other"
        states["startup-plan"] = State(on=False, why=why)
    if accelerator == "cpu":
        states["startup-plan"] = State(on=False, why="a GPU's memory alone is planned")
    states["loader"] = _loader(flags, configured, spread)
    states |= {name: State(on, f"--lever {name}={_WORDS[on]}") for name, on in chosen.items()}
    if read_ahead == 0:
        states["read-ahead"] = State(on=False, why="--read-ahead off")
    loader = states["loader"]
    if loader.on and (reason := _nothing_to_choose(trial, flags, configured)):
        states["loader"] = State(on=False, why=reason)
    elif loader == State(on=True) and trial is not None:
        states["loader"] = State(on=True, why=trial.reason)
    return states


def reads_ahead(chosen: Mapping[str, bool], read_ahead: int | None) -> bool:
    """Whether a start finds its weights in the page cache: read ahead, as far as memory allows.

    Args:
        chosen: what the user switched.
        read_ahead: bytes at most; None as memory allows, 0 none.
    """
    return chosen.get("read-ahead", True) and read_ahead is None


def _fork(accelerator: str, inherited: Mapping[str, str], apart: str) -> State:
    if _FORK in inherited:
        return State(on=False, why=f"{_FORK} is set")
    if accelerator != "gpu":
        return State(on=False, why="measured on GPUs only: OpenMP's threads do not survive it")
    if apart:
        why = f"{apart}: measured with tensor-parallel ranks of one node, and no others"
        return State(on=False, why=why)
    return State(on=True)


def _loader(flags: argv.Flags, configured: Collection[str], spread: str) -> State:
    if flag := loaders.unmeasured(flags, configured):
        return State(on=False, why=f"{flag}: measured without it")
    if spread:
        return State(on=False, why=f"{spread}: measured with one rank alone")
    return State(on=True)


def _nothing_to_choose(
    trial: loaders.Trial | None, flags: argv.Flags, configured: Collection[str]
) -> str:
    """Say why there is no loader to choose, whoever insists; empty where there is one."""
    if own := loaders.own(flags, configured):
        return f"{own} is given"
    if trial is None:
        return "none was measured on this volume: prefill --tune-loader does"
    return "" if trial.loader.flags else trial.reason
