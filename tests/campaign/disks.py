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
ROOM_MB = 200
"""warmer wants 64 MiB more than what it fills."""


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
    """A tmpfs whose size changes: a quota."""

    def __init__(self, top):
        super().__init__(top)
        run("mount", "-t", "tmpfs", "-o", f"size={ROOM_MB}m", "tmpfs", self.path)

    def shrink(self, left):
        """Leave so many bytes free, or about that: what is used cannot be taken away."""
        used = os.statvfs(self.path)
        used = (used.f_blocks - used.f_bfree) * used.f_frsize
        for more in (left, left + (1 << 16), left + (1 << 20)):
            size = f"remount,size={used + more + 4096}"
            if (
                subprocess.run(["mount", "-o", size, self.path], capture_output=True).returncode
                == 0
            ):
                return

    def grow(self):
        run("mount", "-o", f"remount,size={ROOM_MB}m", self.path)

    def close(self):
        unmount(self.path)


class Loop(Memory):
    """An ext4 in a file: its power can be cut, and it can end read-only."""

    def __init__(self, top, *, options=""):
        super().__init__(top)
        self._image, self._options = f"{top}/disk.img", ",".join(filter(None, ("loop", options)))
        run("truncate", "-s", f"{ROOM_MB}M", self._image)
        lazy = "lazy_itable_init=1,lazy_journal_init=1"
        run("mkfs.ext4", "-qF", "-m", "0", "-E", lazy, self._image)
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
        """Mount it again; its journal is replayed. Nobody may use it, or the old mount lives on."""
        unmount(self.path, lazy=False)
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


def unmount(path, *, lazy=True):
    """Unmount; what has just been killed may keep it busy for a moment."""
    for _ in range(500):
        if subprocess.run(["umount", path], capture_output=True).returncode == 0:
            return
        time.sleep(0.01)
    run("umount", *(["-l"] if lazy else []), path)


def run(*argv):
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, (argv, done.stderr)
