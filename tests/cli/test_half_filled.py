"""What was left half done, by kill -9 or by damage, is finished without doing the rest again."""

import os
import shutil
import sys

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import runs

FIRST, SECOND = runs.SHARDS


@pytest.fixture
def place(tmp_path):
    with runs.place(tmp_path) as place:
        yield place


def files_of(place):
    return sorted(os.listdir(f"{place.hub.root}/{runs.REPO}"))


def staged_files(place):
    return sorted(name for path in place.staged() for name in runs.listing(f"{path}/files"))


def test_a_killed_download_is_resumed_with_the_unfinished_files_alone(place):
    place.hub.fault(SECOND, rate=10_000)
    filling = place.start("prefill")
    others = [name for name in files_of(place) if name != SECOND]
    runs.eventually(lambda: staged_files(place) == others)
    runs.kill(filling)
    assert place.held() == [], "a lock ends with its process"
    assert runs.published(place.volume) == {}
    assert place.run("check").code == 1
    assert place.run("plan", "--json").json["pieces"][0]["verdict"] == "absent"

    place.hub.faults.clear()
    asked = len(place.hub.requests)
    place.warmed()
    assert place.fetched(asked) == [SECOND]
    assert place.staged() == []
    (generation,) = place.generations("weights")
    assert runs.listing(f"{generation}/files") == files_of(place)
    assert place.run("check", "--deep").code == 0


def test_a_finished_file_of_a_killed_download_is_not_believed_unread(place):
    place.hub.fault(SECOND, rate=10_000)
    filling = place.start("prefill")
    others = [name for name in files_of(place) if name != SECOND]
    runs.eventually(lambda: staged_files(place) == others)
    runs.kill(filling)
    runs.flip(f"{place.staged()[0]}/files/{FIRST}")
    place.hub.faults.clear()
    asked = len(place.hub.requests)
    place.warmed()
    assert place.fetched(asked) == [FIRST, SECOND]
    assert place.run("check", "--deep").code == 0


def delete(path):
    os.unlink(path)


def shorten(path):
    os.truncate(path, os.stat(path).st_size - 1)


def lengthen(path):
    with open(path, "ab") as stream:
        stream.write(b"\0")


@pytest.mark.parametrize(
    ("damage", "name"), [(delete, FIRST), (shorten, SECOND), (lengthen, "config.json")]
)
def test_a_damaged_file_is_fetched_alone_into_a_new_generation(place, damage, name):
    place.warmed()
    engines = len(place.engine.starts)
    (old,) = place.generations("weights")
    damage(f"{old}/files/{name}")
    before = runs.published(place.volume)
    assert place.run("check").code == (1 if damage is delete else 5)
    planned = place.run("plan", "--json")
    assert planned.code == 1
    (step,) = planned.json["steps"]
    assert step["verdict"] == ("partial" if damage is delete else "corrupt")
    assert step["bytes"] == os.stat(f"{place.hub.root}/{runs.REPO}/{name}").st_size

    asked = len(place.hub.requests)
    place.warmed()
    assert place.fetched(asked) == [name]
    assert place.generations("weights") == [old, f"{os.path.dirname(old)}/2"]
    assert before.items() < runs.published(place.volume).items(), "the old one is as it was"
    assert (place.staged(), place.held()) == ([], [])
    assert len(place.engine.starts) == engines, "the kernels are still good"
    assert place.handoff()["model_files"] == f"{os.path.dirname(old)}/2/files"
    assert place.run("check", "--deep").code == 0


def test_a_lost_seal_is_no_generation_and_its_files_are_taken_over(place):
    place.warmed()
    (old,) = place.generations("weights")
    os.unlink(f"{old}/seal.json")
    assert place.run("check").code == 1
    asked = len(place.hub.requests)
    place.warmed()
    assert place.fetched(asked) == []
    assert place.run("check", "--deep").code == 0


