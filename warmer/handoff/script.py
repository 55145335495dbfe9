"""The `serve` script, as text. Pure.

It works in an image without warmer: it is POSIX sh, and what it runs is the standard library.
"""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING, Final

from warmer import __version__, families, freedoms
from warmer.handoff import scriptlevers

if TYPE_CHECKING:
    from warmer.handoff.render import Handoff

# The loop names what would make the kernels miss before vLLM spends minutes finding out.
_SERVE: Final = """\
#!/bin/sh
# Written by warmer {version}. Starts vLLM as its kernels were built; further arguments go to
# `vllm serve` after the ones below.
set -eu
unset WARMER_SIGNING_KEY # an engine has no use for it
known=' {known} '
unknown=
for name in $(env | sed -n {hashed}); do
    case "$known" in
        *" $name "*) continue ;;
    esac
    case "$name" in # Kubernetes describes the services of a namespace in such names
        *_SERVICE_HOST | *_SERVICE_PORT* | *_PORT_[0-9]*_*) continue ;;
        *_PORT)
            eval "value=\\${{$name-}}"
            case "$value" in tcp://* | udp://* | sctp://*) continue ;; esac
            ;;
    esac
    unknown="$unknown $name"
    case "$name" in
        VLLM_*) echo "warmer: $name was not set when the kernels were built; they may not hit" >&2 ;;
    esac
done
{hold}offline=${{HF_HUB_OFFLINE-}}
. {env}
PATH="$PATH"{bin}
export PATH
extra=$#
{look}set -- serve {words} "$@"
if ! command -v {program} >/dev/null 2>&1 && ! command -v vllm >/dev/null 2>&1; then
    echo 'warmer: got neither '{program}' nor a vllm on PATH, expected one of them' >&2
    echo 'hint: serve in the image that warmer prefill runs in' >&2
    exit 127
fi
{weights}{watch}{plan}{note}{ahead}{levers}{hold_on}{start}if command -v {program} >/dev/null 2>&1; then
    exec {command} "$@"
fi
exec vllm "$@"
"""


# Whether a server was the first in its warm dir is told by a name that only one can make. The note of
# one before is gone before this one may write in the caches, whether or not it is noted itself.
_NOTE: Final = """\
# For `warmer sidecar`: how this server was started, and on what. It holds the lock while it runs.
first=no
if (set -C && : >{served}) 2>/dev/null; then
    first=yes
fi
rm -f {server} 2>/dev/null || :
if [ -x {interpreter} ] && (: >{server}.$$) 2>/dev/null; then
    exec 8>{server}.$$
    {interpreter} {installed} 8 {server}.$$ {server} {identity} "$extra" "$first" "${{cold:-0}}" \\
        "$(command -v {program} || :)" $unknown 9<&- || rm -f {server}.$$ || :
fi
"""


# As what is missing above, before a start is counted: such a one would be told on the volume as its kernels' crash.
_WEIGHTS: Final = """\
# Without the weights that were handed off no engine starts.
if [ -L {link} ] && [ ! -e {link} ]; then
    echo 'warmer: got no weights at '{files}', expected those that were handed off' >&2
    echo 'hint: delete the pod: a new one has them filled again; docs/gc.md says when they may go' >&2
    exit 1
fi
"""


# Not in the background: what decides must have decided, and leaves its own process behind.
_WATCH: Final = """\
# Kernels that crashed the engine at load twice are not given to a third start.
cold=0
record=
trap 'rm -f "$record"; exit 143' TERM # somebody stops it: no crash; also as a container's first process
if command -v python3 >/dev/null 2>&1; then
    record=$(python3 -IS {ready} $$ {words} -- "$@" 9<&-) || cold=$?
else
    cold=8
    echo 'warmer: no python3 here: starts that crash are not counted' >&2
fi
if [ "$cold" -eq 9 ]; then
{without}fi
"""


# Not waited for, and never a reason not to start. Nor is it a child of the server, which would have
# to reap it, nor has it the locks that end with the server.
_AHEAD: Final = """\
if command -v python3 >/dev/null 2>&1; then
    (python3 -IS {ahead} $$ {words} </dev/null >/dev/null 2>&1 8<&- 9<&- &) || :
fi
"""


# `warmer serve --wait` has started this script, and is the server already, or runs it (early.py).
_HOLD_ON: Final = """\
if [ -n "${{WARMER_HOLD:-}}" ]; then
    command -v {program} >/dev/null 2>&1 || exit 127
    exec python3 -IS {early} --hold "$WARMER_HOLD" "${{cold:-8}}" "${{record:-}}" \\
        {command} "$@"
fi
"""
# The lock goes with the descriptor through exec to the server, and ends with it.
_HOLD: Final = """\
# Locked while the server runs: `warmer gc` leaves alone what it was handed.
if {{ read -r user _ <{use}; }} 2>/dev/null && command -v flock >/dev/null 2>&1; then
    live={uses}/"$user".live
    if [ -f "$live" ] && (: <"$live") 2>/dev/null; then
        exec 9<"$live"
        flock -s -n 9 2>/dev/null || {{ sleep 1 && flock -s -n 9; }} 2>/dev/null ||
            echo "warmer: cannot lock $live: warmer gc sees only when this pod started" >&2
    fi
fi
"""


