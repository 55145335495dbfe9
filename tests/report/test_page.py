"""The page of `warmer report --html`: what is in it, and what can never be."""

import os
import re
import resource
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner

from warmer.cli.report import command
from warmer.errors import UsageError, VolumeError
from warmer.report import page, spans, style, table, timeline
from warmer.report.log import StartLog, parse
from warmer.report.phases import PHASES

LOGS = Path(__file__).parent / "logs"
NAMES = sorted(path.name for path in LOGS.glob("*.log"))
EVIL = "</pre><script src=//evil.example/x></script><img src=http://evil.example/>\x1b[31m\x9b\x00"


def read(name):
    with (LOGS / name).open(encoding="utf-8", newline="\n") as file:
        return parse(file)


def start(total=None, **phases):
    if total is not None:
        phases["ready"] = total
    return StartLog("0.32.0", phases, total, "process", frozenset(), "unknown", ())


class Page(HTMLParser):
    """Tags with their attributes, and the text of every table row."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.rows, self._open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        if {"td", "th"} & set(self._open) and "svg" not in self._open:
            self.rows[-1][-1] += data

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.mark.parametrize("name", NAMES)
def test_the_segments_of_a_bar_follow_each_other_and_make_up_the_start(name):
    log = read(name)
    bar = timeline.segments(log)
    at = 0.0
    for segment in bar:
        assert segment.begin == pytest.approx(at)
        at += segment.seconds
    # Whole seconds, and ranks side by side, may make the parts longer than the whole.
    rough = sum(1.0 for _ in log.rough)
    assert log.total_s - 0.01 <= at <= log.total_s + rough + 0.01
    order = [kind for kind, _ in timeline.kinds()]
    assert [s.name for s in bar] == sorted((s.name for s in bar), key=order.index)


def test_a_phase_with_parts_is_drawn_as_its_parts_and_their_rest():
    bar = timeline.segments(start(30.0, imports=5.0, engine_init=20.0, dynamo=3.0, compile=9.0))
    assert [(s.name, s.seconds) for s in bar] == [
        ("imports", 5.0),
        ("dynamo", 3.0),
        ("compile", 9.0),
        ("engine_init_rest", 8.0),
        ("other", 5.0),
    ]
    longer = timeline.segments(start(4.0, engine_init=3.0, dynamo=2.0, compile=2.5))
    assert [s.name for s in longer] == ["dynamo", "compile", "other"]
    assert timeline.segments(start()) == ()


@pytest.mark.parametrize("longest", [0.004, 0.05, 1, 7.9, 8, 63, 169.552, 3599, 1e6])
def test_an_axis_has_a_few_round_ticks(longest):
    found = timeline.ticks(longest)
    assert found[0] == 0
    assert len(found) <= 9
    assert found[-1] <= longest + 1e-3
    assert found == sorted(set(found))
    if 1 <= longest < 10_000:
        assert len(found) >= 3


def test_every_segment_there_can_be_has_colours_that_its_number_is_read_on():
    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(one, two):
        high, low = sorted((luminance(one), luminance(two)), reverse=True)
        return (high + 0.05) / (low + 0.05)

    assert set(style.COLOURS) == {name for name, _ in timeline.kinds()}
    for name, colour in style.COLOURS.items():
        assert contrast(colour.light, colour.on_light) >= 4.5, name
        assert contrast(colour.dark, colour.on_dark) >= 4.5, name


def test_the_page_of_two_starts_has_every_figure_of_the_table():
    comparison = table.compare(read("h200-cold-0.26.log"), read("h200-warm-0.26.log"))
    shown = Page(page.page(comparison))
    assert shown.rows[0] == ["phase", "cold, s", "warm, s", "ratio"]
    for row in comparison.rows:
        cold, warm = (
            table.seconds(value, rough=rough).strip()
            for value, rough in zip((row.cold, row.warm), row.rough, strict=True)
        )
        assert [row.title, cold, warm, table.ratio(row)] in shown.rows
    assert shown.rows[-1] == ["ready", "169.55", "48.49", "3.5×"]  # noqa: RUF001 - as drawn
    text = page.page(comparison)
    assert "compile cache: cold rebuilt, warm hit" in text
    assert "1 graph compiled in 9.81 s" in text


def test_what_is_drawn_and_in_no_phase_stands_in_the_table_too():
    shown = Page(page.page_of_one(start(30.0, imports=5.0, engine_init=20.0, dynamo=3.0)))
    assert ["the rest of it", "17.00"] in shown.rows
    assert ["in no phase", "5.00"] in shown.rows


def test_a_start_that_was_never_ready_is_drawn_as_far_as_it_went():
    failed = spans.read([spans.Span("Overall Loading", "t", "i", "1", 0, 9, failed=True)])
    assert ["the rest of it", "2.00"] in Page(page.page_of_one(start(dynamo=1, engine_init=3))).rows
    for text in (
        page.page_of_one(start(imports=3.0)),
        page.page(table.compare(start(), start())),
    ):
        assert "not get ready" in text
        assert "before ready" in text
    for text in (
        page.page_of_one(failed),
        page.page(table.compare(start(9.0, imports=3.0), failed)),
    ):
        assert "not get ready" in text
        assert "start failed" in text


def test_the_page_asks_for_nothing_and_forbids_it_besides():
    text = page.page(table.compare(read("cold-0.28.log"), read("warm-0.28.log")))
    shown = Page(text)
    (policy,) = [m["content"] for m in shown.all("meta") if "http-equiv" in m]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    for tag, attrs in shown.tags:
        assert tag not in ("script", "link", "img", "iframe", "object", "base", "form"), tag
        assert not {"src", "href", "style", "xlink:href", "onload"} & set(attrs), tag
    assert not re.search(r"url\(|@import|http:|https:", text)


def test_what_a_log_says_is_only_ever_text():
    def line(message):
        return f"(Worker pid=2) INFO 11-23 12:00:00 [x.py:1] {message}\n"

    evil = parse(
        [
            line(f"Initializing a V1 LLM engine (v<b>{EVIL.split(maxsplit=1)[0]}) with config"),
            line(f"saved AOT compiled function to {EVIL}"),
            line(f"Compiling model again due to a load failure from {EVIL}, reason: {EVIL}"),
        ]
    )
    assert evil.vllm_version.startswith("<b>")
    for text in (page.page_of_one(evil), page.page(table.compare(evil, evil))):
        shown = Page(text)
        assert not {"script", "img", "b"} & {tag for tag, _ in shown.tags}
        assert "evil.example" in text
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", text)


def test_long_evidence_is_cut():
    log = start(9.0, imports=3.0)
    many = StartLog("1", log.phases, 9.0, "process", frozenset(), "rebuilt", ("x" * 5000,) * 500)
    text = page.page_of_one(many)
    assert len(text) < 30_000
    assert "and 488 lines more" in text


def invoke(*words):
    return CliRunner().invoke(command, [str(word) for word in words])


def test_the_page_goes_to_a_file_beside_the_table_or_to_stdout_instead(tmp_path):
    html = tmp_path / "start.html"
    html.write_text("an older page")
    both = LOGS / "cold-0.32.log", "--baseline", LOGS / "cold-0.28.log"
    done = invoke(*both, "--html", html)
    assert "ready" in done.output
    assert "<html" not in done.output
    assert os.listdir(tmp_path) == ["start.html"]
    assert invoke(*both, "--html", "-").output == html.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ((), "usage"),
        (("a.log", "--otlp", "0"), "usage"),
        (("a.log", "--record", "x.jsonl"), "usage"),
        (("a.log", "--html", "-", "--json"), "usage"),
        (("a.log", "--html", "/no/such/directory/x.html"), "no-such-directory"),
        (("a.log", "--html", "/"), "no-such-directory"),
        (("a.log", "--html", ""), "no-such-directory"),
        (("--otlp", "0", "--record", "/no/such/x"), "no-such-directory"),
        (("--otlp", "x"), "otlp-address"),
    ],
)
def test_words_that_do_not_go_together_are_refused_at_once(words, reason):
    exception = invoke(*words).exception
    assert isinstance(exception, UsageError)
    assert exception.reason == reason


def test_a_page_that_cannot_be_written_leaves_what_was_there(tmp_path):
    old = tmp_path / "start.html"
    old.write_text("an older page")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        failure = invoke("--html", str(old), str(LOGS / NAMES[0])).exception
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert isinstance(failure, VolumeError)
    assert failure.message.startswith(f"got --html {old}: File too large, expected a file")
    assert old.read_text() == "an older page"
    assert os.listdir(tmp_path) == ["start.html"]
    failure = invoke("--html", "/dev/full", str(LOGS / NAMES[0])).exception
    assert isinstance(failure, VolumeError)
    assert failure.reason == "no-space"
    assert failure.hint


def test_phases_and_segments_tell_of_the_same():
    told = {phase.name for phase in PHASES} - {"ready", "engine_init"}
    assert {name for name, _ in timeline.kinds()} == told | {"engine_init_rest", "other"}
