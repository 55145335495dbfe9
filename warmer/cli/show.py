"""Plans and outcomes as a screen of text, or as one JSON object (docs/cli.md)."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import click

from warmer import levers
from warmer.quantities import show_bytes
from warmer.secrecy import printable

if TYPE_CHECKING:
    from warmer.loaders import Trial
    from warmer.machine import Host
    from warmer.model import Nearest, Step
    from warmer.outcome import Outcome
    from warmer.settings import Settings
    from warmer.situation import Situation

SCHEMA_VERSION = 1
_SHOWN: Final = 500
"""Characters of one factor's name or value; JSON has all of them."""


def plan(situation: Situation, *, as_json: bool, explain: bool) -> None:
    """Print a plan."""
    if as_json:
        click.echo(json.dumps(plan_json(situation), indent=1))
        return
    _say(f"model  {situation.wanted.model}")
    _say(f"host   {_host(situation.host)}")
    for kind, key in situation.wanted.keys.items():
        held = situation.held.held[kind]
        _say(f"{kind:<11}{key.short}  {held.verdict:<8} {held.reason}")
    for kind, reason in situation.plan.without.items():
        _say(f"{kind:<11}{'-':<12}  cold     {reason}")
    for kind, reason in situation.plan.unneeded.items():
        _say(f"{kind:<11}{'-':<12}  unneeded {reason}")
    if explain:
        _levers(situation)
    if situation.plan.empty:
        _say("plan   empty: warm")
        return
    _say("plan")
    for number, step in enumerate(situation.plan.steps, 1):
        _say(f"  {number}. {step.action} {step.kind}: {step.reason}{_cost(step)}")
        if step.left_out:
            _leave_out(step, explain=explain)
        if explain and step.nearest is not None:
            _explain(step.nearest)


def plan_json(situation: Situation) -> dict[str, Any]:
    """Render a plan for programs."""
    return {
        "schema_version": SCHEMA_VERSION,
        "model": str(situation.wanted.model),
        "warm": situation.plan.empty,
        "pieces": [
            {
                "kind": kind,
                "key": key.digest,
                "verdict": situation.held.held[kind].verdict,
                "reason": situation.held.held[kind].reason,
                "factors": dict(key.factors),
            }
            for kind, key in situation.wanted.keys.items()
        ],
        "steps": [_step(step) for step in situation.plan.steps],
        "without": dict(situation.plan.without),
        "unneeded": dict(situation.plan.unneeded),
        "levers": {
            lever.name: {
                "on": situation.how.levers[lever.name].on,
                "why": situation.how.levers[lever.name].why,
                "does": lever.does,
                "risk": lever.risk,
            }
            for lever in levers.LEVERS
        },
    }


def outcome(done: Outcome, settings: Settings, *, as_json: bool) -> None:
    """Print what a prefill did."""
    left = done.left.steps if done.left is not None else ()
    if as_json:
        record = {
            "schema_version": SCHEMA_VERSION,
            "warm": not left and not done.without,
            "seconds": done.seconds,
            "bytes": done.bytes,
            "taken_over_bytes": done.taken_over,
            "pulled_bytes": done.pulled,
            "pushed_bytes": done.pushed,
            "retries": done.retries,
            "throttled_seconds": done.throttled_s,
            "without": dict(done.without),
            "left": [_step(step) for step in left],
            "loaders": None if done.trial is None else _trial(done.trial),
            "proof": None if done.proof is None else dataclasses.asdict(done.proof),
            "handoff": f"{settings.warm_dir}/handoff",
        }
        click.echo(json.dumps(record, indent=1))
        return
    stages = ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in done.seconds.items())
    _say(f"{'warm' if not left and not done.without else 'handed off'}: {stages}")
    for kind, reason in done.without.items():
        _say(f"  without {kind}: {reason}")
    for step in left:
        _say(f"  still missing {step.kind}: {step.reason}")
    if done.trial is not None:
        for name, took in done.trial.seconds.items():
            _say(f"  loader {name}: {', '.join(f'{one:.2f} s' for one in took)}")
        for name, why in done.trial.left_out.items():
            _say(f"  loader {name}: not measured: {why}")
        where = "into the memory of the node, without a GPU" if done.trial.device == "cpu" else ""
        _say(f"  {done.trial.reason}{f' ({where})' if where else ''}")
    if done.proof is not None:
        by = f" by any of {len(done.proof.ranks)} ranks" if done.proof.ranks else ""
        _say(f"proved: ready in {done.proof.ready:.1f} s, and nothing was built{by}")
        if done.proof.same_answer is not None:
            same = (
                "what the build run did" if done.proof.same_answer else "another text than it did"
            )
            _say(f"  completed: {same}")
    _say(f"next: {settings.warm_dir}/handoff/serve")