@pytest.mark.parametrize("mode", ["hang", "slow=60", "slow=60,leave-child"])
def test_a_kill_during_the_engine_run_leaves_no_engine_and_the_next_run_builds(place, mode):
    building = place.start("prefill", env={"FAKE_ENGINE": mode})
    runs.eventually(lambda: place.engine.starts)
    engine = place.engine.starts[0]["pid"]
    if "leave-child" in mode:
        runs.eventually(lambda: len(set(runs.processes(place.warm)) - {building.pid}) == 2)
    runs.kill(building)
    runs.eventually(lambda: engine not in runs.processes(place.warm), timeout=2)
    runs.eventually(lambda: runs.processes(place.warm) == [], timeout=2)
    assert place.held() == []
    assert (len(place.generations("weights")), place.generations("compile")) == (1, [])

    asked = len(place.hub.requests)
    place.warmed()
    assert place.fetched(asked) == []
    assert place.verdicts() == {"weights": "sealed", "compile": "sealed"}
    assert place.staged() == []
    assert place.run("plan").code == 0


def tree(place):
    """Read what is unpacked in the warm dir."""
    top = f"{place.warm}/cache/compile"
    paths = (os.path.join(at, name) for at, _, names in os.walk(top) for name in names)
    found = {}
    for path in paths:
        with open(path, "rb") as stream:
            found[os.path.relpath(path, top)] = (stream.read(), os.stat(path).st_mtime_ns)
    return found


def test_a_fresh_warm_dir_is_filled_from_the_volume_alone(place):
    place.warmed()
    built = tree(place)
    shutil.rmtree(place.warm)
    assert place.run("check").code == 1
    (step,) = place.run("plan", "--json").json["steps"]
    assert (step["action"], step["kind"]) == ("restore", "compile")
    place.hub.close()
    place.warmed()
    assert len(place.engine.starts) == 1
    kept = {path: data for path, data in built.items() if "lock" not in path and "tmp" not in path}
    assert tree(place) == kept, "the same bytes and times, without locks and scratch"
    assert place.run("check").code == 0


@pytest.mark.parametrize("name", ["tree.tar.zst", "manifest.json"])
def test_a_corrupt_kernel_archive_is_put_aside_and_built_again(place, name):
    place.warmed()
    (bad,) = place.generations("compile")
    runs.flip(f"{bad}/{name}")
    weights = {p: v for p, v in runs.published(place.volume).items() if p.startswith("weights/")}
    shutil.rmtree(place.warm)
    done = place.warmed()
    assert done.json["warm"] is True
    assert len(place.engine.starts) == 2
    (aside,) = runs.listing(f"{place.volume}/v1/quarantine")
    assert aside.startswith("compile-")
    assert any(line["event"] == "quarantined" for line in done.logged)
    assert weights.items() < runs.published(place.volume).items()
    assert (place.staged(), place.held()) == ([], [])
    shutil.rmtree(place.warm)
    assert place.warmed().json["warm"] is True
    assert len(place.engine.starts) == 2
    assert place.run("check", "--deep").code == 0


def test_kernels_without_a_readable_seal_are_built_again_beside_them(place):
    place.warmed()
    (bad,) = place.generations("compile")
    os.truncate(f"{bad}/seal.json", 1)
    before = runs.published(place.volume)
    assert place.warmed().json["warm"] is True
    assert len(place.engine.starts) == 2
    assert place.generations("compile") == [bad, f"{os.path.dirname(bad)}/2"]
    assert before.items() < runs.published(place.volume).items()
    assert place.run("check", "--deep").code == 0


def test_the_killed_restore_of_another_life_is_done_again(place):
    place.warmed()
    os.unlink(f"{place.warm}/cache/compile.restored.json")
    for path in list(tree(place)):
        os.truncate(f"{place.warm}/cache/compile/{path}", 1)
    assert place.run("check").code == 1
    place.warmed()
    assert len(place.engine.starts) == 1
    assert all(len(data) > 1 for data, _ in tree(place).values())
    assert place.run("check").code == 0


@pytest.mark.parametrize(("policy", "code"), [("cold", 0), ("fail", 1)])
def test_a_corrupt_piece_that_nothing_here_may_build_follows_its_policy(
    place, tmp_path, policy, code
):
    place.warmed()
    runs.flip(f"{place.generations('compile')[0]}/tree.tar.zst")
    pod = place.but(warm=str(tmp_path / "another"))
    result = pod.run("prefill", "--json", "--compile", "never", "--on-miss", f"kernels={policy}")
    assert result.code == code, result
    if policy == "cold":
        assert set(result.json["without"]) == {"compile"}
        assert not result.json["warm"]
        assert "HF_HUB_OFFLINE" not in pod.handoff()["env"]
    else:
        assert "got no compile" in result.err
        assert not os.path.exists(f"{pod.warm}/handoff/handoff.json")
