"""What `warmer.report.log` reads out of whole logs, line by line and taken together."""

import json
from pathlib import Path

import pytest

from warmer.report.log import parse
from warmer.report.phases import PHASES

LOGS = Path(__file__).parent / "logs"
BUILD = "2026-11-23 12:00:11,000 - INFO - core.py:5 - flashinfer.jit: Building JIT module a; it\n"
GOLDEN = json.loads((LOGS / "expected.json").read_text(encoding="utf-8"))
LOADED = "Directly load the compiled graph(s) for compile range (1, 8) from the cache"


def lines(name):
    with (LOGS / name).open(encoding="utf-8", newline="\n") as file:
        return list(file)


def info(message, process="EngineCore pid=2", at="12:00:00", src="x.py:1"):
    return f"({process}) INFO 11-23 {at} [{src}] {message}\n"


@pytest.mark.parametrize("name", GOLDEN)
def test_a_log_of_each_version_is_read(name):
    start = parse(lines(name))
    expected = GOLDEN[name]
    found = {key: getattr(start, key) for key in expected}
    assert found | {"rough": sorted(start.rough)} == expected
    assert start.total_s == start.phases["ready"]


@pytest.mark.parametrize("name", GOLDEN)
def test_phases_come_in_the_order_of_the_table(name):
    order = [phase.name for phase in PHASES]
    found = list(parse(lines(name)).phases)
    assert found == sorted(found, key=order.index)


def test_every_parent_is_a_phase_and_no_parent_is_a_child():
    parents = {phase.parent for phase in PHASES if phase.parent}
    assert parents <= {phase.name for phase in PHASES if phase.parent is None}


def test_the_supervisors_clock_gives_what_stamps_cannot():
    stamped = [f"[+{3.25 + i / 4:.3f}] {line}" for i, line in enumerate(lines("cold-0.32.log"))]
    numbers = {
        key: next(i for i, line in enumerate(stamped) if key in line)
        for key in (
            "non-default",
            "Initializing",
            "Starting to load",
            "Warming",
            "done.",
            "complete.",
        )
    }
    at = {key: 3.25 + i / 4 for key, i in numbers.items()}
    start = parse(stamped)
    assert start.clock == "process"
    assert start.rough == frozenset()
    assert start.phases["imports"] == at["non-default"]
    assert start.phases["config"] == at["Initializing"] - at["non-default"]
    assert start.phases["engine_process"] == at["Starting to load"] - at["Initializing"]
    assert start.phases["warmup"] == at["done."] - at["Warming"]
    assert start.phases["ready"] == at["complete."]
    assert start.phases["engine_init"] == 37.32


def test_ranks_go_side_by_side_and_models_one_after_the_other():
    start = parse(
        [
            info("Loading weights took 4.00 seconds", "Worker_TP0 pid=3"),
            info("Loading weights took 5.00 seconds", "Worker_TP1 pid=4"),
            info("Loading weights took 1.50 seconds", "Worker_TP0 pid=3"),
        ]
    )
    assert start.phases == {"weights": 5.5}


def test_a_worker_that_changes_its_name_is_still_one_process():
    start = parse(
        [
            info("Loading weights took 4.00 seconds", "VllmWorker-0 pid=3"),
            info("Loading weights took 1.50 seconds", "Worker_TP0 pid=3"),
        ]
    )
    assert start.phases == {"weights": 5.5}


@pytest.mark.parametrize(
    ("messages", "seconds"),
    [
        (["Dynamo bytecode transform time: 2.00 s", "torch.compile took 3.50 s in total"], 1.5),
        (["torch.compile took 3.50 s in total"], 3.5),
        (["Compiling a graph for compile range (1, 8) takes 7.25 s"], 7.25),
        (
            [
                "Dynamo bytecode transform time: 2.00 s",
                f"[backbone] {LOADED}, took 0.250 s",
                f"[eagle_head] {LOADED}, took 0.125 s",
                "torch.compile and initial profiling/warmup run together took 30.00 s in total",
            ],
            0.375,
        ),
        (
            [
                "Dynamo bytecode transform time: 2.00 s",
                "torch.compile took 3.00 s in total",
                "Compiling a graph for compile range (8, 8) takes 6.00 s",
            ],
            6.0,
        ),
    ],
)
def test_compile_is_what_is_beyond_dynamo(messages, seconds):
    assert parse(map(info, messages)).phases["compile"] == seconds


def test_builds_that_overlap_are_counted_once():
    start = parse(
        [
            "[+10.0] " + info("JIT kernel warmup starting."),
            "[+11.0] " + BUILD,
            "[+14.0] " + BUILD,
            "[+20.0] " + info("JIT kernel warmup finished in 9.50s."),
        ]
    )
    assert start.phases == {"jit": 9.5}


def test_a_build_lasts_until_its_process_speaks_again():
    worker, other = "Worker_TP0 pid=3", "Worker_TP1 pid=4"
    start = parse(
        [
            f"[+10.0] ({worker}) {BUILD}",
            "[+11.0] " + info("something", other),
            "[+14.0] " + info("something", worker),
            f"[+20.0] {BUILD}",  # 0.32 and later: FlashInfer's lines do not name their process
            "[+22.5] " + info("something", other),
        ]
    )
    assert start.phases == {"jit": 6.5}


HIT = "Directly load AOT compilation from path /c/rank_0_0/model"
INNER = f"[backbone] {LOADED}, took 1 s"
SAVED = "[backbone] saved AOT compiled function to /c/rank_0_0/model"
AGAIN = "Compiling model again due to a load failure from /c/rank_0_0/model, reason: no attribute"
BUILT = "Compiling a graph for compile range (1, 8192) takes 6.11 s"
UNSAVED = "unable to save AOT compiled function to /c/rank_0_0/model: Read-only file system"


@pytest.mark.parametrize(
    ("messages", "cache", "evidence"),
    [
        ([], "unknown", []),
        (["Warming up done."], "unknown", []),
        ([HIT], "hit", [HIT]),
        ([INNER], "hit", [INNER]),
        ([INNER, HIT], "hit", [INNER, HIT]),
        ([HIT, SAVED], "rebuilt", [SAVED]),
        ([AGAIN], "rebuilt", [AGAIN]),
        ([HIT, BUILT], "rebuilt", [BUILT]),
        ([UNSAVED], "rebuilt", [UNSAVED]),
        ([AGAIN, BUILT, SAVED, HIT], "rebuilt", [AGAIN, BUILT, SAVED]),
    ],
)
def test_the_cache_was_hit_only_when_nothing_was_made(messages, cache, evidence):
    start = parse(map(info, messages))
    assert start.cache == cache
    assert start.evidence == tuple(info(message).strip() for message in evidence)
