"""Starts that differ in one thing each: what `warmer plan` says of them, and what the engine does.

The tiny model is prefilled once. Of every row of `rows.ROWS`, `warmer plan` says whether the caches
fit; vLLM's own code says whether its keys are the same; and for the rows marked so the engine is
started on the restored caches, and the files counted that it builds. Ends with one JSON line; exit
status 1 says that something was called warm and was not. ROWS="HOME CXX" takes the rows of which
the names hold one of the words; ENGINE, of those marked so; ENGINE= starts no engine.

    WORK=/tmp/perturb make perturb
"""

import collections
import contextlib
import importlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, *(os.path.join(HERE, "..", name) for name in ("support", "demo", "bench"))]

from families import Families
from rows import ELSEWHERE, OTHER, PLACES, ROWS, merged
from tinymodel import make_tiny_llama

TOP = os.path.join(HERE, "..", "..")
VERDICTS = ("agree_warm", "agree_miss", "cautious", "refused", "false_warm")


class Pod:
    """A pod whose warm dir is filled, and how its starts are perturbed.

    Args:
        volume: the shared volume.
        warm_dir: filled by `prefill`.
        model: warmer's ``--model``.
        env: the pod's environment.
        serve_args: the serve arguments of the fill.
    """

    def __init__(self, volume, warm_dir, model, env, serve_args):
        self.env, self.serve_args = env, list(serve_args)
        self._plan = ["plan", "--json", "--volume", volume]
        self._plan += ["--warm-dir", warm_dir, "--model", model]
        self._warm_dir = warm_dir
        with open(os.path.join(warm_dir, "handoff", "handoff.json"), encoding="utf-8") as f:
            self.handoff = json.load(f)

    def args(self, row):
        """The words that a row adds, with paths for what stands for one."""
        places = PLACES | {"MODEL": self.handoff["model_path"]}
        return [places.get(word, word) for word in row.args]

    def predict(self, row):
        """What `plan` says: warm, miss with the factors by name, or refused with the reason."""
        argv = [*self._plan, *row.flags, "--", *merged(self.serve_args, self.args(row))]
        status, out = _warmer(argv, self.env | row.env)
        said = json.loads(out)
        if "error" in said:
            return "refused", [said["error"]["reason"]]
        steps = said["steps"]
        assert status == (1 if steps else 0), (row.name, status)
        nearest = [s["nearest"]["differences"] for s in steps if s.get("nearest")]
        return ("miss" if steps else "warm"), sorted(
            {d["factor"] for some in nearest for d in some}
        )

    def kept(self, row):
        """What the handoff of the row's own pod would say otherwise than the one at hand."""
        said = self.handoff["env"]
        return {n: v for n, v in row.env.items() if n in said and said[n] == self.env.get(n)}

    def start(self, row):
        """Words and variables of the start by which a row's pod would use these caches."""
        argv = merged(self.handoff["argv"], self.args(row))
        env = self.env | row.env | self.handoff["env"] | self.kept(row)
        start = {"argv": ["--model", self.handoff["model_path"], *argv], "env": env}
        return self._moved(start) if ELSEWHERE in row.flags else start

    def _moved(self, start):
        """The same start from another warm dir, with the model there."""
        model = self.handoff["model_path"]
        moved = json.loads(json.dumps(start).replace(self._warm_dir, ELSEWHERE))
        link = model.replace(self._warm_dir, ELSEWHERE)
        os.makedirs(os.path.dirname(link), exist_ok=True)
        if not os.path.lexists(link):
            os.symlink(os.path.realpath(model), link)
        return moved


def _warmer(words, env):
    """Run a verb in a fork of this process: its status and what it printed."""
    there, here = os.pipe()
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            os.dup2(here, 1)
            sys.stdout = open(1, "w", encoding="utf-8", closefd=False)
            os.environ.clear()
            os.environ.update(env)
            sys.argv[:] = ["warmer", *words]
            importlib.import_module("warmer.__main__").main()
        os._exit(99)
    os.close(here)
    with open(there, encoding="utf-8") as f:
        said = f.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said


def predictions(pod, rows):
    for name in ("warmer.cli.plan", "warmer.situation"):  # once, and not in every child
        importlib.import_module(name)
    return [pod.predict(row) for row in rows]


