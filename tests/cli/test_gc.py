"""`warmer gc`: what it prints, its exit codes, and pods that it leaves alone."""

import fcntl
import os
import shlex
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import aging
import runs
import volumes

ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="mounts filesystems, as root alone may")
NOW = ("--grace", "0")


@pytest.fixture(scope="module")
def seeded(tmp_path_factory):
    with runs.place(tmp_path_factory.mktemp("place")) as place:
        place.warmed()
        yield place


@pytest.fixture
def place(seeded, tmp_path):
    """A volume with one model that no pod uses, and a pod that wants another."""
    place = seeded.fresh(tmp_path)
    aging.age_all(place.volume, 20)
    return place


def gc(place, *options, prefix=()):
    argv = [*prefix, *runs.WARMER, "gc", "--volume", place.volume, *options]
    return runs.finish(runs.spawn(argv, place.env()))


def collected(place, *options):
    result = gc(place, "--json", *options)
    assert result.code == 0, result
    return result.json


def kinds(place):
    return sorted(kind for kind, _, _ in volumes.assert_invariants(place.volume))


def test_a_dry_run_prints_the_plan_and_changes_nothing(place):
    before = runs.published(place.volume)
    told = collected(place, "--dry-run")
    assert told["dry_run"] is True
    assert {(s["action"], s["kind"]) for s in told["steps"]} == {
        ("hide", "weights"),
        ("hide", "compile"),
        ("forget", None),
    }
    assert told["hidden_bytes"] == sum(s["bytes"] for s in told["steps"])
    assert all(s["reason"] for s in told["steps"])
    assert (told["kept"], told["skipped"], told["unreadable"]) == ([], [], [])
    table = gc(place, "--dry-run")
    assert (table.code, table.err) == (0, "")
    assert len(table.out.splitlines()) == 4
    assert "would be hidden" in table.out
    assert runs.published(place.volume) == before
    assert aging.names(place.volume, "trash") == []


def test_what_no_pod_uses_is_hidden_then_removed_and_filled_again_when_it_is_wanted(place):
    assert collected(place)["hidden_bytes"] > 0
    assert kinds(place) == []
    assert collected(place)["steps"] == [], "its grace is not over"
    removed = collected(place, *NOW)
    assert {s["action"] for s in removed["steps"]} == {"remove"}
    assert aging.names(place.volume, "trash") == []
    again = place.but(model=place.pinned(runs.REPO))
    again.warmed()
    numbers = {kind: number for kind, _, number in volumes.assert_invariants(place.volume)}
    assert numbers == {"weights": 2, "compile": 1}, "kernels of another warm dir: another key"


def test_what_a_pod_was_handed_stays(place):
    place.warmed()
    before = runs.published(place.volume)
    hidden = {s["key"] for s in collected(place)["steps"] if s["action"] == "hide"}
    after = runs.published(place.volume)
    assert after
    assert before.items() > after.items()
    assert not [path for path in after if any(key in path for key in hidden)]
    assert place.run("check", "--deep").code == 0
    kept = collected(place)["kept"]
    assert sorted(one["kind"] for one in kept) == ["compile", "weights"]
    assert all("used by" in one["reason"] for one in kept)


def test_a_pod_that_starts_again_is_young_again(place):
    place.warmed()
    aging.age_all(place.volume, 20)
    place.warmed()
    collected(place)
    assert kinds(place) == ["compile", "weights"]
    assert place.warmed().json["bytes"] == {}


def test_the_table_names_what_goes_what_stays_and_why(place):
    place.warmed()
    lines = gc(place).out.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == [
        "hide",
        "hide",
        "forget",
        "keep",
        "keep",
    ] or (
        sorted(line.split()[0] for line in lines[:-1]) == ["forget", "hide", "hide", "keep", "keep"]
    )
    assert all(" ago" in line for line in lines[:-1])
    assert " hidden, " in lines[-1]


def test_a_record_that_cannot_be_read_ends_with_1_and_hides_nothing(place):
    torn = Path(place.volume, "v1/uses", "f" * 16 + ".json")
    torn.write_bytes(b'{"schema_version": 1, "pie')
    before = runs.published(place.volume)
    result = gc(place, "--json")
    assert result.code == 1
    (named,) = result.json["unreadable"]
    assert "f" * 16 in named
    assert [line for line in result.logged if line["level"] == "error" and line["hint"]]
    assert runs.published(place.volume) == before
    table = gc(place)
    assert table.code == 1
    assert "f" * 16 in table.out


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--keep", "soon"), "bad-value"),
        (("--keep", "23h"), "bad-value"),
        (("--grace", "-1s"), "bad-value"),
        (("--min-free", "much"), "bad-value"),
        (("--lock", "ftp://x"), "bad-lock"),
        (("--volume", "relative"), "relative-path"),
        (("--model", "org/name"), "usage"),
    ],
    ids=str,
)
def test_a_wrong_option_ends_with_2_and_changes_nothing(place, options, reason):
    before = runs.published(place.volume)
    runs.failed(gc(place, "--json", *options), 2, reason, compared=reason != "usage")
    assert runs.published(place.volume) == before


def test_a_use_that_would_count_for_seconds_asks_for_its_unit(place):
    error = runs.failed(gc(place, "--json", "--keep", "14"), 2, "bad-value", "--keep of 14 s")
    assert "is its unit missing? as 14d" in error["hint"]


def test_a_volume_that_is_not_there_ends_with_6(place, tmp_path):
    gone = place.but(volume=str(tmp_path / "gone"))
    runs.failed(gc(gone, "--json"), 6, "missing", gone.volume)
    assert not os.path.exists(gone.volume)


