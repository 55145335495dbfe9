"""Connections that share files: every byte is hashed once and in order, and one failure ends all."""

import hashlib
import os
import sys
import threading
import time

import pytest
from runs import eventually
from scripted import Scripted, descriptors, seeded, transfer

from warmer.errors import IntegrityError, SourceError, VolumeError
from warmer.fill import transfer as transfer_module

WAIT = 20.0


def right(source, staging, done):
    """Assert that all files are there, whole, and sealed as what they are."""
    assert set(done) == set(source.contents)
    for path, data in source.contents.items():
        assert (staging / "files" / path).read_bytes() == data, path
        sealed = (done[path].path, done[path].size, done[path].sha256)
        assert sealed == (f"files/{path}", len(data), hashlib.sha256(data).hexdigest())


def nothing_runs(staging):
    assert [one.name for one in threading.enumerate() if one.name.startswith("fetch")] == []
    assert [path for path in descriptors() if str(staging) in path] == []


@pytest.mark.parametrize("trusted", [True, False])
def test_parts_that_arrive_before_the_first_are_hashed_in_their_place(
    tmp_path, small_parts, trusted
):
    source = Scripted({"big": seeded(1).randbytes(8 * small_parts + 77)}, trusted=trusted)
    others = threading.Event()
    arrived = []

    def reading(_path, at):
        if at == 0:
            assert others.wait(WAIT), "the first part comes last"

    def moved(_path, count):
        arrived.append(count)
        if sum(arrived) >= 7 * small_parts + 77:
            others.set()

    source.reading = reading
    done = transfer(source, tmp_path, moved=moved)
    right(source, tmp_path, done)
    assert sum(arrived) == source.delivered == 8 * small_parts + 77, "nothing is fetched twice"
    nothing_runs(tmp_path)


def test_bytes_are_hashed_by_one_connection_at_a_time(tmp_path, small_parts, monkeypatch):
    source = Scripted({"a": seeded(4).randbytes(2 * small_parts)})
    first, second = [], []
    streamed, reading_back = threading.Event(), threading.Event()
    real = os.preadv

    def reading(_path, at):
        (first if at < small_parts else second).append(threading.current_thread())
        if at == 0:
            eventually(lambda: second)
        if at == 2 * small_parts - transfer_module.BUFFER:
            assert streamed.wait(WAIT)

    def moved(*_):
        # The first has hashed all its bytes, and has not said so yet.
        if threading.current_thread() in first and len(first) == 4 and not streamed.is_set():
            streamed.set()
            eventually(lambda: reading_back.is_set() or not second[0].is_alive())

    def preadv(*words):
        if threading.current_thread() in second:
            reading_back.set()
            eventually(lambda: not first[0].is_alive())
        return real(*words)

    monkeypatch.setattr(os, "preadv", preadv)
    source.reading = reading
    right(source, tmp_path, transfer(source, tmp_path, moved=moved, connections=2))


def test_the_last_big_file_is_helped_by_every_idle_connection(tmp_path, small_parts):
    small = {f"small-{n}": b"s" * n for n in range(9)}
    source = Scripted({"big": seeded(2).randbytes(5 * small_parts), **small})
    together = threading.Barrier(4)
    first = threading.local()

    def reading(path, _at):
        # Passed by nobody unless four connections are at the one file at the same time.
        if path == "big" and not getattr(first, "passed", False):
            together.wait(WAIT)
            first.passed = True

    source.reading = reading
    right(source, tmp_path, transfer(source, tmp_path, connections=4))


def test_connections_wait_for_one_that_asks_about_the_only_file(tmp_path, small_parts):
    source = Scripted({"big": seeded(5).randbytes(5 * small_parts)})
    together = threading.Barrier(4)
    first = threading.local()
    describe = source.describe

    def slowly(model, file):
        time.sleep(0.1)  # in which those who see nothing to do would give up
        return describe(model, file)

    def reading(*_):
        if not getattr(first, "passed", False):
            together.wait(WAIT)
            first.passed = True

    source.describe, source.reading = slowly, reading
    right(source, tmp_path, transfer(source, tmp_path, connections=4))


def test_no_more_connections_than_asked_for_are_open_at_a_time(tmp_path, small_parts):
    source = Scripted({f"{n}": seeded(n).randbytes(3 * small_parts) for n in range(6)})
    seen = set()
    source.reading = lambda *_: seen.add(threading.get_ident())
    right(source, tmp_path, transfer(source, tmp_path, connections=3))
    assert 1 <= len(seen) <= 3


def test_every_interleaving_of_many_files_ends_in_the_same_bytes(tmp_path, small_parts):
    chance = seeded(3)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for number in range(40):
            sizes = [0, 1, small_parts, *(chance.randrange(6 * small_parts) for _ in range(5))]
            source = Scripted({f"d{n % 2}/{n}": chance.randbytes(s) for n, s in enumerate(sizes)})
            source.trusted = number % 2 == 0
            right(source, tmp_path / str(number), transfer(source, tmp_path / str(number)))
            assert source.delivered == sum(sizes)
    finally:
        sys.setswitchinterval(before)
    nothing_runs(tmp_path)


def test_a_part_that_fails_stops_every_other_and_leaves_nothing_behind(tmp_path, small_parts):
    source = Scripted({"endless": bytes(4 * small_parts), "bad": bytes(small_parts)})
    failed = threading.Event()
    busy = threading.Semaphore(0)

    def opening(path, _at):
        if path == "bad":
            for _ in range(2):
                assert busy.acquire(timeout=WAIT), "two others are at work"
            failed.set()
            raise SourceError("got nothing, expected a part", reason="not-found")

    def reading(path, _at):
        if path == "endless":
            busy.release()
            assert failed.wait(WAIT)

    source.opening, source.reading = opening, reading
    with pytest.raises(SourceError) as caught:
        transfer(source, tmp_path, connections=3)
    assert caught.value.reason == "not-found"
    assert source.delivered < 4 * small_parts, "the others did not go on to their ends"
    nothing_runs(tmp_path)


def test_the_first_failure_is_the_one_that_is_told(tmp_path, small_parts):
    source = Scripted({"a": bytes(2 * small_parts), "b": bytes(small_parts)})
    told = threading.Event()

    def reading(path, _at):
        if path == "a":
            told.set()
            raise SourceError("the first", reason="first")
        assert told.wait(WAIT)

    source.reading = reading
    with pytest.raises(SourceError, match="the first"):
        transfer(source, tmp_path, connections=2)
    nothing_runs(tmp_path)


def test_who_counts_may_stop_everything(tmp_path, small_parts):
    class LostError(Exception):
        pass

    def moved(*_):
        raise LostError

    source = Scripted({"a": bytes(9 * small_parts)})
    with pytest.raises(LostError):
        transfer(source, tmp_path, moved=moved)
    nothing_runs(tmp_path)


def test_wrong_bytes_get_no_name(tmp_path, small_parts):
    source = Scripted({"a": bytes(3 * small_parts), "b": b"right"})
    source.claims = source.listed
    source.contents["a"] = bytes(2 * small_parts) + b"\1" + bytes(small_parts - 1)
    with pytest.raises(IntegrityError, match="got a with sha256"):
        transfer(source, tmp_path)
    assert not (tmp_path / "files" / "a").exists()
    nothing_runs(tmp_path)


def test_a_volume_that_fails_is_no_failure_of_the_source(tmp_path, small_parts):
    (tmp_path / "files").write_text("in the way of the directory")
    with pytest.raises(VolumeError):
        transfer(Scripted({"a": bytes(small_parts)}), tmp_path)
    nothing_runs(tmp_path)
