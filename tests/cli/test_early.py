"""`warmer serve --wait`: vLLM is imported before there is a handoff; never in another environment."""

import fcntl
import json
import os
import signal
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import fakeengine
import runs

from warmer.fill.locks import file as file_lock
from warmer.fill.locks.record import Owner
from warmer.handoff import write
from warmer.layout import WarmDir
from warmer.machine import Stack

SLOW_IMPORT = """\
import os, sys, time
with open({mark!r}, "a") as f:
    print(os.getpid(), os.environ.get("PYTHONPYCACHEPREFIX"), file=f)
"""


class Pod:
    """A prefilled pod whose handoff can be hidden and shown again."""

    def __init__(self, place, tmp_path):
        self.place, self.top = place, tmp_path
        self.warm = WarmDir(place.warm)
        self.record = Path(place.warm, "handoff/handoff.json")
        self.hidden = self.record.with_suffix(".hidden")
        self.echo = tmp_path / "env.json"
        self.imports = tmp_path / "imports"
        Path(place.engine.site, "vllm/__init__.py").write_text(
            SLOW_IMPORT.format(mark=str(self.imports))
        )
        self.env = json.loads(self.record.read_bytes())["env"]

    def hide(self, **more):
        """Have a prefill at work, which foretells the handoff's environment, and `more`."""
        self.record.rename(self.hidden)
        engine = self.place.engine
        stack = Stack(
            *("0.32.0", "2.13.0", None, "3", "glibc", engine.site, {}, (engine.vllm,)),
            interpreter=engine.python,
        )
        write.foretell(self.warm, stack=stack, env=self.env | more)

    def show(self):
        self.hidden.rename(self.record)

    @contextmanager
    def serving(self, *options, mode="", prefix=()):
        """Start `warmer serve --wait`; a port is among its arguments."""
        with runs.socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self.port = sock.getsockname()[1]
        words = ("--wait", "60", *options)
        command = [*runs.WARMER, "serve", "--warm-dir", self.place.warm, *words]
        env = {"PATH": os.defpath, "HOME": str(self.top), "OWN": "mine"}
        env |= {"FAKE_ENGINE": f"echo-env,{mode}", "FAKE_ENGINE_ENV": str(self.echo)}
        process = runs.spawn([*prefix, *command, "--", "--port", str(self.port)], env)
        try:
            yield process
        finally:
            process.kill()
            process.communicate()

    def imported(self, process):
        """Wait until it has imported, and is not the program that was started."""
        eventually(lambda: self.imports.exists() and str(process.pid) in self.imports.read_text())
        assert cmdline(process)[1].endswith("early.py")

    def ready(self, process):
        runs.ready(process, self.port)
        eventually(lambda: runs.listing(self.warm.starts) == [])
        return json.loads(self.echo.read_text())

    @property
    def starts(self):
        """The starts of servers, without the build run."""
        return self.place.engine.starts[1:]


def eventually(condition):
    """Wait as long as a machine may take that does much else besides."""
    return runs.eventually(condition, 60)


def cmdline(process):
    return Path(f"/proc/{process.pid}/cmdline").read_text().split("\0")


