"""One volume, pods of a mixed fleet beside it, and what is asked of all of them after each fault."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import checker
import running
from sites import FLEET, PODS, SECRETS, Model
from truth import Ledger

REPOSITORY = Path(__file__).resolve().parents[2]
LEASE = 3
"""Seconds: the shortest there is."""
SERVE = ("--max-model-len", "512")


@dataclasses.dataclass(eq=False)
class Pod:
    """A pod: its own warm dir, and the image and GPU it has."""

    number: int
    warm: str
    version: str
    gpu: str
    image: str
    view: str = ""
    model: Model | None = None
    port: int = 0


class World:
    """What one episode happens in. `wrong` is what was found; `tried` and `met` count faults.

    `aged` tells that days have gone by on the volume, since when a gc may take pods for long gone.

    Args:
        site: what the episodes of one worker share: `Site`.
        disk: what the volume lies on.
        lock: file, k8s or s3.
        seed: what is chosen at random follows from it.
        long: the share of outages that last for a minute.
    """

    def __init__(self, site, disk, lock, seed, *, long=0.0):
        self.long = long
        self.site, self.disk, self.lock = site, disk, lock
        self.choose = random.Random(seed)  # noqa: S311 - not a secret
        self.ledger, self.wrong, self.tried, self.aged = Ledger(), [], 0, False
        self.top, self.volume = disk.top, disk.path
        self.prefix = seed.replace("/", "-").replace(".", "-")
        self.logs = f"{self.top}/logs"
        os.mkdir(self.logs)
        self.one_image = self.choose.random() < 0.5
        first = self.choose.randrange(len(FLEET))
        self.pods = [self._pod(number, first) for number in range(PODS)]

    def _pod(self, number, first):
        which = first if self.one_image else self.choose.randrange(len(FLEET))
        version, gpu, _ = FLEET[which]
        warm = f"{self.top}/pods/{number}"
        os.makedirs(warm)
        return Pod(number, warm, version, gpu, self.site.images[which], port=self.site.port(number))

    # --- starting ------------------------------------------------------------------------------

    def url(self):
        place = {"file": "file", "k8s": f"k8s://warm/{self.prefix}"}
        place["s3"] = f"s3://{self.site.bucket}/{self.prefix}"
        return f"{place[self.lock]}?lease={LEASE}"

    def env(self, pod, **more):
        mine = {
            "PATH": f"{self.site.engine}/bin:{os.defpath}",
            "HOME": self.site.home,
            "HF_ENDPOINT": self.site.services.hub,
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "FAKE_ENGINE": f"op=op{pod.model.name[-1] if pod.model else ''}",
            "KUBECONFIG": "/nowhere",
            "PYTHONPATH": str(REPOSITORY),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        return mine | SECRETS | self.site.services.leases | self.site.aws | more

    def views(self, pod):
        found = [(pod.warm, self.site.warm), (pod.image, self.site.engine)]
        if pod.view:
            found.append((pod.view, self.volume))
        if self.lock == "k8s":
            account = "/run/secrets/kubernetes.io/serviceaccount"
            found += [(None, "/run"), (f"{self.site.top}/account", account)]
        return found

    def start(self, name, pod, words, *, fresh=False, before=None, program=(), env=None):
        """Start a verb in a pod."""
        if fresh:
            program = (sys.executable, "-m", "warmer")
        how = {"env": self.env(pod, **(env or {})), "logs": self.logs, "views": self.views(pod)}
        how |= {"program": program, "before": before}
        return running.start(name, words, pod=pod, model=pod.model, **how)

    def prefill(self, pod, model, *options, **how):
        pod.model = model
        words = ["prefill", "--json", "--volume", self.volume, "--warm-dir", self.site.warm]
        words += ["--model", model.uri, "--vllm", f"{self.site.engine}/bin/vllm"]
        words += ["--lock", self.url(), "--wait", "20", "--retry", "6", "--engine-timeout", "40"]
        words += [*options, "--", *SERVE, "--port", str(pod.port)]
        return self.start("prefill", pod, words, **how)

    def gc(self, pod, **how):
        self.ledger.collected = True
        words = ["gc", "--json", "--volume", self.volume, "--lock", self.url(), "--keep", "1d"]
        return self.start("gc", pod, [*words, "--grace", "0s"], **how)

    def deep(self, pod, **how):
        return self.start("deep", pod, ["check", "--deep", "--warm-dir", self.site.warm], **how)

    def serve(self, pod):
        words = (f"{self.site.warm}/handoff/serve",)
        return self.start("serve", pod, [], program=("/bin/sh", *words))

    def sidecar(self, pod, **how):
        words = ["sidecar", "--volume", self.volume, "--warm-dir", self.site.warm]
        words += ["--lock", self.url(), "--quiet", "0.5", "--harvest-every", "1"]
        return self.start("sidecar", pod, [*words, "--http-port", "0"], **how)

    def model(self):
        return self.choose.choice(self.site.models)

    def new_pod(self, pod):
        """Let a pod be another of its fleet, with an empty warm dir."""
        shutil.rmtree(pod.warm, ignore_errors=True)
        os.mkdir(pod.warm)
        pod.model = None

    # --- looking -------------------------------------------------------------------------------

    def say(self, sentence, run=None):
        """Note a violation."""
        if run is not None:
            tail = "\n".join(run.said().splitlines()[-12:])
            sentence = f"{run.name} in pod {run.pod.number} of {run.model}: {sentence}\n{tail}"
        self.wrong.append(sentence)

    def end(self, runs, codes, *, within=running.BOUND):
        """Wait until all have ended, and judge how."""
        for run in runs:
            fits = codes | {"deep": {1}, "gc": {3}}.get(run.name, set())
            if run.name == "serve" and self.stripped(run.pod):
                fits |= {1}
            if not run.wait(within):
                self.say(f"did not end within {within} s", run)
                run.kill_all()
                run.wait(10)
                continue
            said = run.said()
            # Python itself ends so where Ctrl-C comes before warmer listens.
            early = run.sent == signal.SIGINT and "KeyboardInterrupt" in said
            own = any(line.startswith("Traceback") for line in said.splitlines())  # no engine's
            if (own and not early) or run.status in (70, 99):
                self.say(f"ended with {run.status} and a traceback", run)
            elif run.sent in (signal.SIGTERM, signal.SIGINT):
                stopped = {-run.sent, 128 + run.sent, early} | fits
                if run.status not in stopped:
                    self.say(f"ended with {run.status} after {run.sent}", run)
            elif (run.status != -run.sent or not run.sent) and run.status not in fits:
                self.say(f"ended with {run.status}, expected one of {sorted(fits)}", run)
            with open(run.out, encoding="utf-8", errors="replace") as stream:
                said += stream.read()
            for secret in (*SECRETS.values(), self.site.secret):
                if secret in said:
                    self.say("a secret is in what it says", run)

    def stripped(self, pod):
        """Whether days went by for a pod without a server, and a gc took the weights it was handed."""
        weights = {place for place in checker.handed(pod.warm) if place[0] == "weights"}
        return self.aged and not weights <= checker.published(self.volume)

    def orphans(self):
        """Nothing outlives what was killed: no engine holds a GPU."""
        until = time.monotonic() + 15
        spared = self.site.spared() | ({self.disk.daemon.pid} if self.disk.daemon else set())
        while left := running.reap(spared):
            if time.monotonic() > until:
                for pid in left:
                    self.say(f"left running: {running.describe(pid)}")
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                return
            time.sleep(0.02)

    def judge(self, runs):
        """Look at the volume, and at each pod that says that it is ready; return those."""
        warm = {run.pod.warm for run in runs}
        self.wrong += checker.judge(self.volume, self.site.truth, self.ledger, warm=warm)
        ready = {pod for pod in {run.pod for run in runs} if self.ready(pod)}
        for pod in sorted(ready, key=lambda one: one.number):
            fits = {"version": pod.version, "gpu": pod.gpu, "model": self.served(pod)}
            found = checker.believed(pod.warm, self.site.truth, **fits, gone=self.ledger.gone)
            self.wrong += [f"pod {pod.number} is ready: {sentence}" for sentence in found]
        for run in runs:
            warmed = run.name == "prefill" and run.status == 0 and run.pod not in ready
            if warmed and not self.ledger.gone:
                self.say("ended well, and the pod is not ready", run)
        return ready

    def forgive(self):
        """Something else removed files: what is not whole any more, that did."""
        self.ledger.damaged |= checker.broken(self.volume)
        self.ledger.nonces.clear()

    def served(self, pod):
        with open(f"{pod.warm}/handoff/handoff.json", encoding="utf-8") as stream:
            named = json.load(stream)["served_name"]
        return next((m.name for m in self.site.models if m.name.endswith(named)), named)

    def ready(self, pod):
        """What the pod's own probe says."""
        if not os.path.exists(f"{pod.warm}/handoff/handoff.json"):
            return False
        probe = [sys.executable, "-IS", f"{self.site.warm}/handoff/check.py"]
        run = self.start("probe", pod, probe[1:], program=(probe[0],))
        self.end([run], {0, 1, 3, 5, 6})
        return run.status == 0

    def recover(self, runs):
        """Nobody disturbs any more: pods become warm, and a second run has nothing to do."""
        todo = {run.pod: run.model for run in runs if run.model is not None}
        chosen = self.choose.sample(sorted(todo, key=lambda one: one.number), min(2, len(todo)))
        for pod in chosen:
            run = self.prefill(pod, todo[pod], "--wait", "60", "--retry", "20")
            self.end([run], {0})
            if run.status != 0:
                continue
            with open(run.out, encoding="utf-8") as stream:
                said = json.load(stream)
            if said["left"] or said["without"]:
                self.say(f"left {said['left']}, without {said['without']}", run)
            if pod not in self.judge([run]):
                self.say("an undisturbed prefill left the pod cold", run)
            if '"filling"' in run.said() and (left := self.staged(pod)):
                self.say(f"an undisturbed fill left {left}", run)
            if self.choose.random() < 0.25:
                self.again(pod, todo[pod])
        self.orphans()

    def stagings(self):
        top = f"{self.volume}/v1/staging"
        return set(os.listdir(top)) if os.path.isdir(top) else set()

    def staged(self, pod):
        """Name what is staged of the weights that a pod was handed, where locks exclude."""
        if self.lock == "file" and not self.disk.exclusive:
            return []
        keys = {found[:2] for found in checker.handed(pod.warm) if found[0] == "weights"}
        return checker.staged(self.volume, keys)

    def again(self, pod, model):
        """A warm pod asks nobody: it gets servers that do not answer."""
        away = {"HF_ENDPOINT": "http://127.0.0.1:9", "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
        if model.source == "s3":
            away.pop("AWS_ENDPOINT_URL")  # its revision is a listing, which has to be asked for
        away["KUBERNETES_SERVICE_PORT"] = "9"
        before = checker.published(self.volume)
        run = self.prefill(pod, model, env=away)
        self.end([run], {0})
        if checker.published(self.volume) != before:
            self.say("a second prefill published", run)
