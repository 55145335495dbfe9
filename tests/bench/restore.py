"""A kernel tree from archives in the page cache into a directory, against `cp -a` of the tree itself.

Half compresses well, as code does. FILES small files of 20 kB are the shape of bytecode, SIZE_MB in
files of 16 MB that of cubins and shared objects. warmer decompresses, hashes archives and files, and
sets modes and times; cp does the last alone. BENCH_DIR says where.
"""

import hashlib
import json
import os
import random
import shutil
import statistics
import subprocess
import tempfile
import time

from warmer.fill import archive, members

SIZE_MB = int(os.environ.get("SIZE_MB", "1024"))
FILES = int(os.environ.get("FILES", "4500"))
ROUNDS = int(os.environ.get("ROUNDS", "5"))
LARGE = 16 << 20
SMALL = 20_000


def make(tree):
    """Make the tree; returns its bytes."""
    rnd = random.Random(0)  # noqa: S311 - bytes, not secrets
    code = b"".join(rnd.randbytes(32) + bytes(32) for _ in range((1 << 20) // 64))
    sizes = [LARGE] * (SIZE_MB * (1 << 20) // LARGE) + [SMALL] * FILES
    for number, size in enumerate(sizes):
        directory = os.path.join(tree, f"{number % 40}")
        os.makedirs(directory, exist_ok=True)
        with open(os.path.join(directory, f"{number}"), "wb") as f:
            f.write(number.to_bytes(8, "little"))
            left = size - 8
            while left:
                at = rnd.randrange(1 << 19)
                left -= f.write(code[at : at + min(left, 1 << 19)])
    return sum(sizes)


def unpacked(directory, packed, manifest, target):
    """What a restore does with archives: hash them, then unpack."""
    paths = [os.path.join(directory, file.path) for file in packed]
    for path, file in zip(paths, packed, strict=True):
        with open(path, "rb") as f:
            assert hashlib.file_digest(f, "sha256").hexdigest() == file.sha256
    archive.unpack(paths, manifest, target)


def main():
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as top:
        tree, target = os.path.join(top, "tree"), os.path.join(top, "to")
        size = make(tree)
        manifest = members.scan(tree, ())
        packed = archive.pack(tree, manifest, os.path.join(top, "tree.tar.zst"))
        walls = {"warmer": [], "cp": []}
        for _ in range(ROUNDS):
            for name, seconds in walls.items():
                os.sync()  # what the run before left to write is not this one's
                started = time.monotonic()
                if name == "cp":
                    subprocess.run(["cp", "-a", tree, target], check=True)
                else:
                    unpacked(top, packed, manifest, target)
                seconds.append(time.monotonic() - started)
                shutil.rmtree(target)
    ours, others = (size / statistics.median(walls[name]) for name in ("warmer", "cp"))
    record = {
        "bench": "restore",
        "ratio": round(ours / others, 3),
        "mb_per_s": round(ours / 1e6),
        "cp_mb_per_s": round(others / 1e6),
        "tree_mb": round(size / 1e6),
        "packed_mb": round(sum(file.size for file in packed) / 1e6),
        "archives": len(packed),
        "files": len(manifest.members),
        "rounds": ROUNDS,
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()
