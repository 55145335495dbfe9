"""Runs of whole verbs as processes, and what must hold after each: nothing lost, nothing held."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import pytest
from fakeengine import Engine, make_engine
from hub import Hub
from tinymodel import make_tiny_llama

REPO, OTHER = "org/tiny", "org/other"
SERVE = ("--max-model-len", "512")
WARMER = (sys.executable, "-m", "warmer")
PID_NAMESPACE = ("unshare", "--pid", "--fork", "--mount-proc", "sh", "-c", 'exec "$@"', "sh")
AS_FIRST = pytest.param(
    PID_NAMESPACE,
    marks=pytest.mark.skipif(os.geteuid() != 0, reason="makes a PID namespace, as root alone may"),
    id="first of its container",
)
"""For the prefix of a command: run as a container's first process is."""
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


class Result(NamedTuple):
    """A finished run."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def json(self) -> Any:
        """The one JSON object on stdout."""
        return json.loads(self.out)

    @property
    def logged(self) -> list[dict]:
        return [json.loads(line) for line in self.err.splitlines() if line.startswith("{")]

    @property
    def said(self) -> list[str]:
        """What stderr has besides the log."""
        return [line for line in self.err.splitlines() if not line.startswith("{")]


@dataclasses.dataclass
class Place:
    """One pod beside a hub with one model: `place.run("plan")` is a warmer with all it needs."""

    top: str
    hub: Hub
    engine: Engine
    volume: str
    warm: str
    model: str

    def but(self, **changed) -> Place:
        return dataclasses.replace(self, **changed)

    def fresh(self, top) -> Place:
        """Return it with a copy of its volume, an empty warm dir and the other model."""
        shutil.copytree(self.volume, f"{top}/volume", symlinks=True)
        os.mkdir(f"{top}/warm")
        return self.but(volume=f"{top}/volume", warm=f"{top}/warm", model=self.pinned(OTHER))

    def pinned(self, repo: str) -> str:
        return f"hf://{repo}@{self.hub.sha(repo)}"

    def command(self, verb: str, *options: str, serve: tuple[str, ...] = SERVE) -> list[str]:
        """Put a command line together; options given here win."""
        places = {"--volume": self.volume, "--warm-dir": self.warm}
        places |= {"--model": self.model, "--vllm": self.engine.vllm}
        if verb in ("check", "serve"):
            places = {"--warm-dir": self.warm}
        given = [word for pair in places.items() for word in pair if pair[0] not in options]
        after = ["--", *serve] if serve and verb != "check" else []
        return [*WARMER, verb, *given, *options, *after]

    def env(self, more: dict[str, str] | None = None) -> dict[str, str]:
        mine = {"PATH": os.defpath, "HOME": f"{self.top}/home", "HF_ENDPOINT": self.hub.url}
        # Or huggingface_hub asks the hub, once a day, which AI agents there are.
        return mine | {"HF_HUB_DISABLE_TELEMETRY": "1"} | (more or {})

    def run(
        self, verb: str, *options: str, serve=SERVE, env=None, timeout=30.0, prefix=()
    ) -> Result:
        """Run a verb to its end."""
        return finish(self.start(verb, *options, serve=serve, env=env, prefix=prefix), timeout)

    def start(self, verb: str, *options: str, serve=SERVE, env=None, prefix=()):
        """Start a verb; `finish` or `kill` it."""
        argv = [*prefix, *self.command(verb, *options, serve=serve)]
        return spawn(argv, self.env(env))

    def warmed(self, *options: str, **more) -> Result:
        """Prefill, which must succeed."""
        result = self.run("prefill", "--json", *options, **more)
        assert result.code == 0, result
        return result

    def fails(self, code: int, reason: str, *words: str, options=(), compared=True, **more) -> dict:
        """Prefill, which must fail, lose nothing and hand nothing off; return the error."""
        before = published(self.volume)
        result = self.run("prefill", "--json", *options, **more)
        error = failed(result, code, reason, *words, compared=compared)
        nothing_lost(self, before, resumable=code in (4, 5))
        assert not os.path.exists(f"{self.warm}/handoff/handoff.json")
        return error

    def fetched(self, since: int = 0) -> list[str]:
        """Name the files whose bytes were asked for, repeatedly too, after `since` requests."""
        asked = [path for method, path in self.hub.requests[since:] if method == "GET"]
        return sorted(path.rsplit("/", 1)[1] for path in asked if "/resolve/" in path)

    def generations(self, kind: str) -> list[str]:
        """List the published generations of a kind: absolute directories, by number."""
        top = f"{self.volume}/v1/pieces/{kind}"
        return [f"{top}/{key}/{n}" for key in listing(top) for n in sorted(listing(f"{top}/{key}"))]

    def staged(self) -> list[str]:
        top = f"{self.volume}/v1/staging"
        return [f"{top}/{name}" for name in listing(top)]

    def held(self) -> list[str]:
        top = f"{self.volume}/v1/locks"
        paths = [*(f"{top}/{name}" for name in listing(top)), f"{self.warm}/lock"]
        return [path for path in paths if os.path.isfile(path) and locked(path)]

    def handoff(self) -> dict:
        with open(f"{self.warm}/handoff/handoff.json", encoding="utf-8") as stream:
            return json.load(stream)

    def verdicts(self) -> dict[str, str]:
        """Read the handoff's verdict on each kind."""
        return {piece["kind"]: piece["verdict"] for piece in self.handoff()["pieces"]}


