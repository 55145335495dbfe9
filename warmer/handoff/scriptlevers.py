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
# What `serve` is told itself, prefill has not seen. Each of these looks at one word of it, as vLLM's
# parser abbreviates it; who names a file with --config may say anything there.
_LOOK: Final = """\
# The further arguments: what may not be done with them.
{before}for word in "$@"; do
    word=${{word%%=*}}
{cases}done
"""
_CASE: Final = """\
    case "$word" in
{case}    esac
"""
# vLLM's own fingerprint of a plan holds neither the memory that may be used nor the environment
# (v1/worker/startup_plan.py): with another word for it the plan of the build would be applied.
_TAKES_MEMORY: Final = """\
        {free}) ;;
        -*) others="$others $word" ;;
"""
# As `levers.decide` has it: with tensor-parallel ranks of one node, which vLLM starts itself.
_NOT_FORKED: Final = """\
        --pi* | --da* | --prefill?c* | --nn* | --dist* | --conf* | -[dnp]*) fork= ;;
"""
# Who says himself how weights are loaded has decided. The others are those of `loaders.UNMEASURED` and
# `ranks.SPREAD`.
_NOT_LOADED: Final = """\
        {own} | --conf*) loader= ;;
        --q* | --sp* | --te* | --pi* | --da* | --prefill?c* | --nn*) loader= ;;
        -[dnpqst]*) loader= ;;
"""
# As `families.OTHER_REPOSITORIES`: what is there may have to be fetched.
_ELSEWHERE: Final = """\
        --tokenizer | --hf?c* | --lora?m* | --sp* | -s* | --conf*)
            [ -n "$offline" ] || unset {names}
            ;;
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


def look(handoff: Handoff) -> str:
    """What looks at the further arguments, before the handed-off ones are put in front of them."""
    on, before, cases = on_trial(handoff), "", []
    if levers.PLAN in handoff.env:
        before += "others=$unknown\n"
        # Some loaders hold memory of the GPU that the build run's plan does not know.
        free = " | ".join(sorted({*freedoms.FREE_FLAGS, "--api-key"} - {"--load-format"}))
        cases.append(_TAKES_MEMORY.format(free=free))
    if "fork" in on:
        before += "fork=measured\n"
        cases.append(_NOT_FORKED)
    if "loader" in on:  # vLLM takes both spellings of a flag
        before += "loader=measured\n"
        own = " | ".join(f"--{name[2:].replace('-', '[-_]')}*" for name in loaders.OWN)
        cases.append(_NOT_LOADED.format(own=own))
    if names := sorted(name for name in handoff.env if name.endswith("_OFFLINE")):
        cases.append(_ELSEWHERE.format(names=" ".join(names)))
    looks = "".join(_CASE.format(case=case) for case in cases)
    return _LOOK.format(before=before, cases=looks) if cases else ""


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
