"""The stages that work on the volume, each under its key's lock. No policy: failures leave as errors."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import structlog

from warmer import secrecy
from warmer.errors import SourceError, VolumeError, using
from warmer.fill import corrupt, crashes, kernels, progress, publish, weights, workers
from warmer.handoff import write
from warmer.model import KERNEL_KINDS
from warmer.observe import inventory, limits, numbers
from warmer.plan import patience

if TYPE_CHECKING:
    from collections.abc import Mapping

    from warmer.fill.claim import Claims
    from warmer.machine import Stack
    from warmer.model import Held, Key, Kind, Step
    from warmer.situation import Situation

_log = structlog.get_logger(__name__)
_VISIBLE: Final = 90.0
"""Seconds for another owner's publish to become visible: NFS remembers a missing name up to 60."""
_AGAIN: Final = 1.0


def fill_weights(s: Situation, step: Step, claims: Claims) -> weights.Filled | None:
    """Have the weights on the volume, by this process or another.

    Returns:
        What this process did; None where another filled them.

    Raises:
        SourceError: the source failed.
        IntegrityError: bytes are not what the source says.
        VolumeError: the volume failed.
        BusyError: another owner is still filling, or the grant was lost.
        LockError: the lock's service failed or refused.
    """

    def filled() -> bool:
        return _look(s, {"weights": step.key})["weights"].verdict == "sealed"

    team = _workers(s).standing_by(s.listing.files if s.listing else None)
    with team as ready, claims.claim(step.key, wait=_wait(s, step), filled=filled) as grant:
        if not s.wanted.model.pinned:
            raise SourceError(
                f"got no answer what {s.wanted.model} means, expected a commit",
                reason="unresolved",
                hint="the server resolves and fetches it itself",
            )
        if grant is None:
            return None
        found = s.listing or weights.listing(s.source, s.wanted.model, s.settings.selection)
        after = _taken(s, step.key)
        held = _look(s, {"weights": step.key})["weights"]
        if held.verdict == "sealed":
            return None
        _log.info("filling", kind="weights", model=str(s.wanted.model), reason=step.reason)
        try:
            return weights.fill(
                s.volume,
                step.key,
                model=s.wanted.model,
                source=s.source,
                wanted=found.files,
                held=held,
                after=after,
                grant=grant,
                meter=progress.meter("weights"),
                places=s.places,
                writing=s.settings.writing,
                workers=ready,
            )
        except publish.LostRaceError as exc:
            _log.warning("another owner was faster, taking its weights", failure=exc.message)
            _await(s, exc)
            return None


def build_kernels(s: Situation, claims: Claims) -> bool:
    """Have every kernel kind on the volume, by running the engine here or by another's run.

    Returns:
        Whether it was run here.

    Raises:
        EngineError: the engine failed.
        IntegrityError: a sealed base is corrupt.
        VolumeError: the volume or the warm dir failed.
        BusyError: another owner is still building, or a grant or a race was lost.
        LockError: the lock's service failed or refused.
    """
    keys = _kernel_keys(s)
    step = next(step for step in s.plan.steps if step.action == "build")
    wait = _wait(s, step)

    # Bytecode that is still missing is no reason to run the engine: `fill_bytecode` comes next.
    kernel_keys: dict[Kind, Key] = {kind: key for kind, key in keys.items() if kind != "bytecode"}

    def filled() -> bool:
        return all(held.verdict == "sealed" for held in _look(s, kernel_keys).values())

    if s.host.stack is None:
        return False
    if s.host.stack.shim:
        write.write_shim(s.warm, s.host.stack.shim)
    with claims.claim(keys["compile"], wait=wait, filled=filled) as grant:
        if grant is None:
            return False
        after = _taken(s, keys["compile"])
        held = _look(s, keys)
        if all(held[kind].verdict == "sealed" for kind in kernel_keys):
            return False
        _log.info("filling", kind="kernels", key=keys["compile"].short)
        try:
            kernels.build(
                s.volume,
                s.warm,
                keys,
                held,
                after=after,
                builder=_builder(s, s.host.stack),
                claims=claims,
                grant=grant,
                wait=wait,
                tick=progress.Engine(),
            )
        except publish.LostRaceError as exc:
            _await(s, exc)
            raise
    return True


def fill_bytecode(s: Situation, claims: Claims) -> bool:
    """Have the bytecode on the volume where it alone is missing: no accelerator is needed for it.

    Returns:
        Whether it was made here.

    Raises:
        EngineError: vLLM's server cannot be imported, or left no bytecode.
        VolumeError: the volume or the warm dir failed.
        BusyError: another owner is still at it, or a grant or a race was lost.
        LockError: the lock's service failed or refused.
    """
    step = next(s for s in s.plan.steps if (s.kind, s.action) == ("bytecode", "build"))

    def filled() -> bool:
        return _look(s, {"bytecode": step.key})["bytecode"].verdict == "sealed"

    if s.host.stack is None:
        return False
    with claims.claim(step.key, wait=_wait(s, step), filled=filled) as grant:
        if grant is None:
            return False
        after = _taken(s, step.key)
        if filled():
            return False
        _log.info("filling", kind="bytecode", key=step.key.short, reason=step.reason)
        builder = _builder(s, s.host.stack)
        try:
            kernels.build_bytecode(
                s.volume, s.warm, step.key, after=after, builder=builder, grant=grant
            )
        except publish.LostRaceError as exc:
            _await(s, exc)
            raise
    return True


