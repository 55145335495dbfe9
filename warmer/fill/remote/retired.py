"""Pieces of a bucket that this volume has moved aside: they crashed the engine, or do not unpack.

They lie in quarantine as they were sealed; what was found corrupt lies there too, and its bytes in
the bucket may be good.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from warmer.errors import IntegrityError, using
from warmer.fill import restore
from warmer.observe import inventory, numbers
from warmer.seal import ForeignSealError

if TYPE_CHECKING:
    from warmer.layout import Volume
    from warmer.seal import Seal


def here(volume: Volume, record: Seal) -> bool:
    """Whether the very bytes that a seal names were moved aside here though they are whole.

    Raises:
        VolumeError: the volume failed.
    """
    with using("the volume"):
        try:
            names = numbers.listing(volume, volume.quarantine)
        except FileNotFoundError:
            return False
        for name in names:
            aside = numbers.aside(name)
            if aside is None or (aside.kind, aside.digest) != (record.kind, record.key):
                continue
            directory = os.path.join(volume.quarantine, name)
            try:
                moved, _ = inventory.read_seal(directory)
            except (OSError, IntegrityError, ForeignSealError):
                continue
            if moved.files == record.files and restore.whole(directory):
                return True
    return False
