"""Logs as they are saved and wrapped on the way: by kubectl, a runtime, a shipper, gzip, PowerShell."""

import gzip
import itertools
import json
import os
import resource
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from click.testing import CliRunner

from warmer import textfile
from warmer.cli import saved
from warmer.cli.report import command
from warmer.report import table
from warmer.report.log import parse

LOGS = Path(__file__).parent / "logs"
COLD, WARM = "h200-cold-0.26.log", "h200-warm-0.26.log"
SERVING = "(APIServer pid=1) INFO 11-28 10:00:00 [loggers.py:273] Engine 000: Running: 3 reqs\n"


def lines(name):
    with (LOGS / name).open(encoding="utf-8", newline="\n") as file:
        return list(file)


def shown(path):
    return CliRunner().invoke(command, [str(path)])


@pytest.mark.parametrize("name", [WARM, "tp2-warm-0.32.log", "lines-0.33.log"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda line: f"[pod/llama-0/vllm] {line}",
        lambda line: f"2026-11-28T10:00:00.123456789Z {line}",
        lambda line: f"[pod/llama-0/vllm] 2026-11-28T10:00:00+01:00 {line}",
        lambda line: f"vllm-1  | {line}",
        lambda line: f"2026-11-28T10:00:00.1Z stdout F {line}",
        lambda line: json.dumps({"log": f"\x1b[36m{line}\x1b[0m", "stream": "stdout"}),
    ],
    ids=["prefix", "timestamps", "both", "compose", "cri", "docker"],
)
def test_a_line_that_others_wrapped_says_what_it_said(name, wrap):
    wrapped = [wrap(line.rstrip("\n")) + "\n" for line in lines(name)]
    found, bare = parse(wrapped), parse(lines(name))
    assert found.phases == bare.phases
    assert (found.clock, found.cache, found.ranks) == (bare.clock, bare.cache, bare.ranks)


def test_records_of_a_json_formatter_are_read_as_vllms_own_lines():
    said = [
        ("Initializing a V1 LLM engine (v0.32.0) with config: x", 30, 2),
        ("Loading weights took 2.50 seconds", 34, 2),
        ("init engine (profile, create kv cache, warmup model) took 9.00 s", 44, 2),
        ("Application startup complete.", 45, 1),
    ]
    told = [
        {"asctime": f"2026-11-28 10:00:{at},123", "levelname": "INFO", "message": m, "process": pid}
        for m, at, pid in said
    ]
    found = parse(json.dumps(record) + "\n" for record in told)
    assert found.vllm_version == "0.32.0"
    assert found.phases["weights"] == 2.5
    assert found.phases["engine_init"] == 9.0
    assert found.total_s == 15.0


def test_braces_that_are_no_record_harm_nothing():
    odd = [
        "{",
        "{}",
        "[1]",
        '{"log": 3}',
        '{"message": "x"}',
        "{" * 5000,
        '{"log": "{\\"log\\": 1}"}',
    ]
    mixed = [piece for line in lines(WARM) for piece in (*(f"{o}\n" for o in odd), line)]
    assert parse(mixed) == parse(lines(WARM))


def test_starts_that_crashed_before_are_left_out_and_counted():
    crashed = lines(COLD)[:40]
    found = parse([*crashed, *crashed, *lines(WARM)])
    alone = parse(lines(WARM))
    assert found.phases == alone.phases
    assert found.cache == "hit"
    assert found.notes == ("2 starts before it did not get ready: left out",)
    assert found.notes[0] in table.render_one(found)
    assert alone.notes == ()


def test_a_crash_loop_tells_of_its_last_start():
    crashed = lines(COLD)[:40]
    found = parse([*lines(WARM)[:40], *crashed])
    assert found.total_s is None
    assert found.phases == parse(crashed).phases


def test_of_several_pods_the_first_that_starts_is_read_and_the_others_are_counted():
    both = itertools.zip_longest(lines(COLD), lines(WARM), fillvalue="\n")
    mixed = [text for a, b in both for text in (f"[pod/a/vllm] {a}", f"[pod/b/vllm] {b}")]
    found = parse(mixed)
    assert found.phases == parse(lines(COLD)).phases
    assert found.notes == ("lines of 1 other container are left out",)


