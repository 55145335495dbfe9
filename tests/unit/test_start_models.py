"""What transformers' models define is asked once (`warmer.handoff.start`), and never answered for others."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))

import fakeengine

import warmer.handoff
from warmer.handoff import start

START = str(Path(warmer.handoff.__file__).parent / "start.py")

PACKAGE = """\
from pathlib import Path
from .utils.import_utils import create_import_structure_from_path
found = create_import_structure_from_path(Path(__file__).parent / "models")
"""
ASKS = """\
import os
def create_import_structure_from_path(module_path):
    print("asked")
    return {
        name: {
            frozenset(): {f"configuration_{name}": {f"{name}Config"}},
            frozenset({"torch", "vision"}): {f"modeling_{name}": {f"{name}Model", f"{name}Layer"}},
        }
        for name in sorted(os.listdir(module_path))
    }
"""
SHOWS = """\
import transformers
from transformers.utils import import_utils
print(sorted(map(sorted, transformers.found["llama"])))
print(sorted(import_utils.create_import_structure_from_path(transformers.__path__[0] + "/other")))
"""


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """An installation with a transformers that says when it is asked, and a command that asks."""
    engine = fakeengine.make_engine(tmp_path_factory.mktemp("engine"), precompiled=False)
    top = Path(engine.site, "transformers")
    for path, text in {
        "__init__.py": PACKAGE,
        "utils/__init__.py": "",
        "utils/import_utils.py": ASKS,
        "models/llama/modeling_llama.py": "class LlamaModel: ...\n",
        "models/opt/modeling_opt.py": "class OptModel: ...\n",
        "other/one/one.py": "",
    }.items():
        (top / path).parent.mkdir(parents=True, exist_ok=True)
        (top / path).write_text(text)
    shows = Path(engine.bin, "shows")
    shows.write_text(f"#!{engine.python}\n{SHOWS}")
    shows.chmod(0o755)
    return engine


@pytest.fixture(scope="module")
def noted(engine):
    return output(engine.python, START, "--notes")[-1]


@pytest.fixture
def notes(noted, tmp_path):
    path = tmp_path / "start.json"
    path.write_text(noted)
    return path


@pytest.fixture(scope="module")
def plain(engine):
    """What is shown without notes."""
    return output(f"{engine.bin}/shows")


def output(*words):
    env = {"PATH": os.defpath, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def shown(engine, notes):
    return output(engine.python, START, str(notes), f"{engine.bin}/shows")


def test_what_is_noted_is_answered_and_other_directories_are_asked(engine, notes, plain):
    assert plain.count("asked") == 2
    assert shown(engine, notes) == plain[1:], "once less, and the same answers"


@pytest.mark.parametrize("name", ["llama/modeling_llama.py", "new/modeling_new.py"])
def test_models_that_were_changed_are_asked_anew(engine, notes, name):
    path = Path(engine.site, "transformers/models", name)
    was = path.read_text() if path.exists() else None
    path.parent.mkdir(exist_ok=True)
    path.write_text("class More: ...\n")
    assert shown(engine, notes)[0] == "asked"
    if was is None:
        shutil.rmtree(path.parent)
    else:
        path.unlink()
        assert shown(engine, notes)[0] == "asked"
        path.write_text(was)
    assert shown(engine, notes)[0] != "asked"


@pytest.mark.parametrize(
    "changed",
    [5, [], {}, {"files": None}, {"found": None}, {"found": 5}, {"found": [["llama"]]}],
    ids=str,
)
def test_notes_that_are_hostile_change_nothing(engine, notes, plain, changed):
    noted = json.loads(notes.read_text())
    more = noted["models"] | changed if isinstance(changed, dict) and changed else changed
    notes.write_text(json.dumps(noted | {"models": more}))
    assert shown(engine, notes) == plain


def test_no_transformers_is_no_failure(engine, tmp_path):
    top = Path(engine.site, "transformers")
    top.rename(tmp_path / "gone")
    noted = json.loads(output(engine.python, START, "--notes")[-1])
    (tmp_path / "gone").rename(top)
    assert noted.keys() == {"installed", "packages"}


def test_what_the_real_transformers_says_is_kept_whole():
    utils = importlib.import_module("transformers.utils.import_utils")  # the engine's: it is there
    where = str(Path(utils.__file__).parent.parent / "models")
    found = utils.create_import_structure_from_path(where)
    assert len(found) > 100
    assert start.unpacked(json.loads(json.dumps(start.packed(found)))) == found
