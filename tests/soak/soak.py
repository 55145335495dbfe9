"""Hours of starts on one volume: does anything grow that should not, and does anything fail?

Two pods at a time, in mount namespaces where each sees a warm dir and a /tmp of its own at the same
paths. Each start is prefill → serve (a stand-in engine) → probe → stop; some are new pods, some start
again in their warm dir, some let their sidecar harvest, some are killed. MODELS models have VERSIONS
versions each. Every other minute *days* pass: times on the volume are set back, a model moves on to
its next version, and gc runs beside the starts. Two sidecars live all along. Once a minute, when
no pod runs, all is counted (sampler.py), and the volume is held against its invariants.

    HOURS=2 OUT=/var/tmp/soak make soak

OUT keeps samples.jsonl, failures.jsonl and soak.json. The last line is one JSON object with the verdict
(verdict.py); the exit status is 0 where it is `steady`. Root's alone, because of the namespaces.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "..", "support"), HERE]

import aging
import beside
import fakeengine
import runs
import sampler
import verdict
import volumes
from server import free_port
from tinymodel import make_tiny_llama

HOURS = float(os.environ.get("HOURS", "2"))
EVERY = float(os.environ.get("EVERY", "60"))
"""Seconds of a round, with a sample at its end."""
MODELS, VERSIONS, PODS = 3, 4, 2
DAYS = 20
"""That pass at once: more than gc's --keep."""
KILLED = 0.12
"""The share of prefills that are killed on their way, and of servers that are."""
OURS = {"PYTHONPATH": os.path.realpath(os.path.join(HERE, "..", ".."))}
"""The warmer of this very checkout is looked at, whichever one is installed."""
OWN = 'mount --bind "$1" "$2" && mount --bind "$3" /tmp && shift 3 && exec "$@"'
ADOPT = 36
"""PR_SET_CHILD_SUBREAPER: what a pod leaves behind comes to this process, and is counted."""


class Counts:
    """What was done, and what went wrong."""

    def __init__(self, out: str) -> None:
        self._lock = threading.Lock()
        self._path = os.path.join(out, "failures.jsonl")
        self.done = dict.fromkeys(
            (
                "starts",
                "warm",
                "again",
                "killed",
                "checks",
                "harvests",
                "collections",
                "removed_kb",
            ),
            0,
        )
        self.failures = 0

    def add(self, name: str, much: int = 1) -> None:
        with self._lock:
            self.done[name] += much

    def failed(self, what: str, said: object) -> None:
        with self._lock, open(self._path, "a", encoding="utf-8") as stream:
            self.failures += 1
            told = {"at": time.strftime("%H:%M:%S"), "what": what, "said": str(said)[-6000:]}
            stream.write(json.dumps(told) + "\n")


