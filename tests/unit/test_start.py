"""The command of vLLM with cheaper imports (`warmer.handoff.start`): beside what Python itself runs."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))

import fakeengine
import runs

import warmer.handoff

START = str(Path(warmer.handoff.__file__).parent / "start.py")
SERVER = "vllm.entrypoints.openai.api_server"

# What a program can see of how it was started, in its own process and in one that it spawns.
SHOWS = """\
import atexit, gc, json, multiprocessing, os, sys

def seen():
    main = sys.modules["__main__"]
    spec = main.__spec__
    return {
        "argv": sys.argv, "path": sys.path, "name": __name__, "safe": getattr(sys.flags, "safe_path", None),
        "orig_argv": sys.orig_argv, "executable": sys.executable, "file": main.__file__,
        "spec": spec and spec.name, "package": main.__package__, "cached": main.__cached__,
        "loader": main.__loader__.__class__.__name__, "collects": gc.isenabled(),
        "names": sorted(set(main.__dict__) - {"__annotations__"}), "self": main.__dict__ is globals(),
        "cwd": os.getcwd(), "doc": __doc__,
    }

def child(pipe):
    pipe.send({k: v for k, v in seen().items() if k not in ("orig_argv", "loader")})

if __name__ == "__main__":
    shown = seen()
    if "spawn" in sys.argv:
        inside, outside = multiprocessing.Pipe()
        process = multiprocessing.get_context("spawn").Process(target=child, args=(outside,))
        process.start()
        shown["child"] = inside.recv()
        process.join()
    atexit.register(lambda: print(json.dumps([shown, seen()]), flush=True))
    sys.exit("end" not in sys.argv and len(sys.argv))
"""


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """An installation whose `vllm` shows how it was started; also as a module, `vllm.shows`."""
    top = tmp_path_factory.mktemp("start")
    engine = fakeengine.make_engine(top, precompiled=False)
    command(engine, f"#!{engine.python}")
    for name in ("benchmark/__init__", "benchmark/main", "serve"):
        path = Path(engine.site, f"vllm/entrypoints/cli/{name}.py")
        path.parent.mkdir(exist_ok=True)
        path.touch()
    Path(engine.site, "vllm/shows.py").write_text(SHOWS)
    return engine


def command(engine, *first, text=SHOWS, name="vllm"):
    """Make a command in the installation's bin, with these first lines."""
    path = Path(engine.bin, name)
    path.write_text("\n".join([*first, text]))
    path.chmod(0o755)
    return str(path)


def run(*words, cwd=None, **env):
    return subprocess.run(
        words,
        env={"PATH": os.defpath} | env,
        cwd=cwd,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
    )


def both(engine, *words, notes="", **how):
    """Run a command directly, and through `start.py`."""
    return run(*words, **how), run(engine.python, START, notes, *words, **how)


def same(engine, *words, **how):
    """Assert that nothing tells the two ways of running apart; return what the program saw."""
    direct, started = both(engine, *words, **how)
    assert direct.stdout, direct.stderr
    assert started.stderr == direct.stderr
    assert started.returncode == direct.returncode
    assert json.loads(started.stdout) == json.loads(direct.stdout)
    return json.loads(started.stdout)[0]


# --- it is the process that Python would have started ---------------------------------------------


def test_a_command_is_started_as_python_starts_it_and_so_are_the_processes_it_spawns(engine):
    seen = same(engine, engine.vllm, "serve", "--x", "it's", "spawn")
    assert seen["argv"] == [engine.vllm, "serve", "--x", "it's", "spawn"]
    assert seen["child"]["name"] == "__mp_main__"
    assert seen["child"]["path"][0] == engine.bin


def test_a_module_too(engine, tmp_path):
    seen = same(engine, engine.python, "-m", "vllm.shows", "x", "spawn", cwd=tmp_path)
    assert seen["spec"] == "vllm.shows"
    assert seen["path"][0] == str(tmp_path)


@pytest.mark.parametrize("words", [(), ("-m", "vllm.shows")], ids=str)
def test_a_safe_path_stays_one(engine, tmp_path, words):
    command = (engine.python, *words) if words else (engine.vllm,)
    seen = same(engine, *command, "x", cwd=tmp_path, PYTHONSAFEPATH="1")
    assert seen["safe"] in (True, None)
    assert "handoff" not in "".join(seen["path"])


