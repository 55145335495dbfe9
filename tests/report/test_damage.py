"""What `warmer.report.log` makes of logs that are empty, foreign, broken, cut or out of order."""

import re
from pathlib import Path

import pytest

from warmer.report.log import StartLog, parse

LOGS = Path(__file__).parent / "logs"
NAMES = sorted(path.name for path in LOGS.glob("*.log"))
NOTHING = StartLog(None, {}, None, "none", frozenset(), "unknown", ())


def lines(name):
    with (LOGS / name).open(encoding="utf-8", newline="\n") as file:
        return list(file)


def info(message, process="EngineCore pid=2", at="12:00:00", src="x.py:1"):
    return f"({process}) INFO 11-23 {at} [{src}] {message}\n"


def test_a_log_whose_supervisor_came_late_keeps_the_clock_it_began_with():
    text = lines("cold-0.32.log")
    half = len(text) // 2
    late = text[:half] + [f"[+{1000 + i}.000] {line}" for i, line in enumerate(text[half:])]
    assert parse(late) == parse(text)


def test_an_empty_log_says_nothing():
    assert parse([]) == NOTHING
    assert parse(["", "\n", "\r\n"]) == NOTHING
    assert not NOTHING.recognised


def test_another_programs_log_says_nothing():
    uvicorn = [
        "INFO:     Started server process [1]\n",
        "INFO:     Application startup complete.\n",
    ]
    assert parse(uvicorn) == NOTHING
    assert parse([f"[+{i}.000] {line}" for i, line in enumerate(uvicorn)]) == NOTHING
    assert parse(["the line Loading weights took 3.00 seconds is in a book\n"]) == NOTHING


def test_garbage_between_the_lines_changes_nothing():
    garbage = [
        bytes(range(256)).decode(errors="replace") + "\n",
        "\x1b]0;a title\x07\x1b[2K\x1b[1A\n",
        "\rLoading:   0%|          | 0/9 [00:00<?, ?it/s]\rLoading: 100%|████| 9/9 [00:01<00:00]\n",
        "(EngineCore pid=\n",
        "INFO 11-23\n",
        "((((((" * 500 + "\n",
        "\x00\n",
    ]
    for name in NAMES:
        mixed = [piece for line in lines(name) for piece in (*garbage, line)]
        assert parse(mixed) == parse(lines(name))


def test_colours_change_nothing():
    def coloured(line):
        line = re.sub(r"^(\([^)]*\))", "\x1b[0;36m\\1\x1b[0;0m", line)
        line = re.sub(
            r"\b(INFO|WARNING) (\d\d-\d\d \S+)", "\x1b[32m\\1\x1b[0m \x1b[90m\\2\x1b[0m", line
        )
        return re.sub(r" (\[[\w.]+:\d+\]) ", " \x1b[90m\\1\x1b[0m ", line)

    plain = lines("cold-0.32.log")
    painted = [coloured(line) for line in plain]
    assert sum("\x1b[90m[" in line for line in painted) > 30
    assert parse(painted) == parse(plain)


@pytest.mark.parametrize(
    "before",
    [
        "INFO 11-23 12:00:00 [x.py:1] ",
        "(Worker_TP0 pid=9) INFO 11-23 12:00:00 [x.py:1] ",
        "INFO 11-23 12:00:00 (Worker_TP0 pid=9) [x.py:1] ",
        "(Worker pid=9) INFO 11-23 12:00:00 [a/.../b.py:1] [backbone] ",
        "2026-11-23T12:00:00Z pod-0 (Worker pid=9) INFO 11-23 12:00:00 [x.py:1] ",
        "shards: 100%|██| 4/4 [00:09<00:00](Worker pid=9) INFO 11-23 12:00:00 [x.py:1] ",
        "(Worker pid=9) INFO 11-23 12:00:00 [x.py:1] Loading\rINFO 11-23 12:00:00 [x.py:1] ",
        "\rshards: 50%\rshards: 100%\r(Worker pid=9) INFO 11-23 12:00:00 [x.py:1] ",
    ],
)
def test_whatever_stands_before_a_message_it_is_read(before):
    assert parse([before + "Loading weights took 3.25 seconds"]).phases == {"weights": 3.25}