@contextmanager
def place(top, **how):
    """Set a place up under `top`; keyword arguments go to the hub."""
    top = os.path.realpath(top)
    for seed, repo in enumerate((REPO, OTHER)):
        make_tiny_llama(f"{top}/hub/{repo}", layers=1, seed=seed)
    for name in ("home", "volume", "warm"):
        os.mkdir(f"{top}/{name}")
    engine = make_engine(f"{top}/engine")
    with Hub(f"{top}/hub", **how) as hub:
        place = Place(top, hub, engine, f"{top}/volume", f"{top}/warm", "")
        try:
            yield place.but(model=place.pinned(REPO))
        finally:
            for pid in processes(top):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def spawn(argv, env):
    """Start a process with its output in pipes."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, text=True, **pipes)
    process.started = time.monotonic()
    return process


def finish(process, timeout=30.0) -> Result:
    """Wait for its end, and kill what does not end."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"no end within {timeout} s; it said:\n{out}\n{err}") from None
    return Result(process.returncode, out, err, time.monotonic() - process.started)


def ready(process, port) -> None:
    """Wait until the server that this process is, or becomes, answers; fail once it has ended."""

    def answers():
        assert process.poll() is None, process.communicate()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health") as reply:
                return reply.status == 200
        except OSError:
            return False

    eventually(answers)


def kill(process) -> None:
    """Kill it as the kernel's OOM killer would."""
    process.kill()
    process.communicate()


def failed(result: Result, code: int, reason: str, *words: str, compared: bool = True) -> dict:
    """Assert that a run with --json failed with one line and a hint; return the error.

    `compared`: it says what was got and expected, which one of the operating system need not.
    """
    assert result.code == code, result
    error = result.json["error"]
    assert set(error) == {"code", "reason", "message", "hint"}
    assert (error["code"], error["reason"]) == (code, reason), error
    first, *tail = error["message"].split("\n")
    assert all(line.startswith("  | ") for line in tail), "only an engine's last lines follow"
    assert result.said == [f"warmer: {first}", *tail, f"hint: {error['hint']}"]
    assert error["hint"], error
    for word in (*words, *(("got ", "expected ") if compared else ())):
        assert word in error["message"] + error["hint"], (word, error)
    return error


def published(volume: str) -> dict[str, tuple]:
    """Fingerprint every published file: any change to one shows."""
    top = f"{volume}/v1/pieces"
    found = {}
    for directory, _, names in os.walk(top):
        for name in names:
            path = os.path.join(directory, name)
            info = os.stat(path)
            with open(path, "rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            found[os.path.relpath(path, top)] = (info.st_mtime_ns, info.st_ino, digest)
    return found


def nothing_lost(place: Place, before: dict[str, tuple], *, resumable: bool = False) -> None:
    """Assert that what was published is unchanged and alone, and nothing is staged or held.

    `resumable`: a source failed, and what it gave before is kept for the next try.
    """
    assert published(place.volume) == before
    assert len(place.staged()) <= resumable
    assert place.held() == []


def listing(path: str) -> list[str]:
    """List a directory; one that is not there is empty."""
    try:
        return sorted(os.listdir(path))
    except (FileNotFoundError, NotADirectoryError):
        return []


def locked(path: str) -> bool:
    """Whether another open file holds the kernel's lock on a file."""
    flock = "hhqqi4x"
    with open(path, "rb") as stream:
        asked = struct.pack(flock, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        answer = fcntl.fcntl(stream, fcntl.F_OFD_GETLK, asked)
    return struct.unpack(flock, answer)[0] != fcntl.F_UNLCK


def unwatched(warm: str) -> bool:
    """Whether nothing holds the record of a start from this warm dir, as after a container's end."""
    for name in listing(f"{warm}/starts"):
        with suppress(FileNotFoundError), open(f"{warm}/starts/{name}", "rb") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
    return True


def processes(marker: str) -> list[int]:
    """Find the processes, other than this one, with `marker` in a word of their command line."""
    found = []
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        with suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as stream:
            if marker.encode() in stream.read() and pid != os.getpid():
                found.append(pid)
    return found


def eventually(condition, timeout=10.0):
    """Poll until the condition holds; return what it returned."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{condition} did not hold within {timeout} s"
        time.sleep(0.01)
    return value


@contextmanager
def mounted(path: str, *mounts: list[str]):
    """Mount something at a directory, in these steps, and take it away again."""
    try:
        for words in mounts:
            subprocess.run(["mount", *words, path], check=True)
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def tmpfs(path: str, size: str):
    """Mount a filesystem of this size."""
    os.makedirs(path, exist_ok=True)
    return mounted(path, ["-t", "tmpfs", "-o", f"size={size}", "tmpfs"])


def read_only(path: str):
    """Mount a directory over itself, read-only."""
    return mounted(path, ["--bind", path], ["-o", "remount,ro,bind"])


def closed_port() -> int:
    """Return a port of this machine that refuses connections."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def flip(path: str) -> None:
    """Flip a bit in the middle of a file; size and modification time stay."""
    info = os.stat(path)
    with open(path, "r+b") as stream:
        byte = os.pread(stream.fileno(), 1, info.st_size // 2)[0]
        os.pwrite(stream.fileno(), bytes([byte ^ 1]), info.st_size // 2)
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
