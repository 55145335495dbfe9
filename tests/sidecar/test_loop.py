"""The loop outlives what goes wrong in a turn, and what answers outlives a loop that hangs."""

import contextlib
import errno
import os
import sys
import threading
import time
import types
import urllib.error
import urllib.request
from pathlib import Path

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import runs

from warmer import check, trust
from warmer.collect import removal
from warmer.errors import BusyError, UsageError
from warmer.layout import Volume, WarmDir
from warmer.model import Key
from warmer.sidecar import (
    board,
    copies,
    handed,
    health,
    http,
    loop,
    passing,
    started,
    watch,
)
from warmer.sidecar.board import Board
from warmer.sidecar.copies import State
from warmer.sidecar.handed import Job
from warmer.sidecar.harvest import Harvest
from warmer.sidecar.started import Server
from warmer.urls import RemoteUrl

KEYS = {"compile": Key("compile", {"a": 1})}
JOB = Job("id", KEYS, {}, {}, ("--port", "1"), "/bin/vllm", "/bin/py", ())


@pytest.fixture
def pod(tmp_path, monkeypatch):
    """A loop beside a quiet server; `pod.take` stands for the harvest, `pod.trees` for the trees."""

    class Stub:
        job = JOB
        trees = 0
        takes = 0

        def take(self, harvest):
            harvest.done["compile"] = self.takes

        def loop(self, **changed):
            plain = {"quiet": 0.0, "every": 0.0, "most": 3, "trust": trust.ANYBODY} | changed
            volume, warm = Volume(str(tmp_path)), WarmDir(str(tmp_path / "warm"))
            self.board = Board()
            return loop.Loop(loop.Options(volume=volume, warm=warm, **plain), self.board)

        def turns(self, beside, count):
            for _ in range(count):
                self.trees += 1
                beside.turn()

    stub = Stub()

    def take(harvest, _seen, _claims):
        stub.takes += 1
        stub.take(harvest)

    monkeypatch.setattr(handed, "read", lambda _: stub.job)
    monkeypatch.setattr(started, "running", lambda *_: Server(1, 1, ""))
    monkeypatch.setattr(health, "ready", lambda _: True)
    monkeypatch.setattr(copies, "look", lambda *_: {("compile", "a"): State(1, stub.trees, 1, 1)})
    monkeypatch.setattr(Harvest, "take", take)
    monkeypatch.setattr(Harvest, "held", lambda _: dict.fromkeys(KEYS, type("", (), {"size": 7})))
    return stub


def test_a_mistake_in_a_harvest_is_logged_once_and_ends_nothing(pod, capsys):
    def wrong(_harvest):
        raise ZeroDivisionError

    pod.take, right = wrong, pod.take
    beside = pod.loop()
    pod.turns(beside, 3)
    assert pod.takes == 3
    assert capsys.readouterr().out.count("bug in warmer") == 1
    pod.take = right
    pod.turns(beside, 1)
    assert pod.board.results["compile", "published"] == 1
    assert pod.board.bytes["compile"] == 7


def test_no_more_is_published_in_a_life_than_was_allowed(pod):
    beside = pod.loop(most=3)
    pod.turns(beside, 6)
    assert pod.board.results == {("compile", "published"): 3}
    assert pod.takes == 3
    none = pod.loop(most=0)
    pod.turns(none, 2)
    assert pod.takes == 3