def test_a_failed_start_has_the_phases_it_got_through():
    text = lines("cold-0.32.log")
    cut = next(i for i, line in enumerate(text) if "Warming up done." in line)
    start = parse(
        [
            *text[:cut],
            "(EngineCore pid=2847) ERROR 11-23 19:55:59 [core.py:1402] EngineCore failed to start.\n",
            "(EngineCore pid=2847) ERROR 11-23 19:55:59 [core.py:1402] RuntimeError: no memory\r\n",
            "RuntimeError: Engine core initialization failed.\n",
        ]
    )
    assert start.phases == {"config": 15.0, "engine_process": 9.0, "weights": 0.02}
    assert start.total_s is None
    assert start.recognised


@pytest.mark.parametrize(
    ("message", "phase", "seconds"),
    [
        ("Time spent downloading weights for m: 6.500000 seconds", "download", 6.5),
        ("Loading weights took 13.25 seconds", "weights", 13.25),
        ("Dynamo bytecode transform time: 12.50 s", "dynamo", 12.5),
        ("Compiling a graph for compile range (1, 8192) takes 12.50 s", "compile", 12.5),
        ("torch.compile took 12.50 s in total", "compile", 12.5),
        ("JIT kernel warmup finished in 12.50s.", "jit", 12.5),
        ("Graph capturing finished in 12 secs, took 0.27 GiB", "graph_capture", 12.0),
        ("init engine (profile, create kv cache, warmup model) took 37.32 s", "engine_init", 37.32),
    ],
)
def test_a_line_cut_short_is_never_a_smaller_number(message, phase, seconds):
    cut = {parse([info(message)[:n]]).phases.get(phase) for n in range(len(info(message)))}
    assert cut == {None, seconds}


def test_without_uvicorns_lines_ready_is_when_the_server_starts():
    text = [line for line in lines("lines-0.33.log") if "Application startup" not in line]
    assert parse(text).phases["ready"] == 21.46


def test_nothing_after_ready_counts():
    after = [
        info("Compiling a graph for compile range (1, 8) takes 9.00 s", "EngineCore pid=61"),
        info("Loading weights took 99.00 seconds", "EngineCore pid=61"),
    ]
    assert parse([*lines("lines-0.33.log"), *after]) == parse(lines("lines-0.33.log"))


def test_lines_of_two_processes_may_be_out_of_order():
    start = parse(
        [
            info("torch.compile took 1.00 s in total", at="12:00:00"),
            info("Available KV cache memory: 9.00 GiB", at="12:00:03"),
            info("torch.compile took 1.00 s in total", at="12:00:05"),  # of a draft model, later
            info("init engine (profile, create kv cache, warmup model) took 9.00 s", at="12:00:09"),
            info("Starting vLLM server on http://[::]:8000", at="12:00:08"),
        ]
    )
    assert (start.phases["memory_profile"], start.phases["api_setup"]) == (3.0, 0.0)


@pytest.mark.parametrize(
    ("first", "second", "seconds"),
    [
        ("23:59:58", "00:00:03", 5.0),
        ("12:00:00", "23:00:00", 39600.0),
        ("00:00:00", "23:59:59", 0.0),  # another process, a moment behind: not a day later
    ],
)
def test_midnight_is_neither_lost_nor_invented(first, second, seconds):
    start = parse(
        [
            info("Warming up model for the compilation...", at=first),
            info("Warming up done.", at=second),
        ]
    )
    assert start.phases == {"warmup": seconds}


def test_a_start_that_failed_at_its_arguments_still_has_its_imports():
    failed = "[+9.5] " + info("platform: cuda", "APIServer pid=1")
    assert parse([failed]).phases == {"imports": 9.5}


def test_what_a_message_quotes_is_not_a_line():
    start = parse(
        [info("non-default args: {'x': 'Graph capturing finished in 9 secs, took 1 GiB'}")]
    )
    assert "graph_capture" not in start.phases