def digests(pod, rows, *, sweep=False):
    """vLLM's keys for the fill's start, for each row's, what the sweep found, and the versions."""
    starts = [{"argv": start["argv"], "env": start["env"]} for start in map(pod.start, rows)]
    nothing = pod.start(ROWS[0])
    asked = {"starts": [nothing, *starts], "sweep": sweep}
    env = pod.env | pod.handoff["env"]
    env["PYTHONPATH"] = os.pathsep.join(
        filter(None, [os.path.abspath(TOP), env.get("PYTHONPATH", "")])
    )
    done = subprocess.run(
        [sys.executable, os.path.join(HERE, "digests.py")],
        env=env,
        input=json.dumps(asked),
        capture_output=True,
        text=True,
    )
    shutil.rmtree(ELSEWHERE, ignore_errors=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    base, *rest = found["starts"]
    assert "error" not in base, base
    return base, rest, found["sweep"], found["versions"]


def differing(base, keys):
    """The parts of vLLM's key in which a start differs from the fill's."""
    return sorted(part for part in base if keys.get(part) != base[part])


def judge(predicted, parts, built):
    """Compare.

    Args:
        predicted: ``warm``, ``miss`` or ``refused``.
        parts: of vLLM's key, which differ.
        built: how many files the engine built; None where none was started.
    """
    if predicted == "refused":
        return "refused"
    missed = bool(parts or built)
    if predicted == "warm":
        return "false_warm" if missed else "agree_warm"
    return "agree_miss" if missed else "cautious"


def unset(env):
    """Leave out what the machine at hand has set of the rows' variables: the rows set them."""
    names = {name for row in ROWS for name in row.env} - {"HOME", "VLLM_CPU_KVCACHE_SPACE"}
    return {name: value for name, value in env.items() if name not in names}


def named(row, variable):
    """Whether a row is among those that a variable names; all are, where it is not set."""
    words = os.environ.get(variable)
    return words is None or any(word in row.name for word in words.split())


def fill(work):
    """Prefill the tiny model; a pod with the demo's commands."""
    tiny = os.path.join(work, "tiny")
    make_tiny_llama(tiny)
    demo = Families(work, f"file://{tiny}", {}, ["--max-model-len", "512"])
    demo.env = unset(demo.env)
    with contextlib.redirect_stdout(sys.stderr):
        demo.warmer("prefill", "--on-miss", "kernels=fail")
    return demo


def run(demo, pod, row, log):
    """Start the engine as a row says on freshly restored caches; seconds to ready, files it built."""
    with contextlib.redirect_stdout(sys.stderr):
        demo.new_pod()
        demo.warmer("prefill")
    lines = [f"export {name}={shlex.quote(value)}\n" for name, value in pod.kept(row).items()]
    with open(os.path.join(demo.warm_dir, "handoff", "env"), "a", encoding="utf-8") as f:
        f.writelines(lines)
    os.makedirs(OTHER)
    words = pod.args(row)
    name = words[-1] if "--served-model-name" in words else demo.handoff()["served_name"]
    try:
        ready, _, built = demo.start(log, *words, env=row.env, name=name)
    except RuntimeError as exc:
        raise SystemExit(f"{row.name}: {exc}; its log is at {log}") from exc
    finally:
        shutil.rmtree(OTHER, ignore_errors=True)
    return ready, len(built)


def main():
    work = os.environ.get("WORK") or tempfile.mkdtemp()
    shutil.rmtree(work, ignore_errors=True)
    os.makedirs(work)
    rows = [row for row in ROWS if named(row, "ROWS")]
    demo = fill(work)
    pod = Pod(demo.volume, demo.warm_dir, demo.model, demo.env, demo.serve_args)
    base, keys, swept, versions = digests(pod, rows, sweep=True)
    table, counts = [], collections.Counter(dict.fromkeys(VERDICTS, 0))
    print("| start | plan | vLLM's key differs in | files built, s to ready | verdict |")
    print("|---|---|---|---|---|")
    for number, (row, (said, factors), key) in enumerate(
        zip(rows, predictions(pod, rows), keys, strict=True)
    ):
        if said != "refused" and "error" in key:
            raise SystemExit(f"{row.name}: {key['error']}")
        parts, built, ready = [], None, None
        if said != "refused":
            parts = differing(base, key)
            if row.engine and named(row, "ENGINE"):
                log = os.path.join(work, f"row-{number}.log")
                ready, built = run(demo, pod, row, log)
        verdict = judge(said, parts, built)
        counts[verdict] += 1
        engine = "" if built is None else f"{built}, {ready:.0f} s"
        shown = f"{said}: {', '.join(factors)}" if factors else said
        name = row.name.replace("|", "\\|")
        print(
            f"| `{name}` | {shown} | {', '.join(parts) or 'nothing'} | {engine} "
            f"| {verdict.replace('_', ' ')} |",
            flush=True,
        )
        table.append({"name": row.name, "plan": said, "factors": factors, "differs": parts})
        table[-1] |= {"built": built, "verdict": verdict}
    print(
        f"\nOf {swept['swept']} variables that vLLM hashes or torch's configuration reads, "
        f"{swept['left_out']} are no factors; of these and of Triton's, in a key nonetheless: "
        f"{', '.join(swept['missed']) or 'none'}."
    )
    engines = sum(row["built"] is not None for row in table)
    record = {"rows": len(rows), **counts, "engines": engines, "missed": swept["missed"]}
    record |= {"versions": versions, "table": table}
    print(json.dumps({"perturb": record}))
    return 1 if counts["false_warm"] or swept["missed"] else 0


if __name__ == "__main__":
    sys.exit(main())
