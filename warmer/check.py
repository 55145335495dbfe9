"""The readiness probe: is every piece this pod needs sealed on the volume and restored here?

One file, the standard library alone, Python 3.9 or newer: a copy of it lies in the handoff and
runs in the server's image as ``python3 -IS /warm/handoff/check.py``. It asks no network and no
GPU. The fast path imports json and little else (tests/cold asserts the set), and costs one
``stat`` per sealed file; ``--deep`` re-hashes every file on the volume.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, NoReturn

USAGE = """\
Usage: warmer check [--warm-dir DIR] [--deep] [--json]

Readiness: are the weights sealed on the volume, and the kernels restored in the warm dir?
No network, no GPU. Pieces that the handoff goes without are cold, and do not fail it.

Options:
  --warm-dir DIR  the pod-local directory (WARMER_WARM_DIR; default /warm, or where a handed-off
                  check.py lies)
  --deep          re-hash every sealed file, the kernels' archives too (WARMER_DEEP)
  --json          print one JSON object (WARMER_JSON)
  --help          print this text

Example: python3 -IS /warm/handoff/check.py --json
Exit status: 0 warm; 1 not warm, the missing pieces are named; 2 usage; 3 another owner is
filling; 5 bytes differ from the seal; 6 the volume failed.
"""

WARM, NOT_WARM, BAD_USAGE, BUSY, CORRUPT, BROKEN = 0, 1, 2, 3, 5, 6
_GONE = (errno.ENOENT, errno.ENOTDIR)
_LONGEST = 16 << 20  # bytes of a record, as in warmer.seal


class _ProblemError(Exception):  # one piece's verdict, when it is not warm
    def __init__(self, code: int, verdict: str, reason: str) -> None:
        super().__init__(reason)
        self.code, self.verdict, self.reason = code, verdict, reason


def main(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Answer for the words after ``check``; return the exit status."""
    warm_dir = environment.get("WARMER_WARM_DIR") or _default_warm_dir()
    deep = _yes(environment.get("WARMER_DEEP"))
    as_json = _yes(environment.get("WARMER_JSON"))
    words = iter(arguments)
    for word in words:
        if word in ("--help", "-h"):
            sys.stdout.write(USAGE)
            return WARM
        if word == "--deep":
            deep = True
        elif word == "--json":
            as_json = True
        elif word == "--warm-dir":
            warm_dir = next(words, "")
        elif word.startswith("--warm-dir="):
            warm_dir = word.partition("=")[2]
        else:
            return _usage(f"got {word.split('=')[0]!r}, expected an option of check", as_json)
    if not os.path.isabs(warm_dir):
        return _usage(f"got --warm-dir {warm_dir!r}, expected an absolute path", as_json)
    rows, code = check(warm_dir, deep)
    if as_json:
        print(json.dumps({"schema_version": 1, "warm": code == WARM, "code": code, "pieces": rows}))
    else:
        for row in rows:
            said = f"{row['verdict']}: {row['kind']} {row['key'][:12]} {row['reason']}".rstrip()
            print("".join(c if c.isprintable() else "?" for c in said))  # others name files
    return code


def check(warm_dir: str, deep: bool) -> tuple[list[dict[str, Any]], int]:  # noqa: FBT001 - no dataclass here
    """Judge every piece of the handoff: one row each, and the gravest exit status found."""
    path = os.path.join(warm_dir, "handoff", "handoff.json")
    try:
        handoff = _load(path)
        rows = [_row(piece, handoff, deep) for piece in _known(handoff, path)]
    except _ProblemError as problem:
        if problem.verdict == "absent":
            return _unfinished(warm_dir, problem)
        return [_as_row("handoff", "", problem)], problem.code
    except (KeyError, TypeError, AttributeError, ValueError) as exc:
        return [_as_row("handoff", "", _corrupt(f"{path} is malformed: {exc!r}"))], CORRUPT
    return rows, max((row.pop("code") for row in rows), default=WARM)


def _known(handoff: Mapping[str, Any], path: str) -> Sequence[Mapping[str, Any]]:
    if handoff["schema_version"] != 1:
        raise _ProblemError(NOT_WARM, "foreign", f"{path} is of another version of warmer")
    return list(handoff["pieces"])


