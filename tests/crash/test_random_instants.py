"""Pods killed with -9 at random instants, three at a time, beside one volume they all fill.

After each round an independent checker reads the volume; what was published stays as it was, what
was acknowledged is there, and no probe takes torn for whole. WARMER_SEED repeats the choices,
though not the scheduler's; WARMER_KILLS says how many must meet a prefill at work.
"""

import ctypes
import dataclasses
import functools
import itertools
import json
import os
import random
import secrets
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants, hf_hub_download  # noqa: F401 - before any fork

sys.path[:0] = [str(Path(__file__).parent.parent / "support"), str(Path(__file__).parent)]

import pods
import runs
import volumes

from warmer.fill import publish

SEED = int(os.environ.get("WARMER_SEED") or secrets.randbits(32))
KILLS = int(os.environ.get("WARMER_KILLS") or 150)
PODS, OPEN = 3, 4
MISSED, BEFORE, AFTER = "that had ended", "before it published", "after it published"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="bind mounts are root's")


@dataclasses.dataclass
class Model:
    """A model and what a prefill of it has to do, as far as acknowledgements tell."""

    pod: pods.Pod
    todo: str = "build"


@dataclasses.dataclass
class Campaign:
    """One volume, pods that all see their own directory at the one warm dir, and models."""

    top: str
    first: pods.Pod
    choose: random.Random
    models: list[Model] = dataclasses.field(default_factory=list)
    acked: set[tuple] = dataclasses.field(default_factory=set)
    seen: dict[str, tuple] = dataclasses.field(default_factory=dict)

    def new_model(self):
        """Put a model on the hub or into a directory; every eighth adds nothing to shared kinds."""
        number = len(self.models)
        repo = f"org/{number}"
        path = pods.make_model(f"{self.top}/hub/{repo}", seed=number)
        uri = pods.pinned(f"{self.top}/hub", repo) if number % 2 == 0 else f"file://{path}"
        self.models.append(Model(self.first.but(model=uri, op=f"op{number % 8}")))
        return self.models[-1]

    def inside(self, own, action):
        """Run `action` in a child where the pod's own directory is the warm dir."""

        def entered():
            see(own, self.first.warm)
            action()

        return pods.fork(entered)

    def start(self, own, pod):
        """Start a prefill; returns the child, and where it acknowledges what it has published."""
        reading, writing = os.pipe()

        def tell(*words):
            os.write(writing, json.dumps(words).encode() + b"\n")

        def prefill():
            real = publish.publish

            def acknowledged(volume, staging, **how):
                number = real(volume, staging, **how)
                tell(staging.key.kind, staging.key.digest, number)
                return number

            publish.publish = acknowledged
            pod.prefill()

        child = self.inside(own, prefill)
        os.close(writing)
        os.set_blocking(reading, False)  # a fork of the dead may hold its end a little longer
        return child, reading

    def judge(self, **how):
        """Nothing published is torn, gone or changed; what was acknowledged is there; kinds that
        models share only grow.
        """
        published = volumes.assert_invariants(self.first.volume, **how)
        assert self.acked <= set(published), "what was acknowledged is gone"
        found = runs.published(self.first.volume)
        assert self.seen.items() <= found.items(), "what was published has changed"
        self.seen = found
        for older, newer in itertools.pairwise(sorted(published)):
            if older[:2] == newer[:2] and older[0] in pods.SHARED:
                assert self.packed(*older).items() < self.packed(*newer).items()
        return published

    def packed(self, kind, key, number):
        return pods.manifest(f"{self.first.volume}/v1/pieces/{kind}/{key}/{number}")

    def look(self, *, warm):
        """In a pod, after a kill: locks end with their owners, and no torn tree is believed."""
        runs.eventually(lambda: not self.first.held())
        assert self.first.believed() or not warm, "a prefill ended and the pod is not ready"

    def staged(self):
        return runs.listing(f"{self.first.volume}/v1/staging")


def see(own, warm):
    """Bind a directory over another one, for this process and its children."""
    libc = ctypes.CDLL(None, use_errno=True)
    private, bind = 0x44000, 0x1000  # MS_REC | MS_PRIVATE, MS_BIND
    for call, *words in (
        (libc.unshare, 0x20000),  # CLONE_NEWNS
        (libc.mount, b"none", b"/", None, private, None),
        (libc.mount, own.encode(), warm.encode(), None, bind, None),
    ):
        assert call(*words) == 0, os.strerror(ctypes.get_errno())


def new_pod(own):
    shutil.rmtree(own, ignore_errors=True)
    os.mkdir(own)


