"""The page of `warmer report --html` as a browser shows it: how wide its bars are, and what it fetches."""

import html
import http.server
import itertools
import json
import re
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from warmer.report import page, table, timeline
from warmer.report.log import StartLog, parse

LOGS = Path(__file__).parent / "logs"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")
WIDTHS = (1200, 400)

# Measures a copy of the page, whose policy is taken out so that this may run in it.
MEASURE = """<script>
addEventListener("load", () => {
  const box = e => { const b = e.getBoundingClientRect(); return [b.left, b.right, b.top, b.bottom]; };
  const found = {
    width: innerWidth,
    overflow: document.documentElement.scrollWidth - innerWidth,
    bars: [...document.querySelectorAll("figure rect")].map(
      e => [e.getAttribute("class"), +e.dataset.seconds, ...box(e), getComputedStyle(e).fill]),
    thin: [...document.querySelectorAll("line.thin")].map(
      e => [e.classList[1], getComputedStyle(e).stroke, getComputedStyle(e).strokeWidth]),
    numbers: [...document.querySelectorAll("figure text.number")]
      .filter(e => getComputedStyle(e).display !== "none")
      .map(e => [e.className.baseVal.split("on-")[1], e.textContent, ...box(e)]),
    axis: [...document.querySelectorAll("text.axis")].map(e => [e.textContent, ...box(e)]),
    ink: getComputedStyle(document.documentElement).color,
    ground: getComputedStyle(document.documentElement).backgroundColor,
  };
  document.title = "measured";
  parent.postMessage(found, "*");
});
</script>"""
FRAMES = """<!doctype html><body><pre id="found"></pre><script>
const all = [];
addEventListener("message", e => {
  all.push(e.data);
  if (all.length === COUNT) found.textContent = JSON.stringify(all);
});
</script>"""


def read(name):
    with (LOGS / name).open(encoding="utf-8", newline="\n") as file:
        return parse(file)


COMPARISON = table.compare(read("h200-cold-0.26.log"), read("h200-warm-0.26.log"))
TEXT = page.page(COMPARISON)


def browse(url, *flags, profile):
    argv = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
    argv += ["--disable-background-networking", "--no-first-run", *flags, url]
    return subprocess.run(argv, capture_output=True, timeout=120, check=True).stdout.decode()


def without_policy(text):
    bare = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    assert bare != text
    return bare


def measured(tmp_path, *flags):
    """What the browser says of the page at each width."""
    copy = html.escape(without_policy(TEXT).replace("</head>", MEASURE + "</head>"))
    frames = FRAMES.replace("COUNT", str(len(WIDTHS)))
    for width in WIDTHS:
        frames += f'<iframe width="{width}" height="1400" frameborder="0" srcdoc="{copy}"></iframe>'
    harness = tmp_path / "harness.html"
    harness.write_text(frames, encoding="utf-8")
    # The frames' messages come after the page has loaded: time enough for them, of the browser's own.
    more = ("--dump-dom", "--window-size=1300,2900", "--virtual-time-budget=10000", *flags)
    dom = browse(harness.as_uri(), *more, profile=tmp_path / "profile")
    found = re.search(r'<pre id="found">(.+?)</pre>', dom)
    assert found, dom[-2000:]
    by_width = {one["width"]: one for one in json.loads(html.unescape(found[1]))}
    assert set(by_width) == set(WIDTHS)
    return by_width


@pytest.fixture(scope="module")
def light(tmp_path_factory):
    return measured(tmp_path_factory.mktemp("light"))


@pytest.mark.parametrize("width", WIDTHS)
def test_bars_are_as_wide_as_their_phases_are_long(light, width):
    bars = light[width]["bars"]
    drawn = [timeline.segments(log) for log in (COMPARISON.cold, COMPARISON.warm)]
    assert [bar[:2] for bar in bars] == [[s.name, s.seconds] for one in drawn for s in one]
    longest = max(map(timeline.end, drawn))
    full = max(bar[3] for bar in bars) - min(bar[2] for bar in bars)
    for name, seconds, left, right, *_ in bars:
        assert right - left == pytest.approx(full * seconds / longest, abs=0.05), name
    rows = {bar[4] for bar in bars}
    assert len(rows) == 2
    for top in rows:  # side by side, from the same edge, without gaps
        row = [bar for bar in bars if bar[4] == top]
        assert row[0][2] == pytest.approx(min(bar[2] for bar in bars), abs=0.05)
        for one, two in itertools.pairwise(row):
            assert one[3] == pytest.approx(two[2], abs=0.05)


