"""What a volume of the campaign lies on, and what can go wrong with each for real."""

import fcntl
import json
import os
import struct
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
_SHUTDOWN, _NO_FLUSH = 0x8004587D, 2
"""ext4's ioctl EXT4_IOC_SHUTDOWN: nothing that is in memory reaches the disk any more."""
LOOP_MB, GROWN_MB = 12, 64


class Memory:
    """A directory of the machine's tmpfs: nothing goes wrong with it by itself.

    `exclusive`: its locks exclude other processes. `daemon`: the process that serves it, if one does.
    """

    exclusive = True
    daemon = None

    def __init__(self, top):
        self.path = f"{top}/volume"
        self.top = top
        os.makedirs(self.path, exist_ok=True)

    def close(self):
        pass


class Small(Memory):
    """A tmpfs of so many bytes, which can be grown."""

    def __init__(self, top, size):
        super().__init__(top)
        run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", self.path)

    def grow(self):
        run("mount", "-o", f"remount,size={GROWN_MB}m", self.path)

    def close(self):
        unmount(self.path)


class Loop(Memory):
    """An ext4 in a file: its power can be cut, and it can end read-only."""

    def __init__(self, top, *, options="", mb=GROWN_MB):
        super().__init__(top)
        self._image, self._options = f"{top}/disk.img", ",".join(filter(None, ("loop", options)))
        run("truncate", "-s", f"{mb}M", self._image)
        run("mkfs.ext4", "-qF", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1", self._image)
        self._mount()

    def _mount(self):
        run("mount", "-o", self._options, self._image, self.path)

    def cut_power(self):
        """What is not durable now is lost; all that uses the volume gets EIO."""
        at = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(at, _SHUTDOWN, struct.pack("I", _NO_FLUSH))
        finally:
            os.close(at)

    def end_read_only(self):
        """As ext4 does over an error of its disk: EROFS for all, those with open files too."""
        run("mount", "-o", "remount,abort", self.path)

    def remount(self):
        """Mount it again; its journal is replayed."""
        unmount(self.path)
        self._mount()

    def grow(self):
        unmount(self.path)
        run("truncate", "-s", f"{GROWN_MB}M", self._image)
        run("e2fsck", "-fp", self._image)
        run("resize2fs", self._image)
        self._mount()

    def close(self):
        unmount(self.path)
        os.unlink(self._image)


class Fuse(Memory):
    """A filesystem that fails as it is told: `fail` with rules of `faulty`, `heal`."""

    exclusive = False

    def __init__(self, top):
        super().__init__(top)
        self._rules, below = f"{top}/rules.json", f"{top}/below"
        os.makedirs(below)
        argv = [sys.executable, f"{HERE}/faulty.py", below, self.path, self._rules]
        self.daemon = mount_by(argv, self.path)

    def fail(self, *rules):
        fresh = f"{self._rules}.fresh"
        Path(fresh).write_text(json.dumps(rules))
        os.replace(fresh, self._rules)

    def heal(self):
        self.fail()

    def close(self):
        unmount(self.path)
        self.daemon.kill()
        self.daemon.wait()


class Late(Memory):
    """Two views of one directory; in the second, what others publish is late, or stale for a while."""

    exclusive = False

    def __init__(self, top, *, errno, asks):
        super().__init__(top)
        self.view = f"{top}/late"
        os.makedirs(self.view)
        late = HERE.parent / "crash" / "late.py"
        argv = [sys.executable, str(late), self.path, self.view, str(errno), str(asks)]
        self.daemon = mount_by(argv, self.view)

    def close(self):
        unmount(self.view)
        self.daemon.kill()
        self.daemon.wait()


def mount_by(argv, point):
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, start_new_session=True)
    until = time.monotonic() + 20
    while not os.path.ismount(point):
        assert process.poll() is None and time.monotonic() < until, f"{argv} does not mount"
        time.sleep(0.01)
    return process


def unmount(path):
    """Unmount; what has just been killed may keep it busy for a moment."""
    for _ in range(200):
        if subprocess.run(["umount", path], capture_output=True).returncode == 0:
            return
        time.sleep(0.01)
    run("umount", "-l", path)


def run(*argv):
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, (argv, done.stderr)
