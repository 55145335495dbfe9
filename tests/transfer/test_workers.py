"""Several processes fetch one model: dealt out, heard, stopped together, and gone at the end."""

import errno
import json
import os
import signal
import subprocess
import sys
import time

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import s3
from buckets import Bucket, refused

from warmer.cli import prefill
from warmer.errors import IntegrityError, SourceError, TerminatedError, as_record, from_record
from warmer.fill import partial, workers
from warmer.fill.sources import SourceFile
from warmer.fill.sources.retry import Patience
from warmer.fill.workers import Workers, deal
from warmer.observe import limits
from warmer.settings import Writing

MIB = 1 << 20
DEADLINE = 60.0


def test_the_help_says_how_many_there_are_at_most():
    said = next(p.help for p in prefill.command.params if p.name == "workers")
    assert f"{workers.MOST} at most" in said


@pytest.fixture
def bucket(monkeypatch):
    with Bucket(s3.seaweed()) as bucket:
        for name, value in bucket.environment().items():
            monkeypatch.setenv(name, value)
        yield bucket


@pytest.fixture
def contents(bucket, monkeypatch):
    """Six files in a bucket, worth three workers."""
    monkeypatch.setattr(workers, "_WORTH", MIB)
    files = {f"model-{n}.safetensors": os.urandom(3 * MIB) for n in range(4)}
    files |= {"config.json": b"{}", "sub/dir/a b\u00e9.json": b"[]"}
    bucket.put_all(files)
    return files


def run(bucket, top, *, most=3, patience=None, moved=lambda *_: None, present=(), retry=30.0):
    """Fetch the model with workers; returns what they say is to be sealed."""
    staging = top / "staging"
    staging.mkdir(exist_ok=True)
    source = bucket.source()
    model = source.resolve()
    team = Workers(most, retry, patience or Patience(), dict(os.environ))
    how = {"staging": str(staging), "moved": moved, "writing": Writing(), "connections": 2}
    return team.run(source, model, source.files(model), dict(present), **how)


def children():
    """The processes below this one that are no server of a test: workers."""
    found = []
    for task in os.listdir("/proc/self/task"):
        found += below(os.getpid(), task)
    return found


def below(pid, task=None):
    """The workers that a thread, the main one unless told, has started."""
    try:
        with open(f"/proc/{pid}/task/{task or pid}/children", encoding="ascii") as stream:
            found = stream.read().split()
    except FileNotFoundError:  # the thread ended
        return []
    return [child for child in found if command(child) == "warmer worker"]


def gone(team):
    """Wait until workers have ended that nobody killed: they notice."""
    deadline = time.monotonic() + DEADLINE
    while any(command(pid) == "warmer worker" for pid in team):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.02)


