"""observe → plan → fill → verify → hand off: the stages in their order.

`prefill` ends by looking and planning again: done means that the second plan is empty.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import structlog

from warmer.errors import BusyError, IntegrityError, NotWarmError, SourceError, WarmerError
from warmer.fill import claim, kernels, progress, publish, restore, weights
from warmer.fill.locks import file as file_lock
from warmer.fill.locks.registry import open_lock
from warmer.handoff import write
from warmer.handoff.assemble import hand_off
from warmer.layout import WarmDir
from warmer.model import KERNEL_KINDS, Kind, Plan
from warmer.observe import inventory
from warmer.situation import Situation, again, look

if TYPE_CHECKING:
    from collections.abc import Iterator

    from warmer.settings import Settings

_log = structlog.get_logger(__name__)
_NOT_WARM: Final = "let --compile run build it, or let it be cold: --on-miss kernels=cold"
_ATTEMPTS: Final = 3
"""Looks at the kernels after a lost race or a corrupt archive."""


@dataclass(slots=True)
class Outcome:
    """What a prefill did.

    Attributes:
        seconds: stage → seconds it took; only stages that ran.
        bytes: kind → bytes filled.
        without: kinds the server starts without, with the reason.
        left: the second plan; empty unless something is wrong.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    bytes: dict[Kind, int] = field(default_factory=dict)
    without: dict[Kind, str] = field(default_factory=dict)
    left: Plan | None = None

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the block's duration to a stage."""
        started = time.monotonic()
        try:
            yield
        finally:
            spent = time.monotonic() - started
            self.seconds[stage] = round(self.seconds.get(stage, 0.0) + spent, 3)


def prefill(settings: Settings) -> Outcome:
    """Fill what is missing, restore it, and write the handoff.

    Raises:
        WarmerError: a piece whose policy is ``fail`` could not be had, or the handoff could not
            be written.
    """
    outcome = Outcome()
    warm = WarmDir(settings.warm_dir)
    grant = file_lock.acquire(warm.lock, me=settings.me, place="the warm dir")
    if grant is None:
        raise BusyError(
            f"got another warmer at work in {settings.warm_dir}, expected to be the only one",
            reason="warm-dir-busy",
            hint="wait for it to end, or use another --warm-dir",
        )
    try:
        restore.sweep(warm)
        with outcome.timed("observe"):
            situation = look(settings)
        for kind, reason in situation.plan.without.items():
            missing = NotWarmError(
                f"got no {kind} ({reason}), expected it", reason="not-warm", hint=_NOT_WARM
            )
            _without(situation, outcome, kind, missing)
        if not situation.plan.empty:
            write.announce(warm, situation.volume, situation.wanted.keys)
            situation = _fill_weights(situation, outcome)
            situation = _fill_kernels(situation, outcome)
        left = tuple(s for s in situation.plan.steps if s.kind not in outcome.without)
        outcome.left = Plan(left)
        with outcome.timed("handoff"):
            _clear(situation, outcome)
            hand_off(situation, outcome.without)
    finally:
        grant.release()
    return outcome


def _clear(s: Situation, outcome: Outcome) -> None:
    """Empty the trees of kinds that are not handed off: the server's variables point there."""
    for kind in KERNEL_KINDS:
        held = s.held.held.get(kind)
        if kind in outcome.without or held is None or not held.restored:
            restore.forget(s.warm, kind)


def _fill_weights(situation: Situation, outcome: Outcome) -> Situation:
    s = situation
    step = next((step for step in s.plan.steps if step.kind == "weights"), None)
    if step is None:
        return s

    def filled() -> bool:
        seen = inventory.observe(s.volume, s.warm, {"weights": step.key}, neighbours=False)
        return seen.held["weights"].verdict == "sealed"

    try:
        lock = open_lock(s.settings.lock, volume=s.volume, me=s.settings.me)
        with (
            outcome.timed("weights"),
            claim.claim(lock, step.key, wait=s.settings.wait, filled=filled) as grant,
        ):
            if not s.wanted.model.pinned:
                raise SourceError(
                    f"got no answer what {s.wanted.model} means, expected a commit",
                    reason="unresolved",
                    hint="the server resolves and fetches it itself",
                )
            if grant is not None:
                _log.info("filling", kind="weights", model=str(s.wanted.model), reason=step.reason)
                seen = inventory.observe(s.volume, s.warm, {"weights": step.key}, neighbours=False)
                weights.fill(
                    s.volume,
                    step.key,
                    model=s.wanted.model,
                    source=s.source,
                    held=seen.held["weights"],
                    grant=grant,
                    progress=progress.Transfer("weights"),
                )
                outcome.bytes["weights"] = step.size or 0
    except publish.LostRaceError as exc:
        _log.warning("another owner was faster, taking its weights", failure=exc.message)
    except WarmerError as exc:
        _without(s, outcome, "weights", exc)
        outcome.without |= dict.fromkeys(KERNEL_KINDS, "the weights they belong to are missing")
        return s
    s = again(s)
    if s.held.held["weights"].verdict != "sealed":
        missing = NotWarmError(
            "got the weights published and gone again, expected them sealed",
            reason="not-warm",
            hint="something else removes what is published; run again when it is done",
        )
        _without(s, outcome, "weights", missing)
    return s


