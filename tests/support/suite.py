"""Run pytest; what failed runs once more by itself, and is named even where it passes then.

A test that fails in a whole run and passes alone is a defect, of the test or of the product, and
has to be mended; but the machine that ran it may have been busy, and the other three thousand
tests still say what they say. So few failures are tried again, once, and the last lines name them.

    python suite.py NAME WORDS...    NAME keeps concurrent suites' caches apart
"""

import json
import subprocess
import sys
from pathlib import Path

SOME_FAILED = 1
"""pytest's exit status when tests ran and some failed; any other is not tried again."""
FEW = 3


def main(name, *words):
    """Return the exit status."""
    cache = Path(".pytest_cache") / name
    pytest = [sys.executable, "-m", "pytest", "-o", f"cache_dir={cache}"]
    last = cache / "v" / "cache" / "lastfailed"
    last.unlink(missing_ok=True)
    status = subprocess.run([*pytest, *words], check=False).returncode
    if status != SOME_FAILED:
        return status
    failed = sorted(json.loads(last.read_text()))
    if len(failed) > FEW:
        return status
    print(f"{len(failed)} failed; once more by themselves", flush=True)
    status = subprocess.run([*pytest, *failed], check=False).returncode
    for test in failed if status == 0 else ():
        print(f"FLAKY: failed in the whole run, passed by itself: {test}", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
