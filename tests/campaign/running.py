"""Processes of the real command line, in a pod's own view of the filesystem; ended or stopped.

A process that is to be killed hundreds of times is forked from this one, which has imported what
warmer imports and has one thread: that costs a tenth of a new interpreter. `fresh` ones are new.
"""

import contextlib
import ctypes
import dataclasses
import gc
import os
import signal
import sys
import time

LIBC = ctypes.CDLL(None, use_errno=True)
_NEW_MOUNTS, _PRIVATE, _BIND = 0x20000, 0x44000, 0x1000
_SUBREAPER = 36
_HELD = (signal.SIGTERM, signal.SIGINT)
BOUND = 100.0
"""Seconds in which whatever is started must end by itself; none may block a pod for ever."""


@dataclasses.dataclass(eq=False)
class Run:
    """A running or ended process.

    Attributes:
        name: what it does, in a word.
        pod: the pod it is in.
        model: what it was told to serve.
        pid: its number; it leads a session.
        out: the file of its stdout, and `err` of its stderr.
        status: how it ended, negative for a signal; None: not yet.
        sent: the signal it was sent; 0: none.
        seconds: how long it took.
    """

    name: str
    pod: object
    model: object
    pid: int
    out: str
    err: str
    began: float
    status: int | None = None
    sent: int = 0
    met: bool = False
    seconds: float = 0.0

    def poll(self):
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
                self.seconds = time.monotonic() - self.began
        return self.status

    def wait(self, seconds):
        """Wait for its end; whether it came."""
        until = time.monotonic() + seconds
        while self.poll() is None and time.monotonic() < until:
            time.sleep(0.005)
        return self.status is not None

    def signal(self, number):
        """Send it a signal; whether it was still there to get it."""
        if self.poll() is None:
            self.sent, self.met = number, True
            os.kill(self.pid, number)
        return self.met

    def stop(self):
        """Freeze it with all its children, as a node that hangs does; return whom."""
        frozen = [self.pid, *below(self.pid)] if self.poll() is None else []
        for pid in frozen:
            _send(pid, signal.SIGSTOP)
        self.met = self.met or bool(frozen)
        return frozen

    def kill_all(self):
        """Kill it and all it started, as the end of its container does."""
        if self.poll() is None:
            self.sent, self.met = signal.SIGKILL, True
            while family := [pid for pid in (self.pid, *below(self.pid)) if _alive(pid)]:
                for pid in family:
                    _send(pid, signal.SIGKILL)
                time.sleep(0.001)
                if self.poll() is not None:
                    break
        return self.met

    def said(self):
        with open(self.err, encoding="utf-8", errors="replace") as stream:
            return stream.read()


def thaw(pids):
    for pid in pids:
        _send(pid, signal.SIGCONT)


def adopt_orphans():
    """Be the parent of whatever loses its own: nothing that was started is out of sight."""
    LIBC.prctl(_SUBREAPER, 1, 0, 0, 0)


def below(pid):
    """Every descendant of a process, as far as it is not gone meanwhile."""
    found = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children", encoding="ascii") as stream:
                for child in map(int, stream.read().split()):
                    found += [child, *below(child)]
    except OSError:
        pass
    return found


def reap(spared):
    """Wait for orphans that have ended; name those that still run, but for `spared`."""
    left = []
    for pid in below(os.getpid()):
        if pid in spared or _parents(pid) & spared:
            continue
        try:
            if os.waitpid(pid, os.WNOHANG)[0]:
                continue
        except ChildProcessError:
            pass  # its own parent does
        if _alive(pid):
            left.append(pid)
    return left


def describe(pid):
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as stream:
            return stream.read().replace(b"\0", b" ").decode(errors="replace")[-200:]
    except OSError:
        return "gone"


def start(name, argv, *, pod, model, env, logs, views, program=(), before=None):
    """Start a process in a pod.

    Args:
        name: what it does.
        argv: the words after ``warmer``, or after `program`.
        pod: whose it is.
        model: what it is told to serve.
        env: its whole environment.
        logs: the directory of its output.
        views: (own, shown): directories bound over others, for it and its children alone.
        program: run this in a new process; else warmer's command line in a fork.
        before: called in a fork before the command line is.
    """
    stem = f"{logs}/{len(os.listdir(logs)):04}-{name}"
    run = Run(name, pod, model, 0, f"{stem}.out", f"{stem}.err", time.monotonic())
    for path in (run.out, run.err):
        open(path, "w", encoding="utf-8").close()
    held = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)  # or one that comes early is lost
    run.pid = os.fork()
    if run.pid == 0:
        try:
            for number in _HELD:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            _be(run, argv, env=env, views=views, program=program, before=before)
        except SystemExit as exc:  # the probe's way to end
            sys.stdout.flush()
            os._exit(exc.code if isinstance(exc.code, int) else 1)
        except BaseException as exc:  # noqa: BLE001 - a child must not return
            os.write(2, f"the campaign's own: {exc!r}\n".encode())
        finally:
            os._exit(99)
    signal.pthread_sigmask(signal.SIG_SETMASK, held)
    return run


def _be(run, argv, *, env, views, program, before):
    gc.disable()
    os.setsid()
    see(views)
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    for number, path in ((1, run.out), (2, run.err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
    os.closerange(3, 256)
    if program:
        os.execve(program[0], [*program, *argv], env)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = ["warmer", *argv]
    sys.stdin, sys.stdout, sys.stderr = (
        open(number, mode, encoding="utf-8", closefd=False)
        for number, mode in ((0, "r"), (1, "w"), (2, "w"))
    )
    from warmer.__main__ import main  # noqa: PLC0415 - imported before, by the parent

    gc.enable()
    if before:
        before()
    main()


def see(views):
    """Bind directories over others, or an empty one (None), for this process and its children."""
    _must(LIBC.unshare, _NEW_MOUNTS)
    _must(LIBC.mount, b"none", b"/", None, _PRIVATE, None)
    for own, shown in views:
        if own is None:
            _must(LIBC.mount, b"none", shown.encode(), b"tmpfs", 0, None)
            continue
        os.makedirs(shown, exist_ok=True)
        _must(LIBC.mount, own.encode(), shown.encode(), None, _BIND, None)


def _must(call, *words):
    if call(*words) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(words))


def _parents(pid):
    found = set()
    while pid > 1:
        try:
            with open(f"/proc/{pid}/stat", encoding="ascii") as stream:
                pid = int(stream.read().rpartition(")")[2].split()[1])
        except OSError:
            break
        found.add(pid)
    return found


def _alive(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as stream:
            return stream.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _send(pid, number):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def end_all(spared):
    """Kill whatever of an episode still runs."""
    for _ in range(200):
        left = reap(spared)
        for pid in left:
            _send(pid, signal.SIGCONT)
            _send(pid, signal.SIGKILL)
        if not left:
            return
        time.sleep(0.01)