def test_a_command_that_is_a_link_finds_what_is_beside_the_file(engine, tmp_path):
    (tmp_path / "vllm").symlink_to(engine.vllm)
    assert same(engine, str(tmp_path / "vllm"), "x")["path"][0] == engine.bin


@pytest.mark.parametrize("name", ["short", "with a space"])
def test_a_path_that_no_first_line_holds_is_read_from_the_second(engine, tmp_path, name):
    (tmp_path / name).symlink_to(engine.top)
    python = f"{tmp_path}/{name}/bin/python3"
    quoted = f'"{python}"' if " " in name else python
    path = command(engine, "#!/bin/sh", f"'''exec' {quoted} \"$0\" \"$@\"", "' '''", name="long")
    direct, started = run(path, "x"), run(python, START, "", path, "x")
    assert json.loads(started.stdout) == json.loads(direct.stdout), started.stderr
    seen = json.loads(started.stdout)[0]
    assert (seen["argv"], seen["executable"]) == ([path, "x"], python)
    text = "import sys; print('vllm' in sys.modules)"
    command(engine, *Path(path).read_text().splitlines()[:3], text=text, name="long")
    assert run(python, START, "", path).stdout == "True\n"


def test_a_command_that_env_finds_is_the_same(engine):
    path = command(engine, "#!/usr/bin/env python3", name="found")
    seen = [
        json.loads(done.stdout)[0]
        for done in both(engine, path, "x", PATH=f"{engine.bin}:{os.defpath}")
    ]
    for one in seen:  # what env called it is all that differs
        assert one.pop("orig_argv")[1:] == [path, "x"]
    assert seen[0] == seen[1]


@pytest.mark.parametrize(
    "first",
    ["#!{python} -s", "#!/usr/bin/env python3", "#!{other}", "#!{python} -sE"],
)
def test_a_command_of_another_python_or_with_options_is_run_as_it_is(engine, first):
    other = shutil.which("python3", path=os.defpath) or sys.executable
    line = first.format(python=engine.python, other=other)
    text = (
        "import sys\nprint(sys.flags.no_user_site, sys.executable, 'vllm' in sys.modules, sys.argv)"
    )
    path = command(engine, line, text=text, name="other")
    direct, started = both(engine, path, "x")
    assert direct.stdout
    assert (started.stdout, started.stderr) == (direct.stdout, direct.stderr)
    assert "False" in started.stdout, "nothing was imported before"


def test_a_wrapper_is_run_as_it_is(engine):
    path = command(engine, "#!/bin/sh", text='echo "a wrapper: $*"; exit 7', name="wrapper")
    direct, started = both(engine, path, "a b")
    assert (started.stdout, started.returncode) == (direct.stdout, 7) == ("a wrapper: a b\n", 7)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("import sys; sys.exit(7)", 7),
        ("raise SystemExit('a reason')", 1),
        ("raise SystemExit", 0),
        ("1 / 0", 1),
        ("def f(:", 1),
        ("import os; os._exit(9)", 9),
        ("raise KeyboardInterrupt", -signal.SIGINT),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
        ("import threading; threading.Thread(target=print, args=('late',)).start()", 0),
    ],
)
def test_it_ends_as_the_command_ends(engine, text, code):
    path = command(engine, f"#!{engine.python}", text=text, name="ends")
    direct, started = both(engine, path)
    assert (direct.returncode, started.returncode) == (code, code)
    assert started.stdout == direct.stdout
    last = [done.stderr.splitlines()[-1:] for done in (direct, started)]
    assert last[0] == last[1]


