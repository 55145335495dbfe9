"""A copy of a live tree is of what was seen, with its times; and when it is time for one."""

import fcntl
import os
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import runs

from warmer import families
from warmer.fill import members
from warmer.layout import WarmDir
from warmer.model import Key
from warmer.sidecar import copies, handed, health, started
from warmer.sidecar.copies import State
from warmer.sidecar.handed import Job
from warmer.sidecar.started import Server
from warmer.sidecar.watch import LONGEST, RETRY, Watch

FACTORS = {"engine.vllm": "1", "engine.torch": "2", "engine.site": "/s", "package.triton": "3"}
FACTORS |= {"hardware.threads": 4, "argv.--x": [["1"]], "file./etc/a.yaml": "digest"}
JOB = Job("id", {"compile": Key("compile", FACTORS)}, {}, {}, (), "/bin/vllm", "/bin/py", ())
ENGINE = {"vllm": "1", "torch": "2", "site": "/s", "packages": {"triton": "3"}, "threads": 4}
FILES = {"/etc/a.yaml": "digest"}
EXTRA = '{"schema_version": 1, "handoff": "id", "extra": Infinity}'
ENGINE |= {"command": "/bin/vllm", "interpreter": "/bin/py"}
ONE, TWO = Server(1, 1, ""), Server(2, 2, "")


@pytest.fixture
def warm(tmp_path):
    warm = WarmDir(str(tmp_path / "warm"))
    tree = Path(warm.tree("compile"))
    (tree / "a/b").mkdir(parents=True)
    (tree / "a/b/file.so").write_bytes(b"kernel" * 1000)
    (tree / "a/b/file.so").chmod(0o755)
    os.utime(tree / "a/b/file.so", ns=(1, 1_234_567_891))
    (tree / "a/top").write_bytes(b"")
    (tree / "empty").mkdir()
    (tree / "a/x.lock").write_bytes(b"")
    return warm


def take(warm, seen):
    target = f"{warm.root}/copy"
    copies.copy(warm.tree("compile"), target, "compile", seen)
    return target


def test_a_copy_has_what_an_archive_holds_with_modes_and_times(warm):
    target = take(warm, copies.look(warm, JOB.keys))
    kept = members.scan(target, ())
    assert kept == members.scan(warm.tree("compile"), families.excluded("compile"))
    assert set(kept.members) == {"a/b/file.so", "a/top"}
    assert kept.empty == ("empty",)
    mine, theirs = (Path(t, "a/b/file.so").stat() for t in (target, warm.tree("compile")))
    assert mine.st_ino != theirs.st_ino


@pytest.mark.parametrize("change", ["size", "time", "replaced", "new"])
def test_a_file_that_is_not_what_was_seen_is_not_copied(warm, change):
    seen = copies.look(warm, JOB.keys)
    file = Path(warm.tree("compile"), "a/b/file.so")
    if change == "size":
        with open(file, "ab") as f:
            f.write(b"x")
        os.utime(file, ns=(1, 1_234_567_891))
    elif change == "time":
        os.utime(file)
    elif change == "replaced":
        shutil.copy2(file, f"{file}.new")
        os.replace(f"{file}.new", file)
    else:
        file.with_name("other").write_bytes(b"")
    with pytest.raises(copies.ChangedError):
        take(warm, seen)


def test_a_link_that_takes_a_directorys_place_leads_to_nothing(warm, tmp_path, monkeypatch):
    # As a server could that is no friend: between the listing and the opening.
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "file.so").write_bytes(b"a key")
    info = os.stat(secret / "file.so")
    seen = copies.look(warm, JOB.keys)
    seen["compile", "a/b/file.so"] = State(
        info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns
    )
    real = members.walk

    def walk(tree, excluded, prefix=""):
        if prefix:
            return real(tree, excluded, prefix)
        found = list(real(tree, excluded))
        shutil.rmtree(f"{tree}/a/b")
        os.symlink(secret, f"{tree}/a/b")
        return iter(found)

    monkeypatch.setattr(members, "walk", walk)
    with pytest.raises(copies.ChangedError):
        take(warm, seen)
    assert not os.path.exists(f"{warm.root}/copy/a/b/file.so")


def test_a_pipe_in_a_files_place_does_not_hang_it(warm, monkeypatch):
    seen = copies.look(warm, JOB.keys)
    real = members.walk

    def walk(tree, excluded, prefix=""):
        if prefix:
            return real(tree, excluded, prefix)
        found = list(real(tree, excluded))
        os.unlink(f"{tree}/a/b/file.so")
        os.mkfifo(f"{tree}/a/b/file.so")
        return iter(found)

    monkeypatch.setattr(members, "walk", walk)
    with pytest.raises(copies.ChangedError):
        take(warm, seen)


def state(size):
    return {("compile", "a"): State(1, size, 1, 1)}


def test_a_harvest_is_due_when_nothing_has_changed_for_long_enough():
    watch = Watch(quiet=30, every=600)
    assert not watch.due(ONE, state(1), now=0)
    assert not watch.due(ONE, state(1), now=29)
    assert not watch.due(ONE, state(2), now=30)
    assert not watch.due(ONE, state(2), now=59)
    assert watch.due(ONE, state(2), now=60)


