"""What `warmer check` costs beside a bare Python: CPU time, interleaved, the median of many.

The probe runs every few seconds in every pod, often under a small CPU limit.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))

from handed import handed_off

FILES = 200
RUNS = int(os.environ.get("RUNS", "41"))


def cpu(argv):
    """CPU seconds, user and system, of one process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main():
    with tempfile.TemporaryDirectory() as top:
        warm_dir = handed_off(top, files=FILES)
        probe = os.path.join(warm_dir, "handoff", "check.py")
        commands = {
            "bare": [sys.executable, "-c", "pass"],
            "check": [sys.executable, "-m", "warmer", "check", "--warm-dir", warm_dir],
            "probe": [sys.executable, "-IS", probe],
        }
        spent = {name: [] for name in commands}
        for _ in range(RUNS):
            for name, argv in commands.items():
                spent[name].append(cpu(argv))
    medians = {name: statistics.median(values) for name, values in spent.items()}
    for name, value in medians.items():
        print(f"{name:<6} {1000 * value:6.1f} ms CPU")
    record = {
        "bench": "check",
        "ratio": round(medians["check"] / medians["bare"], 2),
        "probe_ratio": round(medians["probe"] / medians["bare"], 2),
        "files": FILES,
        "bare_ms": round(1000 * medians["bare"], 2),
        "check_ms": round(1000 * medians["check"], 2),
        "probe_ms": round(1000 * medians["probe"], 2),
        "runs": RUNS,
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()
