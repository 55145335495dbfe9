"""observe → plan → fill → verify → hand off: the stages in their order.

`prefill` ends by looking and planning again: done means that the second plan is empty.
"""

from __future__ import annotations

import dataclasses
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import structlog

from warmer import clearing, stages, tally, tuning, usage
from warmer.errors import BusyError, IntegrityError, NotWarmError, VolumeError, WarmerError
from warmer.fill import members, publish, restore, stagings, uses
from warmer.fill.claim import Claims
from warmer.fill.locks import file as file_lock
from warmer.fill.locks.record import Owner
from warmer.fill.locks.registry import open_lock
from warmer.handoff import write
from warmer.handoff.assemble import hand_off
from warmer.layout import WarmDir
from warmer.model import KERNEL_KINDS, Kind, Plan
from warmer.outcome import Outcome
from warmer.proof import prove
from warmer.remote import PULLING, Remote
from warmer.situation import Situation, again, look

if TYPE_CHECKING:
    from warmer.settings import Settings

_log = structlog.get_logger(__name__)
_NOT_WARM: Final = "let --compile run build it, or let it be cold: --on-miss kernels=cold"
_ATTEMPTS: Final = 3
"""Looks at the kernels after a lost race or a corrupt archive."""


def prefill(settings: Settings) -> Outcome:
    """Fill what is missing, restore it, and write the handoff.

    Raises:
        WarmerError: a piece whose policy is ``fail`` could not be had, or the handoff could not
            be written.
    """
    outcome = Outcome()
    warm, remote = WarmDir(settings.warm_dir), Remote(settings)
    grant = file_lock.acquire(warm.lock, me=Owner(name=settings.me), place="the warm dir")
    if isinstance(grant, Owner):
        raise BusyError(
            f"got another warmer at work in {settings.warm_dir}, expected to be the only one",
            reason="warm-dir-busy",
            hint="wait for it to end, or use another --warm-dir",
        )
    try:
        restore.sweep(warm)
        write.withdraw_early(warm)
        if settings.compile == "harvest":
            clearing.anew(warm)
        with outcome.timed("observe"):
            situation = look(settings, wished=lambda s: _use(s, outcome))
            clearing.drop_foreign(situation)
        for kind, reason in situation.plan.without.items():
            _without(situation, outcome, kind, _not_warm(kind, reason))
        if settings.prove or not situation.plan.empty:
            write.withdraw_keys(warm)
        if not situation.plan.empty:
            lock, volume, me = settings.lock, situation.volume, settings.me
            local = lock.mechanism == "file"
            write.announce(warm, volume, situation.wanted.keys, on_volume=local)
            claims = Claims(lambda: open_lock(lock, volume=volume, me=me), outcome.seconds)
            _foretell(situation, outcome)
            situation = _fill_weights(situation, outcome, claims)
            situation = _fill_kernels(situation, outcome, claims, remote)
            outcome.waited, outcome.takeovers = claims.waited, claims.takeovers
        outcome.retries = dict(situation.source.patience.retries)
        outcome.throttled_s = round(situation.source.patience.throttled_s, 3)
        left = tuple(s for s in situation.plan.steps if s.kind not in outcome.without)
        outcome.left = Plan(left)
        if settings.prove:
            with outcome.timed("prove"):
                outcome.proof = prove(situation, outcome.without)
        if settings.tune_loader and "weights" not in outcome.without:
            with outcome.timed("loaders"):
                situation = tuning.tune(situation)
                outcome.trial = situation.trial
        with outcome.timed("handoff"):
            clearing.clear(situation, outcome.without)
            _use(situation, outcome)
            hand_off(situation, outcome.without)
            write.withdraw_early(warm)
            _leave_numbers(situation, outcome)
    finally:
        grant.release()
    if outcome.built and settings.remote is not None:  # last: the pod is ready without it
        with outcome.timed("push"):
            outcome.pushed |= remote.push(situation, outcome.without, outcome.built_s)
    return outcome


