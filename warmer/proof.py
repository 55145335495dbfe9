"""Start the engine once more, as the server will be started, and insist that it builds nothing.

Said beforehand, a hit is a prediction. This run has the handoff's arguments and environment, and
what makes vLLM itself object: a compiled graph that cannot be loaded ends the start
(``VLLM_FORCE_AOT_LOAD``), and so does a kernel built at a request (``--jit-monitor-mode error``).
Afterwards its log must not tell of a compilation, and no cache may hold a new file or one that was
compiled anew. Nor should it complete another text than the build run did: where it does, that is said
and fails nothing, for a GPU may round differently from run to run.
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import structlog

from warmer import families
from warmer.errors import EngineError, NotWarmError, VolumeError, using
from warmer.fill import answer, crashes, engine, members, progress, restore
from warmer.handoff import write
from warmer.model import KERNEL_KINDS
from warmer.report import log
from warmer.report.ranks import without_a_hit

if TYPE_CHECKING:
    from collections.abc import Container, Mapping, Sequence

    from warmer.machine import Stack
    from warmer.model import Kind
    from warmer.report.log import StartLog
    from warmer.report.verdict import Cache
    from warmer.situation import Situation

_log = structlog.get_logger(__name__)
_FORCED: Final = {"VLLM_FORCE_AOT_LOAD": "1"}
_MONITOR: Final = "--jit-monitor-mode"
_MONITORED: Final = (0, 32)
"""The first vLLM that knows the flag."""
_COMPILED: Final = (".so", ".o", ".cubin", ".ptx")
"""What a compiler makes: written anew, it was built anew."""
_SHOWN: Final = 5


@dataclass(frozen=True, slots=True)
class Proof:
    """What the run showed: nothing was built.

    Attributes:
        ready: seconds from start to the first 200 of ``/health``.
        cache: what vLLM's log says of its compile cache; ``unknown`` where it says nothing, as on
            CPUs: then the files alone are the proof.
        ranks: what it says of each rank's, where there are several.
        answered: whether the one request was answered; else what a request builds is unproved.
        same_answer: whether it completed what the build run did; None where either is not known.
        log: path of what the engine said.
    """

    ready: float
    cache: Cache
    answered: bool
    same_answer: bool | None
    log: str
    ranks: Mapping[str, Cache] = field(default_factory=dict)


def prove(s: Situation, without: Container[Kind]) -> Proof:
    """Restore the pieces anew, and run the engine on them as the server will be run.

    Args:
        s: the last look; every kernel kind that is wanted is sealed.
        without: kinds that would not be handed off.

    Raises:
        NotWarmError: kernels are left out, or there is no engine here: nothing to prove.
        EngineError: something was built, or the engine failed. The trees are dropped: the run may
            have torn them.
        IntegrityError: an archive is not what its seal says.
        VolumeError: the volume or the warm dir failed.
    """
    wanted = [kind for kind in KERNEL_KINDS if kind in s.wanted.keys or kind in without]
    # Kernels do not depend on bytecode, and the handoff leaves its variables out.
    kinds = tuple(k for k in wanted if k != "bytecode" or _sealed(s, k, without))
    cold = [kind for kind in ("weights", *kinds) if not _sealed(s, kind, without)]
    if s.host.stack is None or cold:
        raise NotWarmError(
            f"got a start without {', '.join(cold) or 'an engine'}, expected all that --prove is "
            "to prove",
            reason="nothing-to-prove",
            hint="the log says why; or leave --prove out",
        )
    stack = s.host.stack
    environment = {**s.how.build_env, **s.how.env, **_FORCED}
    if "bytecode" not in kinds:
        for name in families.variables("bytecode"):
            environment.pop(name, None)
    if stack.shim:
        write.write_shim(s.warm, stack.shim)
    write.link_model(s.how.model_path, s.model_files)
    pieces = [(s.wanted.keys[kind], s.held.held[kind].generation) for kind in kinds]
    try:
        _restore(s, kinds)
        for kind in kinds:  # while the engine may write there, no record vouches for the tree
            restore.distrust(s.warm, kind)
        before = _files(s, kinds)
        expected = answer.kept(s.warm.tree("compile"))
        run = engine.run(
            command=stack.command,
            model_path=s.how.model_path,
            serve_argv=(*s.how.argv, *_strict(stack, s.how.argv)),
            environment=environment,
            log=os.path.join(s.warm.logs, f"prove-{s.wanted.keys['compile'].short}.log"),
            timeout=s.settings.engine_timeout,
            settled=lambda: _files(s, kinds),
            tick=progress.Engine(),
        )
        after = _files(s, kinds)
        built = sorted(
            f"{kind}/{path}" for (kind, path), at in after.items() if before.get((kind, path)) != at
        )
        with using("the warm dir"), open(run.log, encoding="utf-8") as f:
            said = log.parse(f)
        _insist(built, said, run)
        _restore(s, kinds)  # the engine rewrites files of its own accord
    except BaseException as exc:
        if isinstance(exc, EngineError) and exc.reason == "engine-exited":
            crashes.tell(s.volume, pieces)
        for kind in kinds:
            with contextlib.suppress(VolumeError):
                restore.forget(s.warm, kind)
        raise
    crashes.acquit(s.volume, pieces)
    if not run.answered:
        _log.warning("the engine completed no text; what a request builds is not proved")
    same = _same(expected, run.tokens)
    ranks = {rank.name: rank.cache for rank in said.ranks}
    return Proof(round(run.ready, 3), said.cache, run.answered, same, run.log, ranks)


def _sealed(s: Situation, kind: Kind, without: Container[Kind]) -> bool:
    held = s.held.held.get(kind)
    return kind not in without and held is not None and held.verdict == "sealed"


def _restore(s: Situation, kinds: Sequence[Kind]) -> None:
    """Unpack what other pods will have, not what a build run here has left."""
    for kind in kinds:
        key, number = s.wanted.keys[kind], s.held.held[kind].generation
        restore.restore(s.volume, s.warm, key, number, trust=s.settings.trust)


def _strict(stack: Stack, argv: Sequence[str]) -> tuple[str, ...]:
    """The flags by which vLLM objects to a build after its warm-up, where it knows them."""
    found = re.match(r"(\d+)\.(\d+)", stack.vllm)
    known = found is not None and (int(found[1]), int(found[2])) >= _MONITORED
    given = any(word.replace("_", "-").partition("=")[0] == _MONITOR for word in argv)
    return (_MONITOR, "error") if known and not given else ()


def _files(s: Situation, kinds: Sequence[Kind]) -> dict[tuple[Kind, str], int]:
    """Every file of every tree, less what no archive holds (locks, scratch); when it was compiled.

    Of what no compiler makes the time does not count: vLLM rewrites some of it at every start.
    """
    with using("the warm dir"):
        return {
            (kind, path): changed if path.endswith(_COMPILED) else 0
            for kind in kinds
            for path, changed in members.changed(s.warm.tree(kind), families.excluded(kind))
        }


def _same(built: Sequence[int], warm: Sequence[int]) -> bool | None:
    if not built or not warm:
        return None
    if [*built] == [*warm]:
        return True
    _log.warning(
        "a warm start completed another text than the build run",
        build=[*built],
        warm=[*warm],
        hint="a GPU may round differently from run to run; compare its answers yourself",
    )
    return False


def _insist(built: Sequence[str], said: StartLog, run: engine.Run) -> None:
    if run.broke:
        raise EngineError(
            f"got status {run.status or 'none'} for a completion from a warm start, expected an answer",
            reason="not-proved",
            hint=f"the whole log is at {run.log}",
        )
    missed = without_a_hit(said.ranks)
    if not built and not missed and said.cache != "rebuilt":
        return
    what = [f"  | {missed} did not load what was compiled"] if missed else []
    what += [f"  | built: {name}" for name in built[:_SHOWN]]
    what += [f"  | {line}" for line in said.evidence[:_SHOWN]]
    compiled = "a compilation" if said.cache == "rebuilt" else "no compilation"
    raise EngineError(
        "\n".join(
            [f"got {compiled} and {len(built)} files built by a warm start, expected none", *what]
        ),
        reason="not-proved",
        hint=f"the whole log is at {run.log}; what it built is in no archive: report it",
    )
