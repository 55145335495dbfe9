"""Doctors as processes, what they found, and filesystems that lie to them."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "support"))

import runs

ALONE = (
    *(
        "mount",
        "locks by mount",
        "free",
        "writers",
        "writable",
        "fsync",
        "publishing",
        "no replacing",
    ),
    *("file rename", "locks", "mtime", "symlinks", "hard links", "exec"),
)
TOGETHER = (
    *("other pod", "two nodes", "hostnames", "locks across pods", "names across pods"),
    *("publishing across", "file rename across", "replaced while open", "no replacing across"),
)
TIMEOUT = 120.0


def can_lie():
    """Whether this machine can mount filesystems that lie."""
    with contextlib.suppress(ImportError, OSError):
        import mfusepy  # noqa: F401, PLC0415 - it fails where libfuse is missing

        return os.geteuid() == 0 and os.path.exists("/dev/fuse")
    return False


IMPATIENT = (
    sys.executable,
    "-c",
    "import warmer.doctor.apart as a; a.SILENCE, a._GRACE = 10.0, 1.0; from warmer.cli import main; main()",
)
"""A warmer whose doctor waits for a volume's answer no longer than a test can."""


def start(volume, *options, env=None, warmer=runs.WARMER):
    """Start a doctor; `finish` it."""
    argv = [*warmer, "doctor", "--volume", str(volume), "--json", *options]
    mine = {"PATH": os.defpath, "HOME": "/nonexistent"}
    return runs.spawn(argv, mine | (env or {}))


def kill(process, volume):
    """Kill a doctor's processes with -9, the one that works first."""
    for pid in runs.processes(str(volume)):
        with contextlib.suppress(ProcessLookupError):
            if pid != process.pid:
                os.kill(pid, signal.SIGKILL)
    runs.kill(process)


def finish(process):
    return runs.finish(process, timeout=TIMEOUT)


def examine(volume, *options, **more):
    """Run a doctor to its end."""
    return finish(start(volume, *options, **more))


def found(result):
    """Map names to findings, once it is sure that no two share one."""
    assert result.json["exit_code"] == result.code, result
    findings = {finding["name"]: finding for finding in result.json["findings"]}
    assert len(findings) == len(result.json["findings"])
    for finding in findings.values():
        assert bool(finding["hint"]) or finding["verdict"] in ("ok", "skip"), finding
    return findings


def not_ok(result):
    """Name what is not ok, with its verdict; a disk that is nearly full is nobody's fault here."""
    findings = found(result).values()
    wrong = {f["name"]: f["verdict"] for f in findings if f["verdict"] != "ok"}
    if wrong.get("free") == "warn":
        del wrong["free"]
    return wrong


def waits(volume):
    """The private directories of doctors that wait for another."""
    top = f"{volume}/v1/doctor"
    return [f"{top}/{n}" for n in runs.listing(top) if os.path.exists(f"{top}/{n}/card")]


def is_mounted(point):
    """Whether something is mounted there; asks the kernel and not the filesystem, which may hang."""
    with open("/proc/self/mountinfo", encoding="utf-8") as stream:
        return any(line.split()[4] == str(point) for line in stream)


@contextlib.contextmanager
def lying(under, point, *lies):
    """Mount a liar over a directory."""
    os.makedirs(point, exist_ok=True)
    argv = [sys.executable, str(HERE / "liar.py"), str(under), str(point), *lies]
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        runs.eventually(lambda: is_mounted(point) or process.poll() is not None, timeout=60)
        assert process.poll() is None, "it does not mount"
        yield str(point)
    finally:
        process.kill()  # first: whoever hangs on it is answered then
        process.wait()
        subprocess.run(["umount", "-l", str(point)], check=False)
