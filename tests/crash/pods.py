"""Pods beside one volume: whole prefills in forked children, and what must hold after a kill.

A fork of this process costs a tenth of a new one, so that hundreds can be killed in a minute.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import traceback
from contextlib import contextmanager
from pathlib import Path

import fakeengine
import hubrepo
import runs
import volumes

from warmer import argv, check, prefill, settings, situation, urls
from warmer.errors import EngineError
from warmer.fill import engine
from warmer.observe import accelerator, stack

SHARED = ("flashinfer", "jit")
CPUS = len(os.sched_getaffinity(0))


@dataclasses.dataclass(frozen=True)
class Pod:
    """What one prefill is told.

    Attributes:
        volume: the shared volume.
        warm: the warm dir.
        model: its URI.
        engine: the installation.
        op: the operation that the engine's JITs build for this model.
        hub: HF_ENDPOINT.
        compile: as --compile.
    """

    volume: str
    warm: str
    model: str
    engine: fakeengine.Engine
    op: str = "op"
    hub: str = ""
    compile: str = "run"

    def but(self, **changed) -> Pod:
        return dataclasses.replace(self, **changed)

    def settings(self) -> settings.Settings:
        environment = {"PATH": os.environ["PATH"], "HOME": self.engine.top}
        environment |= {"FAKE_ENGINE": f"op={self.op}", "HF_ENDPOINT": self.hub} | volumes.SECRETS
        return settings.Settings(
            volume=self.volume,
            warm_dir=self.warm,
            model=urls.parse_model(self.model),
            serve_argv=runs.SERVE,
            flags=argv.parse(runs.SERVE),
            compile=self.compile,
            on_miss=settings.parse_on_miss(["fail" if self.compile == "run" else "kernels=cold"]),
            wait=60.0,
            me="a pod",
            vllm=self.engine.vllm,
            environment=environment,
        )

    def prefill(self) -> None:
        """Run the pipeline, which must end well."""
        while True:
            try:
                done = prefill.prefill(self.settings())
            except EngineError as exc:
                # The engines of several pods are given ports of one loopback here.
                if "Address already in use" not in exc.message:
                    raise
                continue
            assert done.left.steps == ()
            assert set(done.without) <= (set() if self.compile == "run" else {"compile", *SHARED})
            return

    def clean(self) -> None:
        """Run it undisturbed after a kill: it must leave nothing to do."""
        runs.eventually(lambda: not self.held())  # by a fork of the dead that is no engine yet
        self.prefill()
        assert situation.look(self.settings()).plan.empty
        assert self.believed(), "a warm pod that its probe does not call ready"
        assert not self.held()

    def key(self, kind) -> str:
        return situation.look(self.settings()).wanted.keys[kind].digest

    def held(self) -> list[str]:
        top = f"{self.volume}/v1/locks"
        paths = [*(f"{top}/{name}" for name in runs.listing(top)), f"{self.warm}/lock"]
        return [path for path in paths if os.path.isfile(path) and runs.locked(path)]

    def believed(self) -> str | None:
        """Name the model that the probe calls ready; its trees must be what was published.

        What `handoff.json` says must be what the other files of the handoff do, ready or not.
        """
        last = Path(self.warm, "handoff/handoff.json")
        if not last.exists():
            assert check.check(self.warm, True)[1] != 0
            return None
        handoff = json.loads(last.read_bytes())
        words = shlex.join([handoff["model_path"], *handoff["argv"]])
        assert words in last.with_name("serve").read_text(), "half of another handoff"
        env = last.with_name("env").read_text()
        assert all(value in env for value in handoff["env"].values()), "half of another handoff"
        if check.check(self.warm, True)[1] != 0:
            return None
        for piece in handoff["pieces"]:
            if piece["verdict"] == "sealed" and piece["kind"] != "weights":
                tree = volumes.read_tree(f"{self.warm}/cache/{piece['kind']}")
                packed = manifest(piece["directory"])
                assert packed.items() <= tree.items(), "a torn tree is handed off"
                more = tree.keys() - packed.keys()
                assert all("lock" in path or "tmp" in path for path in more), more
        return handoff["served_name"]


class Site:
    """A volume and a warm dir that are put back as they were before every kill.

    Its pods differ in their models, and in what their engines build of the shared kinds.
    """

    def __init__(self, top, engine):
        self.volume, self.warm, self.saved = (f"{top}/{name}" for name in ("v", "w", "saved"))
        models = [make_model(f"{top}/{name}", seed=name) for name in ("one", "two", "three")]
        self.pods = [
            Pod(self.volume, self.warm, f"file://{model}", engine, op=os.path.basename(model))
            for model in models
        ]
        self.clear()

    def clear(self):
        self.damaged = None  # a generation that the test damaged: no judge looks at it
        for directory in (self.volume, self.warm, self.saved):
            shutil.rmtree(directory, ignore_errors=True)
        os.makedirs(self.volume)
        self.new_pod()

    def new_pod(self):
        shutil.rmtree(self.warm, ignore_errors=True)
        os.mkdir(self.warm)

    def save(self):
        self.published()
        for directory in (self.volume, self.warm):
            shutil.copytree(directory, self.saved + directory, symlinks=True)

    def put_back(self):
        """Return what is published, of which a look before has checked that it is whole."""
        for directory in (self.volume, self.warm):
            shutil.rmtree(directory)
            shutil.copytree(self.saved + directory, directory, symlinks=True)
        return self.published(checked=False)

    def generations(self, kind):
        top = f"{self.volume}/v1/pieces/{kind}"
        return [
            f"{top}/{key}/{n}" for key in runs.listing(top) for n in runs.listing(f"{top}/{key}")
        ]

    def clean(self):
        """As `published`, with all else that can be seen after a run that ended well, here and there."""
        return self.published(warm=[self.warm], clean=True)

    def published(self, *, checked=True, **how):
        """Check every published generation, and fingerprint its files."""
        aside = f"{self.volume}/aside"
        damaged = self.damaged and os.path.exists(self.damaged)
        if damaged:
            os.rename(self.damaged, aside)
        if checked:
            volumes.assert_invariants(self.volume, **how)
        found = runs.published(self.volume).items()
        if damaged:
            os.rename(aside, self.damaged)
        return found


def gpu_engine(top, monkeypatch) -> fakeengine.Engine:
    """Install an engine for a GPU, which builds kernels of every kind, and lose no time with it."""
    made = fakeengine.make_engine(top, torch="2.13.0+cu130", cuda="13.0")
    monkeypatch.setenv("PATH", f"{made.bin}:{os.defpath}")
    # It is quickly ready, then writes nothing more; its Python and its GPU are always the same.
    monkeypatch.setattr(engine, "_POLL", 0.02)
    monkeypatch.setattr(engine, "_wait_settled", lambda _snapshot: None)
    monkeypatch.setattr(stack, "_ask", functools.cache(stack._ask))
    monkeypatch.setattr(accelerator, "_nvidia_smi", functools.cache(accelerator._nvidia_smi))
    stack.find(made.vllm)  # known before any fork
    accelerator.gpu()
    return made


def make_model(top, *, seed=0, size=30_000) -> str:
    """Write what the fake engine takes for a model; equal seeds give equal bytes."""
    data = random.Random(seed).randbytes(size)  # noqa: S311 - not a secret
    files = {"config.json": b"{}", "tokenizer/vocab.json": data[:99], "model.safetensors": data}
    for path, content in files.items():
        target = Path(top, path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    return os.fspath(top)


def manifest(directory) -> dict[str, tuple]:
    """Read what a generation of kernels packs: path → (size, sha256)."""
    listed = json.loads(Path(directory, "manifest.json").read_bytes())
    return {file["path"]: (file["size"], file["sha256"]) for file in listed["files"]}


def pinned(root, repo) -> str:
    """Name a model of a hub's directory by its commit."""
    return f"hf://{repo}@{hubrepo.read_commit(os.path.join(root, repo)).sha}"


