"""A filesystem that passes everything through, and fails as a file of rules says.

``python faulty.py DIRECTORY POINT RULES`` mounts it until it is unmounted. RULES is a JSON list, read
anew when it changes; the first rule that hits an operation happens:

    {"op": "write|fsync", "path": "/staging/", "share": 0.1, "errno": 5, "delay": 0.5,
     "short": true, "times": 3}

`op` and `path` are regular expressions, `share` of the operations are hit, `times` of them at most.
"""

import functools
import json
import os
import random
import re
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "doctor"))

import liar
import mfusepy

OPERATIONS = (
    *("getattr", "readdir", "statfs", "create", "open", "read", "write", "truncate", "fsync"),
    *("mkdir", "rmdir", "unlink", "rename", "link", "symlink", "utimens", "chmod", "fsyncdir"),
)


class Faulty(liar.Liar):
    def __init__(self, root, rules):
        super().__init__(root)
        self._file, self._seen, self._rules = rules, None, []
        self._choose = random.Random(rules)  # noqa: S311 - not a secret

    def fsyncdir(self, path, datasync, fh):
        at = os.open(self._at(path), os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(at)
        finally:
            os.close(at)

    def rule(self, op, path):
        try:
            now = os.stat(self._file)
        except FileNotFoundError:
            return None
        if (now.st_mtime_ns, now.st_ino) != self._seen:
            self._seen = (now.st_mtime_ns, now.st_ino)
            self._rules = json.loads(Path(self._file).read_text())
        for rule in self._rules:
            if (
                rule.get("times", 1) > 0
                and re.fullmatch(rule["op"], op)
                and re.search(rule.get("path", ""), path)
                and self._choose.random() < rule.get("share", 1)
            ):
                if "times" in rule:
                    rule["times"] -= 1
                return rule
        return None


def ruled(op):
    """The honest operation, unless a rule hits it."""
    honest = getattr(Faulty, op)

    @functools.wraps(honest)
    def operate(self, path, *args):
        rule = self.rule(op, path or "")
        if rule:
            time.sleep(rule.get("delay", 0))
            if rule.get("errno"):
                raise mfusepy.FuseOSError(rule["errno"])
            if rule.get("short") and op == "write" and len(args[0]) > 1:
                args = (args[0][: len(args[0]) // 2], *args[1:])
        return honest(self, path, *args)

    return operate


for operation in OPERATIONS:
    setattr(Faulty, operation, ruled(operation))

if __name__ == "__main__":
    root, point, rules = sys.argv[1:]
    mfusepy.FUSE(Faulty(root, rules), point, foreground=True, fsname="faulty", use_ino=True)
