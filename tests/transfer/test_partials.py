"""What an earlier owner left unfinished is proved, not believed; an owner who wakes changes nothing."""

import errno
import os
import shutil
import signal
import threading

import pytest
from runs import eventually
from scripted import KEY, Scripted, fill, published, seeded, sha256, stagings
from volumes import Granted, assert_invariants, run_child

from warmer.errors import VolumeError
from warmer.fill import partial
from warmer.fill.locks import LostGrantError
from warmer.fill.sources import SourceFile
from warmer.layout import Volume

BIG = "model.safetensors"


@pytest.fixture
def volume(tmp_path, small_parts):
    (tmp_path / "volume").mkdir()
    return tmp_path / "volume"


@pytest.fixture
def source(small_parts):
    return Scripted({BIG: seeded(1).randbytes(20 * small_parts + 3), "config.json": b"{}"})


def killed_after(source, volume, count):
    """Fill in a process that dies after so many bytes; returns its staging's partial file."""

    def reading(*_):
        if source.delivered >= count:
            os.kill(os.getpid(), signal.SIGKILL)

    source.reading = reading
    assert run_child(lambda: fill(source, volume))
    source.reading = lambda *_: None
    (name,) = stagings(volume)
    return partial.place(f"{volume}/v1/staging/{name}", BIG)


def journal(path):
    with open(f"{path}.parts", "rb") as stream:
        return [tuple(map(int, line.split())) for line in stream]


def fetched(source):
    """Count the bytes of the big file that this process asked for."""
    return sum(end - start for name, start, end in source.opened if name == BIG)


def whole(source, volume):
    assert published(volume) == source.contents
    assert stagings(volume) == []
    assert_invariants(volume)


def test_what_a_killed_owner_left_is_not_fetched_again(source, volume, small_parts):
    path = killed_after(source, volume, 12 * small_parts)
    left = journal(path)
    assert len(left) > 2
    done = fill(source, volume)
    whole(source, volume)
    assert fetched(source) == 20 * small_parts + 3 - sum(b - a for a, b in left)
    assert done.fetched == source.delivered
    assert done.fetched + done.taken_over == sum(map(len, source.contents.values()))
    assert not {a for name, a, _ in source.opened if name == BIG} & {a for a, _ in left}


@pytest.mark.parametrize("lie", ["a byte", "a hole", "a part more", "everything"])
def test_a_journal_that_lies_costs_the_file_anew_and_is_not_published(
    source, volume, small_parts, lie
):
    path = killed_after(source, volume, 12 * small_parts)
    start, end = journal(path)[0]
    size = len(source.contents[BIG])
    with open(path, "r+b") as stream, open(f"{path}.parts", "ab") as parts:
        if lie == "a byte":
            (byte,) = os.pread(stream.fileno(), 1, start + 9)
            os.pwrite(stream.fileno(), bytes([byte ^ 1]), start + 9)
        elif lie == "a hole":
            os.pwrite(stream.fileno(), bytes(end - start), start)
        elif lie == "a part more":
            parts.write(b"%d %d\n" % (19 * small_parts, size))
        else:
            parts.write(b"0 %d\n" % size)
    done = fill(source, volume)
    whole(source, volume)
    assert source.delivered >= size, "all of it came again"
    assert done.fetched == source.delivered


@pytest.mark.parametrize(
    "text",
    [
        *(b"", b"0", b"0 ", b"0 9", b"9 0\n", b"5 5\n", b"-1 4\n", b"0 99999999\n", b"a b\n"),
        b"\xff\xfe 1\n" + b"0" * 4000 + b" 1\n",
    ],
)
def test_a_torn_or_senseless_journal_promises_nothing(tmp_path, text):
    file = SourceFile("a", 10, {})
    path = partial.place(str(tmp_path), "a")
    os.makedirs(os.path.dirname(path))
    for name, data in ((path, bytes(10)), (f"{path}.parts", text)):
        with open(name, "wb") as stream:
            stream.write(data)
    assert partial.spans(str(tmp_path), file) == ()


def test_a_journal_of_overlapping_parts_is_read_once(tmp_path):
    path = partial.place(str(tmp_path), "a")
    os.makedirs(os.path.dirname(path))
    for name, data in ((path, bytes(10)), (f"{path}.parts", b"4 6\n0 3\n2 5\n8 10\n8 1")):
        with open(name, "wb") as stream:
            stream.write(data)
    found = partial.spans(str(tmp_path), SourceFile("a", 10, {}))
    assert found == ((0, 6), (8, 10))
    assert partial.gaps(found, 10) == ((6, 8),)
    assert (partial.total(found), partial.gaps((), 0), partial.gaps((), 3)) == (8, (), ((0, 3),))


def test_a_part_of_another_version_of_the_file_is_not_mixed_in(source, volume, small_parts):
    killed_after(source, volume, 12 * small_parts)
    source.contents[BIG] = seeded(2).randbytes(len(source.contents[BIG]))
    fill(source, volume)
    whole(source, volume)


