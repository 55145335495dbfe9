"""Fill the kernel pieces: one engine run builds them all, each tree becomes one generation.

The engine runs with its caches at the paths the server will use, on top of what is already
sealed, so that a second model adds its operations to the shared kinds.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import structlog

from warmer import ranks
from warmer.errors import EngineError, VolumeError, WarmerError, using
from warmer.fill import answer, bytecode, crashes, engine, members, restore, stagings, trees

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from warmer.fill.claim import Claims
    from warmer.fill.locks import Grant
    from warmer.layout import Volume, WarmDir
    from warmer.model import Held, Key, Kind
    from warmer.trust import Trust

_log = structlog.get_logger(__name__)
_SHARED: Final = ("flashinfer", "jit")


@dataclass(frozen=True, slots=True)
class Builder:
    """How to run the engine once: everything but the caches' state.

    Attributes:
        command: what starts vLLM's command line.
        interpreter: the Python that it runs on.
        model_path: the model argument, at the path the server will use.
        serve_argv: the user's `vllm serve` arguments.
        environment: the whole environment of the engine.
        timeout: seconds until it must answer.
        trust: whose kernels it builds upon, and as whom it signs what it built.
        secrets: name → value: what must not be in a file that is published.
    """

    command: Sequence[str]
    interpreter: str
    model_path: str
    serve_argv: Sequence[str]
    environment: Mapping[str, str]
    timeout: float
    trust: Trust
    secrets: Mapping[str, str] = field(repr=False)


def build(
    volume: Volume,
    warm: WarmDir,
    keys: Mapping[Kind, Key],
    held: Mapping[Kind, Held],
    *,
    after: int,
    builder: Builder,
    claims: Claims,
    grant: Grant,
    wait: float,
    tick: Callable[[str], None],
) -> engine.Run:
    """Run the engine under the compile key's grant and publish what it built.

    An engine that ends over what is sealed already is run once more, over nothing. Where that goes
    well, what it ended over is retired.

    Args:
        volume: where to.
        warm: where the engine builds.
        keys: the kernel pieces wanted.
        held: what is there of each, looked at under the grant.
        after: the highest number of `compile` taken before that look: who publishes since has won.
        builder: how to run the engine.
        claims: for the shared kinds' own locks.
        grant: the lock on the compile key.
        wait: seconds to wait for another owner of a shared kind.
        tick: called with the engine's latest line.

    Raises:
        EngineError: the engine failed; nothing was published.
        VolumeError: the volume or the warm dir failed.
        IntegrityError: a sealed base is corrupt.
        BusyError: a grant or a race was lost.
    """
    started = time.monotonic()
    compiled = keys["compile"]

    def told(line: str) -> None:
        grant.note("building kernels")
        tick(line)

    stagings.sweep(volume, compiled, grant)
    try:
        run, bad = _run(volume, warm, keys, held, builder=builder, tick=told)
        if not run.answered:
            _log.warning("the engine completed no text; kernels built on first use are missing")
        answer.keep(warm.tree("compile"), run.tokens)
        grant.note("publishing")
        seconds = time.monotonic() - started
        for kind in bad:
            key, last = keys[kind], held[kind].generation
            with contextlib.ExitStack() as stack:
                if kind != "compile":
                    stack.enter_context(claims.claim(key, wait=wait, filled=lambda: False))
                crashes.retire(volume, key, last, trust=builder.trust)
        needs = {
            kind: trees.publish_shared(
                volume,
                warm,
                keys[kind],
                claims=claims,
                wait=wait,
                seconds=seconds,
                trust=builder.trust,
                secrets=builder.secrets,
                world=ranks.world(compiled.factors),
            )
            for kind in _SHARED
            if kind in keys
        }
        if "bytecode" in keys:  # before what others wait for, lest they fill it beside us
            key = keys["bytecode"]
            libraries = run.libraries
            _add_bytecode(volume, warm, key, libraries, builder=builder, claims=claims, wait=wait)
        trees.publish_tree(
            volume,
            warm,
            compiled,
            grant=grant,
            after=after,
            seconds=seconds,
            needs=needs,
            trust=builder.trust,
            secrets=builder.secrets,
        )
    except BaseException:
        # What a run that failed left behind may be torn: no server may load it. What cannot be
        # removed has no record, and removing it again comes before the handoff.
        for kind in keys:
            with contextlib.suppress(VolumeError):
                restore.forget(warm, kind)
        raise
    return run


def _run(
    volume: Volume,
    warm: WarmDir,
    keys: Mapping[Kind, Key],
    held: Mapping[Kind, Held],
    *,
    builder: Builder,
    tick: Callable[[str], None],
) -> tuple[engine.Run, list[Kind]]:
    """Run the engine over what is sealed; where it ends over that, over nothing.

    Returns:
        The run, and the kinds it ended over before.
    """

    def once(log: str) -> engine.Run:
        run = engine.run(
            command=builder.command,
            model_path=builder.model_path,
            serve_argv=builder.serve_argv,
            environment=builder.environment,
            log=os.path.join(warm.logs, log),
            timeout=builder.timeout,
            settled=lambda: {kind: members.sizes(warm.tree(kind)) for kind in keys},
            tick=tick,
        )
        # vLLM's front end may outlive its engine, which died in the middle of a write.
        if run.broke:
            raise EngineError(
                f"got status {run.status or 'none'} for the build run's completion, expected an answer",
                reason="engine-broke",
                hint=f"the whole log is at {run.log}",
            )
        return run

    for kind, key in keys.items():
        trees.prepare(volume, warm, key, held[kind], trust=builder.trust)
    based = [kind for kind in keys if members.sizes(warm.tree(kind))]
    name = f"build-{keys['compile'].short}"
    try:
        return once(f"{name}.log"), []
    except EngineError as exc:
        if exc.reason not in ("engine-exited", "engine-broke") or not based:
            raise
        _log.warning(
            "the engine ended over kernels that were there, running it once more over none",
            kinds=based,
            failure=exc.message,
            hint=exc.hint,
        )
    for key in keys.values():
        trees.clear(warm, key)
    return once(f"{name}-anew.log"), based


def build_bytecode(
    volume: Volume, warm: WarmDir, key: Key, *, after: int, builder: Builder, grant: Grant
) -> None:
    """Fill the bytecode piece alone, by importing the server, and publish it.

    Args:
        volume: where to.
        warm: where the tree is made.
        key: the piece.
        after: the highest number taken before it was seen to be missing: who publishes since has won.
        builder: the engine.
        grant: the lock on the key.

    Raises:
        EngineError: the import failed or left no bytecode; nothing was published.
        VolumeError: the volume or the warm dir failed.
        BusyError: the grant or a race was lost.
    """
    started = time.monotonic()
    stagings.sweep(volume, key, grant)
    try:
        restore.forget(warm, key.kind)
        with using("the warm dir"):
            os.makedirs(warm.tree(key.kind))
        libraries = bytecode.import_server(
            builder.interpreter, environment=builder.environment, timeout=builder.timeout
        )
        _by_content(warm, builder, libraries)
        seconds = time.monotonic() - started
        trees.publish_tree(
            volume,
            warm,
            key,
            grant=grant,
            after=after,
            seconds=seconds,
            trust=builder.trust,
            secrets=builder.secrets,
        )
    except BaseException:
        with contextlib.suppress(VolumeError):
            restore.forget(warm, key.kind)
        raise


def _add_bytecode(
    volume: Volume,
    warm: WarmDir,
    key: Key,
    libraries: Iterable[str],
    *,
    builder: Builder,
    claims: Claims,
    wait: float,
) -> None:
    """Publish what bytecode the run added; without it the kernels are as good."""
    try:
        _by_content(warm, builder, libraries)
        # No seconds: the run's are not what filling this piece alone takes.
        trees.publish_shared(
            volume,
            warm,
            key,
            claims=claims,
            wait=wait,
            seconds=0.0,
            trust=builder.trust,
            secrets=builder.secrets,
        )
    except WarmerError as exc:
        _log.warning("no bytecode of this run is published", failure=exc.message, hint=exc.hint)
        restore.forget(warm, key.kind)


def _by_content(warm: WarmDir, builder: Builder, libraries: Iterable[str]) -> None:
    tree = os.path.join(warm.tree("bytecode"), bytecode.FAMILY)
    found = bytecode.by_content(
        tree, builder.interpreter, package="vllm", environment=builder.environment
    )
    _log.info("bytecode is bound to its sources", kept=found.kept, dropped=dict(found.dropped))
    bytecode.take_notes(
        warm.notes,
        builder.interpreter,
        libraries=libraries,
        environment=builder.environment,
        beside=warm.root,
    )