def test_a_table_in_a_log_is_no_other_pod():
    mixed = [text for line in lines(WARM) for text in ("layer | size\n", line)]
    assert parse(mixed) == parse(lines(WARM))


def test_servers_that_are_mixed_without_a_prefix_are_said_to_be():
    one = lines(WARM)
    other = [line.replace(" pid=", " pid=9") for line in lines(COLD)]
    found = parse([*one[:30], *other[:30], *one[30:]])
    assert found.notes[-1] == "lines of several servers are mixed: trust no figure of it"


@pytest.mark.parametrize("ready", [True, False], ids=["ready", "unsaid"])
def test_days_of_serving_behind_a_start_cost_nothing(ready):
    start = lines(WARM) if ready else [x for x in lines(WARM) if "startup complete" not in x]
    serving = (SERVING for _ in range(1_000_000))
    found = parse(itertools.chain(start, serving))
    assert found.phases["engine_init"] == parse(lines(WARM)).phases["engine_init"]
    assert sum(1 for _ in serving) > 980_000


def test_a_log_that_lost_its_start_is_not_kept_in_memory():
    tracemalloc.start()
    try:
        parse(SERVING for _ in range(5000))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_file_without_an_end_is_refused_within_little_memory():
    def little():
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))

    script = "from warmer.cli import report, saved; saved._MOST = 8 << 20; report.command()"
    words = [sys.executable, "-c", script, "/dev/zero"]
    done = subprocess.run(words, preexec_fn=little, capture_output=True, check=False, text=True)
    assert "no line of a vLLM start" in done.stderr
    assert "MemoryError" not in done.stderr


def test_a_packed_log_is_read_and_one_that_was_cut_as_far_as_it_goes(tmp_path):
    text = (LOGS / WARM).read_bytes()
    half = len(text) // 2
    (tmp_path / "members.gz").write_bytes(gzip.compress(text[:half]) + gzip.compress(text[half:]))
    (tmp_path / "plain.log").write_bytes(text)
    (tmp_path / "wide.log").write_text(text.decode(), encoding="utf-16")
    whole = shown(tmp_path / "plain.log").output
    assert "48.49" in whole
    assert shown(tmp_path / "members.gz").output == whole
    assert shown(tmp_path / "wide.log").output == whole
    packed = gzip.compress(text)
    (tmp_path / "cut.gz").write_bytes(packed[: len(packed) * 2 // 3])
    cut = shown(tmp_path / "cut.gz")
    assert cut.exit_code == 0
    assert "the log ends before ready" in cut.output


def test_a_packed_file_that_is_broken_is_said_to_be(tmp_path):
    packed = gzip.compress(os.urandom(100_000))
    (tmp_path / "broken.gz").write_bytes(packed[:200] + b"\xff" * 400 + packed[600:])
    found = shown(tmp_path / "broken.gz")
    assert "broken gzip" in found.exception.message
    assert found.exception.hint
    with pytest.raises(OSError, match="broken gzip"):
        textfile.read(str(tmp_path / "broken.gz"), 1 << 20)
    (tmp_path / "cut.gz").write_bytes(packed[:-20])
    with pytest.raises(OSError, match="cut"):
        textfile.read(str(tmp_path / "cut.gz"), 1 << 20)


def test_what_a_packed_file_unpacks_to_is_bounded(tmp_path):
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(b"\0" * (64 << 20)))
    tracemalloc.start()
    try:
        assert len(textfile.read(str(tmp_path / "bomb.gz"), 1000)) == 1001
        assert sum(map(len, textfile.lines(str(tmp_path / "bomb.gz"), 3 << 20))) == 3 << 20
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_recorded_spans_without_an_end_are_refused(tmp_path, monkeypatch):
    text = (LOGS / "spans-cold-0.31.jsonl").read_text()
    path = tmp_path / "spans.jsonl"
    path.write_text(text * 3)
    assert shown(path).exit_code == 0
    monkeypatch.setattr(saved, "_SPANS", 2 * len(text))
    failure = shown(path).exception
    assert failure.reason == "too-large"
    assert failure.hint
