"""A cold fill from a hub: warmer against `hf download`, in turns, all of it durable.

Each is a process of its own from its start to its end, reads the same repository of an nginx on this
machine (of tests/support/hub.py where there is none) into an empty directory, and counts until the
disk has all of it: after both, sync(2). Shards that are big and files that are small are two figures;
`ratio` is that of the shards. warmer hashes and seals what it fetches, `hf download` does not.
SIZE_MB, SMALL and ROUNDS make it smaller; BENCH_DIR says where it writes.
"""

import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "support"))

from nginxhub import serve

SIZE_MB = int(os.environ.get("SIZE_MB", "4096"))
SMALL = int(os.environ.get("SMALL", "2000"))
ROUNDS = int(os.environ.get("ROUNDS", "3"))
SHARDS = 8
HF = [sys.executable, "-c", "from huggingface_hub.cli.hf import main; main()"]


def make_shards(top):
    """Write SIZE_MB of shards that compress badly; returns all bytes."""
    block = os.urandom(1 << 20)
    for number in range(SHARDS):
        name = f"model-{number + 1:05}-of-{SHARDS:05}.safetensors"
        with open(os.path.join(top, name), "wb") as f:
            f.writelines(bytes([number, at % 256]) + block[2:] for at in range(SIZE_MB // SHARDS))
    return (SIZE_MB // SHARDS * SHARDS) << 20


def make_small(top):
    """Write SMALL files of 10 to 50 kB; returns all bytes."""
    block = os.urandom(50_000)
    total = 0
    for number in range(SMALL):
        path = os.path.join(top, "assets", str(number // 250), f"{number:05}.json")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as f:
            total += f.write(block[: 10_000 + number * 7919 % 40_000])
    return total


def warmer(repo, sha, top):
    """The command of a prefill without an engine."""
    volume = os.path.join(top, "volume")
    os.makedirs(volume)
    argv = [sys.executable, "-m", "warmer", "prefill", "--json", "--compile", "never"]
    argv += ["--volume", volume, "--warm-dir", os.path.join(top, "warm")]
    return [*argv, "--model", f"hf://{repo}@{sha}"]


def hf(repo, sha, top):
    """The command that people use, with the workers it has by itself."""
    return [*HF, "download", repo, "--revision", sha, "--cache-dir", os.path.join(top, "cache")]


CONTENDERS = {"warmer": warmer, "hf": hf}


def holds(top, size):
    """Whether the model's bytes lie below a directory, once; what else there is, is small."""
    total = sum(
        os.lstat(os.path.join(directory, name)).st_size
        for directory, _, names in os.walk(top)
        for name in names
        if not os.path.islink(os.path.join(directory, name))
    )
    return size <= total < size + 2_000_000


def run(name, words, env, size, top):
    """One contender from nothing; returns wall seconds, CPU seconds and peak MB."""
    os.makedirs(top)
    argv = CONTENDERS[name](*words, top)
    os.sync()  # what the run before left to write is not this one's
    started = time.monotonic()
    with open(f"{top}.said", "w+b") as said:
        process = subprocess.Popen(argv, env=env, stdout=said, stderr=said)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        os.sync()
        wall = time.monotonic() - started
        said.seek(0)
        assert process.returncode == 0, said.read().decode()
    assert holds(top, size), f"{name} did not fetch {size} bytes"
    shutil.rmtree(top)
    return wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def measure(repo, make, top):
    """Contend for one repository; returns its figures."""
    root = os.path.join(top, "hub")
    os.makedirs(os.path.join(root, repo))
    size = make(os.path.join(root, repo))
    config = b'{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}'
    with open(os.path.join(root, repo, "config.json"), "wb") as f:
        size += f.write(config)
    rounds = {name: [] for name in CONTENDERS}
    with serve(root, repo) as (url, sha, server):
        env = {"PATH": os.defpath, "HOME": os.path.join(top, "home"), "HF_ENDPOINT": url}
        env |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1"}
        for turn in range(ROUNDS):
            for name in sorted(CONTENDERS, reverse=turn % 2 == 1):
                figures = run(name, (repo, sha), env, size, os.path.join(top, "to"))
                rounds[name].append(figures)
                wall, spent, peak = figures
                print(
                    f"{repo:<12} {name:<7} {wall:7.2f} s {size / wall / 1e6:7.1f} MB/s"
                    f" {spent:6.2f} CPU-s {peak:6.0f} MB",
                    flush=True,
                )
    shutil.rmtree(os.path.join(root, repo))
    speeds = {n: size / statistics.median(w for w, _, _ in all_) for n, all_ in rounds.items()}
    spent = {n: statistics.median(c for _, c, _ in all_) for n, all_ in rounds.items()}
    ours = speeds.pop("warmer")
    return {
        "ratio": round(ours / max(speeds.values()), 3),
        "others": {name: round(speed) for name, speed in speeds.items()},
        "ours": round(ours),
        "cpu_s_per_gb": {name: round(value / size * 1e9, 3) for name, value in spent.items()},
        "peak_rss_mb": round(max(peak for _, _, peak in rounds["warmer"])),
        "server": server,
    }


def main():
    with contextlib.ExitStack() as stack:
        top = stack.enter_context(tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")))
        record = {"bench": "fill-hf"}
        small = measure("bench/small", make_small, top) if SMALL else {}
        record |= measure("bench/shards", make_shards, top) | {"small": small}
        record |= {"model_mb": SIZE_MB, "small_files": SMALL, "rounds": ROUNDS}
        print(json.dumps(record))


if __name__ == "__main__":
    main()
