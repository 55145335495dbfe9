"""What one run of gc knows of uses and numbers: read for many generations at once.

Each generation asked for by itself would cost a reading of every record, and a listing of all that was
ever moved aside: on a volume of many pods and old generations, hours. So what is read is asked about
as many generations as there are records, and is then read again.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final

from warmer.collect import census, need
from warmer.errors import VolumeError, using
from warmer.fill import publish, uses
from warmer.model import Key
from warmer.observe import numbers

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from warmer.collect.decide import Step
    from warmer.fill.locks import Grant
    from warmer.layout import Volume
    from warmer.model import Kind
    from warmer.usage import Piece

_PLACE: Final = "the volume"
_FEWEST: Final = 8
"""Generations that one reading is good for, however few records there are."""
_CUT_SHORT: Final = "the look at the uses was cut short"


class Records:
    """The records of use, as they were read last.

    Args:
        volume: where.
        keep: seconds for which a use counts.
    """

    def __init__(self, volume: Volume, *, keep: float) -> None:
        self._volume = volume
        self._keep = keep
        self._named: need.Named | None = None
        self._asked = 0
        self.batch = _FEWEST
        """Generations that one reading is good for."""

    def read(self) -> None:
        """Read them anew.

        Raises:
            VolumeError: the volume failed.
        """
        with using(_PLACE):
            now = census.clock(self._volume, dry=False)
        found = uses.read_all(self._volume, asked_before=now - self._keep)
        force = need.in_force(found, now=now, keep=self._keep)
        self._named, self._asked = need.Named(force, now=now), 0
        self.batch = max(_FEWEST, len(found))

    def why(self, piece: Piece) -> str:
        """Say who uses a generation; empty where nobody did at the last reading.

        Raises:
            VolumeError: the volume failed.
        """
        if self._named is None or self._asked >= self.batch:
            self.read()
        self._asked += 1
        return (self._named.why(piece) if self._named is not None else None) or ""


class Hiding:
    """Hides generations; when a batch of them is hidden, looks at the uses once more.

    A prefill records its use before it looks at a piece. So of a reading that comes after the hiding
    and a prefill's look that comes before it, one sees the other, for one generation as for many:
    those that a record names by then are put back.

    Args:
        volume: where.
        records: of this run.
        note: told of each step and why it was not done, once that is known.
    """

    def __init__(
        self, volume: Volume, records: Records, *, note: Callable[[Step, str], None]
    ) -> None:
        self._volume = volume
        self._records = records
        self._note = note
        self._there: frozenset[int] = frozenset()
        self.pending: list[tuple[Step, Piece, str]] = []
        """What is hidden and not looked after: the step, the generation, where it is."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Settle what is pending; where the run was cut short, put it back."""
        try:
            if kind is None:
                self.settle()
        finally:
            self._judge(lambda _: _CUT_SHORT)

    @property
    def steps(self) -> list[Step]:
        """The steps that are pending."""
        return [step for step, _, _ in self.pending]

    def look(self, key: tuple[Kind, str]) -> None:
        """List the generations of a key, whose lock was just got; those of it can then be hidden.

        Raises:
            VolumeError: the volume failed.
        """
        with using(_PLACE):
            self._there = frozenset(numbers.generations(self._volume, *key))

    def hide(self, step: Step, piece: Piece, grant: Grant) -> None:
        """Hide a generation, unless it is in use; settles when a batch is hidden.

        Raises:
            VolumeError: the volume failed.
        """
        if len(self.pending) >= self._records.batch:
            self.settle()
        if why := self._records.why(piece):
            self._note(step, why)
            return
        if piece.number not in self._there:
            self._note(step, "gone already")
            return
        if not grant.still_mine():
            self._note(step, "its lock was lost")
            return
        key = Key.known(*piece.key)
        place = publish.trash_name(self._volume, key, piece.number)
        self.pending.append((step, piece, place))  # before: who is told to stop puts it back
        try:
            publish.hide(self._volume, key, piece.number, place)
        except VolumeError:
            publish.put_back(self._volume, place)
            self.pending.pop()
            if os.path.lexists(self._volume.generation(*piece)):
                raise
            self._note(step, "gone already")
            return
        if grant.exclusive:  # else another may be about to publish there
            with contextlib.suppress(OSError):  # others of its key are there
                os.rmdir(self._volume.key(*piece.key))

    def settle(self) -> None:
        """Read the records; put back what they name by now.

        Raises:
            VolumeError: the volume failed; what was pending is put back.
        """
        if self.pending:
            self._records.read()
            self._judge(self._records.why)

    def _judge(self, why: Callable[[Piece], str]) -> None:
        """Put back what there is a reason to; what fails is left to be put back, and raised."""
        while self.pending:
            step, piece, place = self.pending[-1]
            if reason := why(piece):
                publish.put_back(self._volume, place)
            self.pending.pop()
            self._note(step, reason)


class Taken:
    """Which numbers of each key were ever given, as one look at the volume's asides found them.

    Numbers only come; the one that removes the highest of a key leaves its name first. So what was
    found once is enough for a run.

    Args:
        volume: where.
    """

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._moved: dict[tuple[Kind, str], set[int]] | None = None
        self._highest: dict[tuple[Kind, str], int] = {}
        self._files: dict[tuple[Kind, str], list[tuple[int, str]]] | None = None

    def highest(self, piece: Piece) -> int:
        """Find the highest number ever given to a generation of a key.

        Raises:
            OSError: the volume failed.
        """
        if self._moved is None:
            self._moved = numbers.moved(self._volume)
        if piece.key not in self._highest:
            there = numbers.generations(self._volume, *piece.key)
            found = numbers.counted({*there, *self._moved.get(piece.key, ())})
            self._highest[piece.key] = max(found, default=0)
        return self._highest[piece.key]

    def names(self, piece: Piece) -> list[str]:
        """Name the files in ``taken/`` that speak of lower numbers of its key.

        Raises:
            OSError: the volume failed.
        """
        if self._files is None:
            self._files = {}
            for name in numbers.listing(self._volume, self._volume.taken):
                if was := numbers.aside(name):
                    self._files.setdefault((was.kind, was.digest), []).append((was.number, name))
        of_key = self._files.get(piece.key, ())
        return [name for number, name in of_key if number < piece.number]