def test_a_traceback_names_the_commands_own_lines(engine):
    path = command(engine, f"#!{engine.python}", text="def f():\n    1 / 0\nf()", name="ends")
    direct, started = both(engine, path)
    told = direct.stderr.split("\n", 1)[1]
    assert told.count(path) == 2
    assert started.stderr.endswith(told)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_during_the_imports_ends_it_as_it_would_have(engine, tmp_path, name):
    site = tmp_path / "site"
    (site / "vllm/entrypoints/cli/benchmark").mkdir(parents=True)
    for part in ("", "entrypoints/", "entrypoints/cli/", "entrypoints/cli/benchmark/"):
        (site / f"vllm/{part}__init__.py").touch()
    begun = tmp_path / "begun"
    (site / "vllm/entrypoints/cli/benchmark/main.py").write_text(
        f"open({str(begun)!r}, 'w')\nimport time; time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [engine.python, START, "", engine.vllm],
        env={"PYTHONPATH": str(site)},
        stderr=subprocess.PIPE,
    )
    runs.eventually(begun.exists)
    process.send_signal(getattr(signal, name))
    process.communicate(timeout=20)
    assert process.returncode == -getattr(signal, name)


# --- the imports -----------------------------------------------------------------------------------

TELLS = f"""
import gc, importlib.metadata as m, sys
print({SERVER!r} in sys.modules, gc.isenabled(), gc.get_freeze_count() > 0, m.packages_distributions())
"""


def tells(engine, notes="", **env):
    path = command(engine, f"#!{engine.python}", text=TELLS, name="tells")
    done = run(engine.python, START, str(notes), path, **env)
    assert done.returncode == 0, done.stderr
    imported, collects, frozen, packages = done.stdout.split(" ", 3)
    return imported == "True", collects == "True", frozen == "True", packages.strip()


def test_the_server_is_imported_and_what_it_left_is_no_garbage(engine):
    assert tells(engine)[:3] == (True, True, True)


# Calls a function often at each depth of the stack, and says what pages that took at most.
DEPTHS = """\
import resource

def leaf():
    pass

leaf.__code__ = leaf.__code__.replace(co_stacksize=64)

def pages(depth):
    if depth:
        return pages(depth - 1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(1000):
        leaf()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(max(pages(depth) for depth in range(700)))
"""


def test_python_has_room_for_the_stack_of_what_the_command_calls(engine):
    words = [command(engine, f"#!{engine.python}", text=DEPTHS, name="depths")]
    without, within = (int(run(*more, *words).stdout) for more in ((), (engine.python, START, "")))
    assert within < 100
    if sys.version_info < (3, 13):  # some later ones keep a chunk by themselves
        assert without >= 1000, "Python maps a chunk and unmaps it with each call"


def test_who_wants_no_collector_gets_none(engine, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import gc; gc.disable()\n")
    assert tells(engine, PYTHONPATH=str(tmp_path))[1] is False


def test_a_server_that_cannot_be_imported_fails_in_the_command_and_not_before(engine, tmp_path):
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm/__init__.py").write_text("raise RuntimeError('no libcuda')\n")
    path = command(engine, f"#!{engine.python}", text="print('first'); import vllm", name="fails")
    direct, started = both(engine, path, PYTHONPATH=str(tmp_path))
    assert started.stdout == direct.stdout == "first\n"
    assert started.stderr.splitlines()[-1] == "RuntimeError: no libcuda"
    assert started.returncode == 1


# --- the notes -------------------------------------------------------------------------------------


@pytest.fixture
def notes(engine, tmp_path):
    """What `--notes` says, with one answer that no metadata gives."""
    done = run(engine.python, START, "--notes")
    noted = json.loads(done.stdout)
    path = tmp_path / "start.json"

    def write(**changed):
        path.write_text(json.dumps(noted | {"packages": {"a": ["noted"]}} | changed))
        return path

    write.noted = noted
    return write


def test_what_is_noted_is_what_python_answers(engine, notes):
    text = "import sys; sys.path.remove(''); import importlib.metadata as m, json;"
    text += "print(json.dumps(m.packages_distributions()))"
    done = run(engine.python, "-c", text)
    assert notes.noted["packages"] == json.loads(done.stdout)
    (names,) = notes.noted["installed"].values()
    assert [name for name in names if name.startswith("vllm-")] == ["vllm-0.32.0.dist-info"]


def test_notes_of_this_very_path_are_believed(engine, notes):
    assert tells(engine, notes())[3] == "{'a': ['noted']}"


@pytest.mark.parametrize(
    "changed",
    [
        {"installed": {}},
        {"packages": {}},
        {"packages": []},
        {"packages": {"a": 5}},
        {"packages": {"a": None}},
        {"packages": 7},
        {"installed": None},
    ],
    ids=str,
)
def test_notes_that_are_stale_or_hostile_change_nothing(engine, notes, changed):
    plain = tells(engine)
    assert tells(engine, notes(**changed)) == plain
    assert "noted" not in plain[3]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"packages": {"a": ["noted"]}}', "\udcff"]
)
def test_notes_that_are_torn_change_nothing(engine, tmp_path, text):
    path = tmp_path / "start.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert "noted" not in tells(engine, path)[3]
    assert "noted" not in tells(engine, tmp_path / "none")[3]
    assert "noted" not in tells(engine, tmp_path)[3], "a directory"