def fork(action) -> int:
    """Run `action` in a child; `wait` for it."""
    pid = os.fork()
    if pid == 0:
        gc.freeze()  # or the first collection would copy all that the parent knows
        status = 1
        try:
            action()
            status = 0
        except BaseException:  # noqa: BLE001 - a child must not return
            os.write(2, traceback.format_exc().encode())  # sys.stderr may be the parent's memory
        finally:
            os._exit(status)
    return pid


def wait(pid) -> bool:
    """Whether it was killed; a child that ends by itself must end well."""
    _, status = os.waitpid(pid, 0)
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    assert killed or status == 0, "the child failed; see its traceback"
    return killed


def join(*children) -> None:
    """Wait for children that nobody kills."""
    ended = [wait(child) for child in children]
    assert not any(ended)


def run(*actions) -> None:
    """Run each in a child, one after the other."""
    for action in actions:
        join(fork(action))


@contextmanager
def hub(root):
    """Serve `root` as the hub does, from a process of its own; yields HF_ENDPOINT."""
    os.makedirs(root, exist_ok=True)
    port, script = f"{root}.port", os.path.join(os.path.dirname(hubrepo.__file__), "hub.py")
    process = subprocess.Popen([sys.executable, script, "--root", root, "--port-file", port])
    try:
        runs.eventually(lambda: os.path.exists(port))
        yield f"http://127.0.0.1:{Path(port).read_text().strip()}"
    finally:
        process.kill()
        process.wait()
