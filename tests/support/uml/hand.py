"""A process on a node that does what it is told: one act per line of stdin, one answer each.

An act is a function of this module; what it returns, or the name of its OSError, is the answer.
"""

import errno
import fcntl
import json
import os
import struct
import sys
import time

_WHOLE_FILE = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
_held = {}


def lock(path):
    """Take a file's lock without waiting; held until `release` or the end of this process."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _WHOLE_FILE)
    except OSError:
        os.close(descriptor)
        raise
    _held[path] = descriptor
    return "ok"


def release(path):
    """Give a lock back."""
    os.close(_held.pop(path))
    return "ok"


def write_locked(path):
    """Write through a locked descriptor, down to the server."""
    os.pwrite(_held[path], b"mine", 0)
    os.fsync(_held[path])
    return "ok"


def put(path, text):
    """Make a file under another name, and rename it; returns when, on the guest's clock."""
    descriptor = os.open(f"{path}.tmp", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    os.write(descriptor, text.encode())
    os.fsync(descriptor)
    os.close(descriptor)
    os.rename(f"{path}.tmp", path)
    return time.monotonic()


def read(path):
    """Read a text file, its directory reopened first."""
    os.close(os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY))
    with open(path, encoding="utf-8") as stream:
        return stream.read()


def make(path):
    """Make a directory."""
    os.mkdir(path)
    return "ok"


def move(source, target):
    """Rename."""
    os.rename(source, target)
    return "ok"


def sees(path):
    """Whether a file can be opened."""
    try:
        os.close(os.open(path, os.O_RDONLY))
    except FileNotFoundError:
        return False
    return True


def sees_reopened(path):
    """Whether a file can be opened after its directory was."""
    os.close(os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY))
    return sees(path)


def sees_late(path, timeout):
    """Look for a file until it is there; returns when, on the guest's clock, or None."""
    deadline = time.monotonic() + timeout
    while not sees(path):
        if time.monotonic() > deadline:
            return None
        time.sleep(0.1)
    return time.monotonic()


def main():
    for line in sys.stdin:
        act, *words = json.loads(line)
        try:
            answer = globals()[act](*words)
        except OSError as exc:
            answer = errno.errorcode[exc.errno]
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
