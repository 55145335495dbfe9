"""A proposal of capture sizes as a screen of text, or as one JSON object (docs/cli.md)."""

from __future__ import annotations

import difflib
import textwrap
from typing import TYPE_CHECKING, Any, Final

from warmer.quantities import show_bytes
from warmer.secrecy import printable
from warmer.tune.rewrite import FLAG

if TYPE_CHECKING:
    from collections.abc import Sequence

    from warmer.tune.proposal import Proposal
    from warmer.tune.sizes import Fit

SCHEMA_VERSION: Final = 1
_WIDE: Final = 80
_NAME: Final = 10

_MEANING: Final = {
    "running": "running requests, sampled over time: the batch of a step that decodes. Requests "
    "whose prompt is still computed count too, and a slow step more often than a fast one.",
    "tokens": "tokens of each engine step, those of prompts too: which steps only decode it does "
    "not say, nor where in its bucket a step lies. A bucket counts as its upper end for what is "
    "covered, and as spread evenly for padding.",
}


def change(path: str, before: bytes, after: bytes) -> list[str]:
    """Say what is different in the configuration file, as lines of a diff; others may be secret."""
    old, new = (body.decode().splitlines() for body in (before, after))
    return list(difflib.unified_diff(old, new, path, path, lineterm="", n=0))


def screen(found: Proposal, *, change: Sequence[str] | None, written: bool) -> str:
    """Write a proposal for people; `change` is None where there is no file."""
    lines = [
        *_say("metric", f"{found.seen.origin}: {found.seen.steps.weight:.0f} {found.seen.unit}"),
        *_say("", _MEANING[found.seen.metric]),
    ]
    if found.seen.generated is not None:
        lines += _say("", f"A step generated {found.seen.generated:.1f} tokens on average.")
    lines += _say("engine", _engine(found))
    top = found.proposed.sizes[-1]
    lines += _say(f"p{found.cover * 100:g}", f"at most {top} tokens: the largest size to capture")
    lines += ["", f"{'':<12} sizes  largest  covered  padding  capture     memory"]
    lines.append(_row("proposed", found.proposed, found))
    lines += [] if found.present is None else [_row("present", found.present, found)]
    lines.append(_row("vLLM's own", found.default, found))
    lines += _say("", f"capture and memory {found.price.origin}")
    lines += ["", *_wrapped(f"{FLAG} {_words(found)}"), ""]
    for name, text in _warnings(found):
        lines += _say(name, text)
    if change:
        did = "written" if written else "not written; --write changes the file"
        lines += ["", *change, *_say("config", did)]
    elif change is not None:
        lines += _say("config", "has these sizes already")
    return "\n".join(printable(line) for line in lines)


def as_json(found: Proposal, *, change: Sequence[str] | None, written: bool) -> dict[str, Any]:
    """Render a proposal for programs."""
    return {
        "schema_version": SCHEMA_VERSION,
        "metric": found.seen.metric,
        "origin": found.seen.origin,
        found.seen.unit: found.seen.steps.weight,
        "generated_per_step": found.seen.generated,
        "max_num_seqs": {"value": found.engine.seqs, "assumed": found.assumed},
        "tokens_per_request": found.engine.query,
        "set_aside": found.aside,
        "cover": found.cover,
        "max_padding": found.padding,
        "proposed": _fit(found.proposed, found),
        "default": _fit(found.default, found),
        "present": None if found.present is None else _fit(found.present, found),
        "losing_their_graph": found.losing,
        "per_size": {
            "seconds": found.price.seconds,
            "bytes": round(found.price.memory),
            "origin": found.price.origin,
        },
        "serve_args": [FLAG, *map(str, found.proposed.sizes)],
        "warnings": [text for _, text in _warnings(found)],
        "change": None if change is None else list(change),
        "written": written and bool(change),
    }


def _warnings(found: Proposal) -> list[tuple[str, str]]:
    top = found.proposed.sizes[-1]
    risk = (
        f"A step of more than {top} tokens runs without a CUDA graph: its kernels are launched one "
        "by one, which for small models and small batches can cost most of a step's time."
    )
    if found.losing:
        risk += (
            f" By vLLM's own list {found.losing:.1%} of what was observed has a graph and would "
            "have none."
        )
    if found.seen.metric == "running":
        risk += " Steps that compute prompts are wider, and are not in this metric."
    risk += " Look again when traffic grows."
    key = (
        "Sizes are part of the compile key: after a change the next prefill builds the compile "
        "piece again, and pods that have the old sizes keep theirs."
    )
    told = [("risk", risk), ("key", key)]
    if found.proposed.padding > found.padding + 1e-9:
        told.append(("padding", f"No list of sizes pads less than {found.proposed.padding:.1%}."))
    if found.assumed:
        text = f"--max-num-seqs {found.engine.seqs} is assumed; give the server's own after --."
        told.append(("assumed", text))
    if found.engine.query > 1 and found.seen.metric == "tokens":
        text = (
            "Speculative tokens that were not accepted are not counted: every step is taken to be "
            f"{found.engine.query} times as wide. Running requests say it better."
        )
        told.append(("draft", text))
    if found.unread:
        text = "--config is given: what that file of vLLM's says is not read here, widths included."
        told.append(("unread", text))
    if found.eager:
        told.append(("eager", "--enforce-eager is given: nothing is captured, whatever the sizes."))
    return told


def _engine(found: Proposal) -> str:
    each = f" of {found.engine.query} tokens" if found.engine.query > 1 else ""
    text = f"{found.engine.seqs} requests{each} in a step at most"
    if found.seen.metric == "tokens":
        text += f": wider steps hold prompts and are set aside, {found.aside:.1%} of all"
    return text


def _row(name: str, fit: Fit, found: Proposal) -> str:
    count = len(fit.sizes)
    seconds = f"{count * found.price.seconds:.1f} s"
    memory = show_bytes(count * found.price.memory)
    shares = f"{fit.covered:>8.1%} {fit.padding:>8.1%}"
    return f"{name:<12} {count:>5} {fit.sizes[-1]:>8} {shares} {seconds:>8} {memory:>10}"


def _fit(fit: Fit, found: Proposal) -> dict[str, Any]:
    return {
        "sizes": list(fit.sizes),
        "covered": fit.covered,
        "padding": fit.padding,
        "capture_seconds": round(len(fit.sizes) * found.price.seconds, 3),
        "capture_bytes": round(len(fit.sizes) * found.price.memory),
    }


def _words(found: Proposal) -> str:
    return " ".join(map(str, found.proposed.sizes))


def _say(name: str, text: str) -> list[str]:
    wrapped = _wrapped(text, _WIDE - _NAME) or [""]
    return [f"{name if not n else '':<{_NAME}}{line}" for n, line in enumerate(wrapped)]


def _wrapped(text: str, wide: int = _WIDE) -> list[str]:
    return textwrap.wrap(text, wide, break_on_hyphens=False)
