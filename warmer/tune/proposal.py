"""From what was observed to a proposal, beside what vLLM captures by itself. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal

from warmer import argv
from warmer.errors import UsageError
from warmer.tune import rewrite, sizes
from warmer.tune.observed import LARGEST

if TYPE_CHECKING:
    from warmer.tune.capture import Price
    from warmer.tune.observed import Observed

Metric = Literal["running", "tokens"]

_SEQS: Final = (256, 1024)
"""``--max-num-seqs`` where it is not given: vLLM's own on GPUs below 70 GiB, and on others."""
_RIVALS: Final[tuple[str, ...]] = (
    "--max-cudagraph-capture-size",
    "--compilation-config.cudagraph_capture_sizes",
    "--compilation-config.max_cudagraph_capture_size",
)
_EAGER: Final = ("--enforce-eager",)


@dataclass(frozen=True, slots=True)
class Seen:
    """What was observed.

    Attributes:
        metric: samples of running requests, or a histogram of tokens per step.
        origin: where it comes from, for people.
        steps: the sizes, in requests or in tokens.
        unit: what the weights count: ``samples`` or ``steps``.
        generated: tokens that a step generated on average, where that is told.
    """

    metric: Metric
    origin: str
    steps: Observed
    unit: str
    generated: float | None = None


@dataclass(frozen=True, slots=True)
class Proposal:
    """The sizes to capture, and what speaks for and against them.

    Attributes:
        seen: what it rests on.
        engine: what bounds a step.
        assumed: whether ``--max-num-seqs`` is vLLM's default and not given.
        cover: the share of steps that was to be covered.
        padding: the share of padding that was allowed.
        aside: share of the steps that are too wide to be decoding alone.
        proposed: the proposal.
        default: what vLLM captures by itself.
        present: the sizes among the server's arguments now; None where there are none.
        losing: share of all steps that have a graph by default and have none with the proposal.
        price: of one size.
        eager: whether the server is told to capture nothing.
        unread: whether the server has flags in a YAML file of vLLM's, which is not read.
    """

    seen: Seen
    engine: sizes.Engine
    assumed: bool
    cover: float
    padding: float
    aside: float
    proposed: sizes.Fit
    default: sizes.Fit
    present: sizes.Fit | None
    losing: float
    price: Price
    eager: bool
    unread: bool


def make(seen: Seen, flags: argv.Flags, *, price: Price, cover: float, padding: float) -> Proposal:
    """Propose sizes.

    Args:
        seen: what was observed.
        flags: of the server.
        price: of one size.
        cover: share of the steps that must run in a graph.
        padding: share of the computed tokens that may be padding.

    Raises:
        UsageError: no step is narrow enough to be decoding alone, or a flag is none.
    """
    engine, assumed = _engine(flags, seen)
    everything = seen.steps
    if seen.metric == "running":
        everything = everything.scaled(engine.query, engine.widest)
    elif engine.query > 1:
        everything = everything.scaled(engine.query, max(engine.widest, everything.bands[-1].high))
    narrow = everything.within(engine.widest)
    if narrow is None:
        raise UsageError(
            f"got steps of more than {engine.widest} tokens alone, expected some of at most that",
            reason="nothing-observed",
            hint=f"is --max-num-seqs {engine.seqs} this server's? give it after --",
        )
    largest = sizes.target(narrow, cover, engine)
    chosen = sizes.propose(narrow, largest, query=engine.query, padding=padding)
    usual = sizes.default(engine)
    losing = max(0.0, everything.covered(usual[-1]) - everything.covered(largest))
    return Proposal(
        seen=seen,
        engine=engine,
        assumed=assumed,
        cover=cover,
        padding=padding,
        aside=max(0.0, 1 - narrow.weight / everything.weight),
        proposed=sizes.fit(narrow, chosen),
        default=sizes.fit(narrow, usual),
        present=sizes.fit(narrow, now) if (now := _present(flags)) else None,
        losing=losing,
        price=price,
        eager=any(flag in flags for flag in _EAGER),
        unread="--config" in flags,
    )


def refuse_rivals(flags: argv.Flags, path: str) -> None:
    """Refuse to write sizes beside others that vLLM would take or trip over.

    Raises:
        UsageError: ``--compilation-config`` or ``--max-cudagraph-capture-size`` says something too.
    """
    found = [flag for flag in _RIVALS if flag in flags]
    for occurrence in flags.get("--compilation-config", []):
        held = _json(occurrence)
        found += [f"{name} in --compilation-config" for name in held if "capture_size" in name]
    if found:
        raise UsageError(
            f"got {found[0]} among the serve-args of {path}, expected no second word on sizes",
            reason="contradiction",
            hint=f"vLLM refuses both: take it out, and {rewrite.FLAG} says it all",
        )


def _engine(flags: argv.Flags, seen: Seen) -> tuple[sizes.Engine, bool]:
    seqs = argv.integer(flags, "--max-num-seqs", 0)
    if "--max-num-seqs" in flags and not 0 < seqs <= 1 << 16:
        raise UsageError(
            f"got --max-num-seqs {seqs}, expected a number of requests",
            reason="bad-value",
            hint="see vllm serve --help",
        )
    engine = sizes.Engine(seqs or _SEQS[0], 1 + _speculative(flags), _tokens(flags))
    if engine.widest > LARGEST:
        raise UsageError(
            f"got {engine.seqs} requests of {engine.query} tokens, expected at most {LARGEST} tokens",
            reason="bad-value",
            hint="check --max-num-seqs and --speculative-config",
        )
    if not seqs and seen.metric == "running" and seen.steps.bands[-1].high > engine.seqs:
        engine = replace(engine, seqs=max(_SEQS[1], seen.steps.bands[-1].high))
    return engine, not seqs


def _present(flags: argv.Flags) -> list[int]:
    words = (flags.get(rewrite.FLAG) or [[]])[-1]
    return sorted({int(word) for word in words if word.isascii() and word.isdigit() and int(word)})


def _tokens(flags: argv.Flags) -> int | None:
    """Return --max-num-batched-tokens; None where it is not given, or as ``8k``."""
    given = flags.get("--max-num-batched-tokens") or [[]]
    text = given[-1][0] if given[-1] else ""
    return int(text) if text.isascii() and text.isdigit() and int(text) > 0 else None


def _speculative(flags: argv.Flags) -> int:
    """Return how many tokens a draft adds to each request of a step."""
    name = "num_speculative_tokens"
    found: list[Any] = [0]
    found += [
        _json(occurrence).get(name, 0) for occurrence in flags.get("--speculative-config", [])
    ]
    for occurrence in flags.get(f"--speculative-config.{name}", []):
        found += occurrence
    try:
        count = int(found[-1])
    except (TypeError, ValueError):
        count = -1
    if not 0 <= count <= 1 << 10:
        raise UsageError(
            f"got {name} {found[-1]!r}, expected a number",
            reason="bad-value",
            hint="see vllm serve --help",
        )
    return count


def _json(occurrence: list[str]) -> dict[str, Any]:
    try:
        held = json.loads(occurrence[0]) if occurrence else {}
    except ValueError:
        held = {}
    return held if isinstance(held, dict) else {}
