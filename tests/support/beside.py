"""A server that runs from a handoff, and a sidecar beside it, as processes."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import urllib.request
from contextlib import contextmanager, suppress

import runs
from server import free_port

KERNELS = ("compile", "flashinfer", "jit")
FAST = ("--quiet", "0.5", "--harvest-every", "1", "--http-port", "0")


def serving(port: int) -> tuple[str, ...]:
    """The server's arguments: without further ones at its start, its port must be among them."""
    return (*runs.SERVE, "--port", str(port))


class Pod:
    """A place, with the port its server is told of by the handoff."""

    def __init__(self, place: runs.Place, port: int | None = None) -> None:
        self.place = place
        self.port = port or free_port()

    def prefill(self, *options: str, **more) -> dict:
        more = {"serve": serving(self.port)} | more
        return self.place.warmed(*(options or ("--compile", "harvest")), **more).json

    def anew(self, port: int | None = None) -> Pod:
        """A pod of the same fleet with an empty warm dir at the same path; this one's is aside."""
        aside = f"{self.place.warm}.{len(os.listdir(os.path.dirname(self.place.warm)))}"
        os.rename(self.place.warm, aside)
        os.mkdir(self.place.warm)
        return Pod(self.place, port or self.port)

    @contextmanager
    def server(self, *words: str, env=None, modes: str = "", before=lambda: None):
        """Start the server by the handoff's script, wait until it answers, end it.

        `before`: called when it was started and does not answer yet.
        """
        given = {"PATH": os.defpath, "FAKE_ENGINE": modes} | (env or {})
        process = runs.spawn([f"{self.place.warm}/handoff/serve", *words], given)
        try:
            before()
            runs.eventually(lambda: healthy(self.port) or process.poll() is not None)
            assert process.poll() is None, process.communicate()
            yield process
        finally:
            process.kill()
            process.communicate()

    @contextmanager
    def sidecar(self, *options: str, env=None, prefix=()):
        """Run a sidecar; it is ended by SIGTERM, and must heed it."""
        sidecar = Sidecar(self.place, options, env=env, prefix=prefix)
        try:
            yield sidecar
            if sidecar.process.poll() is None:
                sidecar.process.terminate()
                assert sidecar.process.wait(10) == 143, sidecar.said()
        finally:
            sidecar.process.kill()
            sidecar.process.wait()

    def tree(self) -> dict[str, tuple]:
        """Fingerprint the live trees: inode, size, times, mode and bytes of all that is in them."""
        return fingerprint(f"{self.place.warm}/cache")

    def harvested(self, kind: str = "compile") -> list[str]:
        return self.place.generations(kind)


class Sidecar:
    """A running sidecar and what it logged."""

    def __init__(self, place: runs.Place, options, *, env=None, prefix=()) -> None:
        self.log = f"{place.top}/sidecar-{os.urandom(4).hex()}.log"
        argv = [*prefix, *runs.WARMER, "sidecar", "--volume", place.volume]
        argv += ["--warm-dir", place.warm, *FAST, *options]
        with open(self.log, "w", encoding="utf-8") as out:
            self.process = subprocess.Popen(argv, env=place.env(env), stdout=out, stderr=out)

    def said(self) -> list[dict]:
        lines = []
        with open(self.log, encoding="utf-8") as f:
            for line in f:
                with suppress(ValueError):
                    lines.append(json.loads(line))
        return lines

    def events(self, event: str) -> list[dict]:
        return [line for line in self.said() if line["event"] == event]

    def says(self, event: str, *words: str, times: int = 1, timeout: float = 20.0) -> list[dict]:
        """Wait until it has said so, with these words somewhere in it."""

        def found():
            assert self.process.poll() is None, open(self.log, encoding="utf-8").read()
            lines = [e for e in self.events(event) if all(w in json.dumps(e) for w in words)]
            return lines if len(lines) >= times else None

        try:
            return runs.eventually(found, timeout)
        except AssertionError as exc:
            raise AssertionError(f"no {event} {words} in {self.said()}") from exc


def fingerprint(top: str) -> dict[str, tuple]:
    found = {}
    for directory, names, files in os.walk(top):
        for name in (*names, *files):
            path = os.path.join(directory, name)
            info = os.lstat(path)
            times = (info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_mode)
            digest = ""
            if name in files:
                with open(path, "rb") as f:
                    digest = hashlib.file_digest(f, "sha256").hexdigest()
            found[os.path.relpath(path, top)] = (*times, digest)
    return found


def healthy(port: int) -> bool:
    return ask(port, "/health")[0] == 200


def ask(port: int, path: str) -> tuple[int, str]:
    """GET a path of this machine; status 0 where nobody answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as exc:
        return exc.code, exc.read().decode()
    except OSError:
        return 0, ""
