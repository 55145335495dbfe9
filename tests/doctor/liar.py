"""A filesystem that passes everything through to a directory, and lies as it is told.

``python liar.py DIRECTORY POINT LIE...`` mounts it until it is unmounted. Locks stay in the kernel
of this node unless a lie is about them, as with any FUSE filesystem that has no lock operations.
"""

import errno
import os
import shutil
import sys
import threading
import time

import mfusepy

LATE = 5.0
_SECOND = 1_000_000_000


class Liar(mfusepy.Operations):
    use_ns = True

    def __init__(self, root):
        self._root = root

    def _at(self, path):
        return self._root + path

    def getattr(self, path, fh=None):
        found = os.lstat(self._at(path))
        names = ("st_mode", "st_nlink", "st_uid", "st_gid", "st_size", "st_ino")
        times = {f"st_{t}time": getattr(found, f"st_{t}time_ns") for t in "amc"}
        return {name: getattr(found, name) for name in names} | times

    def readdir(self, path, fh):
        names = [".", "..", *os.listdir(self._at(path))]
        return [(name, self.getattr(f"{path}/{name}"), 0) for name in names]

    def statfs(self, path):
        found = os.statvfs(self._at(path))
        return {name: getattr(found, name) for name in dir(found) if name.startswith("f_")}

    def create(self, path, mode, fi=None):
        return os.open(self._at(path), os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)

    def open(self, path, flags):
        return os.open(self._at(path), flags & ~os.O_CREAT)

    def read(self, path, size, offset, fh):
        return os.pread(fh, size, offset)

    def write(self, path, data, offset, fh):
        return os.pwrite(fh, data, offset)

    def truncate(self, path, length, fh=None):
        os.truncate(self._at(path) if fh is None else fh, length)

    def release(self, path, fh):
        os.close(fh)

    def fsync(self, path, datasync, fh):
        os.fsync(fh)

    def mkdir(self, path, mode):
        os.mkdir(self._at(path), mode)

    def rmdir(self, path):
        os.rmdir(self._at(path))

    def unlink(self, path):
        os.unlink(self._at(path))

    def rename(self, old, new):
        os.rename(self._at(old), self._at(new))

    def link(self, target, source):
        os.link(self._at(source), self._at(target))

    def symlink(self, target, source):
        os.symlink(source, self._at(target))

    def readlink(self, path):
        return os.readlink(self._at(path))

    def chmod(self, path, mode):
        os.chmod(self._at(path), mode)

    def utimens(self, path, times=None):
        os.utime(self._at(path), ns=times)


# --- lies: each a method in the place of an honest one -------------------------------------------


def _copy(source, target):
    """As object stores rename: write the new, then delete the old."""
    if os.path.isdir(source):
        shutil.copytree(source, target)
        shutil.rmtree(source)
        return
    with open(source, "rb") as old, open(target, "wb") as new:
        while data := old.read(4096):
            new.write(data)
            new.flush()
    os.unlink(source)


def renames_copy(self, old, new):
    old, new = self._at(old), self._at(new)
    if os.path.isdir(new) and os.listdir(new):
        raise mfusepy.FuseOSError(errno.ENOTEMPTY)
    _copy(old, new)


def renames_delete_first(self, old, new):
    old, new = self._at(old), self._at(new)
    if os.path.isfile(new):
        os.unlink(new)
        time.sleep(0.001)
    os.rename(old, new)


def renames_replace(self, old, new):
    old, new = self._at(old), self._at(new)
    if os.path.isdir(new):
        shutil.rmtree(new)
    os.rename(old, new)


def renames_mix(self, old, new):
    old, new = self._at(old), self._at(new)
    if not os.path.isdir(new):
        os.rename(old, new)
        return
    shutil.copytree(old, new, dirs_exist_ok=True)
    shutil.rmtree(old)


def refuse(number):
    def lie(self, *_):
        raise mfusepy.FuseOSError(number)

    return lie


def hang(self, *_):
    """As a server that is gone: no answer, to whoever asks."""
    threading.Event().wait()


def whole_seconds(self, path, times=None):
    times = tuple(t // _SECOND * _SECOND for t in times or (time.time_ns(),) * 2)
    os.utime(self._at(path), ns=times)


def now(self, path, times=None):
    os.utime(self._at(path))


def locks_exclude_nobody(self, path, fh, cmd, lock):
    return 0


def links_copy(self, target, source):
    shutil.copy2(self._at(source), self._at(target))


class NamesLate(Liar):
    """As a client that remembers for seconds that a name was not there, whatever is done.

    What it makes itself it knows; and all names but those in directories called names, or two
    doctors would have no word from each other.
    """

    def __init__(self, root):
        super().__init__(root)
        self._vain = {}

    def getattr(self, path, fh=None):
        if "/names/" in path:
            if time.monotonic() - self._vain.get(path, -LATE) < LATE:
                raise mfusepy.FuseOSError(errno.ENOENT)
            if not os.path.lexists(self._at(path)):
                self._vain[path] = time.monotonic()
        return super().getattr(path, fh)

    def mkdir(self, path, mode):
        self._vain.pop(path, None)
        super().mkdir(path, mode)

    def create(self, path, mode, fi=None):
        self._vain.pop(path, None)
        return super().create(path, mode, fi)


CLASSES = {"names-late": NamesLate}
LIES = {
    "renames-copy": {"rename": renames_copy},
    "renames-delete-first": {"rename": renames_delete_first},
    "renames-replace": {"rename": renames_replace},
    "renames-mix": {"rename": renames_mix},
    "renames-unknown": {"rename": refuse(errno.ENOSYS)},
    "no-locks": {"lock": refuse(errno.ENOSYS)},
    "locks-exclude-nobody": {"lock": locks_exclude_nobody},
    "mtime-in-seconds": {"utimens": whole_seconds},
    "mtime-now": {"utimens": now},
    "no-links": {"link": refuse(errno.EPERM), "symlink": refuse(errno.EPERM)},
    "links-copy": {"link": links_copy},
    "no-fsync": {"fsyncdir": refuse(errno.EINVAL)},
    "no-directories": {"mkdir": refuse(errno.ENOSYS)},
    "hangs-when-asked": {"getattr": hang},
    "hangs-when-full-is-asked": {"statfs": hang},
    "hangs-when-renamed": {"rename": hang},
    "hangs-when-tidied": {"rename": hang, "unlink": hang},
}

if __name__ == "__main__":
    root, point, *lies = sys.argv[1:]
    told = {name: method for lie in lies for name, method in LIES.get(lie, {}).items()}
    kinds = [CLASSES[lie] for lie in lies if lie not in LIES]
    liar = type("Told", (*kinds, Liar), told)(root)
    mfusepy.FUSE(liar, point, foreground=True, fsname="liar", use_ino=True)
