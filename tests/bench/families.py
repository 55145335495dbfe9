"""Every family of kernels on the accelerator found here: filled, wiped, restored, and then perturbed.

One cold fill of MODEL (a URI; the tiny model unless told), the warm dir wiped, all restored at the
same path, one start that must build nothing. Then starts that differ in one thing each, on what
was restored: what `warmer plan` says of them is held against the files that the engine built.
MAX_MODEL_LEN, SIZES (capture sizes, where the accelerator has graphs), ROW (a part of the one
difference that is tried) and WORK (a directory, kept) change it; RESUME=1 takes up a WORK whose cold fill is done.

    MODEL=file:///models/llama WORK=/tmp/families make bench NAME=families
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "..", "support"), os.path.join(HERE, "..", "demo")]

from demo import Demo, read_log
from server import Server
from tinymodel import make_tiny_llama

from warmer import families
from warmer.fill import members
from warmer.layout import WarmDir

LENGTH = int(os.environ.get("MAX_MODEL_LEN", "512"))
SIZES = os.environ.get("SIZES", "").split()
COMPILED = (".so", ".o", ".cubin", ".ptx", "/model")
FAKED = """
import dataclasses, json, sys
sys.path[:] = json.loads(sys.argv.pop(1))
from warmer.observe import accelerator
from warmer.__main__ import main
for name in ("gpu", "cpu"):
    def other(*words, real=getattr(accelerator, name)):
        found = real(*words)
        return found and dataclasses.replace(found, name="NVIDIA L40S", capability="8.9")
    setattr(accelerator, name, other)
main()
"""


class Families(Demo):
    """The demo's commands, and what the trees of all kinds hold."""

    def held(self):
        """Every file of every kernel tree: (kind, family, path) → (bytes, when it changed)."""
        found = {}
        for piece in self.handoff()["pieces"]:
            kind, tree = piece["kind"], WarmDir(self.warm_dir).tree(piece["kind"])
            if kind == "weights" or not os.path.isdir(tree):
                continue
            for path, changed in members.changed(tree, families.excluded(kind)):
                family, _, rest = path.partition("/")
                size = os.stat(os.path.join(tree, path)).st_size
                found[kind, family, rest] = (size, changed)
        return found

    def foretold(self, *more, env=(), faked=False):
        """The factors in which `plan` says the kernels of this start differ; none: it is warm."""
        argv = ["plan", "--json", "--volume", self.volume, "--warm-dir", self.warm_dir]
        argv += ["--model", self.model, "--", *self.serve_args, *more]
        run = ["-c", FAKED, json.dumps(sys.path)] if faked else ["-m", "warmer"]
        done = subprocess.run(
            [sys.executable, *run, *argv],
            env=self.env | dict(env),
            stdout=subprocess.PIPE,
            text=True,
        )
        steps = json.loads(done.stdout)["steps"]
        assert done.returncode == (1 if steps else 0)
        differing = [s["nearest"]["differences"] for s in steps if s.get("nearest")]
        return sorted({d["factor"] for some in differing for d in some}), len(steps)

    def start(self, log, *more, env=(), name=None):
        """One start by the handoff; seconds to ready, what the log says, which files it built."""
        before = self.held()
        script = os.path.join(self.warm_dir, "handoff", "serve")
        with Server([script, *more], log=log, env=self.env | dict(env)) as server:
            ready = server.wait_ready()
            server.complete(name or self.handoff()["served_name"])
        built = [
            where
            for where, (_, changed) in self.held().items()
            if where not in before or (where[2].endswith(COMPILED) and changed > before[where][1])
        ]
        return ready, read_log(log), built


def perturbed(demo, work):
    """Yield (name, what plan says, what the engine did) for each difference."""
    shorter = ["--max-model-len", str(LENGTH // 2)]
    rows = [
        ("another --max-model-len", shorter, {}),
        ("another HOME", [], {"HOME": os.path.join(work, "home")}),
    ]
    if SIZES:
        rows.insert(0, ("other capture sizes", ["--cudagraph-capture-sizes", *SIZES], {}))
    rows = [row for row in rows if os.environ.get("ROW", "") in row[0]]
    os.makedirs(os.path.join(work, "home"), exist_ok=True)
    for number, (name, more, env) in enumerate(rows):
        factors, steps = demo.foretold(*more, env=env)
        with contextlib.redirect_stdout(sys.stderr):
            demo.new_pod()
            demo.warmer("prefill")
        ready, said, built = demo.start(os.path.join(work, f"other-{number}.log"), *more, env=env)
        yield name, factors, steps, ready, said.cache, built
    yield "another GPU's name and capability", *demo.foretold(faked=True), None, "", []


def main():
    work = os.environ.get("WORK") or tempfile.mkdtemp()
    resume = "RESUME" in os.environ
    if not resume:
        shutil.rmtree(work, ignore_errors=True)
    tiny = os.path.join(work, "tiny")
    if "MODEL" not in os.environ and not resume:
        make_tiny_llama(tiny)
    if resume:
        shutil.move(os.path.join(work, "volume"), os.path.join(work, "filled"))
        shutil.rmtree(os.path.join(work, "warm"), ignore_errors=True)
    model = os.environ.get("MODEL", f"file://{tiny}")
    demo = Families(work, model, {}, ["--max-model-len", str(LENGTH)])
    record = {"bench": "families"}
    if resume:
        os.rmdir(demo.volume)
        shutil.move(os.path.join(work, "filled"), demo.volume)
    else:
        started = time.monotonic()
        demo.warmer("prefill", "--on-miss", "kernels=fail")
        record["cold_s"] = round(time.monotonic() - started, 2)
        for entry in os.scandir(os.path.join(demo.warm_dir, "logs")):
            shutil.copy(entry.path, work)
        demo.new_pod()
    started = time.monotonic()
    demo.warmer("prefill")
    record["restore_s"] = round(time.monotonic() - started, 2)

    sizes = {}
    for (kind, family, _), (size, _) in demo.held().items():
        count, total = sizes.get((kind, family), (0, 0))
        sizes[kind, family] = (count + 1, total + size)
    for (kind, family), (count, total) in sorted(sizes.items()):
        print(f"{kind:<11} {family:<17} {count:>6} files {total / 1e6:>9.2f} MB", flush=True)
    record["families"] = {f"{k}/{f}": {"files": c, "bytes": b} for (k, f), (c, b) in sizes.items()}

    if os.environ.get("FILL_ONLY"):
        print(json.dumps(record))
        return 0
    ready, said, built = demo.start(os.path.join(work, "warm.log"))
    print(f"warm start: ready after {ready:.1f} s, compile cache {said.cache}, built {len(built)}")
    record |= {"warm_s": round(ready, 2), "phases": said.phases}
    record |= {"cache": said.cache, "built": [os.path.join(*where) for where in built]}
    record["perturbed"] = []
    false_warm = bool(built) or said.cache == "rebuilt"
    for name, factors, steps, ready, cache, built in perturbed(demo, work):
        engine = (
            f"ready after {ready:.1f} s, cache {cache}, built {len(built)}" if ready else "not run"
        )
        print(f"{name:<34} plan: {', '.join(factors) or 'warm'}; engine: {engine}", flush=True)
        false_warm |= not steps and bool(built or cache == "rebuilt")
        row = {"name": name, "factors": factors, "ready_s": ready, "cache": cache}
        record["perturbed"].append(row | {"built": len(built)})
    record["false_warm"] = false_warm
    print(json.dumps(record))
    return 1 if false_warm else 0


if __name__ == "__main__":
    sys.exit(main())
