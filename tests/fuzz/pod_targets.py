"""Parsers of what lies in the warm dir, where the server's container writes too."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import io
import json
import os
from contextlib import redirect_stdout

from target import DIGEST, JSON, Target, dumps, put, scratch, text

from warmer import check, installed, tally
from warmer.handoff import ahead, ready
from warmer.handoff import start as starting
from warmer.layout import WarmDir
from warmer.model import Key
from warmer.report import handed as report_handed
from warmer.report import log
from warmer.sidecar import handed, started

_TOP = scratch()
_WARM = WarmDir(f"{_TOP}/warm")
os.makedirs(_WARM.handoff)
_PIECE = {
    "kind": "compile", "key": DIGEST, "generation": 1, "verdict": "sealed", "reason": "",
    "directory": f"{_TOP}/none", "seal_sha256": DIGEST, "restored": f"{_TOP}/x.restored.json",
}  # fmt: skip
_HANDOFF = {
    "schema_version": 1, "pieces": [_PIECE, dict(_PIECE, kind="weights")], "crashed": f"{_TOP}/c",
    "model_path": f"{_TOP}/m", "model_files": f"{_TOP}/f", "env": {"A": "b"}, "argv": ["--x"],
}  # fmt: skip
_KEYS = {
    "schema_version": 1, "forbidden": "", "keys": {"compile": {"engine.vllm": "1"}},
    "command": "/bin/vllm", "interpreter": "/bin/py", "trusted": [],
}  # fmt: skip
_RECORD = f"{_WARM.handoff}/handoff.json"


def _handoff(data: bytes) -> None:
    """The readiness probe, and what explains a start's log."""
    put(_RECORD, data)
    rows, code = check.check(_WARM.root, False)
    assert code in (0, 1, 3, 5, 6)
    for row in rows:
        assert all(isinstance(row[name], str) for name in ("kind", "key", "verdict"))
        json.dumps(row)
    with contextlib.suppress(ValueError, RecursionError):
        if isinstance(found := json.loads(data), dict):
            report_handed.explained(_START, found, crashed=False)


_START = log.parse(["INFO 11-28 10:00:00 [x.py:1] Starting torch.compile"])


def _wanted(data: bytes) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_RECORD)
    put(_WARM.plan, data)
    with redirect_stdout(io.StringIO()):
        assert check.main([f"--warm-dir={_WARM.root}"], {}) in (1, 3)


def _job(data: bytes) -> None:
    """Who writes the two records can make them fit each other."""
    with contextlib.suppress(ValueError, TypeError, RecursionError):
        first, second = json.loads(data)
        identity = hashlib.sha256(json.dumps([first, second]).encode()).hexdigest()
        put(_RECORD, dumps(first))
        put(_WARM.keys, dumps(dict(second, handoff=identity)))
    found = handed.read(_WARM)
    if not isinstance(found, str):
        assert all(isinstance(word, str) for word in (*found.argv, *found.env, *found.env.values()))
        assert found.source
    with contextlib.suppress(
        OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError
    ):
        installed.files(_WARM.keys)  # whose caller expects these, and starts without a note


_JOB = handed.Job(
    identity="x",
    keys={"compile": Key("compile", {"engine.vllm": "1", "package.x": "2", "file./a": "b"})},
    handed={}, env={}, argv=(), command="/bin/vllm", interpreter="/bin/py", trusted=(),
)  # fmt: skip
_NOTE = {
    "schema_version": 1, "handoff": "x", "extra": 0, "unknown": [], "cold": False, "first": True,
    "engine": {"command": "/bin/vllm", "interpreter": "/bin/py", "vllm": "1", "packages": {"x": "2"}},
    "files": {"/a": "b"},
}  # fmt: skip
put(_WARM.server, b"")
_HOLDER = os.open(_WARM.server, os.O_RDWR | os.O_CLOEXEC)
fcntl.flock(_HOLDER, fcntl.LOCK_EX)  # as the server does, and no other descriptor may


def _started(data: bytes) -> None:
    put(_WARM.server, data)
    found = started.running(_WARM, _JOB)
    why = found if isinstance(found, str) else found.objection
    assert isinstance(why, str)


def _outcome(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        tally.parse(data)


_PLAIN = importlib.metadata.packages_distributions


def _notes(data: bytes) -> None:
    """What a start maps and finds out; its caller goes without, whatever they hold."""
    put(_WARM.root + "/start.json", data)
    assert all(isinstance(path, str) for path in ahead._libraries(_WARM.root + "/start.json"))
    try:
        with contextlib.suppress(
            OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError
        ):
            starting.remember(_WARM.root + "/start.json")
        assert isinstance(importlib.metadata.packages_distributions, type(_PLAIN))
    finally:
        importlib.metadata.packages_distributions = _PLAIN


def _port(data: bytes) -> None:
    """Words after `vllm`, and the YAML file that they may name."""
    words, _, config = data.partition(b"\xff")
    put(_WARM.root + "/vllm.yaml", config)
    for more in ([], ["--config", _WARM.root + "/vllm.yaml"]):
        found = ready.find([*text(words).split("\0"), *more])
        if found is not None:
            assert 0 < found.address[1] < 1 << 16


def _shards(data: bytes) -> None:
    """Names of a model's files, in the order that they are read ahead."""
    names = text(data).split("\n")
    assert sorted(sorted(names, key=ahead._order)) == sorted(names)


_TALLY = {
    "schema_version": 1, "source": "hf", "filled_seconds": {"weights": 1.0}, "fetched_bytes": 5,
    "restored_seconds": {"compile": 2}, "without": {"jit": "why"}, "retries": {"429": 2},
    "throttled_seconds": 0.5, "lock_wait_seconds": 1, "lock_takeovers": 0, "pulled_bytes": {"compile": 7},
}  # fmt: skip
_PLAN = {"kind": "jit", "key": DIGEST, "directory": "/nonexistent", "lock": "/nonexistent.lock"}
_START_NOTES = {"schema_version": 1, "packages": {"a": ["b"]}, "installed": {}, "libraries": ["/x"]}
TARGETS = {
    "handoff": Target(_handoff, (dumps(_HANDOFF),), JSON),
    "wanted": Target(_wanted, (dumps({"schema_version": 1, "pieces": [_PLAN]}),), JSON),
    "job": Target(_job, (dumps([_HANDOFF, _KEYS]),), JSON),
    "started": Target(_started, (dumps(_NOTE),), JSON),
    "outcome": Target(_outcome, (dumps(_TALLY),), JSON),
    "notes": Target(_notes, (dumps(_START_NOTES),), JSON),
    "port": Target(
        _port,
        (b"serve\0m\0--port\0008001\xffport: 8002 # x\nhost: '::'\n",),
        ("--port=", "--uds", "--config", "\\xd9\\xa3", "--headless"),
    ),
    "shards": Target(_shards, (b"model-00001-of-00002.safetensors\nconfig.json\nx7.bin",), ("\\xc2\\xb2", "\\xd9\\xa3")),
}  # fmt: skip
