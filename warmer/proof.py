"""Start the engine once more, as the server will be started, and insist that it builds nothing.

Said beforehand, a hit is a prediction. This run has the handoff's arguments and environment, and
what makes vLLM itself object: a compiled graph that cannot be loaded ends the start
(``VLLM_FORCE_AOT_LOAD``), and so does a kernel built at a request (``--jit-monitor-mode error``).
Afterwards its log must not tell of a compilation, and no cache may hold a new file.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog

from warmer import families
from warmer.errors import EngineError, NotWarmError, using
from warmer.fill import engine, members, progress, restore
from warmer.handoff import write
from warmer.model import KERNEL_KINDS
from warmer.report import log

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

    from warmer.model import Kind, Stack
    from warmer.report.log import Cache, StartLog
    from warmer.situation import Situation

_log = structlog.get_logger(__name__)
_FORCED: Final = {"VLLM_FORCE_AOT_LOAD": "1"}
_MONITOR: Final = "--jit-monitor-mode"
_MONITORED: Final = (0, 32)
"""The first vLLM that knows the flag."""
_SHOWN: Final = 5


@dataclass(frozen=True, slots=True)
class Proof:
    """What the run showed: nothing was built.

    Attributes:
        ready: seconds from start to the first 200 of ``/health``.
        cache: what vLLM's log says of its compile cache; ``unknown`` where it says nothing, as on
            CPUs: then the files alone are the proof.
        answered: whether the one request was answered; else what a request builds is unproved.
        log: path of what the engine said.
    """

    ready: float
    cache: Cache
    answered: bool
    log: str


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
    kinds = tuple(kind for kind in s.wanted.keys if kind in KERNEL_KINDS)
    cold = [kind for kind in kinds if kind in without]
    if s.host.stack is None or not kinds or cold or "weights" in without:
        raise NotWarmError(
            f"got a start without {', '.join(cold) or 'the engine or its weights'}, expected "
            "everything that --prove is to prove",
            reason="nothing-to-prove",
            hint="see above why; or leave --prove out",
        )
    stack = s.host.stack
    if stack.shim:
        write.write_shim(s.warm, stack.shim)
    write.link_model(s.how.model_path, s.model_files)
    try:
        for kind in kinds:  # what other pods will have, not what a build run here has left
            key = s.wanted.keys[kind]
            restore.restore(s.volume, s.warm, key, s.held.held[kind].generation)
        before = _names(s, kinds)
        run = engine.run(
            command=stack.command,
            model_path=s.how.model_path,
            serve_argv=(*s.how.argv, *_strict(stack, s.how.argv)),
            environment={**s.how.build_env, **s.how.env, **_FORCED},
            log=os.path.join(s.warm.logs, f"prove-{s.wanted.keys['compile'].short}.log"),
            timeout=s.settings.engine_timeout,
            settled=lambda: _names(s, kinds),
            tick=progress.Engine(),
        )
        added = sorted(f"{kind}/{path}" for kind, path in _names(s, kinds) - before)
        with using("the warm dir"), open(run.log, encoding="utf-8") as f:
            said = log.parse(f)
        _insist(added, said, run.log)
    except BaseException:
        for kind in kinds:
            restore.forget(s.warm, kind)
        raise
    if not run.answered:
        _log.warning("the engine completed no text; what a request builds is not proved")
    return Proof(round(run.ready, 3), said.cache, run.answered, run.log)


def _strict(stack: Stack, argv: Sequence[str]) -> tuple[str, ...]:
    """The flags by which vLLM objects to a build after its warm-up, where it knows them."""
    found = re.match(r"(\d+)\.(\d+)", stack.vllm)
    known = found is not None and (int(found[1]), int(found[2])) >= _MONITORED
    given = any(word.replace("_", "-").partition("=")[0] == _MONITOR for word in argv)
    return (_MONITOR, "error") if known and not given else ()


def _names(s: Situation, kinds: Sequence[Kind]) -> frozenset[tuple[Kind, str]]:
    """Name every file of every tree, less what no archive holds: locks and scratch."""
    with using("the warm dir"):
        return frozenset(
            (kind, path)
            for kind in kinds
            for path in members.names(s.warm.tree(kind), families.excluded(kind))
        )


def _insist(added: Sequence[str], said: StartLog, path: str) -> None:
    if not added and said.cache != "rebuilt":
        return
    what = [f"  | new: {name}" for name in added[:_SHOWN]]
    what += [f"  | {line}" for line in said.evidence[:_SHOWN]]
    compiled = "a compilation" if said.cache == "rebuilt" else "no compilation"
    raise EngineError(
        "\n".join(
            [f"got {compiled} and {len(added)} new files from a warm start, expected none", *what]
        ),
        reason="not-proved",
        hint=f"the whole log is at {path}; what it built is in no archive: report it",
    )
