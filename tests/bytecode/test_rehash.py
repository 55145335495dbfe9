"""The script that binds bytecode to its sources (`warmer/fill/rehash.py`), on real trees."""

import collections
import hashlib
import json
import os
import py_compile
import subprocess
import sys
from importlib.util import MAGIC_NUMBER, source_hash
from pathlib import Path

import pytest

from warmer.errors import EngineError
from warmer.fill import bytecode, rehash

TAG = sys.implementation.cache_tag
ONE, OTHER = "VALUE = 'one'\n", "VALUE = 'two'\n"
assert len(ONE) == len(OTHER)
TIME = 1_700_000_000


class Image:
    """Sources on a path, and the tree that Python writes for them."""

    def __init__(self, top):
        self.interpreter = sys.executable
        self.site = os.path.join(top, "site")
        self.tree = os.path.join(top, "tree")
        self.write("thing/__init__.py", "")
        self.write("thing/locks/__init__.py", ONE)
        self.write("thing/used.py", "from thing.locks import VALUE\n")

    def write(self, name, text):
        path = os.path.join(self.site, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8") as stream:
            stream.write(text)
        os.utime(path, (TIME, TIME))

    def entry(self, name):
        stem = name.removesuffix(".py")
        return Path(f"{self.tree}{self.site}/{stem}.{TAG}.pyc")

    def env(self, **more):
        mine = {"PYTHONPATH": self.site, "PYTHONPYCACHEPREFIX": self.tree, "PATH": os.defpath}
        return mine | more

    def python(self, code, *flags, **more):
        words = [self.interpreter, *flags, "-c", code]
        return subprocess.check_output(words, env=self.env(**more), text=True).strip()

    def used(self, **more):
        """Import it all in a fresh Python; return the value it sees."""
        return self.python("import thing.used; print(thing.used.VALUE)", **more)

    def bind(self):
        how = {"package": "thing", "environment": self.env()}
        return bytecode.by_content(self.tree, self.interpreter, **how)

    def mine(self):
        """Name the entries of our own sources."""
        top = Path(self.tree + self.site)
        return {str(p.relative_to(top)) for p in top.rglob("*") if p.is_file()}

    def digests(self):
        return {
            str(p): (hashlib.sha256(p.read_bytes()).hexdigest(), os.stat(p).st_mtime_ns)
            for p in Path(self.tree).rglob("*")
            if p.is_file()
        }


@pytest.fixture
def image(tmp_path):
    image = Image(str(tmp_path))
    assert image.used() == "one"
    return image


def header(path):
    data = Path(path).read_bytes()
    return data[:4], int.from_bytes(data[4:8], "little"), data[8:16]


NAMES = {f"thing/{name}.{TAG}.pyc" for name in ("__init__", "locks/__init__", "used")}


def test_every_entry_holds_the_hash_of_its_source_and_has_pythons_to_compare_it(image):
    assert header(image.entry("thing/used.py"))[1] == 0
    bound = image.bind()
    assert image.mine() == NAMES, "packages named as locks and scratch are there too"
    assert (bound.kept, bound.dropped) == (len(image.digests()), {})
    for name in ("thing/__init__.py", "thing/locks/__init__.py", "thing/used.py"):
        digest = source_hash(Path(image.site, name).read_bytes())
        assert header(image.entry(name)) == (MAGIC_NUMBER, 0b11, digest)


def test_what_is_bound_is_used_and_not_compiled_again(image):
    image.bind()
    before = image.digests()
    code = "import sys, thing.used as u; print(u.VALUE, u.__cached__)"
    assert image.python(code) == f"one {image.entry('thing/used.py')}"
    said = subprocess.run(
        [sys.executable, "-v", "-c", "import thing.used"],
        env=image.env(),
        capture_output=True,
        text=True,
    ).stderr
    assert f"# code object from '{image.entry('thing/used.py')}'" in said
    assert f"# code object from '{image.site}" not in said
    assert image.digests() == before


def test_an_entry_of_another_source_with_the_same_size_and_time_is_not_executed(image):
    image.write("thing/locks/__init__.py", OTHER)
    assert image.used(PYTHONDONTWRITEBYTECODE="1") == "one", "what Python does without warmer"
    image.write("thing/locks/__init__.py", ONE)
    image.bind()
    image.write("thing/locks/__init__.py", OTHER)
    assert image.used(PYTHONDONTWRITEBYTECODE="1") == "two"
    assert image.used() == "two"
    assert header(image.entry("thing/locks/__init__.py"))[1] == 0b11, "Python keeps it bound"


def test_an_entry_of_another_source_is_dropped_though_time_and_size_are_the_same(image):
    image.bind()  # as restored from an older generation
    image.write("thing/locks/__init__.py", OTHER)
    assert image.bind().dropped == {"of another source": 1}
    assert image.mine() == NAMES - {f"thing/locks/__init__.{TAG}.pyc"}
    assert not image.entry("thing/locks/__init__.py").parent.exists(), "nor is its directory left"


@pytest.mark.parametrize("change", ["size", "time"])
def test_a_source_that_changed_since_it_was_compiled_has_its_entry_dropped(image, change):
    if change == "size":
        image.write("thing/used.py", "VALUE = 'three'\n")
    else:
        os.utime(os.path.join(image.site, "thing/used.py"), (TIME + 1, TIME + 1))
    assert image.bind().dropped == {"of another source": 1}


def test_an_entry_without_a_source_is_dropped(image):
    os.unlink(os.path.join(image.site, "thing/used.py"))
    assert image.bind().dropped == {"no source": 1}
    assert image.mine() == NAMES - {f"thing/used.{TAG}.pyc"}


@pytest.mark.parametrize("left", [0, 3, 15, 16, 17, 60, -1])
def test_a_torn_entry_is_dropped(image, left):
    path = image.entry("thing/used.py")
    path.write_bytes(path.read_bytes()[:left])
    assert image.bind().dropped == {"torn, or of another Python": 1}
    assert image.used() == "one"


def test_an_entry_that_holds_no_code_is_dropped(image):
    path = image.entry("thing/used.py")
    path.write_bytes(path.read_bytes()[:16] + b"N")
    assert image.bind().dropped == {"torn, or of another Python": 1}


@pytest.mark.parametrize(
    "name",
    [
        f"used.{TAG}.pyc.139871", "used.cpython-27.pyc", f"used.{TAG}.opt-traced.pyc", "used.pyc",
        f"used.{TAG}.pyc.tmp", f"a.b.{TAG}.pyc", "notes.txt",
    ],
)  # fmt: skip
def test_what_no_import_of_this_python_would_read_is_dropped(image, name):
    path = image.entry("thing/used.py")
    path.with_name(name).write_bytes(path.read_bytes())
    assert image.bind().dropped == {"not of this Python's path": 1}
    assert image.mine() == NAMES


def test_a_link_is_dropped_and_what_it_leads_to_is_left_alone(image, tmp_path):
    path = image.entry("thing/used.py")
    data = path.read_bytes()
    os.rename(path, tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", path)
    assert image.bind().dropped == {"a link": 1}
    assert (tmp_path / "elsewhere").read_bytes() == data


def test_a_source_off_the_path_is_not_the_images(image, tmp_path):
    (tmp_path / "remote").mkdir()
    (tmp_path / "remote" / "code.py").write_text("VALUE = 1\n")
    image.python(f"import sys; sys.path.insert(0, {str(tmp_path / 'remote')!r}); import code")
    assert (Path(f"{image.tree}{tmp_path}/remote") / f"code.{TAG}.pyc").exists()
    assert image.bind().dropped == {"not of this Python's path": 1}


def test_warmers_own_directory_is_not_on_the_engines_path(image, tmp_path):
    here = os.path.dirname(rehash.__file__)
    # The tests' own Python may have this checkout on its path.
    subprocess.check_call([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"])
    image.interpreter = str(tmp_path / "venv" / "bin" / "python")
    image.tree = str(tmp_path / "its own")
    image.used()
    image.python(f"import sys; sys.path.insert(0, {here!r}); import rehash")
    assert image.bind().dropped == {"not of this Python's path": 1}


def test_an_optimised_entry_is_bound_too(image):
    image.python("import thing.used", "-O")
    path = image.entry("thing/used.py").with_suffix(".opt-1.pyc")
    assert path.exists()
    image.bind()
    assert header(path)[1] == 0b11


@pytest.mark.parametrize("mode", ["CHECKED_HASH", "UNCHECKED_HASH"])
def test_entries_by_hash_are_bound_by_it_and_always_compared(image, mode):
    path = image.entry("thing/used.py")
    source = os.path.join(image.site, "thing/used.py")
    how = py_compile.PycInvalidationMode[mode]
    py_compile.compile(source, cfile=str(path), invalidation_mode=how)
    os.utime(source, (1, 1))
    assert image.bind().dropped == {}
    assert header(path)[1] == 0b11
    image.write("thing/used.py", "VALUE = 'other'\n")
    assert image.used() == "other"


def test_equal_sources_give_equal_trees_whenever_they_were_compiled(image):
    image.bind()
    first = image.digests()
    image.bind()
    assert image.digests() == first
    for name in ("thing/__init__.py", "thing/locks/__init__.py", "thing/used.py"):
        os.utime(os.path.join(image.site, name), (TIME + 5, TIME + 5))
    for path in first:
        os.unlink(path)
    assert image.used() == "one"
    image.bind()
    again = image.digests()
    assert again.keys() >= {path for path in first if image.site in path}
    assert {p: d for p, d in again.items() if p in first} == {p: first[p] for p in again}
    assert {time for _, time in again.values()} == {0}


def test_binding_writes_no_bytecode_of_its_own(image):
    before = collections.Counter(image.digests())
    for path in [p for p in before if image.site not in p]:
        os.unlink(path)
    image.bind()
    assert image.mine() == NAMES
    assert all(image.site in path for path in image.digests())


def test_nothing_to_publish_is_an_error_that_says_so(image):
    for path in image.digests():
        os.unlink(path)
    with pytest.raises(EngineError, match="got 0 files of bytecode and none of thing") as refused:
        image.bind()
    assert refused.value.reason == "no-bytecode"


def test_a_tree_without_the_package_it_is_for_is_an_error_too(image):
    """Python writes some before a sitecustomize can forbid it."""
    image.entry("thing/__init__.py").unlink()
    with pytest.raises(EngineError, match="and none of thing"):
        image.bind()


def test_a_python_that_fails_is_an_error_that_shows_its_last_lines(image, tmp_path):
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho some words\necho ImportError: no such thing >&2\nexit 3\n")
    broken.chmod(0o755)
    with pytest.raises(EngineError) as refused:
        bytecode.by_content(image.tree, str(broken), package="x", environment=image.env())
    assert refused.value.message.startswith("got status 3 from binding")
    assert "  | ImportError: no such thing" in refused.value.message


def test_a_python_that_does_not_answer_is_an_error(image, tmp_path):
    mute = tmp_path / "python"
    mute.write_text("#!/bin/sh\necho 5\n")
    mute.chmod(0o755)
    with pytest.raises(EngineError, match="got no answer"):
        bytecode.by_content(image.tree, str(mute), package="x", environment=image.env())


def test_an_import_that_does_not_end_is_ended(image):
    image.write("vllm/__init__.py", "import time; time.sleep(60)\n")
    with pytest.raises(EngineError, match="got no end within 1 s"):
        bytecode.import_server(sys.executable, environment=image.env(), timeout=1.0)


def test_the_last_line_is_the_count_as_json(image):
    script = rehash.__file__
    said = subprocess.check_output(
        [sys.executable, script, image.tree, "thing"], env=image.env(), text=True
    )
    record = json.loads(said.splitlines()[-1])
    assert record == {"kept": len(image.digests()), "dropped": {}, "found": True}
