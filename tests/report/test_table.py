"""What `warmer.report.table` and `warmer report` show of parsed logs."""

# ruff: noqa: RUF001 - the table draws dashes and multiplication signs
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from warmer.cli.report import command
from warmer.errors import UsageError
from warmer.report.log import StartLog, parse
from warmer.report.phases import PHASES
from warmer.report.table import compare, render, render_one
from warmer.report.values import as_json, start_as_json

LOGS = Path(__file__).parent / "logs"
COLD, WARM = LOGS / "cold-0.32.log", LOGS / "warm-0.32.log"


def read(path):
    with path.open(encoding="utf-8", newline="\n") as file:
        return parse(file)


def start(clock="process", rough=(), **phases):
    return StartLog("0.32.0", phases, phases.get("ready"), clock, frozenset(rough), "unknown", ())


def row(comparison, phase):
    (found,) = [row for row in comparison.rows if row.phase == phase]
    return found


def test_the_recorded_logs_make_the_golden_table():
    golden = (LOGS / "compare-0.32.txt").read_text(encoding="utf-8")
    assert render(compare(read(COLD), read(WARM))) + "\n" == golden


def test_children_stand_under_their_parent_and_the_total_last():
    everything = start("stamps", ["ready"], **{phase.name: 1.0 for phase in PHASES})
    shown = [row.phase for row in compare(everything, everything, extra={"mine": (1, 1)}).rows]
    init = shown.index("engine_init")
    children = [phase.name for phase in PHASES if phase.parent == "engine_init"]
    assert shown[init + 1 : init + 1 + len(children)] == children
    assert shown[-2:] == ["mine", "ready"]
    text = render_one(everything).splitlines()
    assert [line for line in text if line != line.rstrip()] == []
    assert [line.startswith("  ") for line in text[2 : 2 + len(PHASES)]].count(True) == len(
        children
    )


def test_a_parent_is_shown_for_its_childrens_sake():
    shown = compare(start(dynamo=1.0), start()).rows
    assert [(row.phase, row.cold) for row in shown] == [("engine_init", None), ("dynamo", 1.0)]


def test_a_ratio_needs_two_sides_and_something_to_divide_by():
    comparison = compare(
        start(weights=9.0, config=1.0, dynamo=0.0, compile=3.0),
        start(weights=2.0, config=0.0, dynamo=4.0, jit=5.0),
    )
    ratios = {row.phase: row.ratio for row in comparison.rows}
    assert ratios == {
        "config": None,
        "weights": 4.5,
        "engine_init": None,
        "dynamo": 0.0,
        "compile": None,
        "jit": None,
    }


def test_totals_that_begin_at_different_moments_are_not_divided():
    stamps, process = start("stamps", ready=60.0, config=4.0), start(ready=20.0, config=2.0)
    assert row(compare(stamps, process), "ready").ratio is None
    assert row(compare(stamps, process), "config").ratio == 2.0
    assert row(compare(stamps, stamps), "ready").ratio == 1.0
    measured = compare(stamps, process, extra={"ready": (66.0, 22.0)})
    assert row(measured, "ready").ratio == 3.0
    half = compare(stamps, process, extra={"ready": (66.0, None)})
    assert (row(half, "ready").cold, row(half, "ready").ratio) == (66.0, 3.3)


def test_extra_fills_a_known_row_and_leaves_the_log_where_it_is_none():
    logs = start(download=7.0), start(download=6.0)
    filled = row(compare(*logs, extra={"download": (70.0, None)}), "download")
    assert (filled.cold, filled.warm) == (70.0, 6.0)


def test_extra_of_an_unknown_name_gets_a_row_of_its_own():
    added = row(
        compare(start(), start(), extra={"restore_kernels": (None, 0.25)}), "restore_kernels"
    )
    assert (added.title, added.cold, added.warm, added.parent) == (
        "restore kernels",
        None,
        0.25,
        None,
    )


def test_columns_line_up_and_points_stand_in_one_column():
    rough = ("config", "ready")
    text = render(
        compare(
            start("stamps", rough, config=123.0, download=1.0, weights=1.25, ready=1203.0),
            start("stamps", rough, config=3.0, weights=100.5, ready=103.0),
        )
    )
    assert text.splitlines()[:6] == [
        "phase                  cold, s  warm, s   ratio",
        "--------------------  --------  -------  ------",
        "config, engine spawn   ~123       ~3     ~41.0×",
        "weights download          1.00     –          –",
        "weights load              1.25   100.50   0.01×",
        "ready                 ~1203     ~103     ~11.7×",
    ]