def _leave_numbers(s: Situation, outcome: Outcome) -> None:
    """Leave what was done for the sidecar to tell of; where nothing was, what an earlier run did."""
    if outcome.seconds.keys() <= {"observe", "handoff"}:
        return
    with suppress(VolumeError):  # numbers are no reason not to start
        done = outcome.tally(s.wanted.model.scheme, s.wanted.keys)
        write.outcome(s.warm, tally.encode(done))


def _foretell(s: Situation, outcome: Outcome) -> None:
    """Let a server that waits (`serve --wait`) import meanwhile, where no engine is run here.

    It needs its bytecode at once. Where what it is told turns out to be wrong, it begins anew.
    """
    steps, stack = s.plan.steps, s.host.stack
    bytecode = s.held.held.get("bytecode")
    if (
        stack is None
        or any(step.action == "build" for step in steps)
        or all(step.action == "restore" for step in steps)
        or set(outcome.without) - {"bytecode"}
        or (bytecode is not None and bytecode.verdict != "sealed")
    ):
        return
    with suppress(VolumeError, IntegrityError):  # whoever needs it next says so
        if bytecode is not None and not bytecode.restored:
            key, trust = s.wanted.keys["bytecode"], s.settings.trust
            restore.restore(s.volume, s.warm, key, bytecode.generation, trust=trust)
        if stack.shim:
            write.write_shim(s.warm, stack.shim)
        write.foretell(s.warm, stack=stack, env=s.how.env)


def _use(s: Situation, outcome: Outcome) -> None:
    """Record what this pod uses: before a look, the keys; after it, the generations."""
    held = s.held.held
    keys = {kind: key for kind, key in s.wanted.keys.items() if kind not in outcome.without}
    found = {kind: held[kind].generation if kind in held else usage.ANY for kind in keys}
    if s.settings.compile == "harvest":  # what the sidecar will publish is this pod's too
        keys |= {kind: key for kind, key in s.wanted.keys.items() if kind in KERNEL_KINDS}
        found = {kind: found.get(kind, usage.ANY) for kind in keys}
    pieces = (usage.Piece(kind, key.digest, found[kind]) for kind, key in keys.items())
    uses.record(s.volume, s.warm, pieces, owner=s.settings.me)


def _fill_weights(situation: Situation, outcome: Outcome, claims: Claims) -> Situation:
    s = situation
    step = next((step for step in s.plan.steps if step.kind == "weights"), None)
    if step is None:
        return s
    try:
        with outcome.timed("weights"):
            if (done := stages.fill_weights(s, step, claims)) is not None:
                outcome.bytes["weights"] = done.fetched
                outcome.taken_over = done.taken_over
    except WarmerError as exc:
        failure = exc
    else:
        s = again(s)
        if s.held.held["weights"].verdict == "sealed":
            return s
        failure = NotWarmError(
            "got the weights published and gone again, expected them sealed",
            reason="not-warm",
            hint="something else removes what is published; run again when it is done",
        )
    _without(s, outcome, "weights", failure)
    kinds = (kind for kind in KERNEL_KINDS if kind not in s.plan.unneeded)
    outcome.without |= dict.fromkeys(kinds, "the weights they belong to are missing")
    return s


