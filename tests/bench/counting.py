"""A directory mounted through FUSE at another, each operation counted and made to take a while.

    python counting.py DIRECTORY POINT SECONDS COUNTS

The counts are written to the file COUNTS, and begin anew, at SIGUSR1. The kernel remembers names and
attributes for 3 seconds, as it does at least on NFS.
"""

import collections
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "..", "support"), os.path.join(HERE, "..", "doctor")]

NAMES = ("getattr", "readdir", "create", "open", "read", "write", "truncate", "fsync", "mkdir", "rmdir",
         "unlink", "rename", "link", "symlink", "readlink", "chmod", "utimens")  # fmt: skip


@contextlib.contextmanager
def mounted(far, point, seconds):
    """Mount; yields a function that returns the counts since it was last called."""
    os.makedirs(point)
    counts = f"{point}.counts"
    argv = [sys.executable, os.path.abspath(__file__), far, point, str(seconds), counts]
    process = subprocess.Popen(argv)
    _until(lambda: os.path.ismount(point) or process.poll() is not None)
    assert process.poll() is None, "it is not mounted"

    def count():
        time.sleep(3.5)  # what the kernel remembers is over
        with contextlib.suppress(FileNotFoundError):
            os.unlink(counts)
        process.send_signal(signal.SIGUSR1)
        _until(lambda: os.path.exists(counts))
        with open(counts, encoding="utf-8") as f:
            return json.load(f)

    try:
        yield count
    finally:
        subprocess.run(["fusermount3", "-uz", point], check=False)
        process.kill()  # it may wait for its signal
        process.wait()


def _until(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.01)


def main(far, point, seconds, counts):
    """Serve until it is unmounted."""
    import mfusepy  # noqa: PLC0415 - who mounts needs neither
    from liar import Liar  # noqa: PLC0415 - as above

    asked = collections.Counter()
    mutex = threading.Lock()
    latency = float(seconds)

    def counted(name, real):
        def call(self, *args):
            with mutex:
                asked[name] += 1
            time.sleep(latency)
            return real(self, *args)

        return call

    class Far(Liar):
        pass

    for name in NAMES:
        setattr(Far, name, counted(name, getattr(Liar, name)))

    def tell():
        while True:
            signal.sigwait({signal.SIGUSR1})
            with mutex:
                said = json.dumps(dict(asked))
                asked.clear()
            with open(f"{counts}.new", "w", encoding="utf-8") as f:
                f.write(said)
            os.rename(f"{counts}.new", counts)

    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    threading.Thread(target=tell, daemon=True).start()
    mfusepy.FUSE(
        Far(far), point, foreground=True, attr_timeout=3, entry_timeout=3, negative_timeout=0
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
