"""What is read into the page cache ahead of a start (`warmer.handoff.ahead`), seen in the page cache."""

import ctypes
import errno
import json
import mmap
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))

import runs

import warmer.handoff
from warmer.handoff import ahead

AHEAD = str(Path(warmer.handoff.__file__).parent / "ahead.py")
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
LIBC.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]


def resident(path):
    """Tell which part of a file is in the page cache, from 0 to 1, without reading any of it."""
    size = os.path.getsize(path)
    pages = bytes(-(-size // mmap.PAGESIZE))
    vector = ctypes.create_string_buffer(pages)
    with open(path, "rb") as stream:
        at = LIBC.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, stream.fileno(), 0)
    assert at != ctypes.c_void_p(-1).value, os.strerror(ctypes.get_errno())
    try:
        assert LIBC.mincore(at, size, vector) == 0, os.strerror(ctypes.get_errno())
    finally:
        LIBC.munmap(at, size)
    return sum(byte & 1 for byte in vector.raw[: len(pages)]) / len(pages)


def cold(path, size=3 << 20):
    """Make a file that is on the disk and not in memory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as stream:
        stream.write(os.urandom(1 << 20) * (size >> 20) or b"x" * size)
        stream.flush()
        os.fsync(stream.fileno())
    evict(path)
    assert resident(path) == 0, "this filesystem keeps what it is told to let go"
    return path


def evict(path):
    with open(path, "rb") as stream:
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class Start:
    """What a start reads: a library, a source that has bytecode, and a model in two shards."""

    def __init__(self, top):
        self.top = top
        self.library = cold(top / "lib" / "libx.so.1")
        self.source = cold(top / "site" / "vllm" / "x.py")
        self.tree = top / "warm" / "pycache"
        entry = Path(f"{self.tree}{self.source.parent}") / "x.cpython-311.pyc"
        entry.parent.mkdir(parents=True)
        entry.touch()
        self.config = cold(top / "model" / "config.json", 4096)
        self.shards = [cold(top / "model" / f"model-{n}.safetensors", 9 << 20) for n in (1, 2)]
        self.notes = top / "start.json"
        self.note([str(self.library)])

    @property
    def all(self):
        return [self.library, self.source, self.config, *self.shards]

    def note(self, libraries):
        self.notes.write_text(json.dumps({"libraries": libraries}))

    def words(self, limit="auto", server=None):
        places = (self.notes, self.tree, self.top / "model")
        return [str(server or os.getpid()), limit, *map(str, places)]

    def read(self, limit="auto"):
        """Run it as `serve` does, to its end."""
        done = subprocess.run(
            [sys.executable, "-IS", AHEAD, *self.words(limit)],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture
def start(tmp_path):
    return Start(tmp_path)


def test_all_that_a_start_reads_is_in_memory_afterwards(start):
    start.read()
    assert [resident(path) for path in start.all] == [1.0] * 5


def test_a_file_whose_beginning_alone_is_in_memory_is_read(start):
    with open(start.source, "rb", buffering=0) as stream:
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        stream.read(1)
    assert 0 < resident(start.source) < 1
    start.read()
    assert resident(start.source) == 1.0


def test_libraries_and_sources_come_first_and_then_shards_as_far_as_the_limit_goes(start):
    start.read(str((7 << 20) + (8 << 20)))
    assert [resident(path) for path in (start.library, start.source, start.config)] == [1.0] * 3
    assert resident(start.shards[0]) > 0.8
    assert resident(start.shards[1]) == 0


def test_nothing_is_read_where_nothing_may_be(start):
    start.read("0")
    assert [resident(path) for path in start.all] == [0] * 5


def test_what_is_in_memory_is_not_read_again(start, monkeypatch):
    start.shards[0].read_bytes()
    read = []
    fetch = ahead.fetch
    monkeypatch.setattr(ahead, "fetch", lambda fd, *at: read.append(at) or fetch(fd, *at))
    ahead.read(str(start.shards[0]), 0, nothing)
    assert read == []
    ahead.read(str(start.shards[1]), 0, nothing)
    assert [end - begin for begin, end in read] == [1 << 20] * 8


def test_a_filesystem_that_copies_nothing_for_others_is_read_all_the_same(start, monkeypatch):
    def sendfile(*_):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(ahead.os, "sendfile", sendfile)
    ahead.read(str(start.shards[0]), 0, nothing)
    assert resident(start.shards[0]) >= 8 / 9, "the block; what is behind it, the kernel may read"


def test_weights_give_way_to_a_server_that_waits_for_the_disk(start, tmp_path, monkeypatch):
    """Its main thread is where one is that waits for a disk: what it spawned opens a pipe first."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    waits = subprocess.Popen([sys.executable, "-c", WAITS, pipe], stdin=subprocess.PIPE)
    slept = []
    monkeypatch.setattr(ahead, "time", SimpleNamespace(sleep=slept.append))
    try:
        runs.eventually(lambda: state(waits.pid) == "D")
        ahead.politely(waits.pid)()
        assert len(slept) == 10, "it gives way for so long, and no longer"
        slept.clear()
        with open(pipe, "wb"):
            runs.eventually(lambda: state(waits.pid) != "D")
        ahead.politely(waits.pid)()
    finally:
        waits.kill()
        waits.wait()
    ahead.politely(waits.pid)()
    assert slept == [], "one that waits for no disk, or is gone"
    asked = []
    ahead.read(str(start.shards[0]), 0, lambda: asked.append(resident(start.shards[0])))
    assert len(asked) == 8, "before each piece"
    assert asked[0] < 1 / 9 / 8, (
        "before the first: the kernel fetches some pages when asked for a byte"
    )


WAITS = """\
import os, sys
opens = [(os.POSIX_SPAWN_OPEN, 9, sys.argv[1], os.O_RDONLY, 0)]
os.posix_spawn("/bin/true", ["true"], {}, file_actions=opens)
sys.stdin.read()
"""


def state(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def nothing():
    pass


def test_without_notes_tree_or_model_the_rest_is_read(start):
    start.notes.unlink()
    start.read()
    assert [resident(path) for path in start.all] == [0, 1.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"libraries": 5}', '{"libraries": [[]]}'])
def test_notes_that_are_torn_keep_nothing_else_from_being_read(start, text):
    start.notes.write_text(text)
    start.read()
    assert [resident(path) for path in start.shards] == [1.0, 1.0]


def test_what_is_no_file_is_left_out_and_nobody_waits_for_it(start):
    """Pipes, sockets, devices without an end, links in a circle, names that no file has."""
    os.mkfifo(start.top / "model" / "a-pipe.safetensors")
    (start.top / "model" / "b-circle").symlink_to("b-circle")
    (start.top / "model" / "c-null.bin").symlink_to("/dev/zero")
    (start.top / "model" / "d-directory.safetensors").mkdir()
    start.note(["/dev/zero", "/proc/kmsg", "", "\0", "/is/not/there.so", str(start.library)])
    start.read()
    assert [resident(path) for path in start.all] == [1.0] * 5


def test_a_pipe_that_came_instead_of_a_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    ahead.read(str(tmp_path / "pipe"), 0, nothing)


def test_a_huge_file_of_holes_ends_at_the_limit(start):
    huge = start.top / "model" / "model-0.safetensors"
    with open(huge, "wb") as stream:
        stream.truncate(1 << 40)
    start.read(str(64 << 20))
    assert resident(start.shards[0]) == 0, "the limit was spent"


def test_a_file_that_cannot_be_read_ends_no_thread(monkeypatch, start):
    """As many as there are threads: had each ended one, nobody would read the last."""
    tried = []
    plain = ahead.read

    def read(path, offset, give_way):
        tried.append(path)
        if len(tried) <= 3 * ahead._THREADS:
            raise OSError(5, "Input/output error")
        plain(path, offset, give_way)

    monkeypatch.setattr(ahead, "read", read)
    start.note([str(start.library)] * 3 * ahead._THREADS)
    ahead.main(*start.words())
    assert [resident(path) for path in start.shards] == [1.0, 1.0]


# --- the order -----------------------------------------------------------------------------------


def test_shards_come_by_their_numbers_after_what_says_how_to_read_them(tmp_path):
    names = ["model-10.safetensors", "model-9.safetensors", "tokenizer.json", "1.txt", "9-a.bin"]
    for name in names:
        (tmp_path / name).touch()
    named = [os.path.basename(path) for path in ahead.shards(str(tmp_path))]
    assert sorted(named[:2]) == ["1.txt", "tokenizer.json"]
    assert named.index("model-9.safetensors") < named.index("model-10.safetensors")
    assert len(named) == 5


# --- how much ------------------------------------------------------------------------------------


def test_a_budget_is_spent_to_the_last_byte_and_not_beyond():
    budget = ahead.Budget(10)
    assert [budget.take(4), budget.take(6), budget.take(1)] == [True, True, False]
    budget = ahead.Budget(10)
    assert [budget.take(11), budget.take(1)] == [False, False], (
        "what comes after is not needed first"
    )


def groups(monkeypatch, top, mine, **files):
    """Lay cgroups out in a directory, and be in one of them."""
    (top / "mine").write_text(mine)
    for name, text in files.items():
        path = top / "groups" / name.replace("__", "/").replace("DOT", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(ahead, "_GROUPS", str(top / "groups"))
    real = open

    def seen(path, *how, **more):
        return real(top / "mine" if path == "/proc/self/cgroup" else path, *how, **more)

    monkeypatch.setattr("builtins.open", seen)


V2 = {
    "memoryDOTmax": "1000",
    "memoryDOTcurrent": "900",
    "memoryDOTstat": "anon 300\ninactive_file 400\nactive_file 100\nshmem 99\n",
}


def test_a_containers_limit_counts_what_its_own_cache_could_give_up(monkeypatch, tmp_path):
    groups(monkeypatch, tmp_path, "0::/\n", **V2)
    assert ahead.room() == 480
    (tmp_path / "groups" / "memory.high").write_text("800")
    assert ahead.room() == 320, "beyond it the kernel holds whoever reads back"


def test_without_a_limit_the_nodes_memory_is_what_counts(monkeypatch, tmp_path):
    groups(monkeypatch, tmp_path, "0::/\n", **V2 | {"memoryDOTmax": "max"})
    monkeypatch.setattr(ahead, "_available", lambda: 100)
    assert ahead.room() == 80
    monkeypatch.undo()
    groups(monkeypatch, tmp_path, "0::/\n", **V2)
    monkeypatch.setattr(ahead, "_available", lambda: 100)
    assert ahead.room() == 80


def test_a_limit_that_is_reached_leaves_nothing(monkeypatch, tmp_path):
    groups(monkeypatch, tmp_path, "0::/\n", **V2 | {"memoryDOTcurrent": "5000"})
    assert ahead.room() == 0


def test_every_group_above_counts(monkeypatch, tmp_path):
    inner = {f"pod__box__{name}": text for name, text in V2.items()}
    outer = {f"pod__{name}": text for name, text in V2.items()} | {"pod__memoryDOTmax": "600"}
    groups(monkeypatch, tmp_path, "0::/pod/box\n", **inner | outer)
    assert ahead.room() == 160


def test_the_first_kind_of_groups_is_read_too(monkeypatch, tmp_path):
    v1 = {
        "memory__memoryDOTlimit_in_bytes": "1000",
        "memory__memoryDOTusage_in_bytes": "700",
        "memory__memoryDOTstat": "cache 1\ntotal_inactive_file 100\ntotal_active_file 100\n",
    }
    mine = "5:cpu,cpuacct:/x\n4:memory:/kubepods/pod1\n0::/\n"
    groups(monkeypatch, tmp_path, mine, **v1)
    assert ahead.room() == 400


def test_this_machine_has_room(tmp_path):
    assert ahead.room() > 0


# --- its end -------------------------------------------------------------------------------------


def endless(start):
    """Have more to read than can be read while a test waits: one block, again and again."""
    start.note([str(start.library)] * 10**6)


def test_the_end_of_the_server_ends_it(start):
    endless(start)
    server = subprocess.Popen(["sleep", "100"])
    reading = subprocess.Popen(
        [sys.executable, "-IS", AHEAD, *start.words(str(1 << 60), server.pid)]
    )
    try:
        runs.eventually(lambda: resident(start.library) == 1.0)
        assert reading.poll() is None
        server.kill()
        assert reading.wait(10) == 0
        server.wait()
    finally:
        for process in (server, reading):
            process.kill()
            process.wait()


def test_a_server_that_has_ended_before_gets_nothing_read(start):
    server = subprocess.Popen(["true"])
    server.wait()
    lives = ahead.living(server.pid)
    assert not lives()
    ahead.main(*start.words("auto", server.pid))
    assert [resident(path) for path in start.all] == [0] * 5


def test_without_descriptors_of_processes_an_end_is_seen_too(monkeypatch):
    monkeypatch.delattr(os, "pidfd_open")
    server = subprocess.Popen(["sleep", "100"])
    lives = ahead.living(server.pid)
    assert lives()
    server.send_signal(signal.SIGKILL)
    server.wait()
    assert not lives()


@pytest.mark.parametrize(
    ("stages", "files", "order"),
    [
        (1, ["a-2", "a-10", "a-1"], ["a-1", "a-2", "a-10"]),
        (2, ["a-1", "a-2", "a-3", "a-4"], ["a-1", "a-3", "a-2", "a-4"]),
        (2, ["a-1", "a-2", "a-3"], ["a-1", "a-2", "a-3"]),
        (4, ["a-1", "a-2"], ["a-1", "a-2"]),
        (3, [], []),
        (0, ["a-1"], ["a-1"]),
        (
            1,  # ranks read their own parts, side by side
            ["model-rank-0-part-0", "model-rank-0-part-1", "model-rank-1-part-0", "model-rank-1-part-1"],
            ["model-rank-0-part-0", "model-rank-1-part-0", "model-rank-0-part-1", "model-rank-1-part-1"],
        ),
        (
            2,
            ["model-pp-0-tp-0-part-1", "model-pp-1-tp-0-part-0", "model-pp-0-tp-0-part-0"],
            ["model-pp-0-tp-0-part-0", "model-pp-1-tp-0-part-0", "model-pp-0-tp-0-part-1"],
        ),
    ],
    ids=str,
)  # fmt: skip
def test_shards_come_in_the_order_in_which_the_ranks_need_them(tmp_path, stages, files, order):
    for name in ["config.json", *(f"{name}.safetensors" for name in files)]:
        (tmp_path / name).touch()
    found = [Path(path).name for path in ahead.shards(str(tmp_path), stages)]
    assert found == ["config.json", *(f"{name}.safetensors" for name in order)]


def test_a_stage_that_begins_in_the_middle_gets_its_first_shard_within_the_limit(start):
    """The first half of the shards would have taken all of the memory there is."""
    more = [cold(start.top / "model" / f"model-{n}.safetensors", 9 << 20) for n in (3, 4)]
    words = [*start.words(str((7 << 20) + (18 << 20))), "2"]
    subprocess.run([sys.executable, "-IS", AHEAD, *words], check=True, timeout=60)
    assert [resident(path) for path in (start.shards[0], more[0])] == [1.0, 1.0]
    assert [resident(path) for path in (start.shards[1], more[1])] == [0, 0]