def test_a_partial_that_is_a_link_is_not_followed(source, volume, small_parts, tmp_path):
    path = killed_after(source, volume, 12 * small_parts)
    os.rename(path, tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", path)
    fill(source, volume)
    whole(source, volume)
    assert fetched(source) == len(source.contents[BIG])


def test_files_of_which_nothing_is_known_are_fetched_from_their_start(volume, source, small_parts):
    source.trusted = False
    killed_after(source, volume, 12 * small_parts)
    fill(source, volume)
    whole(source, volume)
    assert source.delivered == sum(map(len, source.contents.values()))


def test_a_frozen_owner_who_wakes_and_writes_changes_nothing_published(
    source, volume, small_parts, tmp_path
):
    proof = tmp_path / "wrote-after-waking"
    frozen = os.fork()
    if frozen == 0:
        code = 1
        try:
            _freeze_midway(source, volume, 12 * small_parts, str(proof))
        except BaseException:  # noqa: BLE001 - whatever becomes of it, a child must not return
            code = 0
        finally:
            os._exit(code)
    try:
        assert os.WIFSTOPPED(os.waitpid(frozen, os.WUNTRACED)[1])
        (name,) = stagings(volume)
        # Open files of the frozen one: it will write there, wherever their names are by then.
        old = partial.place(f"{volume}/v1/staging/{name}", BIG)
        inode = os.stat(old).st_ino
        left = journal(old)
        fill(source, volume)
        before = published(volume)
        assert before == source.contents
        assert source.delivered < len(source.contents[BIG]), "some was taken over"
        assert left
    finally:
        os.kill(frozen, signal.SIGCONT)
        _, status = os.waitpid(frozen, 0)
    assert os.waitstatus_to_exitcode(status) == 0, "the frozen one cannot publish"
    assert int(proof.read_text()) == inode, "it did write, into the file it had open"
    assert published(volume) == before
    assert_invariants(volume)


class _Lost(Granted):
    """The grant of one who was frozen for too long."""

    def still_mine(self):
        return False


def _freeze_midway(source, volume, count, proof):
    """Fill, stop at `count` bytes, and after waking go on with bytes that nobody wants."""
    mutex = threading.Lock()
    real = os.pwrite
    frozen = []

    def reading(*_):
        with mutex:
            if source.delivered >= count and not frozen:
                frozen.append(True)
                source.contents[BIG] = b"\xee" * len(source.contents[BIG])
                os.kill(os.getpid(), signal.SIGSTOP)

    def pwrite(descriptor, data, at):
        written = real(descriptor, data, at)
        if frozen:
            with open(proof, "w", encoding="ascii") as stream:
                stream.write(str(os.fstat(descriptor).st_ino))
        return written

    source.reading = reading
    os.pwrite = pwrite
    fill(source, volume, grant=_Lost())


def test_a_frozen_owner_who_wakes_during_the_takeover_changes_nothing_published(
    source, volume, small_parts, tmp_path
):
    """It writes into its partial while its successor is still at work."""
    proof = tmp_path / "proof"
    frozen = os.fork()
    if frozen == 0:
        try:
            _freeze_midway(source, volume, 12 * small_parts, str(proof))
        finally:
            os._exit(0)
    woken = threading.Event()
    try:
        assert os.WIFSTOPPED(os.waitpid(frozen, os.WUNTRACED)[1])

        def reading(*_):
            if not woken.is_set():
                woken.set()
                os.kill(frozen, signal.SIGCONT)
            eventually(proof.exists)

        source.reading = reading
        fill(source, volume)
    finally:
        os.kill(frozen, signal.SIGCONT)
        os.waitpid(frozen, 0)
    assert proof.exists()
    assert published(volume) == source.contents
    assert sha256(published(volume)[BIG]) == sha256(source.contents[BIG])
    assert_invariants(volume)


@pytest.mark.parametrize(
    ("grant", "failure", "reason"),
    [(_Lost, LostGrantError, "lost-lock"), (Granted, VolumeError, "not-a-directory")],
)
def test_a_successor_that_clears_the_staging_while_a_directory_is_made_has_the_lock(
    volume, monkeypatch, grant, failure, reason
):
    """`makedirs` asks whether what is there is a directory, and by then it is there no more."""
    real = os.mkdir

    def mkdir(path, *how):
        real(path, *how)  # another thread's
        if os.path.basename(path) == partial.PARTIAL:
            shutil.rmtree(os.path.dirname(path))
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)

    monkeypatch.setattr(os, "mkdir", mkdir)
    with pytest.raises(failure) as failed:
        fill(Scripted({"config.json": b"{}"}), volume, grant=grant())
    assert failed.value.reason == reason
    assert stagings(volume) == []


def test_two_left_behind_partials_give_the_better_one(source, volume, small_parts):
    little = killed_after(source, volume, 4 * small_parts)
    # Its successor died too, before it removed what it had taken over.
    more = os.path.dirname(os.path.dirname(little)) + "x"
    os.rename(os.path.dirname(os.path.dirname(little)), f"{volume}/kept")
    path = killed_after(source, volume, 14 * small_parts)
    os.rename(f"{volume}/kept", more)
    best = sum(b - a for a, b in journal(path))
    assert best > sum(b - a for a, b in journal(partial.place(more, BIG)))
    fill(source, volume)
    assert fetched(source) == len(source.contents[BIG]) - best
    whole(source, volume)


def test_the_staging_of_another_key_is_left_alone(source, volume, small_parts):
    path = Volume(str(volume)).staged("weights", "f" * 64, "n")
    os.makedirs(path)
    fill(source, volume)
    assert KEY.digest != "f" * 64
    assert os.path.isdir(path)