def _builder(s: Situation, stack: Stack) -> kernels.Builder:
    return kernels.Builder(
        command=stack.command,
        interpreter=stack.interpreter,
        model_path=s.how.model_path,
        serve_argv=s.how.argv,
        environment=s.how.build_env,
        timeout=s.settings.engine_timeout,
        trust=s.settings.trust,
        secrets=secrecy.secrets(s.settings.environment),
    )


def set_aside(s: Situation, claims: Claims, *, unpacking: bool) -> None:
    """Quarantine every sealed kernel generation whose bytes are not what its seal says.

    Args:
        s: whose pieces.
        claims: for their locks.
        unpacking: whether to try as well if they can be unpacked: who sealed one may have sealed
            what nobody can restore.

    Raises:
        VolumeError: the volume failed.
        BusyError: another owner holds the lock.
        LockError: the lock's service failed or refused.
    """
    keys = _kernel_keys(s)
    there = _look(s, keys)  # the one of `s` may be from before a pull
    for kind, key in keys.items():
        if there[kind].verdict not in corrupt.READ:
            continue

        def look(kind: Kind = kind, key: Key = key) -> Held:
            return _look(s, {kind: key})[kind]

        wait = 2 * s.settings.lock.lease if s.settings.wait is None else s.settings.wait
        with claims.claim(key, wait=wait, filled=lambda: False):
            trust = s.settings.trust
            corrupt.set_aside(s.volume, s.warm, key, look, trust=trust, unpacking=unpacking)


def retire(s: Situation, claims: Claims) -> None:
    """Move kernel generations aside that crashed the engine at load twice, before others are built.

    Raises:
        VolumeError: the volume failed.
        BusyError: another owner holds the lock.
        LockError: the lock's service failed or refused.
    """
    for kind, key in _kernel_keys(s).items():
        if not s.held.held[kind].crashed:
            continue

        def settled(kind: Kind = kind, key: Key = key) -> bool:
            return not _look(s, {kind: key})[kind].crashed

        wait = 2 * s.settings.lock.lease if s.settings.wait is None else s.settings.wait
        with claims.claim(key, wait=wait, filled=settled) as grant:
            if grant is not None:
                held = _look(s, {kind: key})[kind]
                crashes.retire(s.volume, key, held.generation, trust=s.settings.trust)


def _look(s: Situation, keys: Mapping[Kind, Key]) -> Mapping[Kind, Held]:
    """Judge pieces; what is stale for a while was made by another owner a moment ago."""
    deadline = time.monotonic() + _VISIBLE
    while True:
        try:
            return inventory.observe(
                s.volume, s.warm, keys, trust=s.settings.trust, neighbours=False
            ).held
        except VolumeError as exc:
            if exc.reason != "stale-handle" or time.monotonic() > deadline:
                raise
        time.sleep(_AGAIN)


def _taken(s: Situation, key: Key) -> int:
    """Find the highest number taken, before a last look at the piece.

    What is published by then is seen by the look; what is published since has the number that this
    fill will ask for. So no owner fills again what is there, whenever its name comes into view.
    """
    with using("the volume"):
        return numbers.highest_taken(s.volume, key.kind, key.digest)


def _await(s: Situation, lost: publish.LostRaceError) -> None:
    """Wait until what another owner published first can be read here."""
    kind = lost.key.kind
    deadline = time.monotonic() + _VISIBLE
    while time.monotonic() < deadline:
        held = _look(s, {kind: lost.key})[kind]
        if held.verdict == "sealed" and held.generation >= lost.generation:
            return
        time.sleep(_AGAIN)


def _workers(s: Situation) -> workers.Workers:
    most = s.settings.workers
    if most is None:  # half of the CPUs: the kernel has as much to do for each connection
        roomy = limits.memory() >= workers.ROOM
        most = min(workers.MOST, limits.cpus() // 2) if roomy else 1
    return workers.Workers(
        most, s.settings.retry, s.source.patience, environment=s.settings.environment
    )


def _kernel_keys(s: Situation) -> dict[Kind, Key]:
    return {kind: key for kind, key in s.wanted.keys.items() if kind in KERNEL_KINDS}


def _wait(s: Situation, step: Step) -> float:
    policy = s.settings.policy(step.kind)
    return patience(
        step,
        policy,
        chosen=s.settings.wait,
        lease=s.settings.lock.lease,
        longest=s.settings.engine_timeout,
    )
