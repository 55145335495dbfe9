"""A look at the volume → what to hide, to put back and to remove, each with its reason. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from warmer.collect import need
from warmer.collect.need import ago

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from warmer.collect.need import Aside, Census, Published
    from warmer.usage import Piece, Use

Action = Literal["put back", "remove", "hide", "forget", "renew"]

STILL: Final = 86400.0
"""Seconds without a write after which a staging whose key is free, or a stray file, is left over."""


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to do, and why.

    Attributes:
        action: ``hide`` a generation; ``put back`` a hidden one; ``remove`` what is under no
            reader's path; ``forget`` or ``renew`` a record of use.
        reason: why.
        size: bytes it is about.
        piece: the generation, or whose staging it is.
        aside: what is put back or removed.
        use: the record.
    """

    action: Action
    reason: str
    size: int = 0
    piece: Piece | None = None
    aside: Aside | None = None
    use: Use | None = None

    @property
    def name(self) -> str:
        """What it is about, for people and logs."""
        if self.aside is not None and (self.piece is None or self.aside.sort != "trash"):
            what = f" of {self.piece.kind} {self.piece.digest[:12]}" if self.piece else ""
            return f"{self.aside.sort}{what}" if what else self.aside.path
        if self.use is not None:
            return f"record of use {self.use.name}"
        return str(self.piece)


@dataclass(frozen=True, slots=True)
class Decision:
    """What one run of `warmer gc` will do.

    Attributes:
        steps: in their order.
        kept: the generations that stay → their bytes and the reason.
        doubts: records of use that cannot be read: nothing is hidden while they are in force.
    """

    steps: tuple[Step, ...]
    kept: Mapping[Piece, tuple[int, str]]
    doubts: tuple[str, ...]


def decide(census: Census, *, keep: float, grace: float, min_free: int | None = None) -> Decision:
    """Decide what goes.

    Args:
        census: the look.
        keep: seconds for which a use counts.
        grace: seconds between hiding and removing.
        min_free: bytes that are enough: whole keys that nobody used for `keep` are then hidden
            least recently used first, and no more of them than that takes. None hides them all.
    """
    uses = need.in_force(census.uses, now=census.now, keep=keep)
    needed = need.needed(census, keep=keep)
    kept = {
        one.piece: (one.size, needed[one.piece]) for one in census.published if one.piece in needed
    }
    idle = [one for one in census.published if one.piece not in needed]
    trash = list(_trash(census, uses, grace=grace))
    hide = list(_hide(census, idle, kept, min_free=min_free))
    steps = (*trash, *hide, *_rest(census, keep=keep), *_records(census, uses, keep=keep))
    return Decision(steps, kept, tuple(need.doubts(uses)))


def _trash(census: Census, uses: list[Use], *, grace: float) -> Iterator[Step]:
    named = {piece for use in uses for piece in use.pieces or ()}
    wanted = {piece.key for piece in named}
    sealed = {one.piece.key for one in census.published if one.state == "sealed"}
    for aside in sorted(census.asides, key=_number, reverse=True):
        piece = aside.piece
        if aside.sort != "trash" or piece is None:
            continue
        age = census.now - aside.at
        if aside.going:
            yield Step("remove", "its removal had begun", aside.size, piece, aside)
        elif piece in named:
            yield Step("put back", "a record of use names it", aside.size, piece, aside)
        elif piece.key in wanted and piece.key not in sealed:
            yield Step("put back", "its key is in use again", aside.size, piece, aside)
            sealed.add(piece.key)
        elif age >= grace and not need.doubts(uses):
            yield Step("remove", f"hidden {ago(age)}", aside.size, piece, aside)


def _hide(
    census: Census,
    idle: list[Published],
    kept: dict[Piece, tuple[int, str]],
    *,
    min_free: int | None,
) -> Iterator[Step]:
    """Hide what was superseded or is broken; then whole keys, least recently used first."""
    best = need.next_taken(census.published)
    used = need.last_used(census.uses)
    going = sum(aside.size for aside in census.asides if aside.sort == "trash")
    free = census.free + going
    last: list[tuple[float, Published]] = []
    for one in idle:
        if best[one.piece.key] == one.piece:
            last.append((max(one.at, used.get(one.piece.key, one.at)), one))
            continue
        why = "superseded" if one.state == "sealed" else "broken, and another is newer or whole"
        free += one.size
        yield Step("hide", f"{why}; nobody uses it", one.size, one.piece)
    for at, one in sorted(last, key=lambda found: (found[0], found[1].piece)):
        if min_free is not None and free >= min_free:
            kept[one.piece] = (one.size, f"last used {ago(census.now - at)}; there is room")
            continue
        free += one.size
        yield Step("hide", f"last used {ago(census.now - at)}", one.size, one.piece)


def _rest(census: Census, *, keep: float) -> Iterator[Step]:
    for aside in census.asides:
        age = census.now - aside.at
        if aside.sort == "staging" and age >= STILL:
            yield Step("remove", f"last written {ago(age)}", aside.size, aside.piece, aside)
        elif aside.sort == "quarantine" and (aside.going or age >= keep):
            why = "its removal had begun" if aside.going else f"moved aside {ago(age)}"
            yield Step("remove", why, aside.size, aside.piece, aside)
        elif aside.sort == "leftover" and age >= STILL:
            yield Step("remove", f"left over {ago(age)}", aside.size, None, aside)


def _records(census: Census, uses: list[Use], *, keep: float) -> Iterator[Step]:
    counting = {use.name for use in uses}
    for use in census.uses:
        age = census.now - use.at
        if use.name not in counting:
            yield Step("forget", f"last renewed {ago(age)}", use=use)
        elif use.live and age >= keep / 4:
            yield Step("renew", "its server runs", use=use)


def _number(aside: Aside) -> tuple[int, str]:
    return aside.piece.number if aside.piece else 0, aside.path