@pytest.fixture
def campaign(tmp_path, monkeypatch):
    top = os.path.realpath(tmp_path)
    engine = pods.gpu_engine(f"{top}/engine", monkeypatch)
    # Or the client asks huggingface.co which AI agents there are.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    for name in ("volume", "warm"):
        os.mkdir(f"{top}/{name}")
    with pods.hub(f"{top}/hub") as url:
        first = pods.Pod(f"{top}/volume", f"{top}/warm", "", engine, hub=url)
        yield Campaign(top, first, random.Random(SEED))  # noqa: S311 - not a secret


def undisturbed(campaign, owns):
    """Measure rounds in which nobody is killed: what is to do → seconds until all have done it."""
    seconds = {}
    one, two, three = ([campaign.new_model() for _ in owns] for _ in range(3))
    for todo, models in (("build", one), ("restore", one), ("fetch", two), ("build", three)):
        started = time.monotonic()
        children = []
        for own, model in zip(owns, models, strict=True):
            new_pod(own)
            pod = model.pod.but(compile="never" if todo == "fetch" else "run")
            children.append(campaign.inside(own, pod.prefill))
        pods.join(*children)
        took = round(time.monotonic() - started, 3)
        seconds[todo] = min(took, seconds.get(todo, took))  # less of what else this machine does
    for model in (*one, *three):
        model.todo = "restore"
    return seconds


def jobs(campaign, owns):
    """Choose for each pod what to do: pod's directory, model, what is to do, how it is told."""
    choose = campaign.choose
    while sum(model.todo == "build" for model in campaign.models) < OPEN:
        campaign.new_model()
    for own in owns:
        if choose.random() < 0.4:
            new_pod(own)
        todo = "restore" if choose.random() < 0.2 else "build"
        model = choose.choice([model for model in campaign.models if model.todo == todo])
        if todo == "build" and choose.random() < 0.3:
            yield own, model, "fetch", model.pod.but(compile="never")
        else:
            yield own, model, todo, model.pod


def one_round(campaign, owns, seconds):
    """Start a prefill in each pod and kill it; yield what each did, and what the kill met.

    `seconds`, within which each is killed, follow what they last took.
    """
    running = []
    for own, model, todo, pod in jobs(campaign, owns):
        at = time.monotonic() + campaign.choose.uniform(0, seconds[todo])
        running.append((at, own, model, todo, *campaign.start(own, pod)))
    for at, *_, child, _ in sorted(running, key=lambda job: job[0]):
        time.sleep(max(0.0, at - time.monotonic()))
        os.kill(child, signal.SIGKILL)
    warm = dict.fromkeys(owns, False)
    for _, own, model, todo, child, pipe in running:
        killed = pods.wait(child)
        warm[own] = not killed
        seconds[todo] *= 1.04 if killed else 0.9  # or half of them come too late, or none
        with open(pipe, "rb") as stream:
            acks = {tuple(json.loads(line)) for line in (stream.read() or b"").splitlines()}
        campaign.acked |= acks
        if "compile" in {kind for kind, *_ in acks}:
            model.todo = "restore"
        yield todo, (AFTER if acks else BEFORE) if killed else MISSED
    campaign.judge()
    looks = {own: functools.partial(campaign.look, warm=ended) for own, ended in warm.items()}
    pods.join(*[campaign.inside(own, look) for own, look in looks.items()])


def met(table):
    """Count the kills that met a prefill at work."""
    return sum(count for (_, state), count in table.items() if state != MISSED)


def test_kills_at_random_instants_lose_nothing_published_and_stop_nobody(campaign, capsys):
    print(f"WARMER_SEED={SEED}")
    owns = [f"{campaign.top}/pod-{number}" for number in range(PODS)]
    seconds = undisturbed(campaign, owns)
    alone = dict(seconds)
    table, left = Counter(), set()
    while met(table) < KILLS:
        table.update(one_round(campaign, owns, seconds))
        left |= set(campaign.staged())
        assert table.total() < 4 * KILLS, f"kills come too late: {seconds}, {table}"
    for number, model in enumerate(campaign.models):
        pods.join(campaign.inside(owns[number % PODS], model.pod.clean))
    runs.eventually(lambda: runs.processes(campaign.first.engine.top) == [])
    published = campaign.judge(warm=owns, clean=True)
    with capsys.disabled():
        print(f"\nWARMER_SEED={SEED} WARMER_KILLS={KILLS}: undisturbed {alone}")
        for (todo, state), count in sorted(table.items()):
            print(f"{count:4} kills of a {todo:7} {state}")
        print(f"{len(left)} stagings were left, {len(campaign.acked)} generations acknowledged;")
        print(f"{len(published)} are published of {len(campaign.models)} models")
    assert KILLS < 100 or left, "no kill met a fill"