def _row(piece: Mapping[str, Any], handoff: Mapping[str, Any], deep: bool) -> dict[str, Any]:  # noqa: FBT001 - as check
    kind, key = piece["kind"], piece["key"]
    if not all(isinstance(name, str) for name in (kind, key)):
        raise TypeError(f"got kind {kind!r}, key {key!r}, expected texts")
    crashed = kind != "weights" and os.path.lexists(handoff.get("crashed") or "")
    if crashed or piece["verdict"] != "sealed":
        reason = "it crashed the engine at load twice" if crashed else piece["reason"]
        return dict(_as_row(kind, key, _ProblemError(WARM, "cold", reason)), code=WARM)
    try:
        if kind == "weights":
            _sealed(piece, deep)
            _linked(handoff["model_path"], handoff["model_files"])
        else:  # unpacked here: what becomes of the archive is no matter of this pod's readiness
            _restored(piece)
            if deep:
                _sealed(piece, deep)
    except ValueError as exc:  # a path no system call takes
        return dict(_as_row(kind, key, _corrupt(f"a malformed path: {exc}")), code=CORRUPT)
    except _ProblemError as problem:
        return dict(_as_row(kind, key, problem), code=problem.code)
    return {"kind": kind, "key": key, "verdict": "warm", "reason": "", "code": WARM}


def _sealed(piece: Mapping[str, Any], deep: bool) -> None:  # noqa: FBT001 - as check
    directory = piece["directory"]
    # It makes NFS fetch the directory's attributes anew, or a new name stays unseen for 25 s.
    _ask(lambda at: os.close(os.open(at, os.O_RDONLY | os.O_DIRECTORY)), os.path.dirname(directory))
    path = os.path.join(directory, "seal.json")
    seal = _load(path)
    try:
        same = all(seal[name] == piece[name] for name in ("kind", "key", "generation"))
        files = [(f["path"], f["size"], f["sha256"]) for f in seal["files"]]
    except (KeyError, TypeError) as exc:
        raise _corrupt(f"{path} is malformed: {exc!r}") from exc
    if not same:
        raise _ProblemError(CORRUPT, "foreign", f"{path} is the seal of another piece")
    files.append(("seal.json", None, piece["seal_sha256"]))
    for name, size, sha256 in files:
        file = os.path.join(directory, name)
        info = _ask(os.lstat, file)
        if not stat.S_ISREG(info.st_mode):
            raise _corrupt(f"{file} is no regular file")
        if size not in (None, info.st_size):
            raise _corrupt(f"{file} has {info.st_size} bytes, its seal says {size}")
        if deep and _ask(_hash, file) != sha256:
            raise _corrupt(f"{file} does not have the sha256 that its seal says")


def _restored(piece: Mapping[str, Any]) -> None:
    record = _load(piece["restored"])
    if any(record.get(name) != piece[name] for name in ("key", "generation", "seal_sha256")):
        raise _ProblemError(NOT_WARM, "stale", "another generation is unpacked in the warm dir")
    for path in ("", *record.get("ranks", ())):  # each rank of an engine has code of its own
        _ask(os.stat, os.path.join(piece["restored"][: -len(".restored.json")], path))


def _linked(link: str, target: str) -> None:
    try:
        found = os.readlink(link)
    except OSError as exc:
        if exc.errno != errno.EINVAL:
            raise _problem(exc, link) from exc
        found = "no link"
    if found != target:
        raise _ProblemError(NOT_WARM, "stale", f"{link} leads to {found}, expected {target}")