def _fill_kernels(
    situation: Situation, outcome: Outcome, claims: Claims, remote: Remote
) -> Situation:
    """Pull, build and restore kernels; what a race or a corrupt archive spoiled is looked at again."""
    s = situation
    for _ in range(_ATTEMPTS):
        if not _left(s, outcome):
            return s
        try:
            s = _build_and_restore(s, outcome, claims, remote)
        except publish.LostRaceError as exc:
            failure: WarmerError = exc
            _log.warning("another owner was faster, looking again", failure=exc.message)
        except IntegrityError as exc:
            failure = exc
            _log.warning("a sealed piece is corrupt, moving it aside", failure=exc.message)
            try:
                stages.set_aside(s, claims, unpacking=exc.reason == members.UNFIT)
            except WarmerError as also:
                return _cold(s, outcome, also)
        except VolumeError as exc:
            if exc.reason not in stagings.VANISHED:
                return _cold(s, outcome, exc)
            failure = exc
            _log.warning("another owner moved what was used, looking again", failure=exc.message)
        except WarmerError as exc:
            return _cold(s, outcome, exc)
        else:
            failure = BusyError(
                "got newer generations published faster than they could be restored",
                reason="overtaken",
            )
        s = again(s)
    return _cold(s, outcome, failure)


def _left(s: Situation, outcome: Outcome) -> bool:
    """Whether kernels are still to be had; those moved aside that nothing here builds are not."""
    wanted = set(KERNEL_KINDS) - outcome.without.keys()
    for kind in wanted & s.plan.without.keys():
        _without(s, outcome, kind, _not_warm(kind, s.plan.without[kind]))
    return any(step.kind in wanted for step in s.plan.steps)


def _build_and_restore(
    situation: Situation, outcome: Outcome, claims: Claims, remote: Remote
) -> Situation:
    s = situation
    write.link_model(s.how.model_path, s.model_files)
    asked = any(step.action in PULLING for step in s.plan.steps)
    if any(s.held.held[kind].crashed for kind in s.held.held if asked or kind in _builds(s)):
        stages.retire(s, claims)
        s = again(s)
    if asked:
        with outcome.timed("pull"):
            outcome.pulled |= remote.pull(s, claims)
        s = again(dataclasses.replace(s, asked=True))
    if _builds(s) - {"bytecode"}:
        with outcome.timed("kernels"):
            outcome.built = stages.build_kernels(s, claims) or outcome.built
        s = again(s)
    if "bytecode" in _builds(s) - outcome.without.keys():
        try:
            with outcome.timed("bytecode"):
                outcome.built = stages.fill_bytecode(s, claims) or outcome.built
        except publish.LostRaceError:
            raise
        except WarmerError as exc:  # kernels that are there do not depend on it
            _without(s, outcome, "bytecode", exc)
        s = again(s)
    with outcome.timed("restore"):
        for step in s.plan.steps:
            if step.action == "restore":
                held = s.held.held[step.kind]
                trust, started = s.settings.trust, time.monotonic()
                restore.restore(s.volume, s.warm, step.key, held.generation, trust=trust)
                outcome.restored[step.kind] = round(time.monotonic() - started, 3)
                outcome.bytes[step.kind] = held.size
    return s


def _builds(s: Situation) -> set[Kind]:
    return {step.kind for step in s.plan.steps if step.action == "build"}


def _cold(s: Situation, outcome: Outcome, exc: WarmerError) -> Situation:
    """Apply the policy to every kernel kind that is not ready now."""
    s = again(s)
    for step in s.plan.steps:
        if step.kind in KERNEL_KINDS and step.kind not in outcome.without:
            _without(s, outcome, step.kind, exc)
    return s


def _not_warm(kind: Kind, reason: str) -> NotWarmError:
    message = f"got no {kind} ({reason}), expected it"
    return NotWarmError(message, reason="not-warm", hint=_NOT_WARM)


def _without(s: Situation, outcome: Outcome, kind: Kind, exc: WarmerError) -> None:
    if s.settings.policy(kind) == "fail":
        raise exc
    if s.settings.compile == "harvest" and isinstance(exc, NotWarmError):
        _log.info("left to the server", kind=kind, why=exc.message)
        outcome.without[kind] = exc.message
        return
    say = _log.warning if isinstance(exc, NotWarmError) else _log.error
    say("going without", kind=kind, failure=exc.message, hint=exc.hint)
    outcome.without[kind] = exc.message.splitlines()[0]
