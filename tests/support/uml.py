"""Guests: Linux kernels run as processes (User-Mode-Linux), to be cut off or to lose their power.

A guest sees this machine's files read-only under the same paths, so a scenario is a Python file
of the repository, run by the interpreter of the tests. It has a tmpfs at /run, and a disk if it is
given one. What it writes to the disk and has not flushed is in the guest's memory alone: `cut`
loses it, as a power cut does. (What a real disk has taken and not yet flushed is not lost here.)

`boot` runs a scenario to its end; `start` returns at once. A scenario speaks with `guest.result`
of the folder beside this file; `nodes` there makes an NFS server and nodes that mount it.
"""

import atexit
import contextlib
import functools
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NEEDED = {
    "g++": "g++",
    "linux.uml": "user-mode-linux",
    "modprobe": "kmod",
    "ip": "iproute2",
    "mkfs.ext4": "e2fsprogs",
    "rpcbind": "rpcbind",
    "rpc.nfsd": "nfs-kernel-server",
    "mount.nfs": "nfs-common",
}
"""Tool → the Debian package that has it."""
REASON = f"needs root and the packages {' '.join(NEEDED.values())}"

_HERE = Path(__file__).resolve().parent
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_RESULT, _END = b"\x1e@result ", b"\x1e@end "
_TAIL = 40


def available():
    """Whether this machine can run guests."""
    return os.geteuid() == 0 and all(shutil.which(tool, path=_PATH) for tool in NEEDED)


def boot(scenario, *, timeout=120, **more):
    """Run a scenario to its end; `more` is for `start`. Returns the finished guest."""
    with start(scenario, **more) as guest:
        return guest.wait(timeout)


def start(scenario, *, args=None, memory="1G", disk=None):
    """Start a guest. It dies with the thread that called this, however that ends.

    Args:
        scenario: path of the Python file to run.
        args: what `guest.args()` returns there: anything that JSON can hold.
        memory: how much it has; /run can take half of it.
        disk: path of an image, which is its /dev/ubda.
    """
    return Guest(os.path.abspath(scenario), args, memory, disk)


class GuestError(AssertionError):
    """A guest did not come to its end; says how its log ends."""


