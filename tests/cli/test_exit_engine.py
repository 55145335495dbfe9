"""Exit code 7: the engine run that builds kernels failed, and what a start does without it."""

import os
import sys

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import runs

STRICT = ("--on-miss", "kernels=fail", "--engine-timeout", "3")


@pytest.fixture(scope="module")
def seeded(tmp_path_factory):
    with runs.place(tmp_path_factory.mktemp("place")) as place:
        place.warmed()
        yield place.but(model=place.pinned(runs.REPO))


@pytest.fixture
def place(seeded, tmp_path):
    """A place whose weights are sealed, and whose kernels are not: they are bound to a path."""
    return seeded.fresh(tmp_path).but(model=seeded.model)


@pytest.mark.parametrize("mode", ["crash", "crash,leave-child", "hang", "hang,leave-child"])
def test_an_engine_that_fails_is_7_where_kernels_must_be_there(place, mode):
    crash = mode.startswith("crash")
    reason = "engine-exited" if crash else "engine-timeout"
    shown = (
        "RuntimeError: Engine core initialization failed."
        if crash
        else "[core.py:133] Initializing a V1 LLM engine"
    )
    error = place.fails(7, reason, shown, options=STRICT, env={"FAKE_ENGINE": mode}, compared=False)
    assert ("status 1" if crash else "--engine-timeout") in error["message"]
    log = error["hint"].rsplit(" ", 1)[1]
    with open(log, encoding="utf-8") as stream:
        assert shown in stream.read()
    assert runs.processes(place.warm) == [], "no engine is left, nor its children"
    assert place.run("check").code == 1

    # Nothing of the failed run is taken for a cache: the next one builds.
    engines = len(place.engine.starts)
    place.warmed(*STRICT)
    assert len(place.engine.starts) == engines + 1
    assert place.verdicts() == {"weights": "sealed", "compile": "sealed"}


@pytest.mark.parametrize("mode", ["crash", "hang"])
def test_an_engine_that_fails_is_a_cold_start_otherwise(place, mode):
    before = runs.published(place.volume)
    done = place.warmed("--engine-timeout", "1.5", env={"FAKE_ENGINE": mode})
    assert done.json["warm"] is False
    assert done.json["without"].keys() == {"compile"}
    assert done.json["left"] == []
    (line,) = (line for line in done.logged if line["event"] == "going without")
    assert (line["level"], line["kind"]) == ("error", "compile")
    assert "--engine-timeout" in line["failure"] or "RuntimeError" in line["failure"]
    assert line["hint"]
    runs.nothing_lost(place, before)
    assert runs.processes(place.warm) == []

    assert place.verdicts() == {"weights": "sealed", "compile": "absent"}
    (piece,) = (piece for piece in place.handoff()["pieces"] if piece["kind"] == "compile")
    assert piece["reason"] == done.json["without"]["compile"]
    assert (piece["directory"], piece["restored"]) == ("", None)
    checked = place.run("check", "--json")
    assert checked.code == 0
    assert {row["kind"]: row["verdict"] for row in checked.json["pieces"]} == {
        "weights": "warm",
        "compile": "cold",
    }
    planned = place.run("plan", "--json")
    assert (planned.code, [s["action"] for s in planned.json["steps"]]) == (1, ["build"])


def test_kernels_that_nobody_may_build_are_no_failure(place):
    engines = len(place.engine.starts)
    done = place.warmed("--compile", "never")
    assert done.json["without"].keys() == {"compile"}
    assert len(place.engine.starts) == engines
    assert place.run("check").code == 0
    assert place.run("plan", "--compile", "never").code == 0


def test_a_slow_engine_is_waited_for(place):
    assert place.warmed(*STRICT, env={"FAKE_ENGINE": "slow=1.5"}).json["warm"] is True
