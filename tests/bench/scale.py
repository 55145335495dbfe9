"""Time and memory against size, each with the exponent by which it grows: 1 is linear, 0 does not care.

    make bench NAME=scale      PARTS="files bytes generations neighbours waiters latency" chooses

Each command is a process of its own; its seconds are of the CPU, which a busy machine does not
stretch, and its memory is the peak. What a start of Python and the imports take, measured at the
smallest size, is not part of a fit. `waiters` are threads with the real lock code in a few
processes; what they ask of the lock's service is counted by the service. `latency` counts the
operations that reach a FUSE filesystem, and what they take at 5 ms each.

FILES, GENERATIONS, WAITERS (the largest of each) make it smaller.
"""

import contextlib
import hashlib
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "..", "support"), HERE]

import aging
import waiters
from counting import mounted
from fakeengine import make_engine

from warmer import seal
from warmer.fill import uses
from warmer.layout import FILES as BELOW
from warmer.layout import Volume, WarmDir
from warmer.usage import Piece

PARTS = os.environ.get("PARTS", "files bytes generations neighbours waiters latency").split()
FILES = int(os.environ.get("FILES", "10000"))
GENERATIONS = int(os.environ.get("GENERATIONS", "1000"))
WAITERS = int(os.environ.get("WAITERS", "500"))
TERABYTES = 2
LATENCY = 0.005
CONFIG = b'{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}'
NOTHING = hashlib.sha256().hexdigest()