def _fill_kernels(situation: Situation, outcome: Outcome) -> Situation:
    """Build and restore kernels; a lost race or a corrupt archive is looked at once more."""
    s = situation
    for _ in range(_ATTEMPTS):
        steps = [step for step in s.plan.steps if step.kind in KERNEL_KINDS]
        if not steps or steps[0].kind in outcome.without:
            return s
        try:
            s = _build_and_restore(s, outcome)
        except publish.LostRaceError as exc:
            failure: WarmerError = exc
            _log.warning("another owner was faster, looking again", failure=exc.message)
        except IntegrityError as exc:
            failure = exc
            _log.warning("a sealed piece is corrupt, moving it aside", failure=exc.message)
            try:
                _quarantine(s)
            except WarmerError as also:
                return _cold(s, outcome, also)
        except WarmerError as exc:
            return _cold(s, outcome, exc)
        else:
            failure = BusyError(
                "got newer generations published faster than they could be restored",
                reason="overtaken",
            )
        s = again(s)
    return _cold(s, outcome, failure)


def _build_and_restore(situation: Situation, outcome: Outcome) -> Situation:
    s = situation
    write.link_model(s.how.model_path, s.model_files)
    if any(step.action == "build" for step in s.plan.steps):
        with outcome.timed("kernels"):
            _build(s)
        s = again(s)
    with outcome.timed("restore"):
        for step in s.plan.steps:
            if step.action == "restore":
                held = s.held.held[step.kind]
                restore.restore(s.volume, s.warm, step.key, held.generation)
                outcome.bytes[step.kind] = held.size
    return s


def _build(s: Situation) -> None:
    keys = {kind: key for kind, key in s.wanted.keys.items() if kind in KERNEL_KINDS}

    def filled() -> bool:
        seen = inventory.observe(s.volume, s.warm, keys, neighbours=False)
        return all(held.verdict == "sealed" for held in seen.held.values())

    if s.host.stack is None:
        return
    if s.host.stack.shim:
        write.write_shim(s.warm, s.host.stack.shim)
    lock = open_lock(s.settings.lock, volume=s.volume, me=s.settings.me)
    with claim.claim(lock, keys["compile"], wait=s.settings.wait, filled=filled) as grant:
        if grant is None:
            return
        _log.info("filling", kind="kernels", key=keys["compile"].short)
        builder = kernels.Builder(
            command=s.host.stack.command,
            model_path=s.how.model_path,
            serve_argv=s.how.argv,
            environment=s.how.build_env,
            timeout=s.settings.engine_timeout,
        )
        kernels.build(
            s.volume,
            s.warm,
            keys,
            inventory.observe(s.volume, s.warm, keys, neighbours=False).held,
            builder=builder,
            lock=lock,
            grant=grant,
            wait=s.settings.wait,
            tick=progress.Engine(),
        )


def _quarantine(s: Situation) -> None:
    """Move aside every sealed kernel generation whose bytes are not what its seal says."""
    lock = open_lock(s.settings.lock, volume=s.volume, me=s.settings.me)
    for kind, key in s.wanted.keys.items():
        held = s.held.held[kind]
        if kind not in KERNEL_KINDS or held.verdict != "sealed":
            continue
        with claim.claim(lock, key, wait=s.settings.wait, filled=lambda: False):
            if not restore.intact(s.volume, key, held.generation):
                place = publish.quarantine(s.volume, key, held.generation)
                _log.warning("quarantined", kind=kind, key=key.short, place=place)


def _cold(s: Situation, outcome: Outcome, exc: WarmerError) -> Situation:
    """Apply the policy to every kernel kind that is not ready now."""
    s = again(s)
    for step in s.plan.steps:
        if step.kind in KERNEL_KINDS:
            _without(s, outcome, step.kind, exc)
    return s


def _without(s: Situation, outcome: Outcome, kind: Kind, exc: WarmerError) -> None:
    if s.settings.policy(kind) == "fail":
        raise exc
    say = _log.warning if isinstance(exc, NotWarmError) else _log.error
    say("going without", kind=kind, failure=exc.message, hint=exc.hint)
    outcome.without[kind] = exc.message.splitlines()[0]
