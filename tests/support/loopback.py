"""Server processes on loopback, which tests stop, kill and start again."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

DEADLINE_S = 60


class LoopbackServer:
    """A server in a process group and a directory (`top`) of its own, at `endpoint`.

    A subclass says how it is started (`argv`, `settings`) and whether it works (`probe`, which
    raises one of `not_yet`). Start it from the main thread: it dies with the thread that did.
    """

    count = 1  # how many ports it listens on; the first is the endpoint's
    not_yet: tuple[type[Exception], ...] = ()

    def __init__(self):
        self.top = tempfile.mkdtemp(prefix=f"{type(self).__name__.lower()}-")
        self.ports: list[int] = []
        self._owner = os.getpid()
        self._process = None
        try:
            self._begin()
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def argv(self) -> list[str]:
        raise NotImplementedError

    def settings(self) -> dict[str, str]:
        """Return variables of its environment; of this process's own it has the PATH alone."""
        return {}

    def probe(self) -> None:
        raise NotImplementedError

    def clean(self) -> None:
        """Remove what it leaves outside `top`."""

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.ports[0]}"

    @property
    def pid(self) -> int:
        return self._process.pid

    def stop(self) -> None:
        """Stop it (SIGSTOP): it answers nothing, though its port still takes connections."""
        os.killpg(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOWAIT)

    def cont(self) -> None:
        """Let it go on."""
        os.killpg(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """Kill -9 it; what it stored stays."""
        if self._process:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self._process.wait(10)

    def restart(self) -> None:
        """Kill it and start it again, on the same ports with what it stored."""
        self.kill()
        self._start()
        self._wait_ready()

    def close(self) -> None:
        """Kill it and remove what it stored; done twice is done once."""
        if os.getpid() == self._owner:  # and no fork of that
            self.kill()
            self.clean()
            shutil.rmtree(self.top, ignore_errors=True)

    def _begin(self):
        for left in (2, 1, 0):
            self.ports = free_ports(self.count)
            self._start()
            try:
                self._wait_ready()
            except _EndedError:  # as when somebody took a port since
                if not left:
                    raise
            else:
                return

    def _start(self):
        with open(f"{self.top}/log", "a", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *self.argv()],
                cwd=self.top,
                env={"PATH": os.environ["PATH"], "HOME": self.top} | self.settings(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _wait_ready(self):
        why, deadline = None, time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise _EndedError(f"it ended with {self._process.returncode}{self._tail()}")
            try:
                with socket.create_connection(("127.0.0.1", self.ports[0]), 1):
                    pass
                return self.probe()
            except (OSError, *self.not_yet) as e:
                why = e
            time.sleep(0.02)
        raise RuntimeError(f"it was not ready within {DEADLINE_S} s: {why}{self._tail()}")

    def _tail(self):
        with open(f"{self.top}/log", encoding="utf-8", errors="replace") as log:
            return "".join(["\n", *log.readlines()[-20:]])


class _EndedError(RuntimeError):
    pass


def free_ports(count: int) -> list[int]:
    """Find free ports which the kernel gives to nobody who asks for just any port."""
    with open("/proc/sys/net/ipv4/ip_local_port_range", encoding="ascii") as stream:
        first, last = map(int, stream.read().split())
    ports = [port for port in range(10000, 65536) if not first <= port <= last]
    random.SystemRandom().shuffle(ports)
    found: list[int] = []
    for port in ports:
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError(f"no {count} free ports outside {first}-{last}")


def tool(name: str, package: str) -> str:
    """Find a server's program, beside this Python or in the PATH."""
    places = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)])
    if found := shutil.which(name, path=places):
        return found
    raise RuntimeError(f"no {name}: pip install {package}")
