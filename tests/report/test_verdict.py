"""What `warmer.report.verdict` says was rebuilt, and why, and what a handoff adds to it."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from warmer.cli.report import command
from warmer.errors import UsageError
from warmer.report.log import parse

LOGS = Path(__file__).parent / "logs"
SAVED = "saved AOT compiled function to /c/rank_0_0/model"
AGAIN = "Compiling model again due to a load failure from /c/rank_0_0/model, reason: no attribute"
UNSAVED = "unable to save AOT compiled function to /c/rank_0_0/model: Read-only file system"
OFF = "vLLM's torch.compile cache is disabled."
HIT = "Directly load AOT compilation from path /c/rank_0_0/model"
NEVER_HELD = "none was in the cache under this start's key"


def info(message, pid=2):
    return f"(Worker pid={pid}) INFO 11-23 12:00:00 [x.py:1] {message}\n"


def graph(seconds, pid=2):
    return info(f"Compiling a graph for compile range (1, 8192) takes {seconds} s", pid)


def build(name):
    return f"2026-11-23 12:00:00,000 - INFO - core.py:5 - flashinfer.jit: Building JIT module {name}; it\n"


def read(name):
    with (LOGS / name).open(encoding="utf-8", newline="\n") as file:
        return parse(file)


def test_recorded_starts_say_what_they_rebuilt_and_why():
    assert read("cold-0.28.log").built == (f"compiled code made anew: {NEVER_HELD}",)
    (again,) = read("warm-0.28.log").built
    assert again.startswith("compiled code made again: what was in the cache failed to load")
    assert "'function' object has no attribute 'finalize_loading'" in again
    assert read("h200-cold-0.26.log").built == (f"1 graph compiled in 9.81 s: {NEVER_HELD}",)
    assert read("h200-warm-0.26.log").built == ()
    # Two ranks: 14.80 s, and
    assert read("lines-0.20.log").built == (f"1 graph compiled in 15.10 s: {NEVER_HELD}",)


@pytest.mark.parametrize(
    ("lines", "built"),
    [
        ([info(HIT)], []),
        ([info(SAVED), info(SAVED, 3)], [f"compiled code made anew: {NEVER_HELD}"]),
        (
            [graph("2.50"), graph("1.25"), info(SAVED)],
            [f"2 graphs compiled in 3.75 s: {NEVER_HELD}"],
        ),
        (
            [graph("2.50"), graph("2.75", 3), graph("1.00", 3)],  # ranks side by side
            [f"2 graphs compiled in 3.75 s: {NEVER_HELD}"],
        ),
        ([info(OFF), graph("2.50")], ["1 graph compiled in 2.50 s: the cache is switched off"]),
        (
            [info(AGAIN), graph("2.50"), info(AGAIN, 3), info(SAVED)],
            [
                "1 graph compiled in 2.50 s",
                "compiled code made again: what was in the cache failed to load (no attribute)",
            ],
        ),
        (
            [info(UNSAVED)],
            ["compiled code not saved, so the next start makes it again (Read-only file system)"],
        ),
        ([build("a"), build("a")], ["1 FlashInfer kernel built: a"]),
        (
            [build(name) for name in "abcde"],
            ["5 FlashInfer kernels built: a, b, c and 2 more"],
        ),
    ],
)
def test_what_was_made_is_told_once_with_its_reason(lines, built):
    assert list(parse(lines).built) == built


def test_a_reason_commands_no_terminal_and_has_an_end():
    hostile = AGAIN.replace("no attribute", "\x9b31m\x07" + "x" * 9999)
    (clause,) = parse([info(hostile)]).built
    assert clause.isprintable()
    assert len(clause) < 400


def handoff(tmp_path, content):
    path = tmp_path / "handoff" / "handoff.json"
    path.parent.mkdir()
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return tmp_path


def built(tmp_path, log="cold-0.28.log"):
    words = [str(LOGS / log), "--json", "--warm-dir", str(tmp_path)]
    result = CliRunner().invoke(command, words)
    if result.exception:
        raise result.exception
    return json.loads(result.output)["built"]


def piece(**more):
    return {"kind": "compile", "verdict": "sealed", "reason": "", "generation": 3, **more}


def test_a_handoff_that_did_not_fit_is_told_from_one_that_had_nothing(tmp_path):
    handoff(tmp_path, {"pieces": [piece()], "crashed": ""})
    _, given = built(tmp_path)
    assert "generation 3" in given
    assert "plan --explain" in given


def test_a_handoff_without_compiled_code_says_why(tmp_path):
    absent = piece(verdict="absent", reason="never built here", generation=0)
    handoff(tmp_path, {"pieces": [{"kind": "weights"}, absent]})
    assert built(tmp_path)[1] == "the handoff had no compiled code to give: never built here"


def test_a_load_that_failed_is_not_blamed_on_the_flags(tmp_path):
    handoff(tmp_path, {"pieces": [piece()]})
    assert built(tmp_path, "warm-0.28.log")[1] == "the handoff gave compiled code of generation 3"


def test_kernels_that_were_kept_back_are_named(tmp_path):
    mark = tmp_path / "crashed"
    mark.touch()
    handoff(tmp_path, {"pieces": [piece()], "crashed": str(mark)})
    assert "kept back" in built(tmp_path)[1]


def test_a_hit_needs_no_handoff_to_explain_it(tmp_path):
    handoff(tmp_path, {"pieces": [piece()]})
    assert built(tmp_path, "h200-warm-0.26.log") == []


def test_without_a_handoff_the_log_alone_has_to_do(tmp_path):
    assert built(tmp_path) == [f"compiled code made anew: {NEVER_HELD}"]


@pytest.mark.parametrize("content", [[], {"pieces": 5}, {"pieces": [5, {"kind": "compile"}]}])
def test_a_handoff_of_another_shape_does_no_harm(tmp_path, content):
    handoff(tmp_path, content)
    assert built(tmp_path)[0] == f"compiled code made anew: {NEVER_HELD}"


@pytest.mark.parametrize("content", ["{", "[" * 100_000, " " * (2 << 20)])
def test_what_is_no_handoff_is_a_usage_error(tmp_path, content):
    handoff(tmp_path, content)
    with pytest.raises(UsageError) as raised:
        built(tmp_path)
    assert raised.value.reason == "handoff-unreadable"
