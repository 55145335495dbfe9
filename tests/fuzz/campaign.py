"""Every target fuzzed, one after the other; the last line is one JSON object.

    RUNS=300000 SECONDS=600 OUT=/var/tmp/fuzz [TARGETS="seal argv"] python tests/fuzz/campaign.py

Each target ends after RUNS executions or SECONDS, whichever is first. OUT keeps the corpora, which a
later campaign begins with, what each driver said, and the inputs that crashed; fuzz.json has the
counts, and grows as targets are done. The exit status is 0 where nothing crashed.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "..", "support")]

from targets import TARGETS

RUNS = int(os.environ.get("RUNS", "200000"))
SECONDS = int(os.environ.get("SECONDS", "60"))
_EXECUTED = re.compile(r"stat::number_of_executed_units:\s+(\d+)")
_COVERED = re.compile(r"cov: (\d+)")


def fuzz(name, out):
    """Fuzz one target; returns its counts."""
    crashes, corpus = os.path.join(out, "crashes"), os.path.join(out, "corpus", name)
    os.makedirs(crashes, exist_ok=True)
    os.makedirs(corpus, exist_ok=True)
    argv = [sys.executable, os.path.join(HERE, "driver.py"), name, corpus]
    argv += [f"-runs={RUNS}", f"-max_total_time={SECONDS}", "-verbosity=1"]
    argv += [f"-artifact_prefix={crashes}/{name}-"]
    log = os.path.join(out, f"{name}.log")
    began = time.monotonic()
    with open(log, "wb") as stream:
        code = subprocess.run(argv, stdout=stream, stderr=stream, check=False).returncode
    with open(log, encoding="utf-8", errors="replace") as stream:
        said = stream.read()
    executed = _EXECUTED.findall(said)
    covered = _COVERED.findall(said)
    return {
        "runs": int(executed[-1]) if executed else 0,
        "seconds": round(time.monotonic() - began, 1),
        "covered": int(covered[-1]) if covered else 0,
        "crashed": code != 0,
    }


def main():
    out = os.environ.get("OUT") or tempfile.mkdtemp(prefix="warmer-fuzz-out-", dir="/var/tmp")
    names = os.environ.get("TARGETS", "").split() or list(TARGETS)
    record = {"fuzz": "warmer", "runs": 0, "crashed": [], "targets": {}}
    for name in names:
        found = record["targets"][name] = fuzz(name, out)
        record["runs"] += found["runs"]
        record["crashed"] += [name] if found["crashed"] else []
        mark = "CRASHED" if found["crashed"] else ""
        print(f"{name:<14} {found['runs']:>9,} in {found['seconds']:>6.0f} s {mark}", flush=True)
        with open(os.path.join(out, "fuzz.json"), "w", encoding="utf-8") as stream:
            json.dump(record, stream)
    print(f"kept in {out}")
    print(json.dumps(record))
    return 1 if record["crashed"] else 0


if __name__ == "__main__":
    sys.exit(main())
