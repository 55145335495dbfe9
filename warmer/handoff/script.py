"""The `serve` script in its parts: POSIX sh with places for `warmer.handoff.render` to fill. Pure."""

from __future__ import annotations

from typing import Final

# The loop names what would make the kernels miss before vLLM spends minutes finding out.
SERVE: Final = """\
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
        *_SERVICE_HOST | *_SERVICE_PORT* | *_PORT | *_PORT_[0-9]*_*) continue ;;
    esac
    unknown="$unknown $name"
    case "$name" in
        VLLM_*) echo "warmer: $name was not set when the kernels were built; they may not hit" >&2 ;;
    esac
done
{hold}. {env}
PATH="$PATH"{bin}
export PATH
extra=$#
set -- serve {words} "$@"
{watch}{note}if command -v {program} >/dev/null 2>&1; then
    exec {command} "$@"
fi
exec vllm "$@"
"""

# Whether a server was the first in its warm dir is told by a name that only one can make. The note of
# one before is gone before this one may write in the caches, whether or not it is noted itself.
NOTE: Final = """\
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

# Not in the background: what decides must have decided, and leaves its own process behind.
WATCH: Final = """\
# Kernels that crashed the engine at load twice are not given to a third start.
cold=0
if command -v python3 >/dev/null 2>&1; then
    python3 -IS {ready} {words} -- "$@" 9<&- || cold=$?
else
    echo 'warmer: no python3 here: starts that crash are not counted' >&2
fi
if [ "$cold" -eq 9 ]; then
{without}fi
"""


# The lock goes with the descriptor through exec to the server, and ends with it.
HOLD: Final = """\
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