def test_notes_of_another_image_are_not_believed(engine, notes):
    """One more package, another version, or one gone: the metadata directories differ."""
    path = notes()
    more = Path(engine.site, "more-1.0.dist-info")
    more.mkdir()
    try:
        assert "noted" not in tells(engine, path)[3]
    finally:
        more.rmdir()
    assert "noted" in tells(engine, path)[3]


def test_who_changes_the_answer_does_not_change_the_next(engine, notes):
    text = (
        "import importlib.metadata as m\n"
        "m.packages_distributions()['a'].append('more'); print(m.packages_distributions())"
    )
    path = command(engine, f"#!{engine.python}", text=text, name="changes")
    done = run(engine.python, START, str(notes()), path)
    assert done.stdout == "{'a': ['noted']}\n"


# --- a start that somebody stops -------------------------------------------------------------------

ASKED = """
import os, signal, sys, time
{before}
open({begun!r}, "w").close()
time.sleep(60)
"""
HANDLER = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))"


@pytest.fixture
def stopped(engine, tmp_path):
    """Stop a command that is on its way; returns its exit status, and whether its record is left."""

    def stop(
        before="", *, sign=signal.SIGTERM, start=START, prefix=(), whom=lambda process: process
    ):
        record, begun = tmp_path / "record", tmp_path / "begun"
        record.touch()
        begun.unlink(missing_ok=True)
        text = ASKED.format(before=before, begun=str(begun))
        path = command(engine, f"#!{engine.python}", text=text, name="asked")
        words = [*prefix, engine.python, start, f"--record={record}", "", path]
        process = subprocess.Popen(words, env={"PATH": os.defpath}, stderr=subprocess.PIPE)
        runs.eventually(lambda: begun.exists() or process.poll() is not None)
        if process.poll() is None:
            os.kill(whom(process.pid), sign)
        process.communicate(timeout=20)
        return process.returncode, record.exists()

    return stop


def test_a_start_that_is_stopped_has_no_record_and_ends_as_it_would_have(stopped):
    assert stopped() == (-signal.SIGTERM, False)
    assert stopped(HANDLER) == (5, False)


def test_a_start_that_ends_by_itself_or_is_killed_keeps_its_record(stopped):
    assert stopped("sys.exit(3)") == (3, True)
    assert stopped(sign=signal.SIGKILL) == (-signal.SIGKILL, True)


def test_a_stop_that_comes_late_counts(stopped, tmp_path):
    start = tmp_path / "start.py"
    text = Path(START).read_text()
    assert "_SOON = 300.0\n" in text
    start.write_text(text.replace("_SOON = 300.0\n", "_SOON = 0.0\n"))
    assert stopped(HANDLER, start=str(start)) == (5, True)


def test_what_a_server_stops_itself_takes_no_record_with_it(stopped):
    """The engine's process, which is forked from the server's and inherits what it has installed."""
    child = "r, w = os.pipe()\npid = os.fork()\nif not pid:\n    os.write(w, b'.')\n    time.sleep(60)\n"
    child += "os.read(r, 1)\nos.kill(pid, signal.SIGTERM)\n"
    child += "sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))"
    assert stopped(child) == (256 - signal.SIGTERM, True)
    assert stopped(f"{HANDLER}\n{child}") == (5, True)


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a PID namespace, as root alone may")
def test_a_containers_first_process_heeds_a_stop_before_vllm_has_a_handler(stopped):
    def first(outer):
        (inner,) = Path(f"/proc/{outer}/task/{outer}/children").read_text().split()
        return int(inner)

    code, left = stopped(prefix=runs.PID_NAMESPACE, whom=first)
    assert (code, left) == (128 + signal.SIGTERM, False)
