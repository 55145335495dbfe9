"""What is on the volume, and which of it somebody needs. Pure.

Every doubt keeps: a record of use that cannot be read may name anything, a time in the future is
young, and what was published before uses were recorded may be in use unrecorded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from warmer.usage import ANY, Piece

if TYPE_CHECKING:
    from collections.abc import Iterable

    from warmer.model import Kind
    from warmer.usage import Use

YOUNG: Final = 3600.0
"""Seconds for which what was just published stays whatever is newer: somebody may be reading it."""

State = Literal["sealed", "broken", "foreign", "unreadable"]
_UNTOUCHED: Final = {
    "foreign": "not warmer's, or of another format",
    "unreadable": "unreadable here",
}
Sort = Literal["staging", "quarantine", "trash", "leftover"]


@dataclass(frozen=True, slots=True)
class Published:
    """A generation under ``pieces/``.

    Attributes:
        piece: its name.
        state: ``sealed``; ``broken``, with something missing; never touched are those of another
            format, ``foreign``, and those that are ``unreadable`` here.
        size: bytes.
        at: when it was sealed, in seconds of the server's clock.
    """

    piece: Piece
    state: State
    size: int
    at: float


@dataclass(frozen=True, slots=True)
class Aside:
    """Something that is under no reader's path.

    Attributes:
        sort: where it lies.
        path: absolute.
        size: bytes.
        at: when it was last written, or put there.
        piece: the generation it is or was to become, number `ANY` where it had none yet.
        going: its removal has begun; it can only go on.
    """

    sort: Sort
    path: str
    size: int
    at: float
    piece: Piece | None = None
    going: bool = False


@dataclass(frozen=True, slots=True)
class Census:
    """One look at the volume.

    Attributes:
        now: the time by the server's clock.
        since: since when uses have been recorded; None where they never were.
        published: every generation.
        uses: every record of use.
        asides: what is under no reader's path.
        free: bytes free on the volume.
    """

    now: float
    since: float | None
    published: tuple[Published, ...]
    uses: tuple[Use, ...]
    asides: tuple[Aside, ...]
    free: int


def in_force(uses: Iterable[Use], *, now: float, keep: float) -> list[Use]:
    """Choose the records that count: of servers that run, and those younger than `keep`."""
    return [use for use in uses if use.live or now - use.at < keep]


def doubts(uses: Iterable[Use]) -> list[str]:
    """Say which of these records cannot be read, and why."""
    return [f"{use.name}: {use.why}" for use in uses if use.pieces is None]


class Named:
    """Who uses which generations, or may come to.

    Args:
        uses: the records that count.
        now: the time, for what is said of their ages.
    """

    def __init__(self, uses: Iterable[Use], *, now: float) -> None:
        self._now = now
        self._doubt: str | None = None
        self._by: dict[Piece, Use] = {}
        for use in uses:
            if use.pieces is None:
                self._doubt = f"the record of use {use.name} cannot be read"
                break
            for piece in use.pieces:
                self._by.setdefault(piece, use)

    def why(self, piece: Piece) -> str | None:
        """Say who uses this very generation, or may come to; None where nobody does."""
        use = self._by.get(piece) or self._by.get(piece._replace(number=ANY))
        if use is None:
            return self._doubt
        who = "a server that runs" if use.live else f"{use.owner or use.name}"
        return f"used by {who}, {ago(self._now - use.at)}"


def needed(census: Census, *, keep: float) -> dict[Piece, str]:
    """Find what must stay, and why.

    Args:
        census: the look.
        keep: seconds for which a use counts.

    Returns:
        The generations that stay → the reason. Whatever is not in it, nobody needs.
    """
    uses = in_force(census.uses, now=census.now, keep=keep)
    wanted = {piece.key for use in uses for piece in use.pieces or ()}
    best = next_taken(census.published)
    named = Named(uses, now=census.now)
    found: dict[Piece, str] = {}
    for one in census.published:
        why = _why(one, census, named, keep=keep, wanted=wanted, best=best[one.piece.key])
        if why is not None:
            found[one.piece] = why
    return found


def next_taken(published: Iterable[Published]) -> dict[tuple[Kind, str], Piece]:
    """Find what the next pod takes of each key: the newest sealed, else the newest.

    The newest of those that are broken may still give its good files to the next.
    """
    best: dict[tuple[Kind, str], Published] = {}
    for one in published:
        other = best.get(one.piece.key)
        if other is None or _rank(one) > _rank(other):
            best[one.piece.key] = one
    return {key: one.piece for key, one in best.items()}


def last_used(uses: Iterable[Use]) -> dict[tuple[Kind, str], float]:
    """When each key was last used that is named at all."""
    found: dict[tuple[Kind, str], float] = {}
    for use in uses:
        for piece in use.pieces or ():
            found[piece.key] = max(use.at, found.get(piece.key, use.at))
    return found


def ago(seconds: float) -> str:
    """Write an age as a person would."""
    for unit, length in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{max(0.0, seconds):.0f} s ago"


def _why(
    one: Published,
    census: Census,
    named: Named,
    *,
    keep: float,
    wanted: set[tuple[Kind, str]],
    best: Piece,
) -> str | None:
    age = census.now - one.at
    if one.state in _UNTOUCHED:
        return _UNTOUCHED[one.state]
    if (why := named.why(one.piece)) is not None:
        return why
    if one.piece == best and one.piece.key in wanted:
        return "what the next pod takes of a key in use"
    if age < (keep if one.piece == best else YOUNG):
        return f"published {ago(age)}"
    return _unrecorded(one, census, keep=keep)


def _unrecorded(one: Published, census: Census, *, keep: float) -> str | None:
    """Keep what may be in use since before uses were recorded."""
    if census.since is None:
        return "no use was ever recorded on this volume"
    recorded = census.now - census.since
    if one.at < census.since and recorded < keep:
        return f"uses are recorded since {ago(recorded)} alone"
    return None


def _rank(one: Published) -> tuple[bool, bool, int]:
    return one.state == "sealed", one.state not in _UNTOUCHED, one.piece.number