def test_a_loop_that_hangs_is_told_of_and_answers_go_on(pod, tmp_path, monkeypatch):
    now, hang = [0.0], threading.Event()
    monkeypatch.setattr(board, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    shown = Board()
    monkeypatch.setattr(check, "check", lambda *_, **__: hang.wait(60) and ([], check.WARM))
    monkeypatch.setattr(http, "_PATIENCE", 0.1)
    with serving(shown, tmp_path) as port:
        readers = [threading.Thread(target=ask, args=(port, "/readyz")) for _ in range(20)]
        for reader in readers:  # a volume that hangs holds all of them up
            reader.start()
        try:
            assert ask(port, "/livez") == (200, "ok\n")
            assert ask(port, "/metrics")[0] == 200, "what is known is told"
            shown.alive("harvesting", within=board.HARVEST)
            now[0] = board.HARVEST
            assert ask(port, "/livez")[0] == 200
            now[0] += 1
            code, text = ask(port, "/livez")
            assert (code, "harvesting for 1801 s" in text) == (503, True)
            shown.alive("looking")
            assert ask(port, "/livez")[0] == 200
            now[0] += board.TURN + 1
            assert ask(port, "/livez")[0] == 503
        finally:
            hang.set()
            for reader in readers:
                reader.join()


def test_it_answers_by_both_protocols_and_a_port_that_is_taken_is_said(tmp_path):
    with serving(Board(), tmp_path) as port:
        assert ask(port, "/livez")[0] == 200
        if http.socket.has_dualstack_ipv6():
            assert ask(port, "/livez", host="[::1]")[0] == 200
        with pytest.raises(UsageError, match="taken"):
            with serving(Board(), tmp_path, port=port):
                pass


@contextlib.contextmanager
def serving(shown, tmp_path, port=0):
    (tmp_path / "warm").mkdir(exist_ok=True)
    warm, volume = WarmDir(str(tmp_path / "warm")), Volume(str(tmp_path))
    with http.serving(port, board=shown, warm=warm, volume=volume) as mine:
        yield mine


def ask(port, path, host="127.0.0.1"):
    try:
        with urllib.request.urlopen(f"http://{host}:{port}{path}", timeout=20) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as exc:
        return exc.code, exc.read().decode()


def test_a_loop_without_a_server_says_why_once(tmp_path, capsys):
    options = loop.Options(
        *(Volume(str(tmp_path)), WarmDir(str(tmp_path))), 0.0, 0.0, 1, trust.ANYBODY
    )
    beside = loop.Loop(options, Board())
    for _ in range(3):
        beside.turn()
    assert capsys.readouterr().out.count("there is no handoff yet") == 1
    assert runs.listing(str(tmp_path)) == []


def test_what_every_gc_has_removed_is_counted_on_the_volume(tmp_path):
    volume = Volume(str(tmp_path))
    os.makedirs(volume.top)
    with serving(Board(), tmp_path) as port:
        for size, total in ((5, 5), (0, 5), (7, 12)):
            removal.count(volume, size)
            assert f"warmer_gc_removed_bytes_total {total}.0\n" in ask(port, "/metrics")[1]
        Path(volume.collected).write_text('{"removed_bytes": "much"}')
        assert "warmer_gc_removed_bytes_total 0.0\n" in ask(port, "/metrics")[1]
        removal.count(volume, 3)
        assert "warmer_gc_removed_bytes_total 3.0\n" in ask(port, "/metrics")[1]
    assert runs.listing(volume.top) == ["collected.json"]


def test_what_a_push_owes_is_pushed_though_no_more_may_be_harvested(pod, monkeypatch):
    answers = [False, False, True, True]
    monkeypatch.setattr(passing, "push", lambda *_, **__: answers.pop(0))
    monkeypatch.setattr(watch, "RETRY", 0.0)
    beside = pod.loop(most=1, remote=RemoteUrl("bucket", "prefix"))
    for _ in range(6):
        beside.turn()
    assert answers == [True], "asked until it had it, and not again"
    assert pod.board.results["compile", "published"] == 1


def test_what_was_published_before_a_harvest_failed_is_counted_and_passed_on(pod, monkeypatch):
    pushes = []
    monkeypatch.setattr(passing, "push", lambda *_, **__: pushes.append(1) or True)
    monkeypatch.setattr(watch, "RETRY", 0.0)

    def half(harvest):
        if pod.takes == 1:
            harvest.done["compile"] = 1
            raise BusyError("got another owner", reason="busy", hint="wait")

    pod.take = half
    beside = pod.loop(remote=RemoteUrl("bucket", "prefix"))
    for _ in range(4):
        beside.turn()
    assert pod.board.results["compile", "published"] == 1
    assert pod.board.bytes["compile"] == 7
    assert pushes == [1]


def test_a_server_that_is_away_for_a_moment_did_not_start_then(pod, monkeypatch):
    answers = iter([False, True, False, True])
    monkeypatch.setattr(health, "ready", lambda _: next(answers))
    now = types.SimpleNamespace(time=lambda: 10.0, monotonic=time.monotonic)
    monkeypatch.setattr(loop, "time", now)
    monkeypatch.setattr(started, "running", lambda *_: Server(1, 2_000_000_000, ""))
    beside = pod.loop(most=0)
    for _ in range(2):
        beside.turn()
    assert pod.board.ready_s == 8.0
    now.time = lambda: 10_000.0
    for _ in range(2):
        beside.turn()
    assert pod.board.ready_s == 8.0, "from its start to its first good answer"


def test_a_count_that_cannot_be_read_for_a_while_does_not_begin_anew(tmp_path, monkeypatch):
    volume = Volume(str(tmp_path))
    os.makedirs(volume.top)
    removal.count(volume, 5)

    def away(_):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    with serving(Board(), tmp_path) as port:
        assert "warmer_gc_removed_bytes_total 5.0\n" in ask(port, "/metrics")[1]
        with monkeypatch.context() as broken:
            broken.setattr(removal, "counted", away)
            assert "warmer_gc_removed_bytes_total 5.0\n" in ask(port, "/metrics")[1]