def _trial(trial: Trial) -> dict[str, Any]:
    return {
        "chosen": trial.chosen,
        "reason": trial.reason,
        "device": trial.device,
        "bytes": trial.size,
        "seconds": {name: list(took) for name, took in trial.seconds.items()},
        "left_out": dict(trial.left_out),
        "for": dict(trial.holds_for),
    }


def _say(line: str) -> None:
    """Print a line; reasons and names may quote what others wrote on the volume."""
    click.echo(printable(line))


def _step(step: Step) -> dict[str, Any]:
    return {
        "kind": step.kind,
        "action": step.action,
        "key": step.key.digest,
        "verdict": step.verdict,
        "reason": step.reason,
        "bytes": step.size,
        "predicted_seconds": None if step.seconds is None else round(step.seconds, 3),
        "predicted_from": step.basis,
        "left_out": dict(step.left_out),
        "saved_bytes": step.saved,
        "nearest": None if step.nearest is None else _nearest(step.nearest),
    }


def _nearest(nearest: Nearest) -> dict[str, Any]:
    return {
        "key": nearest.digest,
        "differences": [
            {"factor": d.factor, "wanted": d.wanted, "held": d.held} for d in nearest.differences
        ],
    }


def _leave_out(step: Step, *, explain: bool) -> None:
    count = len(step.left_out)
    files = "file" if count == 1 else "files"
    _say(
        f"     leaves out {show_bytes(step.saved)} in {count} {files} that the engine does not load"
    )
    if explain:
        for why, number in Counter(step.left_out.values()).most_common():
            _say(f"       {number} × {why}")  # noqa: RUF001 - a sign people read


def _explain(nearest: Nearest) -> None:
    _say(f"     nearest key {nearest.digest[:12]} differs in")
    for d in nearest.differences:
        name = printable(d.factor, _SHOWN)
        _say(f"       {name}: wanted {_value(d.wanted)}, held {_value(d.held)}")


def _value(value: Any) -> str:
    """Write a factor's value as a person would: a flag's occurrences as words."""
    if value is None:
        return "not set"
    if isinstance(value, list) and all(isinstance(item, list) for item in value):
        text = ", ".join(" ".join(map(str, words)) or "given" for words in value)
    else:
        text = json.dumps(value)
    return printable(text, _SHOWN)


def _levers(situation: Situation) -> None:
    """Say what makes a start faster beyond its caches, and how it is switched."""
    _say("levers     switched by --lever NAME=on|off")
    for lever in levers.LEVERS:
        state = situation.how.levers[lever.name]
        why = f": {state.why}" if state.why else ""
        _say(f"  {lever.name:<13}{'on' if state.on else 'off'}{why}")
        _say(f"    does  {lever.does}")
        _say(f"    risk  {lever.risk}")


def _cost(step: Step) -> str:
    parts = []
    if step.size is not None:
        parts.append(show_bytes(step.size))
    if step.seconds is not None:
        parts.append(f"about {step.seconds:.0f} s ({step.basis})")
    return f" [{', '.join(parts)}]" if parts else ""


def _host(host: Host) -> str:
    if host.stack is None or host.accelerator is None:
        return host.missing or "unknown"
    where = f"{host.accelerator.name} ({host.accelerator.capability})"
    return f"vLLM {host.stack.vllm}, torch {host.stack.torch}, {where}"