class Guest:
    """One guest, running or ended. As a context manager it leaves nothing running."""

    def __init__(self, scenario, args, memory, disk):
        self.top = tempfile.mkdtemp(prefix="uml-")
        self._scenario, self._results, self._rest, self._read = scenario, [], b"", 0
        self._log, self.status = None, None
        self._console = os.path.join(self.top, "console")
        job = os.path.join(self.top, "job")
        # As the test runs: the repository first, then what the tests share.
        places = (_HERE.parent.parent, _HERE, _HERE / "uml")
        command = shlex.join([sys.executable, scenario, json.dumps(args)])
        path = shlex.quote(os.pathsep.join(map(str, places)))
        Path(job).write_text(f"export PYTHONPATH={path}\nexec {command}\n", encoding="utf-8")
        with open(self._console, "wb") as console:
            self._process = subprocess.Popen(
                [*_PRISON, *self._kernel(memory, disk), f"JOB={job}"],
                env={
                    "PATH": _PATH,
                    "TMPDIR": self._memory(memory),
                    "LD_PRELOAD": _whole_state(),
                },
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.cut()

    @property
    def results(self):
        """What the scenario has reported so far, in order."""
        self._follow()
        return list(self._results)

    @property
    def pid(self):
        """The first of the guest's processes, or None. With it the others die."""
        waiting = self._process.pid
        with contextlib.suppress(OSError):
            for pid in Path(f"/proc/{waiting}/task/{waiting}/children").read_text().split():
                return int(pid)
        return None

    @property
    def log(self):
        """All that was on the console so far."""
        if self._log is not None:
            return self._log
        return Path(self._console).read_bytes().decode(errors="replace")

    def until(self, condition, timeout=120):
        """Wait until `condition(results)`; returns its value.

        Raises:
            GuestError: the guest ended before, or time is up.
        """
        deadline = time.monotonic() + timeout
        while True:
            ended = self._process.poll() is not None
            if value := condition(self.results):
                return value
            if ended:
                self._fail("ended too early")
            if time.monotonic() > deadline:
                self._fail(f"had not come so far after {timeout} s")
            time.sleep(0.01)

    def wait(self, timeout=120):
        """Wait for the end of the scenario; returns this guest.

        Raises:
            GuestError: the scenario failed, the guest ended before it did, or time is up.
        """
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._fail(f"was still running after {timeout} s")
        self._follow()
        if self.status != 0:
            how = "without a word" if self.status is None else f"with status {self.status}"
            self._fail(f"ended {how}")
        self.cut()
        return self

    def cut(self):
        """Take its power away: kill -9 of all its processes, gone on return. Its log remains."""
        if self._log is None:
            self._kill()
            self._process.wait()
            self._follow()
            self._log = self.log
            shutil.rmtree(self.top)

    def _kill(self):
        # The first one's end comes after that of all others, and is waited for.
        with contextlib.suppress(ProcessLookupError):
            if pid := self.pid:
                os.kill(pid, signal.SIGKILL)
            else:
                self._process.kill()

    def _fail(self, what):
        self.cut()
        tail = "\n".join(self._log.splitlines()[-_TAIL:])
        raise GuestError(f"the guest of {self._scenario} {what}; its log ends:\n{tail}")

    def _follow(self):
        if self._log is not None:
            return
        with open(self._console, "rb") as console:
            console.seek(self._read)
            fresh = console.read()
        self._read += len(fresh)
        *lines, self._rest = (self._rest + fresh).split(b"\n")
        for line in lines:
            # Another may be in the middle of a line when a report comes.
            _, result, values = line.partition(_RESULT)
            _, end, status = line.partition(_END)
            if result:
                self._results.append(json.loads(values))
            elif end:
                self.status = int(status)

    def _kernel(self, memory, disk):
        words = ["linux.uml", f"mem={memory}", f"uml_dir={self.top}", "quiet"]
        words += ["rootfstype=hostfs", "rootflags=/", "ro", f"init={_HERE / 'uml' / 'init.sh'}"]
        words += ["con=null", "con0=fd:0,fd:1"]
        return words + ([f"ubda={os.path.abspath(disk)}"] if disk else [])

    def _memory(self, memory):
        """Name where the guest's memory can lie, which is a file that it maps and executes."""
        size = int(memory[:-1]) << {"M": 20, "G": 30}[memory[-1]]
        with contextlib.suppress(OSError):
            shared = os.statvfs("/dev/shm")
            if shared.f_bavail * shared.f_frsize > size and not shared.f_flag & os.ST_NOEXEC:
                return "/dev/shm"
        return self.top


# A process namespace of its own, which the kernel kills whole when its first process dies; and
# that dies with `unshare`, which dies with us.
_PRISON = ("setpriv", "--pdeathsig", "KILL", "unshare", "--pid", "--fork", "--kill-child")


@functools.cache
def _whole_state():
    """Build what linux.uml needs where processors have AMX; returns the library's path."""
    top = tempfile.mkdtemp(prefix="uml-")
    atexit.register(shutil.rmtree, top, ignore_errors=True)
    library = os.path.join(top, "wholestate.so")
    words = ("-x", "c", "-O2", "-shared", "-fPIC", _HERE / "uml" / "wholestate.c", "-ldl")
    _run("g++", *words, "-o", library)
    return library


# --- disks ---------------------------------------------------------------------------------------


def make_disk(path, size="256M"):
    """Make an image with an empty ext4 filesystem; returns its path."""
    _run("truncate", "-s", size, path)
    _run("mkfs.ext4", "-qF", path)
    return str(path)


@contextlib.contextmanager
def mounted(image, at):
    """Mount an image here, which replays its journal as the next boot would; yields `at`.

    By a device of its own: ``mount -o loop`` takes one that is still there from the last time, and
    shows what that one remembers instead of what a guest has written to the image meanwhile.
    """
    os.makedirs(at, exist_ok=True)
    losetup = ["losetup", "--find", "--show", str(image)]
    device = subprocess.run(losetup, check=True, timeout=60, capture_output=True, text=True)
    try:
        _run("mount", device.stdout.strip(), at)
        try:
            yield str(at)
        finally:
            _run("umount", at)
    finally:
        _run("losetup", "--detach", device.stdout.strip())


def _run(*command):
    subprocess.run([str(word) for word in command], check=True, timeout=60)
