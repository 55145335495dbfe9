"""What `hub.py` says: a directory described as the Hugging Face Hub does, and its words of refusal."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import time
from typing import NamedTuple

# status → the (X-Error-Code, X-Error-Message) which the real Hub sends with it.
_GATED = "Access to model {repo} is restricted"
_LOG_IN = "You must have access to it and be authenticated to access it. Please log in."
_ASK = "Visit https://huggingface.co/{repo} to ask for access."
SAYINGS = {
    401: ("GatedRepo", f"{_GATED}. {_LOG_IN}"),
    403: ("GatedRepo", f"{_GATED} and you are not in the authorized list. {_ASK}"),
    404: ("RepoNotFound", "Repository not found"),
    429: ("", "We had to rate limit your IP."),
    500: ("", "Internal Error - We're working hard to fix this as soon as possible!"),
}


class File(NamedTuple):
    """One file of a commit; `oid` is its git blob id, which for LFS is the pointer's."""

    source: str
    size: int
    sha256: str
    oid: str
    pointer_size: int | None  # None: not LFS

    @property
    def etag(self) -> str:
        return self.oid if self.pointer_size is None else self.sha256


class Commit(NamedTuple):
    """A sha, and the files by path, in order."""

    sha: str
    files: dict[str, File]


def read_commit(top: str) -> Commit:
    """Describe what is under `top` now."""
    names = (os.path.join(at, name) for at, _, names in os.walk(top) for name in names)
    files = {os.path.relpath(name, top): _read_file(name) for name in names}
    files = dict(sorted(files.items()))
    content = "".join(f"{path}\0{file.sha256}\n" for path, file in files.items())
    return Commit(_sha1(content.encode()), files)


def siblings(commit: Commit, *, blobs: bool) -> list[dict]:
    """List the files as `/api/models/<repo>` does, with their metadata if `blobs`."""
    listed = []
    for path, file in commit.files.items():
        entry: dict = {"rfilename": path}
        if blobs:
            entry |= {"size": file.size, "blobId": file.oid}
            if file.pointer_size is not None:
                lfs = {"sha256": file.sha256, "size": file.size, "pointerSize": file.pointer_size}
                entry["lfs"] = lfs
        listed.append(entry)
    return listed


def tree(commit: Commit, top: str, *, recursive: bool) -> list[dict]:
    """List what is under the directory `top` ("": all) as `/api/models/<repo>/tree` does."""
    prefix = f"{top}/" if top else ""
    entries: dict[str, dict] = {}
    for path, file in commit.files.items():
        if not path.startswith(prefix):
            continue
        for slash in re.finditer("/", path[len(prefix) :]):
            at = path[: len(prefix) + slash.start()]
            entries[at] = {"type": "directory", "oid": _sha1(at.encode()), "size": 0, "path": at}
        entries[path] = {"type": "file", "oid": file.oid, "size": file.size, "path": path}
        if file.pointer_size is not None:
            lfs = {"oid": file.sha256, "size": file.size, "pointerSize": file.pointer_size}
            entries[path]["lfs"] = lfs
    return [entry for at, entry in entries.items() if recursive or "/" not in at[len(prefix) :]]


def _sha1(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


def _read_file(source: str) -> File:
    stat = os.stat(source)
    # A file written this moment may be written again without its time stamp moving.
    settled = time.time_ns() - stat.st_mtime_ns > 100_000_000
    read = _hash if settled else _hash.__wrapped__
    return read(source, stat.st_size, stat.st_mtime_ns, stat.st_ino)


@functools.cache
def _hash(source: str, size: int, *_state: int) -> File:
    with open(source, "rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        if not source.endswith((".safetensors", ".bin")):
            stream.seek(0)
            return File(source, size, sha256, _sha1(b"blob %d\0" % size + stream.read()), None)
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
    oid = _sha1(f"blob {len(pointer)}\0{pointer}".encode())
    return File(source, size, sha256, oid, len(pointer))