def test_a_tilde_is_explained_only_where_there_is_one():
    assert "~" not in render(compare(start(ready=3.0), start(ready=1.0)))
    rough = start("stamps", ["config"], config=3.0)
    assert "~3" in render_one(rough)
    assert "whole seconds" in render_one(rough)
    assert "first line" not in render_one(rough)
    assert "first line" in render_one(start("stamps", ["ready"], ready=3.0))


def test_a_start_that_was_never_ready_is_named():
    ready, failed = start(ready=3.0), start(config=1.0)
    assert "the warm log ends before ready" in render(compare(ready, failed))
    assert "the cold log" not in render(compare(ready, failed))
    assert "the log ends before ready" in render_one(failed)


def test_versions_are_named_apart_when_they_differ():
    one, two = read(LOGS / "lines-0.20.log"), read(LOGS / "lines-0.33.log")
    assert "vLLM cold 0.20.0, warm 0.33.0; compile cache: cold rebuilt, warm hit" in render(
        compare(one, two)
    )
    assert "vLLM 0.20.0; compile cache: cold rebuilt, warm rebuilt" in render(compare(one, one))


def test_markdown_is_a_table_of_even_width():
    text = render(compare(read(COLD), read(WARM)), markdown=True)
    table = text.split("\n\n")[0].splitlines()
    assert {len(line) for line in table} == {len(table[0])}
    assert {line.count("|") for line in table} == {5}
    assert table[1] == "| -------------------------- | ------: | ------: | -----: |"
    assert table[5] == "| engine init                |   37.32 |    6.71 |   5.6× |"
    assert table[6] == "| &emsp;CPU compile, warm-up |     ~35 |      ~3 | ~11.7× |"


def test_json_holds_what_the_table_shows():
    answer = json.loads(json.dumps(as_json(compare(read(COLD), read(WARM)))))
    assert answer["schema_version"] == 1
    assert answer["cold"]["total_s"] == 63.0
    assert answer["warm"]["cache"] == "unknown"
    (init,) = [row for row in answer["rows"] if row["phase"] == "engine_init"]
    assert init == {
        "phase": "engine_init",
        "title": "engine init",
        "parent": None,
        "cold_s": 37.32,
        "warm_s": 6.71,
        "ratio": 5.562,
    }


def test_json_of_one_log_has_its_phases_and_evidence():
    answer = json.loads(json.dumps(start_as_json(read(LOGS / "lines-0.33.log"))))
    assert answer["schema_version"] == 1
    assert answer["phases"]["imports"] == 8.104
    assert "Directly load AOT" in answer["evidence"][0]


def invoke(*args):
    return CliRunner().invoke(command, [str(arg) for arg in args], catch_exceptions=True)


def test_the_command_prints_one_log_or_two():
    assert invoke(WARM).output == render_one(read(WARM)) + "\n"
    golden = (LOGS / "compare-0.32.txt").read_text(encoding="utf-8")
    assert invoke(WARM, "--baseline", COLD).output == golden


def test_the_command_prints_json():
    assert json.loads(invoke(WARM, "--json").output)["total_s"] == 19.0
    both = json.loads(invoke(WARM, "--baseline", COLD, "--json").output)
    assert both["cold"]["total_s"] == 63.0


def test_the_command_survives_bytes_that_are_no_text(tmp_path):
    broken = tmp_path / "broken.log"
    broken.write_bytes(b"\xff\xfe\x00\x80\n" + WARM.read_bytes())
    assert invoke(broken).output == invoke(WARM).output


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "log-unreadable"),
        (b"", "log-empty"),
        (b"INFO:     Application startup complete.\n", "log-foreign"),
        (bytes(range(256)) * 9, "log-foreign"),
    ],
)
@pytest.mark.parametrize("place", ["log", "baseline"])
def test_a_bad_file_is_a_usage_error(tmp_path, content, reason, place):
    bad = tmp_path / "bad.log"
    if content is not None:
        bad.write_bytes(content)
    result = invoke(bad) if place == "log" else invoke(WARM, "--baseline", bad)
    assert isinstance(result.exception, UsageError)
    assert (result.exception.reason, result.exception.exit_code) == (reason, 2)
    assert str(bad) in result.exception.message
    assert "expected" in result.exception.message
    assert result.exception.hint


def test_a_directory_is_a_usage_error(tmp_path):
    result = invoke(tmp_path)
    assert isinstance(result.exception, UsageError)
    assert "Is a directory" in result.exception.message


def test_help_has_an_example_and_the_exit_codes():
    text = invoke("--help").output
    assert "warmer report --baseline cold.log warm.log" in text
    assert "  0  " in text
    assert "  2  " in text
