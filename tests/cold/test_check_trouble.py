"""The probe (`warmer.check`) while others are at work, where it may not read, and asked wrongly."""

import ast
import contextlib
import errno
import fcntl
import filecmp
import hashlib
import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))

import volumes
from handed import KEYS, Pod

from warmer import check, installed
from warmer.fill.locks.file import FileLock
from warmer.handoff import ready

WARM, NOT_WARM, USAGE, BUSY, BROKEN = 0, 1, 2, 3, 6
NOBODY = 65534
LOADED_BY_THE_PROBE = (fcntl, hashlib, struct)
"""Imported here, before a child gives up the right to read this interpreter's files."""


# --- others at work -------------------------------------------------------------------------------


@pytest.fixture
def filling(tmp_path):
    return Pod(tmp_path, warm=False)


@contextlib.contextmanager
def held_by_another(volume, kind):
    """Hold a kind's lock in another process, until it is killed."""
    reading, writing = os.pipe()
    leash, hand = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(hand)
        grant = FileLock(volume, me="another").try_acquire(KEYS[kind])
        os.write(writing, b"y" if grant else b"n")
        os.read(leash, 1)  # returns should this process's parent die first
        os._exit(0)
    try:
        assert os.read(reading, 1) == b"y"
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        for descriptor in (reading, writing, leash, hand):
            os.close(descriptor)


def test_before_anybody_fills_the_missing_pieces_are_named(filling):
    missing = ("absent", "not handed off yet")
    assert filling.rows() == (NOT_WARM, {"weights": missing, "compile": missing})
    assert filling.check()[1].splitlines() == [
        f"absent: {kind} {key.short} not handed off yet" for kind, key in KEYS.items()
    ]


@pytest.mark.parametrize("kind", KEYS)
def test_another_owner_is_filling_while_its_process_lives(filling, kind):
    with held_by_another(filling.volume, kind):
        code, rows = filling.rows()
        assert (code, rows[kind]) == (BUSY, ("busy", "another owner is filling it"))
        assert [verdict for verdict, _ in rows.values()].count("absent") == 1
    assert filling.rows()[0] == NOT_WARM


def test_a_lock_file_that_nobody_holds_is_no_owner(filling):
    grant = FileLock(filling.volume, me="me").try_acquire(KEYS["weights"])
    assert filling.rows()[0] == BUSY
    grant.release()
    assert filling.rows()[0] == NOT_WARM
    assert os.path.exists(filling.volume.lock("weights", KEYS["weights"].digest))


def test_a_piece_that_is_published_but_not_handed_off_is_sealed_and_not_warm(filling):
    volumes.fill(filling.volume, KEYS["weights"])
    ready = ("sealed", "on the volume, not handed off yet")
    with held_by_another(filling.volume, "weights"):
        code, rows = filling.rows()
    assert (code, rows["weights"], rows["compile"][0]) == (NOT_WARM, ready, "absent")
    with held_by_another(filling.volume, "compile"):
        code, rows = filling.rows()
    assert (code, rows["weights"], rows["compile"][0]) == (BUSY, ready, "busy")


@pytest.mark.parametrize("plan", [b"", b"[]", b"{}", b'{"pieces": [{}]}', b'{"pieces": 1}'])
def test_a_broken_note_of_what_is_wanted_is_as_none(filling, plan):
    Path(filling.warm.plan).write_bytes(plan)
    with held_by_another(filling.volume, "weights"):
        code, rows = filling.rows()
    assert code == NOT_WARM
    assert rows == {"handoff": ("absent", f"{filling.record} is not there")}


def test_a_warm_pod_stays_warm_while_another_fills_the_same_key(tmp_path):
    pod = Pod(tmp_path)
    with held_by_another(pod.volume, "weights"):
        assert pod.check()[0] == WARM


# --- what it may not or cannot read ---------------------------------------------------------------


def as_nobody(pod, *options):
    """Run the probe in a child that is not root; return its status and what it printed."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            sys.stdout = os.fdopen(writing, "w")
            status = check.main(["--warm-dir", pod.warm.root, *options], {})
            sys.stdout.flush()
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading) as f:
        out = f.read()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), out


@pytest.fixture
def public():
    """A warm pod in a directory that everybody may enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as top:
        os.chmod(top, 0o755)
        yield Pod(top)


SHUT = [
    ("handoff", lambda p: p.record, ()),
    ("handoff", lambda p: Path(p.warm.handoff), ()),
    ("weights", lambda p: p.seal("weights"), ()),
    ("weights", lambda p: p.generation("weights"), ()),
    ("weights", lambda p: p.generation("weights").parent, ()),
    ("weights", lambda p: p.generation("weights") / "files", ()),
    ("weights", lambda p: p.generation("weights") / "files" / "001.safetensors", ("--deep",)),
    ("weights", lambda p: Path(p.warm.root, "models"), ()),
    ("compile", lambda p: Path(p.warm.restored("compile")), ()),
]
SHUT_IDS = ["handoff", "handoffs", "seal", "generation", "key", "files", "file", "link", "record"]