def serve(handoff: Handoff, directory: str, identity: str) -> str:
    """Render the script.

    Args:
        handoff: the values.
        directory: where the handoff's files will be, absolute.
        identity: what a sidecar knows this handoff by.
    """
    return _SERVE.format(
        version=__version__,
        known=" ".join(sorted({*handoff.env, *handoff.known})),
        hashed=_hashed(),
        note=_note(handoff, directory, identity),
        env=shlex.quote(os.path.join(directory, "env")),
        hold=_hold(handoff),
        weights=_weights(handoff),
        watch=_watch(handoff, os.path.join(directory, "ready.py")),
        ahead=_ahead(handoff, os.path.join(directory, "ahead.py")),
        levers=scriptlevers.chosen(handoff),
        look=scriptlevers.look(handoff),
        plan=scriptlevers.plan(handoff),
        hold_on=_HOLD_ON.format(
            program=shlex.quote(handoff.command[0]),
            early=shlex.quote(os.path.join(directory, "early.py")),
            command=shlex.join(handoff.command),
        ),
        start=scriptlevers.start(handoff, os.path.join(directory, "start.py")),
        bin=_beside(handoff.command[0]),
        words=shlex.join([handoff.model_path, *handoff.argv]),
        program=shlex.quote(handoff.command[0]),
        command=shlex.join(handoff.command),
    )


def _hold(handoff: Handoff) -> str:
    """What keeps the record of use locked; the same text in every pod."""
    if not handoff.use:
        return ""
    return _HOLD.format(use=shlex.quote(handoff.use), uses=shlex.quote(handoff.uses))


def _weights(handoff: Handoff) -> str:
    """What ends a start whose weights are gone."""
    if not handoff.model_files:
        return ""
    link, files = map(shlex.quote, (handoff.model_path, handoff.model_files))
    return _WEIGHTS.format(link=link, files=files)


def _watch(handoff: Handoff, ready: str) -> str:
    """What counts the starts with these kernels, and what a start without them is given."""
    if handoff.warm is None or not handoff.suspects:
        return ""
    warm, lines = handoff.warm, []
    for name, value in sorted(handoff.env.items()):
        # As a handoff without them: a fetch may be needed, and bytecode is not written anew.
        if name.endswith("_OFFLINE") or name in families.variables("bytecode"):
            lines.append(f"    unset {name}\n")
        elif value.startswith(warm.cache + os.sep):
            moved = os.path.join(warm.cold, handoff.mark) + value.removeprefix(warm.cache)
            lines.append(f"    export {name}={shlex.quote(moved)}\n")
    trial = ", ".join(scriptlevers.on_trial(handoff))
    words = (warm.starts, warm.cold, handoff.crashes, handoff.mark, trial, *handoff.suspects)
    return _WATCH.format(
        ready=shlex.quote(ready), words=shlex.join(words), without="".join(lines) or "    :\n"
    )


def _note(handoff: Handoff, directory: str, identity: str) -> str:
    """What leaves a note of how the server was started."""
    if handoff.warm is None:
        return ""
    return _NOTE.format(
        served=shlex.quote(handoff.warm.served),
        server=shlex.quote(handoff.warm.server),
        interpreter=shlex.quote(handoff.harvest.interpreter),
        installed=shlex.quote(os.path.join(directory, "installed.py")),
        identity=identity,
        program=shlex.quote(handoff.command[0]),
    )


def _hashed() -> str:
    """What sed prints of `env`: the names that decide what is built, if they are not known."""
    names = [rf"{prefix}[A-Za-z0-9_]*" for prefix in freedoms.HASHED_PREFIXES]
    names += freedoms.HASHED_NAMES
    return " ".join(rf"-e 's/^\({name}\)=.*/\1/p'" for name in names)


def _ahead(handoff: Handoff, ahead: str) -> str:
    """What reads into the page cache what the start will read."""
    if "read-ahead" not in handoff.levers or handoff.warm is None:
        return ""
    limit = "auto" if handoff.read_ahead is None else str(handoff.read_ahead)
    tree = handoff.env.get("PYTHONPYCACHEPREFIX", "")
    words = (limit, handoff.warm.notes, tree, handoff.model_files, str(handoff.stages))
    return _AHEAD.format(ahead=shlex.quote(ahead), words=shlex.join(words))


def _beside(command: str) -> str:
    """What goes on the end of PATH for a command's tools; an empty entry would mean "here"."""
    directory = os.path.dirname(command)
    return ":" + shlex.quote(directory) if directory else ""