@ROOT
def test_a_read_only_volume_ends_with_6_but_for_a_dry_run(place):
    with runs.read_only(place.volume):
        runs.failed(gc(place, "--json"), 6, "read-only", "the volume", compared=False)
        assert collected(place, "--dry-run")["hidden_bytes"] > 0


def test_what_is_filled_meanwhile_is_skipped_and_said(place):
    filling = place.but(warm=f"{place.warm}-2", model=place.pinned(runs.REPO))
    os.unlink(aging.records(place.volume)[0])
    (key,) = aging.names(place.volume, "pieces/compile")
    lock = f"{place.volume}/v1/locks/compile-{key}.lock"
    hold = (
        "import sys; from warmer.fill.locks.file import acquire; "
        "from warmer.fill.locks.record import Owner; "
        "acquire(sys.argv[1], me=Owner(name='a filler'), place='x'); print('held', flush=True); "
        "sys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", hold, lock], **pipes) as holder:
        assert holder.stdout.readline() == b"held\n"
        told = collected(place)
        holder.communicate(b"")
    assert [(s["kind"], "a filler" in s["skipped"]) for s in told["skipped"]] == [("compile", True)]
    assert kinds(filling) == ["compile"]


def test_with_room_enough_models_stay(place):
    told = collected(place, "--min-free", "1k")
    assert [s["action"] for s in told["steps"]] == ["forget"]
    assert sorted("there is room" in one["reason"] for one in told["kept"]) == [True, True]


# --- servers that run ----------------------------------------------------------------------------


@contextmanager
def serving(place, *, path=os.defpath):
    """Run the handed-off `serve` with a server that waits in place of vLLM."""
    stub = Path(place.top, "stub", "vllm")
    stub.parent.mkdir(exist_ok=True)
    stub.write_text("#!/bin/sh\necho serving\nread -r line\n")
    stub.chmod(0o755)
    script = Path(place.warm, "handoff", "serve")
    start = f"exec {shlex.quote(place.engine.vllm)}"
    text = script.read_text().replace(start, f"exec {shlex.quote(str(stub))}")
    text = text.replace('if [ "$cold" -eq 0 ]', "if false")  # levers would run it as Python
    assert str(stub) in text
    script.write_text(text)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    server = subprocess.Popen([script], env={"PATH": path}, text=True, **pipes)
    try:
        assert server.stdout.readline() == "serving\n", server.communicate()
        yield server
    finally:
        server.communicate("end\n")


def test_what_a_running_server_was_handed_stays_however_long_it_runs(place):
    place.warmed()
    with serving(place) as server:
        aging.age_all(place.volume, 400)
        kept = collected(place)["kept"]
        assert all("a server that runs" in one["reason"] for one in kept)
        assert kinds(place) == ["compile", "weights"]
        server.kill()
        server.wait()
    # Its container starts again: gc has seen it alive.
    collected(place)
    assert kinds(place) == ["compile", "weights"]
    aging.age_all(place.volume, 20)
    collected(place)
    assert kinds(place) == []


def test_what_a_running_server_was_handed_stays_though_its_warm_dir_is_filled_anew(place):
    place.warmed()
    with serving(place):
        place.but(model=place.pinned(runs.REPO)).warmed()
        aging.age_all(place.volume, 400)
        collected(place)
        assert kinds(place) == ["compile", "compile", "weights", "weights"]
    aging.age_all(place.volume, 20)
    collected(place)
    assert kinds(place) == []


def test_a_dry_run_sees_a_running_server_and_does_not_renew_its_record(place):
    place.warmed()
    with serving(place):
        aging.age_all(place.volume, 400)
        (old,) = {p.stat().st_mtime_ns for p in aging.records(place.volume)}
        told = collected(place, "--dry-run")
        assert len(told["kept"]) == 2
        assert {p.stat().st_mtime_ns for p in aging.records(place.volume)} == {old}


@ROOT
def test_a_server_locks_its_record_on_a_read_only_volume_too(place):
    place.warmed()
    name = Path(place.warm, "use").read_text().split()[0]
    with runs.read_only(place.volume), serving(place):
        told = collected(place, "--dry-run")
    assert Path(place.volume, "v1/uses", f"{name}.live").exists()
    assert {one["reason"].split(",")[0] for one in told["kept"]} >= {"used by a server that runs"}


def test_a_server_starts_where_its_record_is_gone_or_there_is_no_flock(place, tmp_path):
    place.warmed()
    (tmp_path / "bin").mkdir()
    for tool in ("sh", "env", "sed"):
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))
    with serving(place, path=str(tmp_path / "bin")):
        aging.age_all(place.volume, 400)
        told = collected(place, "--dry-run")
        assert sum(step["action"] == "hide" for step in told["steps"]) == 4, "it is not seen"
    for gone in (*Path(place.volume, "v1/uses").glob("*.live"), Path(place.warm, "use")):
        gone.unlink()
        with serving(place) as server:
            pass
        assert server.returncode == 0


def test_a_server_that_cannot_lock_its_record_says_so_and_starts(place):
    place.warmed()
    (live,) = Path(place.volume, "v1/uses").glob(Path(place.warm, "use").read_text()[:16] + ".live")
    with live.open("rb") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        with serving(place) as server:
            assert "cannot lock" in server.stderr.readline()


def test_of_two_gcs_at_once_one_works_and_the_other_says_so(place):
    argv = [*runs.WARMER, "gc", "--volume", place.volume, *NOW, "--json"]
    for _ in range(2):
        results = [runs.finish(one) for one in [runs.spawn(argv, place.env()) for _ in range(2)]]
        assert {one.code for one in results} <= {0, 3}
        assert 0 in {one.code for one in results}
        for one in results:
            if one.code:
                runs.failed(one, 3, "gc-busy", place.volume)
        assert kinds(place) == []
    collected(place, *NOW)
    assert aging.names(place.volume, "trash") == []