class Slot:
    """Room for one pod at a time, with the sidecar that outlives them all."""

    def __init__(self, number: int, place: runs.Place, counts: Counts) -> None:
        self.own = f"{place.top}/pod-{number}"
        self.temporary = f"{place.top}/tmp-{number}"
        for path in (self.own, self.temporary):
            os.mkdir(path)
        self.place, self.counts = place, counts
        self.port, self.http = free_port(), free_port()
        self.random = random.Random(number)  # noqa: S311 - a plan, no secret
        self.kept: subprocess.Popen | None = None
        words = ("sh", "-c", OWN, "sh", self.own, place.warm, self.temporary)
        self.prefix = ("unshare", "-m", *words)
        self.killable = (
            *("unshare", "-m", "--pid", "--fork", "--kill-child", "--mount-proc"),
            *words,
        )
        options = ("--quiet", "2", "--harvest-every", "4", "--harvest-most", "1000000")
        options += ("--http-port", str(self.http))
        env = OURS | {"PATH": f"{place.engine.bin}:{os.defpath}"}
        self.env = env
        self.sidecar = beside.Sidecar(place, options, env=env, prefix=self.prefix)

    def round(self, until: float, model: str, *, keep: bool) -> None:
        """Start pods until it is time to stop; with `keep` the last server stays for a round."""
        try:
            if self.kept is not None:
                self.probe("a server that gc met")
                self.stop(self.kept)
                self.kept = None
            while time.monotonic() < until:
                server = self.start(model)
                if keep and time.monotonic() >= until:
                    self.kept = server
                else:
                    self.stop(server)
                time.sleep(self.random.uniform(3, 9))  # light: the machine may be shared
        except Exception:  # noqa: BLE001 - a soak goes on, and tells
            self.counts.failed("a pod", traceback.format_exc())

    def start(self, model: str) -> subprocess.Popen:
        """Be a pod up to its ready server."""
        place = self.place.but(model=model)
        if self.random.random() < 0.7:
            self.anew()
        else:
            self.counts.add("again")
        harvest = self.random.random() < 0.3
        options = ("--compile", "harvest") if harvest else ()
        serve = beside.serving(self.port)
        op = f"op={self.random.choice('abc')}"
        env = self.env | {"FAKE_ENGINE": op}
        if self.random.random() < KILLED:
            cut = place.start("prefill", "--json", prefix=self.killable, serve=serve, env=env)
            time.sleep(self.random.uniform(0.2, 2.5))
            runs.kill(cut)
            self.counts.add("killed")
        done = place.run(
            "prefill", "--json", *options, prefix=self.prefix, serve=serve, env=env, timeout=180
        )
        if done.code:
            raise AssertionError(f"prefill ended with {done.code}: {done.out} {done.err}")
        self.counts.add("warm", not done.json["bytes"])
        argv = [*self.prefix, f"{place.warm}/handoff/serve"]
        with open(f"{self.own}.log", "w", encoding="utf-8") as log:
            server = subprocess.Popen(argv, env=env, stdout=log, stderr=log, start_new_session=True)
        runs.eventually(lambda: beside.healthy(self.port) or server.poll() is not None, 60)
        if server.poll() is not None:
            raise AssertionError(f"serve ended: {open(f'{self.own}.log', encoding='utf-8').read()}")
        self.counts.add("starts")
        self.probe("a ready server")
        time.sleep(9 if harvest else self.random.uniform(1, 3))
        return server

    def probe(self, what: str) -> None:
        """Ask as the kubelet does: the handed-off check, and the sidecar's pages."""
        argv = [*self.prefix, sys.executable, "-IS", f"{self.place.warm}/handoff/check.py"]
        done = runs.finish(runs.spawn(argv, self.env))
        self.counts.add("checks")
        if done.code:
            self.counts.failed(f"check of {what}", (done, runs.listing(f"{self.own}/handoff")))
        for page in ("/livez", "/readyz", "/metrics"):
            status = beside.ask(self.http, page)[0]
            if status != 200:
                self.counts.failed(f"{page} of {what}", status)

    def stop(self, server: subprocess.Popen) -> None:
        """End a server as the kubelet does, or worse."""
        hard = self.random.random() < KILLED
        os.killpg(server.pid, signal.SIGKILL if hard else signal.SIGTERM)
        server.wait(30)

    def anew(self) -> None:
        """An empty warm dir, but for what the sidecar holds: a new pod's, which had a new sidecar."""
        for name in runs.listing(self.own):
            if name == "sidecar.lock":
                continue
            path = f"{self.own}/{name}"
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path, ignore_errors=name == "harvest")
            else:
                os.unlink(path)

    def settled(self) -> bool:
        return not os.path.exists(f"{self.own}/harvest")

    def end(self) -> None:
        if self.kept is not None:
            self.stop(self.kept)
        self.sidecar.process.terminate()
        code = self.sidecar.process.wait(60)
        said = self.sidecar.said()
        self.counts.add("harvests", sum(line["event"] == "harvested" for line in said))
        if code != 143:
            self.counts.failed("a sidecar's end", (code, said[-5:]))
        for line in said:
            if "bug" in line["event"]:
                self.counts.failed("a sidecar", line)