def command(pid):
    """What a process is called while it runs."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8") as stream:
            named = dict(line.split(":", 1) for line in stream)
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if "Z" in named["State"] else named["Name"].strip()


def pipes():
    """How many ends of pipes this process holds."""
    held = [os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
    return sum(os.readlink(fd).startswith("pipe:") for fd in held if os.path.lexists(fd))


# --- dealing -------------------------------------------------------------------------------------


def sized(*sizes):
    return [SourceFile(f"{n}", size) for n, size in enumerate(sizes)]


def test_shares_are_about_as_much_work_and_hold_every_file_once():
    files = sized(*(n * 100 * MIB for n in (9, 7, 6, 5, 5, 4, 2, 1, 1)))
    shares = deal(files, 3)
    assert sorted(f.path for share in shares for f in share) == sorted(f.path for f in files)
    loads = [sum(f.size for f in share) for share in shares]
    assert max(loads) - min(loads) <= 100 * MIB


@pytest.mark.parametrize(
    ("sizes", "most", "count"),
    [
        ((), 4, 1),
        ((100,), 4, 1),
        ((1 << 40,), 4, 1),
        ((1 << 30, 1 << 30), 1, 1),
        ((1 << 30, 1 << 30), 4, 2),
        ((1 << 30,) * 9, 4, 4),
        ((1000,) * 100, 4, 1),
        ((1000,) * 2000, 4, 4),
    ],
)
def test_there_are_as_many_shares_as_are_worth_a_process(sizes, most, count):
    shares = deal(sized(*sizes), most)
    assert len(shares) == count
    assert all(shares) or not sizes


# --- fetching ------------------------------------------------------------------------------------


def test_workers_fetch_what_one_process_would(bucket, contents, tmp_path, monkeypatch):
    arrived = {}
    told = []
    tell = workers._tell
    monkeypatch.setattr(workers, "_tell", lambda one, what: (told.append(one.pid), tell(one, what)))

    def moved(path, count):
        arrived[path] = arrived.get(path, 0) + count

    done = run(bucket, tmp_path, moved=moved)
    assert arrived == {path: len(data) for path, data in contents.items()}
    assert len(set(told)) == 3, "it was not done by three processes"
    alone = tmp_path / "alone"
    alone.mkdir()
    assert done == run(bucket, alone, most=1)
    for path, sealed in done.items():
        assert (tmp_path / "staging" / sealed.path).read_bytes() == contents[path]
    assert children() == []


def test_what_is_present_is_not_fetched_again(bucket, contents, tmp_path):
    path = "model-0.safetensors"
    (tmp_path / "staging" / "partial").mkdir(parents=True)
    with open(partial.place(str(tmp_path / "staging"), path), "wb") as stream:
        stream.write(contents[path][: 2 * MIB])
    arrived = {}
    done = run(
        bucket,
        tmp_path,
        moved=lambda path, count: arrived.update({path: arrived.get(path, 0) + count}),
        present={path: ((0, 2 * MIB),)},
    )
    assert arrived[path] == MIB
    assert (tmp_path / "staging" / done[path].path).read_bytes() == contents[path]


def test_when_one_is_told_to_slow_down_all_do_and_the_waiting_is_added_up(
    bucket, contents, tmp_path
):
    body = s3.refusal("SlowDown", "Please reduce your request rate.")
    headers = {"Content-Type": "application/xml", "Retry-After": "2"}
    bucket.wire.fault(method="GET", path="model-0", status=503, body=body, headers=headers, times=1)
    patience = Patience()
    run(bucket, tmp_path, patience=patience)
    assert patience.retries == {"rate-limited": 1}
    assert 1.5 <= patience.throttled_s < 10, "what is left of two seconds when it is reported"


def test_those_that_stand_by_are_told_and_nobody_else(bucket, contents, tmp_path, monkeypatch):
    source = bucket.source()
    model = source.resolve()
    files = source.files(model)
    how = {"moved": lambda *_: None, "writing": Writing(), "connections": 2}
    with Workers(3, 30.0, Patience(), dict(os.environ)).standing_by(files) as team:
        assert len(team.standing) == 3
        monkeypatch.setattr(os, "fork", lambda: pytest.fail("there was another one"))
        done = team.run(source, model, files, {}, staging=str(tmp_path), **how)
    assert set(done) == set(contents)
    assert children() == []


def test_who_stands_by_for_nothing_is_sent_home(bucket, contents):
    with Workers(3).standing_by(None) as team:
        assert len(team.standing) == 3
    assert children() == []
    with Workers(3).standing_by(sized(100)) as team:
        assert team.standing == ()
    with Workers(1).standing_by(None) as team:
        assert team.standing == ()


# --- failing -------------------------------------------------------------------------------------


def test_a_wrong_byte_in_one_share_stops_all(bucket, contents, tmp_path):
    bucket.wire.fault(method="GET", path="model-2", corrupt=True)
    with refused(IntegrityError, "hash-mismatch", "model-2.safetensors"):
        run(bucket, tmp_path)
    assert children() == []


def test_the_log_of_a_worker_is_the_parents(bucket, contents, tmp_path, capsys):
    bucket.wire.fault(method="GET", path="model-1", drop="before", times=1)
    run(bucket, tmp_path)
    assert "trying again" in capsys.readouterr().out, "structlog's own default prints"


def test_a_killed_worker_is_told_and_what_arrived_is_kept(bucket, contents, tmp_path):
    bucket.wire.fault(method="GET", path="model-3", hang="after")

    def moved(_path, _count):
        for pid in children():
            os.kill(int(pid), signal.SIGKILL)

    with refused(SourceError, "worker-died", "signal 9", "--workers 1"):
        run(bucket, tmp_path, moved=moved)
    assert children() == []
    bucket.wire.faults.clear()
    assert set(run(bucket, tmp_path)) == set(contents)


def test_who_asks_to_stop_leaves_no_worker(bucket, contents, tmp_path):
    bucket.wire.fault(method="GET", path="model-3", hang="after")

    def moved(_path, _count):
        raise TerminatedError(signal.SIGTERM)

    with pytest.raises(TerminatedError):
        run(bucket, tmp_path, moved=moved)
    assert children() == []


def test_what_a_worker_cannot_open_is_its_own_error(bucket, contents, tmp_path, monkeypatch):
    make = workers.fork
    other = {"AWS_PROFILE": "nobody"}
    monkeypatch.setattr(workers, "fork", lambda main, env: make(main, env | other))
    with refused(SourceError, "denied", "ProfileNotFound"):
        run(bucket, tmp_path)


def test_without_another_process_to_be_had_the_staging_is_kept(
    bucket, contents, tmp_path, monkeypatch
):
    def refuse():
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os, "fork", refuse)
    before = pipes()
    with refused(SourceError, "no-worker", "Resource temporarily unavailable", "--workers 1"):
        run(bucket, tmp_path)
    assert pipes() == before


def test_a_bug_in_a_worker_is_one_here():
    said = as_record(ZeroDivisionError("in a worker"))
    error = from_record(json.loads(json.dumps(said)))
    assert type(error) is RuntimeError
    assert "ZeroDivisionError: in a worker" in str(error)


PARENT = """
import json, os, sys
sys.path[:] = json.loads(sys.argv[1])
from warmer.fill import partial, workers
from warmer.fill.sources.s3 import S3
from warmer.fill.workers import Workers
from warmer.fill.sources.retry import Patience
from warmer.settings import Writing
from warmer.urls import parse_model
workers._WORTH = 1 << 20
source = S3(parse_model(sys.argv[2]))
model = source.resolve()
def moved(path, count):
    print("moved", flush=True)
