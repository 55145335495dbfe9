"""A warm pod without an engine: volume, warm dir and handoff, made by warmer's own functions."""

import json
import os
import subprocess
import sys
from pathlib import Path

import volumes

from warmer import keys
from warmer.fill import restore
from warmer.handoff import write
from warmer.handoff.assemble import hand_off
from warmer.layout import Volume, WarmDir
from warmer.machine import Accelerator, Host, Stack
from warmer.model import Key, ModelRef, Plan, Wanted
from warmer.observe import inventory
from warmer.settings import Settings
from warmer.situation import Situation
from warmer.trust import ANYBODY
from warmer.wanted import Start

MODEL = ModelRef("hf", "org/model", "0123456789abcdef0123456789abcdef01234567")
ACCELERATOR = Accelerator("cpu", "a CPU", "avx2")
STACK = Stack(
    vllm="0.32.0",
    torch="2.13.0+cpu",
    cuda=None,
    python="3.11.7",
    libc="glibc 2.36",
    site="/opt/venv/lib/python3.11/site-packages",
    packages={"triton": "3.6.0"},
    command=("/opt/venv/bin/vllm",),
)
KEYS = {
    "weights": keys.weights_key(MODEL),
    "compile": Key("compile", {"model.key": keys.weights_key(MODEL).digest}),
}


def handed_off(top, *, files=200, without=None):
    """Make a warm pod; returns its warm dir.

    Args:
        top: a directory; ``volume`` and ``warm`` are made in it.
        files: how many files the weights have.
        without: kind → why the handoff goes without it; such a piece is not on the volume.
    """
    missing = without or {}
    volume, warm = places(top)
    os.makedirs(volume.root)
    if "weights" not in missing:
        contents = {f"files/{n:03}.safetensors": b"%03d" % n for n in range(files)}
        volumes.fill(volume, KEYS["weights"], contents)
    if "compile" not in missing:
        tree = Path(top, "tree")
        (tree / "vllm").mkdir(parents=True)
        (tree / "vllm" / "artifact").write_bytes(b"compiled")
        volumes.fill_tree(volume, KEYS["compile"], tree)
        restore.restore(volume, warm, KEYS["compile"], 1, trust=ANYBODY)
    hand_off(situation(top), missing)
    return warm.root


def places(top):
    """Name the volume and the warm dir in a directory."""
    return Volume(os.path.join(top, "volume")), WarmDir(os.path.join(top, "warm"))


def situation(top, *, how=None, stack=STACK):
    """Look at what is in a directory, asking no source; `how` the server will start can be given."""
    volume, warm = places(top)
    path = warm.model(MODEL.slug, MODEL.revision[:12])
    plain = Start(model_path=path, served_name=MODEL.name, argv=(), env={}, build_env={})
    return Situation(
        settings=Settings(volume=volume.root, warm_dir=warm.root, model=MODEL),
        volume=volume,
        warm=warm,
        host=Host(stack, ACCELERATOR, None),
        source=None,
        how=how or plain,
        wanted=Wanted(MODEL, KEYS),
        held=inventory.observe(volume, warm, KEYS, trust=ANYBODY),
        plan=Plan(()),
    )


class Pod:
    """A pod, its pieces, and the probe.

    Args:
        top: where its volume and warm dir are.
        warm: whether it is warm, with 3 files of weights; else its prefill has just begun.
        more: for `handed_off`.
    """

    def __init__(self, top, *, warm=True, **more):
        self.volume, self.warm = places(top)
        self.record = Path(self.warm.handoff, "handoff.json")
        self.probe = Path(self.warm.handoff, "check.py")
        if warm:
            handed_off(top, files=3, **more)
        else:
            os.makedirs(self.volume.root)
            write.announce(self.warm, self.volume, KEYS, on_volume=True)

    def generation(self, kind):
        """Name the directory of a kind's generation."""
        return Path(self.volume.generation(kind, KEYS[kind].digest, 1))

    def seal(self, kind):
        """Name the seal of a kind's generation."""
        return self.generation(kind) / "seal.json"

    def edit(self, **changed):
        """Change the handoff's record."""
        record = json.loads(self.record.read_bytes())
        self.record.write_text(json.dumps(record | changed))

    def check(self, *options, argv=None, env=None):
        """Run the handed-off probe as a pod does, or warmer's own; return status and output."""
        if argv is None:
            mine = [sys.executable, "-m", "warmer", "check", "--warm-dir", self.warm.root]
            argv = [sys.executable, "-IS", str(self.probe)] if self.probe.exists() else mine
        env = {"PATH": os.defpath} | (env or {})
        done = subprocess.run(
            [*argv, *options], env=env, capture_output=True, text=True, timeout=30
        )
        assert not done.stderr, done.stderr
        return done.returncode, done.stdout

    def rows(self, *options, ask=None):
        """Ask for JSON; return the status and kind → (verdict, reason)."""
        code, out = (ask or self.check)("--json", *options)
        record = json.loads(out)
        assert (record["code"], record["warm"]) == (code, code == 0)
        return code, {row["kind"]: (row["verdict"], row["reason"]) for row in record["pieces"]}
