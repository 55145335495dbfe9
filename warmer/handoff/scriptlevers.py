"""The parts of `serve` that are levers on trial, as text. Pure.

A start that crashed is followed by one without them; what they were is told by `ready.py`.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Final

from warmer import freedoms, levers, loaders

if TYPE_CHECKING:
    from warmer.handoff.render import Handoff
    from warmer.loaders import Loader

# A server that crashed is started again without these, before its kernels are suspected.
_LEVERS: Final = """\
if [ "$cold" -eq 0 ]; then
{levers}fi
"""
_LOADER: Final = """\
    if [ -n "$loader" ]; then
{exports}        set -- "$@" {words}
    fi
"""
# vLLM's own fingerprint of a plan holds neither the memory that may be used nor the environment
# (v1/worker/startup_plan.py): with another word for it the plan of the build would be applied.
_OTHERS: Final = """\
# A plan of memory holds for the flags below, and for those beside them that take no memory.
others=$unknown
for word in "$@"; do
    case "${{word%%=*}}" in
        {free}) ;;
        -*) others="$others $word" ;;
    esac
done
"""
# Who gives `serve` an argument of his own about it, or a file that may, has decided; and with some
# others nothing was measured.
_LOADED: Final = """\
loader=measured
for word in "$@"; do
    case "$word" in
        {own} | {unmeasured} | --conf*) loader= ;;
    esac
done
"""
# As they are named by `loaders.unmeasured` and `ranks.SPREAD`, and as vLLM's parser abbreviates them.
_UNMEASURED: Final = (
    "--quantization* | --spec* | --ten* | --pipe* | --data?par* | --prefill?c* | --nn* | -[dnpqst]*"
)
# As `levers.decide` has it: with tensor-parallel ranks of one node, which vLLM starts itself.
_FORKED: Final = """\
fork=measured
for word in "$@"; do
    case "$word" in
        --pipe* | --data?par* | --prefill?c* | --nn* | --dist* | --conf* | -[dnp]*) fork= ;;
    esac
done
"""
# As `families.OTHER_REPOSITORIES`, and a file that may name them.
_FETCH: Final = """\
# What the further arguments name may be in another repository than the model's: it may be fetched.
for word in "$@"; do
    case "${{word%%=*}}" in
        --tokenizer | --hf?conf* | --lora?mod* | --spec* | -s* | --conf*)
            [ -n "$offline" ] || unset {names}
            ;;
    esac
done
"""
_PLAN: Final = f"""\
if [ "${{cold:-0}}" -ne 0 ] || [ -n "$others" ]; then
    unset {levers.PLAN}
fi
"""
_FORK: Final = """\
    if [ -n "$fork" ]; then
        export VLLM_WORKER_MULTIPROC_METHOD="${VLLM_WORKER_MULTIPROC_METHOD:-fork}"
    fi
"""
_START: Final = """\
    if [ -x {interpreter} ] && command -v {program} >/dev/null 2>&1; then
        exec {interpreter} {start} --record="$record" {notes} {command} "$@"
    fi
"""


def chosen(handoff: Handoff) -> str:
    """What a start does that has not crashed; where crashes are not counted, nothing."""
    on = on_trial(handoff)
    used = (_FORK if "fork" in on else "") + (
        _loader(handoff.loader) if "loader" in on and handoff.loader else ""
    )
    return _LEVERS.format(levers=used) if used else ""


def others(handoff: Handoff) -> str:
    """What notes of the further arguments, before the handed-off ones are put in front of them."""
    noted = ""
    if levers.PLAN in handoff.env:
        noted += _OTHERS.format(free=" | ".join(sorted({*freedoms.FREE_FLAGS, "--api-key"})))
    if "fork" in on_trial(handoff):
        noted += _FORKED
    if "loader" in on_trial(handoff):  # vLLM takes both spellings of a flag
        own = " | ".join(f"{name.replace('-', '[-_]')}*" for name in loaders.OWN)
        noted += _LOADED.format(own=own.replace("[-_][-_]", "--"), unmeasured=_UNMEASURED)
    return noted


def fetch(handoff: Handoff) -> str:
    """What lets the engine ask the hub where a further argument may name another repository."""
    names = sorted(name for name in handoff.env if name.endswith("_OFFLINE"))
    return _FETCH.format(names=" ".join(names)) if names else ""


def plan(handoff: Handoff) -> str:
    """What forgoes the plan of memory after a crash, and where further arguments may take memory."""
    return _PLAN if levers.PLAN in handoff.env else ""


def start(handoff: Handoff, path: str) -> str:
    """What runs vLLM's command with cheaper imports; likewise."""
    if "imports" not in on_trial(handoff) or handoff.warm is None:
        return ""
    started = _START.format(
        interpreter=shlex.quote(handoff.interpreter),
        program=shlex.quote(handoff.command[0]),
        start=shlex.quote(path),
        notes=shlex.quote(handoff.warm.notes),
        command=shlex.join(handoff.command),
    )
    return _LEVERS.format(levers=started)


def _loader(loader: Loader) -> str:
    """What says how weights are loaded."""
    exports = [
        f'        export {name}="${{{name}:-{value}}}"\n'
        for name, value in loader.environment.items()
    ]
    return _LOADER.format(words=shlex.join(loader.flags), exports="".join(exports))


def on_trial(handoff: Handoff) -> list[str]:
    """Name the levers that a start which crashed goes without; none where crashes are not counted."""
    if handoff.warm is None or not handoff.suspects:
        return []
    possible = {"fork": True, "imports": handoff.interpreter, "loader": handoff.loader}
    possible["startup-plan"] = levers.PLAN in handoff.env
    return [name for name in levers.ON_TRIAL if name in handoff.levers and possible[name]]