def sizes(largest):
    """An eighth, a quarter, a half, and the whole."""
    return [largest // 8, largest // 4, largest // 2, largest]


def exponent(points):
    """Fit log y = a + p log x to points (x, y); p. None where nothing was measured."""
    pairs = [(math.log(x), math.log(y)) for x, y in points if x > 0 and y > 0]
    if len(pairs) < 2:
        return None
    mean_x, mean_y = (statistics.mean(values) for values in zip(*pairs, strict=True))
    over = sum((x - mean_x) * (y - mean_y) for x, y in pairs)
    under = sum((x - mean_x) ** 2 for x, _ in pairs)
    return round(over / under, 2) if under else None


def run(argv, *, codes=(0,), env=None):
    """Run a command to its end: CPU seconds, wall seconds, peak MB."""
    with tempfile.TemporaryFile() as said:
        began = time.monotonic()
        process = subprocess.Popen(argv, stdout=said, stderr=said, env=env)
        _, status, used = os.wait4(process.pid, 0)
        wall = time.monotonic() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        assert process.returncode in codes, (process.returncode, said.read()[-4000:].decode())
    return used.ru_utime + used.ru_stime, wall, used.ru_maxrss / 1024


class Pod:
    """A volume and a warm dir below a directory, and the commands of a pod without kernels."""

    def __init__(self, top, model, volume=None):
        self.volume = volume or f"{top}/volume"
        self.warm, self.model = f"{top}/warm", model
        os.makedirs(self.volume, exist_ok=True)

    def command(self, verb):
        warmer = [sys.executable, "-m", "warmer"]
        if verb == "check":
            return [sys.executable, "-IS", f"{self.warm}/handoff/check.py"]
        if verb == "gc":
            return [
                *warmer,
                "gc",
                "--json",
                "--volume",
                self.volume,
            ]  # beside a quarter as many pods
        argv = [*warmer, verb, "--json", "--volume", self.volume, "--warm-dir", self.warm]
        return [*argv, "--model", self.model, "--compile", "never"]


def measured(title, x_name, base, points):
    """Print a line for one command over its sizes; return its record."""
    xs = [x for x, _ in points]
    cpu, wall, peak = ([round(m[n], 3) for _, m in points] for n in range(3))
    above = [(x, max(m[0] - base[0], 1e-3)) for x, m in points]
    grown = [(x, max(m[2] - base[2], 0.1)) for x, m in points]
    record = {"what": title, "per": x_name, "sizes": xs, "seconds": cpu, "wall": wall}
    record |= {"exponent": exponent(above), "peak_mb": peak, "memory_exponent": exponent(grown)}
    record["base_s"] = round(base[0], 3)
    if above[-1][1] < 0.15:  # nothing but the start of Python: no power of anything
        record["exponent"] = 0.0
    if grown[-1][1] < 4:
        record["memory_exponent"] = 0.0
    print(
        f"{title:<22} {xs[-1]:>6} {x_name:<12} {cpu[-1]:7.2f} s CPU (base {base[0]:.2f}),"
        f" exponent {record['exponent']}; {peak[-1]:5.0f} MB, exponent {record['memory_exponent']}",
        flush=True,
    )
    return record


# --- files, bytes


def make_model(top, count):
    """A model of many small files."""
    for number in range(count):
        path = f"{top}/assets/{number // 250}/{number:06}.json"
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as f:
            f.write(b"%d" % number * 100)
    with open(f"{top}/config.json", "wb") as f:
        f.write(CONFIG)
    with open(f"{top}/model.safetensors", "wb") as f:
        f.write(b"weights" * 1000)


def of_files(top):
    """A model of many files: planned, filled, looked at, checked."""
    points = {}
    for count in [1, *sizes(FILES)]:
        place = f"{top}/files-{count}"
        make_model(f"{place}/model", count)
        pod = Pod(place, f"file://{place}/model")
        steps = [
            ("plan", "plan", (1,)),
            ("fill", "prefill", (0,)),
            ("noop prefill", "prefill", (0,)),
        ]
        steps += [("plan when warm", "plan", (0,)), ("check", "check", (0,))]
        for title, verb, codes in steps:
            found = run(pod.command(verb), codes=codes)
            points.setdefault(title, []).append((count, found))
        shutil.rmtree(place)
    return [measured(t, "files", p[0][1], p[1:]) for t, p in points.items()]


SHARDS = 64


def of_bytes(top):
    """Sparse shards: nothing of a plan, a check or a prefill without work reads them."""
    points = {}
    whole = TERABYTES * 10**12 // SHARDS
    for size in [1, *(whole // part for part in (1000, 100, 10, 1))]:
        place = f"{top}/bytes"
        os.makedirs(f"{place}/model")
        with open(f"{place}/model/config.json", "wb") as f:
            f.write(CONFIG)
        for number in range(SHARDS):
            name = f"model-{number + 1:05}-of-{SHARDS:05}.safetensors"
            os.truncate(os.open(f"{place}/model/{name}", os.O_CREAT | os.O_WRONLY), 1)
        pod = Pod(place, f"file://{place}/model")
        stamp = 1_700_000_000
        for name in os.listdir(f"{place}/model"):
            if name.endswith(".safetensors"):
                os.truncate(f"{place}/model/{name}", size)
            os.utime(f"{place}/model/{name}", (stamp, stamp))
        found = run(pod.command("plan"), codes=(1, 6))  # 6: and there is no room for it
        points.setdefault("plan", []).append((size * SHARDS, found))
        _seal_by_hand(pod, place)
        for title, verb in (
            ("noop prefill", "prefill"),
            ("plan when warm", "plan"),
            ("check", "check"),
        ):
            found = run(pod.command(verb))
            points.setdefault(title, []).append((size * SHARDS, found))
        shutil.rmtree(place)
    return [measured(t, "bytes", p[0][1], p[1:]) for t, p in points.items()]


def _seal_by_hand(pod, place):
    """Have the model sealed on the volume, as sparse as it is, with hashes that nobody compares."""
    told = subprocess.run(pod.command("plan"), stdout=subprocess.PIPE, check=False)
    key = next(s["key"] for s in json.loads(told.stdout)["steps"] if s["kind"] == "weights")
    volume = Volume(pod.volume)
    where = volume.generation("weights", key, 1)
    os.makedirs(where)
    os.rename(f"{place}/model", f"{where}/{BELOW}")
    shutil.copytree(f"{where}/{BELOW}", f"{place}/model", copy_function=_sparse)
    names = sorted(os.listdir(f"{where}/{BELOW}"))
    files = tuple(
        seal.SealedFile(f"{BELOW}/{n}", os.stat(f"{where}/{BELOW}/{n}").st_size, NOTHING)
        for n in names
    )
    record = seal.Seal(
        "weights", key, 1, "n", "2026-01-01T00:00:00+00:00", "bench", pod.model, 1.0, files
    )
    with open(f"{where}/seal.json", "wb") as f:
        f.write(seal.encode(record))


def _sparse(source, target):
    info = os.stat(source)
    os.close(os.open(target, os.O_CREAT | os.O_WRONLY))
    os.truncate(target, info.st_size)
    os.utime(target, ns=(info.st_atime_ns, info.st_mtime_ns))
    return target


# --- generations of one key, keys of one kind


def of_generations(top):
    """One key with many generations: the newest is looked at, gc looks at all."""
    return _many(top, "generations", GENERATIONS, _generation)


def of_neighbours(top):
    """Many keys of one kind beside the one that is wanted."""
    return _many(top, "keys", GENERATIONS, _neighbour)


def _many(top, name, largest, more):
    points = {}
    for count in [1, *sizes(largest)]:
        place = f"{top}/{name}"
        make_model(f"{place}/model", 1)
        pod = Pod(place, f"file://{place}/model")
        run(pod.command("prefill"))
        (first,) = _found(pod)
        for number in range(2, count + 1):
            more(first, number)
        for title, verb in (
            ("noop prefill", "prefill"),
            ("plan when warm", "plan"),
            ("check", "check"),
        ):
            points.setdefault(title, []).append((count, run(pod.command(verb))))
        with open(f"{place}/model/config.json", "ab") as f:
            f.write(b" ")  # another model, beside all those
        points.setdefault("plan of another", []).append(
            (count, run(pod.command("plan"), codes=(1,)))
        )
        points.setdefault("fill of another", []).append((count, run(pod.command("prefill"))))
        for number in range(count // 4):
            warm = WarmDir(f"{place}/warm-{number}")
            os.makedirs(warm.root)
            uses.record(Volume(pod.volume), warm, [Piece("weights", "cd" * 32, 1)], owner="a pod")
        for title in ("gc that hides", "gc that removes"):
            for old in ("pieces", "trash", "uses/since"):
                aging.age(f"{pod.volume}/v1/{old}", 20)
            points.setdefault(title, []).append((count, run(pod.command("gc"))))
        _bare(place, count, points)
        shutil.rmtree(place)
    return [measured(t, name, p[0][1], p[1:]) for t, p in points.items()]


def _bare(place, count, points):
    """The deeds of those two without warmer: what grows here is the filesystem's."""
    seen, hidden = f"{place}/seen", f"{place}/hidden"
    os.mkdir(hidden)
    for number in range(1, count + 1):
        make_model(f"{seen}/{number}/{BELOW}", 1)
    for title, words in (("bare hiding", ["hide", seen]), ("bare removing", ["remove", hidden])):
        argv = [sys.executable, "-IS", f"{HERE}/bare.py", *words, hidden]
        points.setdefault(title, []).append((count, run(argv)))


def _found(pod):
    kind = Volume(pod.volume).kind("weights")
    return [f"{kind}/{key}/{n}" for key in os.listdir(kind) for n in os.listdir(f"{kind}/{key}")]


def _copy(source, target, **changed):
    shutil.copytree(source, target)
    with open(f"{target}/seal.json", encoding="utf-8") as f:
        record = json.load(f)
    with open(f"{target}/seal.json", "w", encoding="utf-8") as f:
        json.dump(record | changed, f)


def _generation(first, number):
    _copy(first, f"{os.path.dirname(first)}/{number}", generation=number)


def _neighbour(first, number):
    key = hashlib.sha256(b"%d" % number).hexdigest()
    _copy(first, f"{os.path.dirname(os.path.dirname(first))}/{key}/1", key=key)


# --- those who wait


def of_waiters(top):
    """Many pods that wait for one key: what they cost, and how soon they know."""
    found = []
    for name in ("file", "k8s", "s3"):
        rows = [waiters.measure(name, count, top) for count in sizes(WAITERS)]
        last = rows[-1]
        record = {"what": f"{name} lock", "per": "waiters", "sizes": [r["waiters"] for r in rows]}
        record["seconds"] = [r["known_s"] for r in rows]
        record["exponent"] = exponent([(r["waiters"], r["known_s"]) for r in rows])
        record["questions_exponent"] = exponent([(r["waiters"], r["asked_per_s"]) for r in rows])
        record |= {"rows": rows}
        print(
            f"{name + ' lock':<22} {last['waiters']:>6} waiters, open in {last['opened_s']:.1f} s: all know {last['known_s']:.2f} s after,"
            f" exponent {record['exponent']}; {last['asked_per_s']:.0f} questions/s,"
            f" {last['looks_per_s']:.0f} looks/s, {last['cpu_ms_per_s']:.1f} ms CPU per waiter and second",
            flush=True,
        )
        found.append(record)
    return found


# --- a volume that is far away


def of_latency(top):
    """What reaches a volume on which each operation takes 5 ms."""
    engine = make_engine(f"{top}/engine")
    found = []
    for files in (10, 100):
        place = f"{top}/latency-{files}"
        make_model(f"{place}/model", files)
        os.makedirs(f"{place}/far")
        with mounted(f"{place}/far", f"{place}/volume", LATENCY) as count:
            pod = Pod(place, f"file://{place}/model", volume=f"{place}/volume")
            command = {v: pod.command(v) for v in ("prefill", "plan", "check")}
            for verb in ("prefill", "plan"):
                command[verb] = [w for w in command[verb] if w not in ("--compile", "never")]
                command[verb] += ["--vllm", engine.vllm]
            run(command["prefill"])
            pieces = len(os.listdir(f"{place}/far/v1/pieces"))
            for title, verb in (
                ("noop prefill", "prefill"),
                ("plan when warm", "plan"),
                ("check", "check"),
            ):
                count()
                _, wall, _ = run(command[verb])
                ops = count()
                total = sum(ops.values())
                found.append(
                    {
                        "what": title,
                        "per": "far",
                        "files": files,
                        "pieces": pieces,
                        "operations": total,
                    }
                    | {"by": ops, "wall": round(wall, 3), "per_piece": round(total / pieces, 1)}
                )
                print(
                    f"{title:<22} {files:>6} files, {pieces} pieces: {total} operations at 5 ms, {wall:.2f} s; {ops}",
                    flush=True,
                )
        shutil.rmtree(place)
    return found


def main():
    """Measure each part; the last line has all."""
    found = []
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as top:
        for part in PARTS:
            found += globals()[f"of_{part}"](top)
    worst = max(
        (r for r in found if r.get("exponent") is not None), key=lambda r: r["exponent"], default={}
    )
    record = {"bench": "scale", "sizes": worst.get("sizes"), "seconds": worst.get("seconds")}
    record |= {"exponent": worst.get("exponent"), "steepest": worst.get("what"), "measures": found}
    print(json.dumps(record))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
