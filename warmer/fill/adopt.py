"""Files of a model that lie about on the machine: in a Hugging Face cache, or in a folder.

A cache (huggingface_hub's docs: ``models--org--name/{snapshots,blobs}``) or a folder of people's.
A big weights file is replaced in both, not edited, and may be linked where the filesystem shares no
blocks; a small file is copied, for people edit ``config.json`` where it lies, through a cache's
links too, and what is published must never change.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from warmer.errors import using

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from warmer.fill.sources import SourceFile
    from warmer.model import ModelRef

Donor = tuple[str, bool]
"""A path, and whether a link to it is safe: nobody writes to it any more."""

_EDITED: Final = 16 << 20
"""Bytes below which a file may be one that people edit."""


def finder(place: str, model: ModelRef) -> Callable[[SourceFile], Iterator[Donor]]:
    """Make what names the paths of one place where a file may be, the likeliest first.

    Args:
        place: a Hugging Face cache, the ``HF_HOME`` around it, or a folder of the model's files.
        model: at its resolved revision.
    """
    name = f"models--{model.name.replace('/', '--')}"
    for cache in (place, os.path.join(place, "hub")):
        repository = os.path.join(cache, name)
        if model.scheme == "hf" and os.path.isdir(repository):
            return lambda file: _cached(repository, model.revision, file)
    return lambda file: _folder(place, file)


def places(asked: Sequence[str], volume: str, environment: Mapping[str, str]) -> tuple[str, ...]:
    """Say where to look: where the user says, then in the caches that are there anyway.

    Args:
        asked: ``--adopt``.
        volume: the volume's mount point; pods without warmer may have kept a cache there.
        environment: HF_HUB_CACHE and HF_HOME are read from it.
    """
    known = [environment.get("HF_HUB_CACHE"), environment.get("HF_HOME"), volume]
    caches = [place for place in known if place and _holds_cache(place)]
    return tuple(dict.fromkeys((*asked, *caches)))


def sized(path: str, file: SourceFile) -> os.stat_result | None:
    """Look whether a path has something of a file's size."""
    try:
        info = os.stat(path)
    except OSError:
        return None
    return info if info.st_size == file.size else None


def near(donors: Iterable[Donor], file: SourceFile, directory: str) -> bool:
    """Whether a donor is on a directory's own filesystem, where it can be shared.

    Raises:
        VolumeError: the directory is gone.
    """
    with using("the volume"):
        device = os.stat(directory).st_dev
    found = (sized(path, file) for path, _ in donors)
    return any(info.st_dev == device for info in found if info is not None)


def _holds_cache(place: str) -> bool:
    for cache in (place, os.path.join(place, "hub")):
        try:
            if any(name.startswith("models--") for name in os.listdir(cache)):
                return True
        except OSError:
            continue
    return False


def _cached(repository: str, revision: str, file: SourceFile) -> Iterator[Donor]:
    yield os.path.join(repository, "snapshots", revision, file.path), _linkable(file)
    for name in ("sha256", "git-sha1"):
        if digest := file.digests.get(name):
            yield os.path.join(repository, "blobs", digest), _linkable(file)


def _folder(place: str, file: SourceFile) -> Iterator[Donor]:
    yield os.path.join(place, file.path), _linkable(file)


def _linkable(file: SourceFile) -> bool:
    return file.size >= _EDITED
