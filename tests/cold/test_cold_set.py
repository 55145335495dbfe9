"""What the probe loads, in fresh processes: every module costs each pod every few seconds."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))

from handed import handed_off

REPOSITORY = Path(__file__).parent.parent.parent
ENVIRONMENT = {"PATH": os.defpath, "PYTHONPATH": str(REPOSITORY)}

# json, and what json itself loads; the rest comes with Python.
JSON = {"json", "json.decoder", "json.encoder", "json.scanner", "_json"}
JSON |= {"re", "re._casefix", "re._compiler", "re._constants", "re._parser", "_sre", "enum"}
JSON |= {"types", "operator", "_operator", "functools", "_functools", "collections", "_collections"}
JSON |= {"collections.abc", "itertools", "keyword", "reprlib", "copyreg", "_collections_abc"}
OS = {"os", "os.path", "posixpath", "genericpath", "stat", "_stat", "errno"}
ALLOWED = {"__future__"} | JSON | OS
MINE = {"warmer", "warmer.__main__", "warmer.check"}
NEVER = {"argparse", "contextlib", "dataclasses", "hashlib", "inspect", "importlib.metadata"}
NEVER |= {"logging", "pathlib", "random", "shutil", "socket", "ssl", "struct", "subprocess"}
NEVER |= {"fcntl", "tempfile", "threading", "typing", "urllib", "zipfile"}

# The program does what `python -m` and the `warmer` script do, and then says what is loaded.
RUN = """
import sys
sys.argv = {argv!r}
try:
    {body}
except SystemExit as stop:
    sys.stderr.write(repr((stop.code, sorted(sys.modules))))
"""
MAIN = "from warmer.__main__ import main; main()"
PROBE = "exec(compile(open({0!r}).read(), {0!r}, 'exec'), {{'__name__': '__main__', '__file__': {0!r}}})"


@pytest.fixture(scope="module")
def warm_dir(tmp_path_factory):
    return handed_off(tmp_path_factory.mktemp("warm"))


def loaded(body, argv=(), options=("-S",)):
    """Run a body in a fresh interpreter without site-packages; return its status and modules."""
    program = RUN.format(argv=["warmer", *argv], body=body)
    done = subprocess.run(
        [sys.executable, *options, "-c", program], env=ENVIRONMENT, capture_output=True, timeout=60
    )
    code, modules = ast.literal_eval(done.stderr.decode().splitlines()[-1])
    return code, set(modules)


def bare(options=("-S",)):
    return loaded("raise SystemExit(0)", options=options)[1]


def test_check_loads_json_and_itself_and_nothing_else(warm_dir):
    code, modules = loaded(MAIN, ["check", "--warm-dir", warm_dir])
    assert code == 0
    added = modules - bare()
    assert added - ALLOWED == MINE
    assert not modules & NEVER


def test_the_handed_off_probe_loads_json_and_nothing_else(warm_dir):
    probe = os.path.join(warm_dir, "handoff", "check.py")
    code, modules = loaded(PROBE.format(probe), options=("-IS",))
    assert code == 0
    assert modules - bare(("-IS",)) - ALLOWED == set()
    assert "json" in modules
    assert not modules & NEVER


def test_hashing_is_loaded_only_to_hash(warm_dir):
    code, modules = loaded(MAIN, ["check", "--warm-dir", warm_dir, "--deep"])
    assert code == 0
    assert "hashlib" in modules
    assert modules - loaded(MAIN, ["check", "--warm-dir", warm_dir])[1] <= {
        *(
            "hashlib",
            "_hashlib",
            "_blake2",
            "_sha1",
            "_sha2",
            "_sha256",
            "_sha3",
            "_sha512",
            "_md5",
        ),
        "__future__",
    }


def imported(*argv):
    """Name what a command imports, as the interpreter itself reports it."""
    done = subprocess.run(
        [sys.executable, "-S", "-X", "importtime", *argv],
        env=ENVIRONMENT,
        capture_output=True,
        timeout=60,
        text=True,
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return done.returncode, {line.rsplit("|", 1)[1].strip() for line in lines}


def test_python_m_warmer_check_adds_the_same_to_what_python_m_costs(warm_dir):
    code, modules = imported("-m", "warmer", "check", "--warm-dir", warm_dir)
    assert code == 0
    added = modules - imported("-m", "__future__")[1]
    assert added - ALLOWED == {"warmer", "warmer.check"}


def test_the_probe_run_as_a_pod_runs_it_imports_no_more(warm_dir):
    probe = os.path.join(warm_dir, "handoff", "check.py")
    code, modules = imported("-I", probe)
    assert code == 0
    assert "json" in modules
    assert modules - imported("-I", "-c", "pass")[1] - ALLOWED == set()


@pytest.mark.parametrize("words", [["--help"], ["--warm-dir", "relative"], ["--warm-dir", "/none"]])
def test_the_other_answers_load_no_more(words):
    code, modules = loaded(MAIN, ["check", *words])
    assert code == {"--help": 0, "relative": 2, "/none": 1}[words[-1]]
    assert modules - bare() - ALLOWED == MINE