@pytest.mark.parametrize("how", ["another", "away"])
def test_a_server_that_starts_again_has_to_be_quiet_again(how):
    watch = Watch(quiet=30, every=600)
    watch.due(ONE, state(1), now=0)
    if how == "away":
        watch.unready()
    server_now = TWO if how == "another" else ONE
    assert not watch.due(server_now, state(1), now=40)
    assert not watch.due(server_now, state(1), now=69)
    assert watch.due(server_now, state(1), now=70)


def test_what_is_harvested_is_not_due_again_and_the_next_not_too_soon():
    watch = Watch(quiet=30, every=600)
    watch.due(ONE, state(1), now=0)
    assert watch.due(ONE, state(1), now=30)
    watch.harvested(now=31)
    assert not watch.due(ONE, state(1), now=10_000)
    assert not watch.due(ONE, state(2), now=10_001)
    assert watch.due(ONE, state(2), now=10_031)
    watch.harvested(now=10_031)
    watch.due(ONE, state(3), now=10_032)
    assert not watch.due(ONE, state(3), now=10_630)
    assert watch.due(ONE, state(3), now=10_631)


def test_what_failed_is_due_again_sooner():
    watch = Watch(quiet=30, every=600)
    watch.due(ONE, state(1), now=0)
    assert watch.due(ONE, state(1), now=30)
    watch.failed(now=30)
    assert not watch.due(ONE, state(1), now=30 + RETRY - 1)
    assert watch.due(ONE, state(1), now=30 + RETRY)
    watch.changed()
    assert not watch.due(ONE, state(1), now=200)
    assert watch.due(ONE, state(1), now=230)


def test_the_wait_doubles_with_each_failure_up_to_a_bound_and_not_beyond_a_success():
    watch, now, waits = Watch(quiet=0, every=600), 0.0, []
    for _ in range(9):
        assert watch.due(ONE, state(1), now=now)
        watch.failed(now=now)
        wait = next(s for s in range(1, 4000) if watch.due(ONE, state(1), now=now + s))
        waits.append(wait)
        now += wait
    assert waits[:3] == [RETRY, 2 * RETRY, 4 * RETRY]
    assert waits == sorted(waits) and waits[-1] == LONGEST
    watch.harvested(now=now)
    assert watch.due(ONE, state(2), now=now + 600)
    watch.failed(now=now + 600)
    assert watch.due(ONE, state(2), now=now + 600 + RETRY)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({}, ""),
        ({"torch": "2.1"}, "engine.torch"),
        ({"site": "/t"}, "engine.site"),
        ({"packages": {"triton": "3.1"}}, "package.triton"),
        ({"packages": {}}, "package.triton"),
        ({"threads": 8}, "hardware.threads"),
        ({"command": ""}, "command is not there"),
        ({"interpreter": "/usr/bin/python3"}, "interpreter"),
        ({"vllm": None}, "engine.vllm"),
        ({"files": {"/etc/a.yaml": "other"}}, "file./etc/a.yaml other"),
        ({"files": {}}, "file./etc/a.yaml None"),
    ],
)
def test_an_engine_that_is_not_that_of_the_keys_is_named_by_the_factor(change, why):
    found = started.difference(ENGINE | change, change.get("files", FILES), JOB)
    assert why in found and bool(found) == bool(why)


@pytest.mark.parametrize(
    ("words", "url"),
    [
        ("", "http://127.0.0.1:8000"),
        ("--port 8123", "http://127.0.0.1:8123"),
        ("--port=1 --port 2", "http://127.0.0.1:2"),
        ("--host 0.0.0.0", "http://127.0.0.1:8000"),
        ("--host 10.0.0.7 --port 80", "http://10.0.0.7:80"),
        ("--host fd00::1", "http://[fd00::1]:8000"),
        ("--ssl-keyfile k --ssl-certfile c", "https://127.0.0.1:8000"),
        ("--uds /s", ""),
    ],
)
def test_where_the_server_answers_follows_from_its_arguments(words, url):
    assert health.url(tuple(words.split())) == url


def test_a_note_that_is_torn_or_hostile_is_a_refusal(tmp_path):
    warm = WarmDir(str(tmp_path))
    for text in ("", "{", "[]", "{}", '{"first": true}', "[" * 10_000, "\xff", EXTRA):
        Path(warm.server).write_text(text, encoding="latin-1")
        with open(warm.server) as held:  # as the server does, or the note is not even read
            fcntl.flock(held, fcntl.LOCK_EX)
            found = started.running(warm, JOB)
        assert isinstance(found, str) and "cannot be read" in found, text
    os.unlink(warm.server)
    os.symlink("/etc/passwd", warm.server)
    assert isinstance(started.running(warm, JOB), str)
    assert handed.read(warm).startswith("there is no handoff yet")


def test_nothing_listens_is_not_ready():
    assert not health.ready(f"http://127.0.0.1:{runs.closed_port()}")


@pytest.mark.parametrize("port", ["word", "70000", "-1", "", "1 2", "\n"])
def test_a_port_that_is_none_is_not_ready(port):
    assert not health.ready(health.url(("--port", port)))