def held(path):
    """Whether somebody holds a file as servers do: by flock, shared or not."""
    with open(path, "rb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def children(process):
    return Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()


@pytest.fixture
def pod(tmp_path):
    with runs.place(tmp_path) as place:
        engine = fakeengine.make_engine(tmp_path / "plain", precompiled=False)
        mine = place.but(engine=engine)
        mine.warmed()
        yield Pod(mine, tmp_path)


def test_the_process_that_imported_becomes_the_server_as_the_handoff_says(pod):
    pod.hide()
    with pod.serving() as process:
        pod.imported(process)
        assert pod.starts == []
        pod.show()
        seen = pod.ready(process)
        (start,) = pod.starts
        assert start["pid"] == process.pid
        assert cmdline(process)[1].endswith("early.py"), "no program was run in its place"
        handed = json.loads(pod.record.read_bytes())
        words = ["serve", handed["model_path"], *handed["argv"], "--port", str(pod.port)]
        assert start["argv"] == words
        assert {n: seen.get(n) for n in handed["env"]} == handed["env"]
        assert (seen["OWN"], "WARMER_HOLD" in seen) == ("mine", False)
        assert seen["PATH"] == f"{os.defpath}:{pod.place.engine.bin}"

        # What a server inherits from `serve` is held as long as it lives, and no longer.
        user = Path(pod.warm.use).read_text().split()[0]
        live = f"{pod.place.volume}/v1/uses/{user}.live"
        assert held(live) and held(pod.warm.server)
        (holder,) = children(process)
        process.terminate()
        assert runs.finish(process).code == 0
        eventually(lambda: not (held(live) or held(pod.warm.server)))
        eventually(lambda: not os.path.exists(f"/proc/{holder}"))


@pytest.mark.parametrize("prefix", [(), runs.AS_FIRST])
def test_a_stop_while_serve_is_asked_does_not_count_as_a_crash(pod, prefix):
    pod.hide()
    Path(pod.warm.handoff, "installed.py").write_text("import time; time.sleep(1)")
    with pod.serving(prefix=prefix) as process:
        eventually(pod.imports.exists)
        pod.show()
        eventually(lambda: runs.listing(pod.warm.starts))
        (inner,) = children(process) if prefix else [process.pid]
        os.kill(int(inner), signal.SIGTERM)
        result = runs.finish(process)
        assert (result.code, result.err) == (143, "")
        eventually(lambda: runs.listing(pod.warm.starts) == [])
    assert pod.starts == []


def test_what_was_imported_in_another_environment_is_thrown_away(pod):
    pod.hide(VLLM_OTHER="1", HF_HUB_OFFLINE="0")
    with pod.serving() as process:
        pod.imported(process)
        pod.show()
        seen = pod.ready(process)
        assert cmdline(process)[1] == pod.place.engine.vllm
        assert [start["pid"] for start in pod.starts] == [process.pid]
        assert {n: seen.get(n) for n in pod.env} == pod.env
        assert "VLLM_OTHER" not in seen
        assert held(pod.warm.server)


def test_a_plan_of_memory_that_is_not_for_this_server_is_left_out_of_what_imported(pod):
    """Whether there is one is read when the engine starts; further arguments may forbid it."""
    pod.hide(VLLM_ENABLE_STARTUP_PLAN="1")
    with pod.serving() as process:
        pod.imported(process)
        pod.show()
        seen = pod.ready(process)
        assert cmdline(process)[1].endswith("early.py")
        assert "VLLM_ENABLE_STARTUP_PLAN" not in seen


def test_another_program_than_was_foretold_is_run_afresh(pod):
    pod.hide()
    early = Path(pod.warm.early)
    other = Path(pod.place.engine.bin, "vllm-other")
    other.write_text(f"#!{pod.place.engine.python}\nraise SystemExit(70)\n")
    early.write_text(early.read_text().replace(pod.place.engine.vllm, str(other)))
    with pod.serving() as process:
        pod.imported(process)
        pod.show()
        pod.ready(process)
        assert cmdline(process)[1] == pod.place.engine.vllm


@pytest.mark.parametrize("crashes", [1, 2])
def test_after_a_crash_the_server_is_a_fresh_one_and_each_start_counts_once(pod, crashes):
    for _ in range(crashes):
        with pod.serving(mode="crash") as process:
            assert runs.finish(process, 60).code == 1
        eventually(lambda: runs.unwatched(pod.place.warm))
    before = len(pod.starts)
    pod.echo.unlink(missing_ok=True)  # what a start that crashed has left
    pod.hide()
    with pod.serving() as process:
        pod.imported(process)
        pod.show()
        eventually(lambda: len(pod.starts) > before)
        eventually(lambda: pod.echo.exists() and cmdline(process)[1] == pod.place.engine.vllm)
        eventually(lambda: json.loads(pod.echo.read_text())["PATH"].endswith(pod.place.engine.bin))
        cold = json.loads(pod.echo.read_text())["VLLM_CACHE_ROOT"]
        assert cold.startswith(pod.warm.cold if crashes == 2 else pod.warm.cache)
    assert len(pod.starts) == before + 1


def test_a_server_that_imported_early_and_is_stopped_before_it_is_ready_has_not_crashed(pod):
    pod.hide()
    with pod.serving(mode="slow=600") as process:
        pod.imported(process)
        pod.show()
        eventually(lambda: pod.starts)
        process.terminate()
        assert runs.finish(process, 60).code == -signal.SIGTERM
    eventually(lambda: runs.unwatched(pod.place.warm))
    assert runs.listing(pod.warm.starts) == []


def test_a_handoff_that_is_there_is_not_waited_for(pod):
    with pod.serving() as process:
        pod.ready(process)
        assert cmdline(process)[1] != "early.py"
        assert [start["pid"] for start in pod.starts] == [process.pid]


@pytest.mark.parametrize("foretold", [True, False])
def test_a_handoff_that_never_comes_ends_the_waiting_with_3(pod, foretold):
    pod.hide()
    if not foretold:
        os.unlink(pod.warm.early)
    begun = time.monotonic()
    with pod.serving("--wait", "2") as process:
        result = runs.finish(process)
    assert result.code == 3
    assert time.monotonic() - begun >= 2
    assert "got no handoff" in result.err and "hint: " in result.err
    assert pod.starts == []


@pytest.mark.parametrize("prefix", [(), runs.AS_FIRST])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_who_waits_ends_when_it_is_told_to(pod, number, prefix):
    pod.hide()
    with pod.serving(prefix=prefix) as process:
        eventually(pod.imports.exists)
        waiting = process.pid
        if prefix:
            (waiting,) = children(process)
        os.kill(int(waiting), number)
        code = runs.finish(process).code
    assert code == 128 + number
    assert pod.starts == []


@pytest.mark.parametrize("error", ["SystemExit(5)", "RuntimeError('no')"])
def test_imports_that_fail_leave_it_to_a_fresh_program(pod, error):
    source = Path(pod.place.engine.site, "vllm/entrypoints/cli/benchmark/__init__.py")
    source.parent.mkdir(parents=True)
    source.write_text(f"if 'early.py' in open('/proc/self/cmdline').read(): raise {error}")
    (source.parent / "main.py").touch()
    pod.hide()
    with pod.serving() as process:
        eventually(pod.imports.exists)
        pod.show()
        pod.ready(process)
        assert [start["pid"] for start in pod.starts] == [process.pid]


@pytest.mark.parametrize(
    "text",
    ["", "null", "{}", '{"schema_version": 2}', '{"schema_version": 1, "interpreter": "/x"}'],
)
def test_what_is_not_foretold_is_not_imported(pod, text):
    pod.hide()
    Path(pod.warm.early).write_text(text)
    with pod.serving("--wait", "1") as process:
        assert runs.finish(process).code == 3
    assert not pod.imports.exists()


def test_a_prefill_foretells_the_environment_while_weights_arrive_and_takes_it_back(pod):
    """What it said is caught by a lock on the weights' key that another pod holds for a while."""
    place = pod.place
    (weights,) = place.generations("weights")
    runs.shutil.rmtree(weights)
    key = os.path.basename(os.path.dirname(weights))
    lock = f"{place.volume}/v1/locks/weights-{key}.lock"
    runs.shutil.rmtree(place.warm)
    grant = file_lock.acquire(lock, me=Owner(name="another pod"), place="the volume")
    prefill = place.start("prefill", "--wait", "60")
    with pod.serving() as process:
        pod.imported(process)
        grant.release()
        assert runs.finish(prefill).code == 0
        pod.ready(process)
        assert cmdline(process)[1].endswith("early.py"), "all was as foretold"
        assert pod.starts[-1]["pid"] == process.pid
    assert not os.path.exists(pod.warm.early)


def test_a_prefill_that_runs_the_engine_foretells_nothing(pod):
    place = pod.place
    (compiled,) = place.generations("compile")
    runs.shutil.rmtree(compiled)
    runs.shutil.rmtree(place.warm)
    env = {"FAKE_ENGINE": "slow=600"}
    prefill = place.start("prefill", env=env)
    eventually(lambda: len(place.engine.starts) == 2)
    assert not os.path.exists(pod.warm.early)
    runs.kill(prefill)