Workers(3, 30.0, Patience(), dict(os.environ)).run(source, model, source.files(model), {},
    staging=sys.argv[3], moved=moved, writing=Writing(), connections=2)
"""


def test_workers_end_with_a_parent_that_is_killed(bucket, contents, tmp_path):
    bucket.wire.fault(method="GET", path="model-3", hang="after")
    argv = [sys.executable, "-c", PARENT, json.dumps(sys.path), bucket.model, str(tmp_path)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as parent:
        assert parent.stdout.readline() == b"moved\n"
        team = below(parent.pid)
        assert team
        parent.kill()
    gone(team)


FORKS = """
import json, os, sys, threading
sys.path[:] = json.loads(sys.argv.pop(1))
from warmer.__main__ import main
fork = os.fork
def counted():
    print("threads at a fork:", threading.active_count(), len(os.listdir("/proc/self/task")),
        file=sys.stderr)
    return fork()
os.fork = counted
main()
"""


@pytest.mark.parametrize("pinned", [False, True])
def test_prefill_forks_while_it_has_one_thread(bucket, contents, tmp_path, pinned):
    bucket.put_all({f"big-{n}.safetensors": os.urandom(256 << 10) for n in range(600)})
    (tmp_path / "volume").mkdir()
    model = f"{bucket.model}@{bucket.source().resolve().revision}" if pinned else bucket.model
    argv = [sys.executable, "-c", FORKS, json.dumps(sys.path), "prefill", "--compile", "never"]
    argv += ["--volume", f"{tmp_path}/volume", "--warm-dir", f"{tmp_path}/warm"]
    argv += ["--model", model, "--workers", "3"]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("threads")]
    assert said == ["threads at a fork: 1 1"] * 3


def test_prefill_stopped_by_sigterm_leaves_no_worker_and_no_weights(bucket, contents, tmp_path):
    bucket.put_all({f"big-{n}.safetensors": os.urandom(256 << 10) for n in range(600)})
    bucket.wire.fault(method="GET", path="model-3", hang="after")
    (tmp_path / "volume").mkdir()
    argv = [sys.executable, "-m", "warmer", "prefill", "--compile", "never", "--workers", "3"]
    argv += ["--volume", f"{tmp_path}/volume", "--warm-dir", f"{tmp_path}/warm"]
    argv += ["--model", bucket.model]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as prefill:
        deadline = time.monotonic() + DEADLINE
        team = []
        while len(team) < 3:
            assert prefill.poll() is None
            assert time.monotonic() < deadline, "no workers"
            team = below(prefill.pid)
        prefill.send_signal(signal.SIGTERM)
        assert prefill.wait(DEADLINE) == 143
    gone(team)
    assert not list(tmp_path.glob("volume/v1/pieces/weights/*/*/seal.json"))


# --- how many CPUs -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "100000 100000\n"}, 1),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "99900000 100000\n"}, None),
        ({"cpu.max": "nonsense\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "100000\n"}, None),
    ],
)
def test_a_containers_limit_counts(tmp_path, files, expected):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert limits.cpus(str(tmp_path)) == (expected or len(os.sched_getaffinity(0)))


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, sys.maxsize),
        ({"memory.max": "max\n"}, sys.maxsize),
        ({"memory.max": "268435456\n"}, 256 * MIB),
        ({"memory/memory.limit_in_bytes": "268435456\n"}, 256 * MIB),
    ],
)
def test_a_containers_memory_counts(tmp_path, files, expected):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert limits.memory(str(tmp_path)) == expected
