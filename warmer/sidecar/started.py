"""How the server beside this sidecar was started, and on what, as the note of its start says.

Only what a server built that is the one its keys are of may be published under them, and only what
the first server in a warm dir built: one that was killed may have torn what it wrote. Whatever is in
doubt is a refusal, in words.
"""

from __future__ import annotations

import fcntl
import json
import os
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from warmer import regular
from warmer.sidecar.handed import MOST

if TYPE_CHECKING:
    from collections.abc import Mapping

    from warmer.layout import WarmDir
    from warmer.sidecar.handed import Job

_ENGINE: Final = ("vllm", "torch", "cuda", "python", "libc", "site")
"""Factors of every kernel key, under `engine.`, that a look at an installation tells."""


class Server(NamedTuple):
    """One start of the server, told from every other by its note's inode and time.

    Attributes:
        inode: of the note.
        at_ns: when it was written, by the warm dir's clock.
        objection: why what it builds may belong to no key; empty where it does.
    """

    inode: int
    at_ns: int
    objection: str


def running(warm: WarmDir, job: Job) -> Server | str:
    """Find the server that runs by the handoff, or say why none is known to."""
    try:
        descriptor = regular.opened(warm.server)
    except FileNotFoundError:
        return "no server has been started by the handoff's serve, or none that could note how"
    except (OSError, regular.OddFileError):
        return "the note of how the server was started cannot be read"
    try:
        info = os.fstat(descriptor)
        said = json.loads(os.read(descriptor, MOST))
        if not _locked(descriptor):
            return "no server runs that was started by the handoff's serve"
        return Server(info.st_ino, info.st_mtime_ns, _objection(said, job))
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
    ):
        return "the note of how the server was started cannot be read"
    finally:
        os.close(descriptor)


def _objection(said: Mapping[str, Any], job: Job) -> str:  # noqa: PLR0911 - a return per reason
    """Say why a server may not be harvested; empty where it may."""
    if said["schema_version"] != 1:
        return "the server was started by another version of warmer's handoff"
    if said["handoff"] != job.identity:
        return "the server was started by an earlier handoff"
    if extra := int(said["extra"]):
        return f"the server was started with {extra} further arguments"
    if unknown := list(said["unknown"]):
        return f"the server has variables that no key holds: {', '.join(map(str, unknown))}"
    if said["cold"] is not False:
        return "the server runs without the kernels that crashed it, and keeps its caches elsewhere"
    if said["first"] is not True:
        return (
            "a server ran here before and may have torn what it wrote; a new pod can be harvested"
        )
    return difference(said["engine"], said.get("files") or {}, job)


def difference(engine: Mapping[str, Any], files: Mapping[str, Any], job: Job) -> str:
    """Name what the server differs in from the keys, as far as can be told; empty if in nothing.

    Args:
        engine: what it runs on.
        files: path → sha256 of the files that the keys name.
        job: the keys.
    """
    for name, wanted in (("command", job.command), ("interpreter", job.interpreter)):
        if (found := engine.get(name)) != wanted:
            return f"the server's {name} is {found or 'not there'}, that of the keys is {wanted}"
    packages = engine.get("packages") or {}
    for key in job.keys.values():
        for factor, wanted in key.factors.items():
            group, _, name = factor.partition(".")
            if group == "engine" and name in _ENGINE:
                found = engine.get(name)
            elif group == "file":
                found = files.get(name)
            elif group == "package":
                found = packages.get(name)
            elif factor == "hardware.threads" and wanted is not None:
                found = engine.get("threads")
            else:
                continue
            if found != wanted:
                return f"the server has {factor} {found}, the {key.kind} key has {wanted}"
    return ""


def _locked(descriptor: int) -> bool:
    """Whether the server holds its note; the kernel gives the lock up with the process.

    Raises:
        OSError: there are no locks here.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False