@pytest.mark.parametrize(("kind", "place", "options"), SHUT, ids=SHUT_IDS)
def test_what_may_not_be_read_is_a_failed_volume_and_not_a_missing_piece(
    public, kind, place, options
):
    def ask(*more):
        return as_nobody(public, *options, *more)

    assert public.rows(ask=ask)[0] == WARM
    mode = place(public).stat().st_mode
    os.chmod(place(public), 0)
    code, rows = public.rows(ask=ask)
    os.chmod(place(public), mode)
    assert (code, rows[kind][0]) == (BROKEN, "unreadable")
    assert os.strerror(errno.EACCES) in rows[kind][1]


@pytest.mark.parametrize(
    ("kind", "place"),
    [
        ("handoff", lambda p: p.record),
        ("weights", lambda p: p.seal("weights")),
        ("compile", lambda p: Path(p.warm.restored("compile"))),
    ],
    ids=["handoff", "seal", "record"],
)
def test_an_io_error_is_a_failed_volume(tmp_path, kind, place):
    pod = Pod(tmp_path)
    place(pod).unlink()
    place(pod).symlink_to("/proc/self/mem")  # its first byte is unmapped: reading it is EIO
    code, rows = pod.rows()
    assert (code, rows[kind][0]) == (BROKEN, "unreadable")
    assert os.strerror(errno.EIO) in rows[kind][1]


# --- asked wrongly --------------------------------------------------------------------------------


def run(*argv, env=None):
    argv = [sys.executable, "-m", "warmer", "check", *argv]
    env = {"PATH": os.defpath} | (env or {})
    return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=30)


@pytest.mark.parametrize(
    ("words", "env", "said"),
    [
        (["--fast"], {}, "--fast"),
        (["extra"], {}, "extra"),
        (["--warm-dir"], {}, "--warm-dir ''"),
        (["--warm-dir="], {}, "--warm-dir ''"),
        (["--warm-dir", "warm"], {}, "'warm'"),
        ([], {"WARMER_WARM_DIR": "warm"}, "'warm'"),
    ],
    ids=["option", "word", "no-value", "empty", "relative", "relative-variable"],
)
def test_a_wrong_question_is_a_usage_error_that_says_what_was_expected(words, env, said):
    done = run(*words, env=env)
    assert (done.returncode, done.stdout) == (USAGE, "")
    first, second = done.stderr.splitlines()
    assert first.startswith("warmer: got ")
    assert said in first
    assert "expected" in first
    assert second == "hint: warmer check --help"
    done = run("--json", *words, env=env)
    assert done.returncode == USAGE
    error = json.loads(done.stdout)["error"]
    assert sorted(error) == ["code", "hint", "message", "reason"]
    assert (error["code"], error["message"]) == (USAGE, first.removeprefix("warmer: "))


@pytest.mark.parametrize("word", ["--help", "-h"])
def test_help_names_every_exit_status(word):
    done = run(word)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(f"{code} " in done.stdout.split("Exit status:")[1] for code in (0, 1, 2, 3, 5, 6))


# --- the file itself ------------------------------------------------------------------------------

SOURCE = Path(check.__file__)


@pytest.mark.parametrize("program", [check, installed, ready])
def test_what_runs_in_the_servers_container_is_of_python_3_9_and_the_standard_library(program):
    source = Path(program.__file__)
    tree = ast.parse(source.read_text(encoding="utf-8"), feature_version=(3, 9))
    nodes = list(ast.walk(tree))
    names = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
    names |= {n.module for n in nodes if isinstance(n, ast.ImportFrom)}
    assert {"json", "fcntl"} & names
    assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names


def other_python(name):
    """Find an interpreter by what it says of itself: the name may be a shim that finds none."""
    try:
        argv = [name, "-c", "import sys; print(sys.executable)"]
        return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip(f"there is no {name} here")


@pytest.mark.parametrize("name", ["python3.9", "python3.10", "python3.12", "python3.13"])
def test_the_probe_runs_on_other_pythons(tmp_path, name):
    python = other_python(name)
    pod = Pod(tmp_path / "ü x")
    argv = [python, "-IS", str(pod.probe)]
    assert pod.check("--deep", argv=argv) == pod.check("--deep")
    os.unlink(pod.generation("weights") / "files" / "001.safetensors")
    assert pod.check(argv=argv) == pod.check()
    assert pod.check(argv=argv)[0] == NOT_WARM


def test_the_handed_off_probe_is_the_same_file_and_can_be_run(tmp_path):
    pod = Pod(tmp_path)
    assert filecmp.cmp(SOURCE, pod.probe, shallow=False)
    assert os.access(pod.probe, os.X_OK)
