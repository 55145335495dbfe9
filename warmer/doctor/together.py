"""What two pods find out together. Each step is told for both roles, in the order things happen.

A step only collects facts, which both sides end up with; `warmer.doctor.judging` says what they
mean, on both sides alike.
"""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import statistics
import time
from typing import TYPE_CHECKING, Final

from warmer import __version__
from warmer.doctor import place, renames, watching
from warmer.doctor.findings import name_errno
from warmer.doctor.pair import PROTOCOL
from warmer.observe import inventory

if TYPE_CHECKING:
    from warmer.doctor.pair import Card, Pair
    from warmer.observe.mount import Mount
    from warmer.urls import LockUrl

_SIZE: Final = 1 << 20
_END: Final = 4096
_NAMES: Final = 3
LATE: Final = 60.0
"""Seconds for which a name is looked for: NFS remembers for 30, by default, that it was not there,
and for up to 60."""

_POLL: Final = 0.05
_UNIQUE_ID: Final = "/sys/module/nfs/parameters/nfs4_unique_id"


def card(mount: Mount, url: LockUrl) -> Card:
    """Say who this doctor is, for the other."""
    return {
        "protocol": PROTOCOL,
        "warmer": __version__,
        "hostname": socket.gethostname(),
        "boot": inventory.boot(),
        "mount": mount.type,
        "unique_id": _unique_id(),
        "lock": f"{url.mechanism}://{url.place}/{url.prefix}",
    }


def names(pair: Pair) -> None:
    """Look for names in vain, have them made by the other, and see when they are there.

    The last one is also looked for plainly, in a directory that nobody opens anew.

    Raises:
        BusyError: the other left.
        OSError: the volume failed.
    """
    # In a directory that does not change: NFS would look a changed one's names up anew.
    top = os.path.join(pair.first, "names")
    plain, reopened = (os.path.join(top, which) for which in ("plain", "reopened"))
    if pair.role == "a":
        for directory in (top, plain, reopened):
            os.mkdir(directory)
        pair.tell(names_ready=True)
        while (number := pair.learn().get("names_asked")) is not None:
            for directory in (plain, reopened) if number == _NAMES - 1 else (reopened,):
                place.write(os.path.join(directory, str(number)), b"")
            pair.tell(names_made=number)
        return
    pair.learn()
    late: list[float] = []
    looked: float | None = None
    for number in range(_NAMES):
        name, unopened = (os.path.join(d, str(number)) for d in (reopened, plain))
        for _ in range(2):  # the second look is the one that is answered from memory
            os.path.lexists(name)
            os.path.lexists(unopened)
        began = time.monotonic()
        pair.tell(names_asked=number)
        seen = _seen_after(name, began, reopen=True)
        pair.learn()
        if seen is None:
            break
        late.append(seen)
    else:
        looked = _seen_after(unopened, began, reopen=False)
    pair.tell(
        names_reopened=statistics.median(late) if len(late) == _NAMES else None,
        names_plain=looked,
    )


def replaced(pair: Pair) -> None:
    """Replace a file that the other holds open, and see what that one still reads.

    Raises:
        BusyError: the other left.
        OSError: the volume failed.
    """
    path = os.path.join(pair.first, "held")
    if pair.role == "a":
        place.write(path, b"o" * _SIZE)
        pair.tell(replaced_ready=True)
        pair.learn()
        place.write(f"{path}.new", b"n" * _SIZE)
        os.replace(f"{path}.new", path)
        pair.tell(replaced_done=True)
        pair.learn()
        return
    pair.learn()
    place.reopen(pair.first)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)  # nothing is read ahead
        os.pread(descriptor, 1, 0)
        pair.tell(replaced_open=True)
        pair.learn()
        pair.tell(replaced_read=_read_end(descriptor))
    finally:
        os.close(descriptor)


def renamed(pair: Pair) -> None:
    """Rename directories and replace a file while the other looks at them.

    Raises:
        BusyError: the other left.
        OSError: the volume failed.
    """
    staging, published = (os.path.join(pair.first, which) for which in ("staging", "published"))
    target = os.path.join(published, "target")
    if pair.role == "a":
        for directory in (staging, published):
            os.mkdir(directory)
        place.write(target, bytes(renames.SIZE))
        pair.tell(renamed_ready=True)
        pair.learn()
        renames.rename_directories(staging, published)
        pair.tell(renamed_directories_over=True)
        pair.learn()
        pair.learn()
        renames.replace(target)
        pair.tell(renamed_file_over=True)
        pair.learn()
        return
    pair.learn()
    begin, over = functools.partial(pair.tell, renamed_watched=True), pair.spoken_to
    seen = watching.directories(published, renames.FILES, started=begin, stopped=over)
    pair.learn()
    pair.tell(renamed_directories=seen)
    seen = watching.file(target, renames.SIZE, started=begin, stopped=over)
    pair.learn()
    pair.tell(renamed_file=seen)


def publishing(pair: Pair) -> None:
    """Publish a directory under a name that the other has taken, unseen by the one that tries.

    Raises:
        BusyError: the other left.
        OSError: the volume failed.
    """
    taken = os.path.join(pair.first, "taken")
    if pair.role == "a":
        pair.learn()
        os.mkdir(taken)
        place.write(os.path.join(taken, "a"), b"")
        pair.tell(publishing_taken=True)
        pair.learn()
        pair.tell(publishing_left=place.listing(taken))
        return
    rival = os.path.join(pair.mine, "rival")
    os.mkdir(rival)
    place.write(os.path.join(rival, "b"), b"")
    os.path.lexists(taken)
    pair.tell(publishing_ready=True)
    pair.learn()
    try:
        os.rename(rival, taken)
    except OSError as exc:
        word = name_errno(exc)
    else:
        word = "replaced"
    pair.tell(publishing_tried=word)
    pair.learn()


def _seen_after(name: str, began: float, *, reopen: bool) -> float | None:
    """Look for a name until it is there; return the seconds since `began`, None after `LATE`."""
    while (seconds := time.monotonic() - began) < LATE:
        if reopen:
            place.reopen(os.path.dirname(name))
        if os.path.lexists(name):
            return seconds
        time.sleep(_POLL)
    return None


def _read_end(descriptor: int) -> str:
    try:
        data = os.pread(descriptor, _END, _SIZE - _END)
    except OSError as exc:
        return name_errno(exc)
    return {b"o" * _END: "old", b"n" * _END: "new"}.get(data, "torn")


def _unique_id() -> str:
    with contextlib.suppress(OSError), open(_UNIQUE_ID, encoding="utf-8") as f:
        return f.read().strip()
    return ""
