"""What `warmer.report` makes of an engine with several ranks."""

import hashlib
import json
import re
from pathlib import Path

import pytest

from warmer.report import otlp, page, spans, table, values
from warmer.report.log import parse
from warmer.report.ranks import clauses
from warmer.report.spans import Span

LOGS = Path(__file__).parent / "logs"
AOT = "Directly load AOT compilation from path /warm/cache/torch_aot_compile/aa/rank_"


def recorded(name):
    with (LOGS / name).open(encoding="utf-8", newline="\n") as file:
        return list(file)


def said(message, process, pid, at="12:00:00"):
    return f"({process} pid={pid}) INFO 11-23 {at} [x.py:1] {message}\n"


def worker(rank, world=2, *, pid=None, at="12:00:00"):
    message = (
        f"world_size={world} rank={rank} local_rank={rank} distributed_init_method=x backend=nccl"
    )
    return said(message, "Worker", pid or 10 + rank, at)


@pytest.mark.parametrize(
    ("name", "caches", "cache"),
    [
        ("tp2-cold-0.32.log", {"0": "rebuilt", "1": "rebuilt"}, "rebuilt"),
        ("tp2-warm-0.32.log", {"0": "hit", "1": "hit"}, "hit"),
        ("tp2-lost-0.32.log", {"0": "hit", "1": "rebuilt"}, "rebuilt"),
        ("lines-0.20.log", {"0": "rebuilt", "1": "rebuilt"}, "rebuilt"),
        ("warm-0.32.log", {}, "unknown"),  # one rank: the start says it all
    ],
)
def test_a_start_has_hit_when_all_of_its_ranks_have(name, caches, cache):
    start = parse(recorded(name))
    assert {rank.name: rank.cache for rank in start.ranks} == caches
    assert start.cache == cache


def test_a_rank_that_compiled_alone_is_named():
    built = parse(recorded("tp2-lost-0.32.log")).built
    assert "rank 1 made code anew; the others loaded theirs, and waited" in built
    assert not any("rank" in clause for clause in parse(recorded("tp2-cold-0.32.log")).built)


def test_a_rank_that_says_nothing_makes_no_hit():
    start = parse([worker(0), worker(1), said(AOT + "0_0/model", "Worker_TP0", 10)])
    assert start.cache == "unknown"
    assert start.built == (
        "rank 1 did not say that compiled code was loaded: no hit of the whole engine",
    )
    assert start.evidence, "what rank 0 said is shown all the same"


def test_only_the_ranks_of_this_log_count():
    """Those of another node have a log of their own."""
    start = parse([worker(0), said(AOT + "0_0/model", "Worker_TP0", 10)])
    assert (start.cache, [rank.name for rank in start.ranks]) == ("hit", ["0"])


def test_ranks_of_several_engines_are_told_apart():
    lines = [worker(rank, pid=20 + 2 * dp + rank) for dp in (0, 1) for rank in (0, 1)]
    for dp in (0, 1):
        for rank in (0, 1):
            path = f"{AOT}{rank}_{dp}/model"
            lines.append(said(path, f"Worker_DP{dp}_TP{rank}", 20 + 2 * dp + rank))
    start = parse(lines)
    assert [rank.name for rank in start.ranks] == ["0.0", "0.1", "1.0", "1.1"]
    assert start.cache == "hit"


def test_what_the_ranks_take_to_connect_is_a_phase_and_no_part_of_another():
    start = parse(recorded("tp2-warm-0.32.log"))
    assert start.phases["distributed"] == pytest.approx(0.566)
    whole = parse([line for line in recorded("tp2-warm-0.32.log") if "assigned as" not in line])
    assert "distributed" not in whole.phases
    assert whole.phases["engine_process"] == pytest.approx(
        start.phases["engine_process"] + start.phases["distributed"]
    )


def test_one_rank_connects_to_nobody():
    lines = recorded("cold-0.28.log")
    assert any("world_size=1 rank=0" in line for line in lines)
    assert "distributed" not in parse(lines).phases


def test_the_table_the_page_and_the_json_tell_of_each_rank():
    cold, warm = (parse(recorded(f"tp2-{name}-0.32.log")) for name in ("cold", "warm"))
    both = table.compare(cold, warm)
    text, shown, value = table.render(both), page.page(both), values.as_json(both)
    for clause in (
        "cold: rank 1: cache rebuilt",
        "warm: rank 0: cache hit",
        "warm: rank 1: cache hit",
    ):
        assert clause in text
        assert clause in shown
    assert "ranks connect (NCCL)" in text
    assert [rank["cache"] for rank in value["warm"]["ranks"]] == ["hit", "hit"]
    assert value["cold"]["ranks"][1]["phases"]["warmup"] == pytest.approx(80.808)
    assert "rank 1: cache hit" in table.render_one(warm)
    assert "rank 1: cache hit" in page.page_of_one(warm)
    assert json.loads(json.dumps(values.start_as_json(warm)))["ranks"][0]["rank"] == "0"


def span(name, begin, end, rank=None, process=None):
    process = process or ("engine" if rank is None else f"worker-{rank}")
    ident = hashlib.sha256(f"{name}{process}".encode()).hexdigest()[:16]
    return Span(name, "aa", ident, process, begin, end, failed=False, rank=rank)


STARTED = (
    span("Overall Loading", 0, 60),
    span("EngineCoreProc init", 10, 60),
    span("Init device", 20, 24, 0),
    span("Init device", 21, 27, 1),
    span("Loading (GPU)", 30, 35, 0),
    span("Loading (GPU)", 30, 36, 1),
    span("Load weights", 31, 34, 0),
    span("Load weights", 31, 36, 1),
    span("Capture model", 50, 52, 1),
)


@pytest.mark.parametrize("again", [False, True], ids=["as they came", "recorded"])
def test_spans_tell_of_each_rank_too(again):
    found = otlp.recorded(otlp.recording(STARTED)) if again else STARTED
    start = spans.read(found)
    assert [(rank.name, rank.cache) for rank in start.ranks] == [("0", "unknown"), ("1", "unknown")]
    assert dict(start.ranks[0].phases) == {"distributed": 4.0, "weights": 3.0}
    assert dict(start.ranks[1].phases) == {"distributed": 6.0, "weights": 5.0, "graph_capture": 2.0}
    assert start.phases["distributed"] == 6.0, "the slowest rank's"
    assert start.phases["engine_process"] == 14.0, "less that"
    assert "rank 1: cache unknown; ranks connect (NCCL) 6.00 s" in table.render_one(start)


def test_spans_of_one_rank_tell_of_none():
    alone = [one._replace(rank=None) for one in STARTED if one.rank != 1]
    start = spans.read(alone)
    assert start.ranks == ()
    assert "distributed" not in start.phases
    assert start.phases["engine_process"] == 20.0


def test_what_a_rank_tells_in_whole_seconds_is_marked_as_such():
    bare = [line.partition("] ")[2] for line in recorded("tp2-warm-0.32.log")]
    rough = parse(bare)
    assert rough.clock == "stamps"
    said = " ".join(clauses(rough.ranks, rough.rough))
    assert re.search(r"CPU compile, warm-up ~\d+ s", said)
    assert "weights load 0.05 s" in said
    assert said in " ".join(table.render_one(rough).splitlines())
