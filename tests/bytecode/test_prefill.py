"""Bytecode as a piece: filled by the build run or alone, restored elsewhere, handed to the server."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import fakeengine
import runs

TAG = sys.implementation.cache_tag
PYCACHE = "cache/bytecode/pycache"
SERVER = "vllm/entrypoints/openai/api_server"
LOCKS = "vllm/locks/held"
NOTES = "cache/bytecode/start.json"


@pytest.fixture
def place(tmp_path):
    """A pod whose image has no bytecode for vLLM."""
    with runs.place(tmp_path) as place:
        yield place.but(engine=fakeengine.make_engine(tmp_path / "plain", precompiled=False))


def entry(place, name):
    return Path(f"{place.warm}/{PYCACHE}{place.engine.site}/{name}.{TAG}.pyc")


def flags(path):
    return int.from_bytes(path.read_bytes()[4:8], "little")


def entries(place):
    return [path for path in Path(place.warm, PYCACHE).rglob("*") if path.is_file()]


def manifest(place, number=1):
    (directory, *_) = [d for d in place.generations("bytecode") if d.endswith(f"/{number}")]
    with open(f"{directory}/manifest.json", encoding="utf-8") as stream:
        return {f["path"]: f["sha256"] for f in json.load(stream)["files"]}


def seal(place, kind):
    with open(f"{place.generations(kind)[-1]}/seal.json", encoding="utf-8") as stream:
        return json.load(stream)


def another_pod(place, name="other"):
    """A pod on another node with the same volume and the same path of the warm dir, empty."""
    aside = f"{place.warm}.{name}"
    os.rename(place.warm, aside)
    os.mkdir(place.warm)
    return aside


def handed_env(place):
    return place.handoff()["env"]


def in_server(place, code):
    """Run Python as the server's container would."""
    script = f'. "{place.warm}/handoff/env"; exec "{place.engine.python}" -c "$CODE"'
    done = subprocess.run(
        ["sh", "-c", script],
        env={"PATH": os.defpath, "CODE": code},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_the_build_run_fills_bytecode_and_the_next_pod_restores_it(place):
    place.warmed("--on-miss", "fail")
    assert len(place.engine.starts) == 1
    assert place.verdicts() == dict.fromkeys(("weights", "compile", "bytecode"), "sealed")
    assert {flags(path) for path in entries(place)} == {0b11}
    assert entry(place, SERVER).exists()
    assert entry(place, LOCKS).exists(), "a package named as compilers name their locks"
    assert entry(place, "vllm/model").exists(), "only a run imports it"
    found = manifest(place)
    assert len(found) == len(entries(place)) + 1, "and the notes of starts"
    assert seal(place, "compile")["needs"] == {}
    assert place.run("plan").code == 0

    another_pod(place)
    assert place.run("plan").code == 1
    place.warmed("--on-miss", "fail")
    assert len(place.engine.starts) == 1, "the engine is not run again"
    assert {
        str(path.relative_to(f"{place.warm}/cache/bytecode")): hashlib.sha256(
            path.read_bytes()
        ).hexdigest()
        for path in (*entries(place), Path(place.warm, NOTES))
    } == found
    assert place.run("check").code == 0
    assert place.run("check", "--deep").code == 0


def test_the_server_is_told_where_bytecode_is_and_writes_none(place):
    place.warmed("--on-miss", "fail")
    assert handed_env(place)["PYTHONPYCACHEPREFIX"] == f"{place.warm}/{PYCACHE}"
    before = {path: path.stat().st_mtime_ns for path in entries(place)}
    code = f"import {SERVER.replace('/', '.')} as m, colorsys; print(m.__cached__)"
    assert in_server(place, code) == str(entry(place, SERVER))
    assert {path: path.stat().st_mtime_ns for path in entries(place)} == before


@pytest.fixture
def telling(place):
    """The pod with one package that is installed, and a server that writes down which there are."""
    named = Path(place.engine.site, "triton-3.5.0.dist-info/top_level.txt")
    named.write_text("triton\n")
    Path(place.engine.site, f"{SERVER}.py").write_text(
        "import importlib.metadata as m, json, os, sys, vllm.locks.held\n"
        "if told := os.environ.get('TOLD'):\n"
        "    with open(told + '.new', 'w') as f:\n"
        "        json.dump([m.packages_distributions(), list(sys.argv)], f)\n"
        "    os.rename(told + '.new', told)\n"
    )
    for name in ("benchmark/__init__", "benchmark/main", "serve"):
        path = Path(place.engine.site, f"vllm/entrypoints/cli/{name}.py")
        path.parent.mkdir(exist_ok=True)
        path.touch()
    return place


def told(place, *words):
    """Start the server by its handoff, and read which packages it was told are installed."""
    answer = Path(place.top, "told.json")
    script = f"{place.warm}/handoff/serve"
    env = {"PATH": os.defpath, "TOLD": str(answer)}
    server = runs.spawn([script, "--port", str(runs.closed_port())], env)
    try:
        runs.eventually(answer.exists)
        return json.loads(answer.read_text())[0]
    finally:
        runs.kill(server)
        runs.eventually(lambda: runs.unwatched(place.warm))
        shutil.rmtree(f"{place.warm}/starts")
        answer.unlink()


def rename_top_level(place):
    """Change what the metadata says, and none of its directories: who reads it says so."""
    Path(place.engine.site, "triton-3.5.0.dist-info/top_level.txt").write_text("newer\n")


def test_what_the_build_found_out_is_published_restored_and_not_asked_again(telling):
    place = telling
    place.warmed("--on-miss", "fail")
    noted = json.loads(Path(place.warm, NOTES).read_text())
    assert noted["packages"] == {"triton": ["triton"]}
    (names,) = noted["installed"].values()
    assert "triton-3.5.0.dist-info" in names
    assert any("/libc.so" in path for path in noted["libraries"]), "what the engine had mapped"
    assert not [path for path in noted["libraries"] if path.startswith(place.warm)]
    another_pod(place)
    place.warmed("--on-miss", "fail")
    assert json.loads(Path(place.warm, NOTES).read_text()) == noted
    rename_top_level(place)
    assert told(place) == {"triton": ["triton"]}
    place.warmed("--lever", "imports=off")
    assert told(place) == {"newer": ["triton"]}


def test_an_import_alone_takes_notes_too(telling):
    place = telling
    place.warmed("--on-miss", "fail")
    shutil.rmtree(f"{place.volume}/v1/pieces/bytecode")
    another_pod(place)
    place.warmed("--on-miss", "fail")
    assert len(place.engine.starts) == 1
    noted = json.loads(Path(place.warm, NOTES).read_text())
    assert noted["packages"] == {"triton": ["triton"]}
    assert any("/libc.so" in path for path in noted["libraries"])


def test_a_python_that_cannot_say_what_is_installed_takes_no_bytecode_away(telling):
    place = telling
    shadow = Path(place.engine.site, "sitecustomize.py")
    shadow.write_text(
        "import sys\nif sys.argv == ['--notes'] or '--notes' in sys.orig_argv: sys.exit(3)\n"
    )
    place.warmed("--on-miss", "fail")
    assert place.verdicts()["bytecode"] == "sealed"
    assert json.loads(Path(place.warm, NOTES).read_text()).keys() == {"schema_version", "libraries"}
    assert told(place) == {"triton": ["triton"]}


def test_notes_of_another_image_on_the_same_key_are_not_believed(telling):
    place = telling
    place.warmed("--on-miss", "fail")
    Path(place.engine.site, "more-1.dist-info").mkdir()
    rename_top_level(place)
    assert told(place) == {"newer": ["triton"]}


def test_another_image_with_the_same_versions_and_times_runs_its_own_sources(place):
    source = Path(place.engine.site, f"{LOCKS}.py")
    os.utime(source, (1, 1))
    place.warmed("--on-miss", "fail")
    assert in_server(place, "import vllm.locks.held as h; print(h.NAME)") == "held"
    source.write_text(source.read_text().replace("held", "lost"))
    os.utime(source, (1, 1))
    place.warmed("--on-miss", "fail")
    assert place.run("plan").code == 0, "no factor tells them apart"
    assert in_server(place, "import vllm.locks.held as h; print(h.NAME)") == "lost"


def test_where_it_alone_is_missing_the_server_is_imported_and_not_run(place):
    place.warmed("--on-miss", "fail")
    shutil.rmtree(f"{place.volume}/v1/pieces/bytecode")
    another_pod(place)
    done = place.warmed("--on-miss", "fail").json
    assert len(place.engine.starts) == 1
    assert done["warm"]
    assert {"bytecode", "restore"} <= done["seconds"].keys()
    assert "kernels" not in done["seconds"]
    assert entry(place, SERVER).exists()
    assert not entry(place, "vllm/model").exists(), "an import does not reach it"
    assert {flags(path) for path in entries(place)} == {0b11}
    assert seal(place, "bytecode")["seconds"] > 0


def test_a_build_run_adds_what_an_import_did_not_reach(place):
    place.warmed("--on-miss", "fail")
    whole = manifest(place)
    shutil.rmtree(f"{place.volume}/v1/pieces/bytecode")
    another_pod(place)
    place.warmed("--on-miss", "fail")
    part = manifest(place)
    assert part.keys() < whole.keys()
    place.warmed("--on-miss", "fail", serve=("--max-model-len", "256"))
    assert [d[-1] for d in place.generations("bytecode")] == ["1", "2"]
    assert manifest(place, 2).keys() == whole.keys()
    assert manifest(place, 2).items() >= part.items(), "what was published stays as it is"
    place.warmed("--on-miss", "fail", serve=("--max-model-len", "128"))
    assert len(place.generations("bytecode")) == 2, "nothing was added"
    assert place.run("check", "--deep").code == 0


def test_an_image_with_its_own_bytecode_needs_none(tmp_path):
    with runs.place(tmp_path) as place:
        place.warmed("--on-miss", "fail", env={"PYTHONDONTWRITEBYTECODE": "1"})
        assert place.verdicts() == {"weights": "sealed", "compile": "sealed"}
        assert not {"PYTHONPYCACHEPREFIX", "PYTHONDONTWRITEBYTECODE"} & handed_env(place).keys()
        planned = place.run("plan", "--json")
        assert planned.code == 0
        assert planned.json["unneeded"] == {"bytecode": "vLLM is installed with its bytecode"}
        assert planned.json["without"] == {}
        assert "bytecode   -             unneeded" in place.run("plan").out
        assert place.run("check").code == 0


def test_an_image_that_forbids_writing_bytecode_gets_it_all_the_same(place):
    place.warmed("--on-miss", "fail", env={"PYTHONDONTWRITEBYTECODE": "1"})
    assert place.verdicts()["bytecode"] == "sealed"
    assert entry(place, SERVER).exists()


def test_bytecode_that_cannot_be_had_takes_nothing_else_away(place):
    """Something in the image keeps Python from writing any."""
    Path(place.engine.site, "none.pth").write_text("import sys; sys.dont_write_bytecode = True\n")
    done = place.warmed().json
    assert list(done["without"]) == ["bytecode"]
    assert "of bytecode and none of vllm" in done["without"]["bytecode"]
    assert place.verdicts() == {"weights": "sealed", "compile": "sealed", "bytecode": "absent"}
    env = handed_env(place)
    assert not {"PYTHONPYCACHEPREFIX", "PYTHONDONTWRITEBYTECODE"} & env.keys()
    assert env["HF_HUB_OFFLINE"] == "1", "the rest is warm"
    assert entries(place) == []
    assert place.run("check").code == 0

    another_pod(place)
    place.warmed()
    assert len(place.engine.starts) == 1
    assert place.verdicts()["compile"] == "sealed", "kernels are restored without it"
    runs.failed(
        place.run("prefill", "--json", "--on-miss", "bytecode=fail"), 7, "no-bytecode", "sitecust"
    )


def test_a_server_that_cannot_be_imported_is_no_reason_not_to_start(place):
    place.warmed("--on-miss", "fail")
    shutil.rmtree(f"{place.volume}/v1/pieces/bytecode")
    another_pod(place)
    Path(place.engine.site, f"{SERVER}.py").write_text("raise ImportError('libcuda.so.1')\n")
    done = place.warmed().json
    assert "got status 1 from importing vLLM's server" in done["without"]["bytecode"]
    assert place.verdicts()["compile"] == "sealed"
    assert place.generations("bytecode") == []
    assert place.staged() == []
    assert place.held() == []


def test_bytecode_on_the_volume_that_is_corrupt_is_moved_aside_and_filled_again(place):
    place.warmed("--on-miss", "fail")
    runs.flip(f"{place.generations('bytecode')[0]}/tree.tar.zst")
    another_pod(place)
    place.warmed("--on-miss", "fail")
    assert [d[-1] for d in place.generations("bytecode")] == ["2"]
    assert len(os.listdir(f"{place.volume}/v1/quarantine")) == 1
    assert len(place.engine.starts) == 1
    assert place.run("check").code == 0


def test_two_models_of_one_image_share_it(place):
    place.warmed("--on-miss", "fail")
    other = place.but(model=place.pinned(runs.OTHER))
    planned = other.run("plan", "--json")
    assert {step["kind"] for step in planned.json["steps"]} == {"weights", "compile"}
    other.warmed("--on-miss", "fail")
    assert len(place.generations("bytecode")) == 1


def test_compile_never_runs_nothing_of_the_engine(place):
    done = place.warmed("--compile", "never").json
    assert "--compile=never builds none" in done["without"]["bytecode"]
    assert place.engine.starts == []
    assert entries(place) == []


def test_a_pod_with_its_warm_dir_elsewhere_shares_it(place, tmp_path):
    place.warmed("--on-miss", "fail")
    (tmp_path / "elsewhere").mkdir()
    other = place.but(warm=str(tmp_path / "elsewhere"))
    planned = other.run("plan", "--json").json
    assert {s["kind"]: s["action"] for s in planned["steps"]} == {
        "compile": "build",
        "bytecode": "restore",
    }
    other.warmed("--on-miss", "fail")
    assert len(place.generations("bytecode")) == 1
    code = f"import {SERVER.replace('/', '.')} as m; print(m.__cached__)"
    assert in_server(other, code) == str(entry(other, SERVER))


def test_a_node_of_several_has_its_bytecode_without_an_engine_run(place):
    done = place.warmed(serve=("--nnodes", "2")).json
    assert list(done["without"]) == ["compile", "flashinfer", "jit"]
    assert place.engine.starts == []
    assert place.verdicts()["bytecode"] == "sealed"
    assert handed_env(place)["PYTHONPYCACHEPREFIX"] == f"{place.warm}/{PYCACHE}"
    assert place.run("check").code == 0


def importing(place):
    """Make the server's import last, and start a prefill that is in it."""
    place.warmed("--on-miss", "fail")
    shutil.rmtree(f"{place.volume}/v1/pieces/bytecode")
    another_pod(place)
    api_server = Path(place.engine.site, f"{SERVER}.py")
    text = api_server.read_text()
    api_server.write_text(f"{text}import time; time.sleep(300)\n")
    process = place.start("prefill", "--json")
    runs.eventually(entry(place, SERVER).exists)
    (child,) = runs.processes("import vllm.entrypoints")
    assert runs.listing(f"{place.warm}/cache") == ["bytecode"], "a tree without a record"
    api_server.write_text(text)
    return process, child


def test_a_prefill_that_is_stopped_in_the_import_leaves_nothing(place):
    process, child = importing(place)
    process.terminate()
    assert runs.finish(process).code == 143
    runs.eventually(lambda: not os.path.exists(f"/proc/{child}"))
    assert entries(place) == []
    assert (place.staged(), place.held(), place.generations("bytecode")) == ([], [], [])
    place.warmed("--on-miss", "fail")
    assert place.run("check").code == 0


def test_what_a_killed_import_left_is_not_taken_for_a_piece(place):
    process, child = importing(place)
    lie = entry(place, LOCKS)
    lie.write_bytes(lie.read_bytes().replace(b"held", b"lied"))
    runs.kill(process)
    runs.eventually(lambda: not os.path.exists(f"/proc/{child}"))
    assert place.generations("bytecode") == []
    place.warmed("--on-miss", "fail")
    assert in_server(place, "import vllm.locks.held as h; print(h.NAME)") == "held"
    assert len(place.engine.starts) == 1


def test_of_pods_that_miss_bytecode_alone_one_imports(place, tmp_path):
    place.warmed("--on-miss", "fail")
    shutil.rmtree(f"{place.volume}/v1/pieces/bytecode")
    log = tmp_path / "imports"
    Path(place.engine.site, f"{SERVER}.py").write_text(
        f"import time; open({str(log)!r}, 'a').write('once\\n'); time.sleep(1)\n"
    )
    started = [place.start("prefill", "--json")]
    runs.eventually(log.exists)
    pods = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        pods.append(place.but(warm=str(tmp_path / name)))
        started.append(pods[-1].start("prefill", "--json", serve=("--nnodes", "2")))
    assert [runs.finish(process).code for process in started] == [0, 0, 0]
    assert [pod.verdicts()["bytecode"] for pod in (place, *pods)] == ["sealed"] * 3
    assert len(place.generations("bytecode")) == 1
    assert log.read_text() == "once\n"