@pytest.mark.parametrize("width", WIDTHS)
def test_the_axis_says_where_its_seconds_are(light, width):
    bars, axis = light[width]["bars"], light[width]["axis"]
    left, right = min(bar[2] for bar in bars), max(bar[3] for bar in bars)
    longest = max(
        timeline.end(timeline.segments(log)) for log in (COMPARISON.cold, COMPARISON.warm)
    )
    assert [text for text, *_ in axis] == ["0 s", "30 s", "60 s", "90 s", "120 s", "150 s"]
    for text, begin, end, *_ in axis[1:]:
        at = left + (right - left) * float(text.split()[0]) / longest
        assert (begin + end) / 2 == pytest.approx(at, abs=1)
    for one, two in itertools.pairwise(axis):
        assert one[2] < two[1], "ticks do not run into each other"


@pytest.mark.parametrize("width", WIDTHS)
def test_numbers_lie_within_their_segments_and_nothing_hangs_over_the_edge(light, width):
    found = light[width]
    assert found["overflow"] <= 0
    spans = {(name, round(top)): (left, right) for name, _, left, right, top, *_ in found["bars"]}
    assert found["numbers"]
    for name, number, left, right, top, _ in found["numbers"]:
        near = [span for (other, at), span in spans.items() if other == name and 0 < top - at < 40]
        assert any(one[0] <= left and right <= one[1] for one in near), (name, number)


def test_a_segment_too_thin_to_be_seen_has_a_line_in_its_colour(light):
    found = light[400]
    fills = {bar[0]: bar[6] for bar in found["bars"]}
    thin = {bar[0] for bar in found["bars"] if bar[3] - bar[2] < 1}
    lines = {name: (stroke, width) for name, stroke, width in found["thin"]}
    assert thin <= set(lines)
    assert thin
    for name, (stroke, width) in lines.items():
        assert stroke == fills[name]
        assert float(width.removesuffix("px")) >= 1


def test_a_dark_screen_gets_a_dark_page(light, tmp_path):
    dark = measured(tmp_path, "--force-dark-mode")[1200]
    day = light[1200]
    assert (day["ground"], dark["ground"]) == ("rgb(255, 255, 255)", "rgb(20, 23, 28)")
    assert (day["ink"], dark["ink"]) == (dark["ground"], "rgb(236, 238, 241)")
    for one, two in zip(day["bars"], dark["bars"], strict=True):
        assert one[:6] == two[:6]
        assert one[6] != two[6]


@pytest.fixture
def site():
    """Serves the texts it is given, and keeps the paths it was asked for."""
    texts, asked = {}, []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            body = texts.get(self.path, "").encode()
            self.send_response(200 if body else 404)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", texts, asked
        server.shutdown()


def test_the_page_fetches_nothing_whatever_a_log_holds(site, tmp_path):
    url, texts, asked = site
    planted = f'<img src="{url}/planted"><script>document.title="run"</script>'
    evil = f"saved AOT compiled function to </pre></details>{planted}"
    log = StartLog("1", {"imports": 3.0}, None, "process", frozenset(), "rebuilt", (evil,), (evil,))
    texts["/hostile"] = page.page(table.compare(log, log))
    # Were the escaping to fail, the policy would still hold; without it, what is planted is fetched.
    texts["/breached"] = TEXT.replace("</main>", planted + "</main>")
    texts["/open"] = without_policy(texts["/breached"])
    seen = {}
    for path in texts:
        asked.clear()
        dom = browse(url + path, "--dump-dom", profile=tmp_path / "profile")
        seen[path] = ("/planted" in asked, "<title>run</title>" in dom)
        assert path in asked
        assert set(asked) <= {path, "/planted", "/favicon.ico"}
    assert seen == {"/hostile": (False, False), "/breached": (False, False), "/open": (True, True)}


def test_the_page_is_drawn_with_its_own_style(site, tmp_path):
    url, texts, _ = site
    texts["/"] = TEXT
    shots = []
    for name, text in (
        ("styled", TEXT),
        ("bare", re.sub(r"<style>.*?</style>", "", TEXT, flags=re.DOTALL)),
    ):
        texts["/"] = text
        shot = tmp_path / f"{name}.png"
        browse(url, f"--screenshot={shot}", "--window-size=800,600", profile=tmp_path / "profile")
        shots.append(shot.read_bytes())
    assert shots[0] != shots[1], "the policy lets the page's own style through"