def _unfinished(warm_dir: str, absent: _ProblemError) -> tuple[list[dict[str, Any]], int]:
    """There is no handoff: say what is missing, and whether somebody is filling it."""
    try:
        plan = _load(os.path.join(warm_dir, "handoff", "plan.json"))
        names = ("kind", "key", "directory", "lock")
        wanted = [[p[name] + "" for name in names] for p in plan["pieces"]]  # of texts alone
    except (_ProblemError, KeyError, TypeError):
        return [_as_row("handoff", "", absent)], NOT_WARM
    rows, code = [], NOT_WARM
    for kind, key, directory, lock in wanted:
        problem = _ProblemError(NOT_WARM, "absent", "not handed off yet")
        if _published(directory):
            problem = _ProblemError(NOT_WARM, "sealed", "on the volume, not handed off yet")
        elif _locked(lock):
            code = BUSY
            problem = _ProblemError(BUSY, "busy", "another owner is filling it")
        rows.append(_as_row(kind, key, problem))
    return rows, code


def _published(directory: str) -> bool:
    try:
        return any(name.isdigit() for name in os.listdir(directory))
    except (OSError, ValueError):
        return False


def _locked(path: str) -> bool:
    import fcntl  # noqa: PLC0415 - only when there is no handoff
    import struct  # noqa: PLC0415 - as above

    try:
        with open(_open(path), "rb") as f:
            ask = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0)
            answer = fcntl.fcntl(f, getattr(fcntl, "F_OFD_GETLK", 36), ask)
            return bool(struct.unpack("hhqqi4x", answer)[0] != fcntl.F_UNLCK)
    except (OSError, ValueError, _ProblemError):
        return False


def _load(path: str) -> Any:
    try:
        value = json.loads(_ask(_read, path))
    except (ValueError, RecursionError) as exc:
        raise _corrupt(f"{path} is not JSON: {exc}") from exc
    if not isinstance(value, dict):
        raise _corrupt(f"{path} holds no JSON object")
    return value


def _ask(call: Callable[[str], Any], path: str) -> Any:
    try:
        return call(path)
    except OSError as exc:
        raise _problem(exc, path) from exc


def _corrupt(reason: str) -> _ProblemError:
    return _ProblemError(CORRUPT, "corrupt", reason)


def _open(path: str) -> int:
    """Open a regular file and nothing else: at a pipe, a probe would wait for ever."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise _corrupt(f"{path} is no regular file")


def _read(path: str) -> bytes:
    with open(_open(path), "rb") as f:
        data = f.read(_LONGEST + 1)
    if len(data) > _LONGEST:
        raise _corrupt(f"{path} has more than {_LONGEST} bytes")
    return data


def _hash(path: str) -> str:
    import hashlib  # noqa: PLC0415 - only for --deep

    digest = hashlib.sha256()
    with open(_open(path), "rb") as f:
        for chunk in iter(lambda: f.read(1 << 20), b""):
            digest.update(chunk)
    return digest.hexdigest()


def _problem(exc: OSError, path: str) -> _ProblemError:
    if exc.errno in _GONE:
        return _ProblemError(NOT_WARM, "absent", f"{path} is not there")
    return _ProblemError(BROKEN, "unreadable", f"{path}: {exc.strerror}")


def _as_row(kind: str, key: str, problem: _ProblemError) -> dict[str, Any]:
    return {"kind": kind, "key": key, "verdict": problem.verdict, "reason": problem.reason}


def _yes(value: str | None) -> bool:
    return (value or "").lower() in ("1", "true", "t", "yes", "y", "on")


def _usage(message: str, as_json: bool) -> int:  # noqa: FBT001 - as check
    hint = "warmer check --help"
    if as_json:
        error = {"code": BAD_USAGE, "reason": "usage", "message": message, "hint": hint}
        print(json.dumps({"error": error}))
    sys.stderr.write(f"warmer: {message}\nhint: {hint}\n")
    return BAD_USAGE


def _default_warm_dir() -> str:
    here = os.path.dirname(os.path.abspath(__file__))
    return os.path.dirname(here) if os.path.basename(here) == "handoff" else "/warm"


def run(arguments: Sequence[str]) -> NoReturn:
    """Run the probe as a process: anything unforeseen is a bug, and says so."""
    try:
        code = main(arguments, os.environ)
    except Exception:  # noqa: BLE001 - a probe answers, whatever it met
        import traceback  # noqa: PLC0415 - only for a bug

        traceback.print_exc()
        code = 70
    sys.exit(code)


if __name__ == "__main__":
    run(sys.argv[1:])
