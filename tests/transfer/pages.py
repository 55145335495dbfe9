"""What the kernel's page cache holds of a file, and filesystems that refuse things."""

import contextlib
import ctypes
import mmap
import os
import subprocess

_libc = ctypes.CDLL(None, use_errno=True)


def cached(path):
    """Count the bytes of a file that are in the page cache (mincore(2))."""
    size = os.stat(path).st_size
    if not size:
        return 0
    pages = -(-size // mmap.PAGESIZE)
    with open(path, "r+b") as stream, mmap.mmap(stream.fileno(), size) as memory:
        anchor = ctypes.c_char.from_buffer(memory)
        found = (ctypes.c_ubyte * pages)()
        asked = (ctypes.c_void_p(ctypes.addressof(anchor)), ctypes.c_size_t(size), found)
        failed = _libc.mincore(*asked)
        del anchor
    assert failed == 0, os.strerror(ctypes.get_errno())
    return sum(page & 1 for page in found) * mmap.PAGESIZE


@contextlib.contextmanager
def ext4(path, size="200M", *features):
    """Make an ext4 with mkfs's further words and mount it at a new directory; yields the path."""
    image = f"{path}.img"
    subprocess.run(["truncate", "-s", size, image], check=True)
    subprocess.run(["mkfs.ext4", "-qF", *features, image], check=True)
    os.makedirs(path)
    subprocess.run(["mount", "-o", "loop", image, path], check=True)
    try:
        yield str(path)
    finally:
        subprocess.run(["umount", "-l", path], check=True)
        os.unlink(image)


@contextlib.contextmanager
def ramfs(path):
    """A filesystem that counts no blocks, sets no room aside and takes no O_DIRECT."""
    os.makedirs(path)
    subprocess.run(["mount", "-t", "ramfs", "ramfs", path], check=True)
    try:
        yield str(path)
    finally:
        subprocess.run(["umount", "-l", path], check=True)