class Soak:
    """The volume, the hub, the pods, and the days that pass."""

    def __init__(self, place: runs.Place, out: str) -> None:
        self.place, self.out = place, out
        self.counts = Counts(out)
        self.versions = [0] * MODELS
        for number in range(MODELS):
            make_tiny_llama(f"{place.hub.root}/org/soak-{number}", layers=1, seed=number)
            self._write(number)
        self.slots = [Slot(number, place, self.counts) for number in range(PODS)]
        self.where = sampler.Where(
            place,
            [slot.own for slot in self.slots],
            [slot.temporary for slot in self.slots],
            [slot.sidecar.process.pid for slot in self.slots],
        )
        self.samples: list[dict] = []

    def run(self, seconds: float) -> None:
        """Rounds until the time is over."""
        began = time.monotonic()
        for number in itertools.count():
            ends = began + (number + 1) * EVERY
            if ends > began + seconds:
                return
            self.round(number, ends)
            self.look(time.monotonic() - began)
            time.sleep(max(0.0, ends - time.monotonic()))

    def round(self, number: int, ends: float) -> None:
        """One round: a day that passes every other time, starts, gc beside them."""
        working = []
        if number % 2:
            self._move(number // 2 % MODELS)
            aging.age_all(self.place.volume, DAYS)
            working.append(threading.Thread(target=self.collect))
        for at, slot in enumerate(self.slots):
            # The pods want the same model in one round and different ones in the next.
            words = (ends - 0.3 * EVERY, self._model(number // 2 + at * (number % 2)))
            keep = {"keep": at == 0 and number % 5 == 3}
            working.append(threading.Thread(target=slot.round, args=words, kwargs=keep))
        for thread in working:
            thread.start()
        for thread in working:
            thread.join()

    def collect(self) -> None:
        """Run gc once, beside whatever runs."""
        argv = [*runs.WARMER, "gc", "--json", "--volume", self.place.volume]
        try:
            done = runs.finish(runs.spawn(argv, self.place.env(OURS)), 120)
            assert done.code == 0, done
            self.counts.add("removed_kb", done.json["removed_bytes"] // 1024)
            self.counts.add("collections")
        except Exception:  # noqa: BLE001 - as in a pod
            self.counts.failed("gc", traceback.format_exc())

    def look(self, at: float) -> None:
        """Count, and hold the volume against what must be true of it."""
        self.place.hub.log.clear()
        try:
            runs.eventually(lambda: all(slot.settled() for slot in self.slots), 60)
            volumes.assert_invariants(self.place.volume)
        except AssertionError:
            self.counts.failed("the volume", traceback.format_exc())
        done = self.counts.done
        moving = {name: done[name] for name in verdict.MOVING}
        found = {"time": round(at, 1)} | sampler.sample(self.where) | moving
        self.samples.append(found)
        with open(os.path.join(self.out, "samples.jsonl"), "a", encoding="utf-8") as stream:
            stream.write(json.dumps(found | {"failures": self.counts.failures}) + "\n")
        self.judge()

    def end(self) -> dict:
        """Stop what lives, and judge."""
        for slot in self.slots:
            slot.end()
        return self.judge()

    def judge(self) -> dict:
        """Give the verdict so far, and keep it: whoever ends a soak early has one."""
        judged = verdict.judge(self.samples, failures=self.counts.failures, every=EVERY)
        head = {"soak": "warmer", "verdict": judged["verdict"], "why": judged["why"]}
        head |= {"hours": round(self.samples[-1]["time"] / 3600, 2) if self.samples else 0}
        head |= {"samples": len(self.samples), "failures": self.counts.failures}
        record = head | self.counts.done | {"measures": judged["measures"]}
        with open(os.path.join(self.out, "soak.json"), "w", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")
        return record

    def _model(self, number: int) -> str:
        return self.place.pinned(f"org/soak-{number % MODELS}")

    def _move(self, number: int) -> None:
        self.versions[number] = (self.versions[number] + 1) % VERSIONS
        self._write(number)

    def _write(self, number: int) -> None:
        path = f"{self.place.hub.root}/org/soak-{number}/generation_config.json"
        with open(path, "w", encoding="utf-8") as stream:
            json.dump({"eos_token_id": 1, "version": self.versions[number]}, stream)


def main() -> int:
    if os.geteuid() != 0:
        print("the pods' namespaces are root's alone", file=sys.stderr)
        return 2
    # Not below /tmp, which the pods see another of.
    scratch = tempfile.mkdtemp(dir="/var/tmp", prefix="warmer-soak-")
    out = os.environ.get("OUT") or scratch
    os.makedirs(out, exist_ok=True)
    ctypes.CDLL(None, use_errno=True).prctl(ADOPT, 1, 0, 0, 0)
    try:
        with runs.place(f"{scratch}/top") as place:
            image = {"torch": "2.13.0+cu130", "cuda": "13.0", "precompiled": False}
            engine = fakeengine.make_engine(f"{place.top}/gpu", **image)
            soak = Soak(place.but(engine=engine), out)
            try:
                soak.run(HOURS * 3600)
            finally:
                record = soak.end()
    finally:
        if out != scratch:
            shutil.rmtree(scratch, ignore_errors=True)
    for name, found in record["measures"].items():
        mark = "GROWS" if found["grows"] else ""
        print(f"{name:<16} {found['median']:>12,.0f} {found['per_hour']:>12,.1f}/h {mark}")
    print(json.dumps(record))
    return 0 if record["verdict"] == "steady" else 1


if __name__ == "__main__":
    sys.exit(main())
