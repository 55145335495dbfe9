"""/metrics as a real vLLM answers it, and as it should not."""

import math
import os
import sys

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
from scrapes import EARLIER, LATER, MODEL, read

from warmer.tune import exposition
from warmer.tune.observed import BadMetricsError


def text(*, model="m", engine="0", counts=(1, 3, 4), started=100, generated=4):
    labels = f'engine="{engine}",model_name="{model}"'
    bounds = ("1.0", "8.0", "+Inf")
    lines = [
        f'{exposition.TOKENS}_bucket{{{labels},le="{bound}"}} {count}'
        for bound, count in zip(bounds, counts, strict=True)
    ]
    lines += [f"vllm:generation_tokens_total{{{labels}}} {generated}"]
    return "\n".join([*lines, f"process_start_time_seconds {started}", ""])


def test_what_a_real_server_counted_between_two_scrapes():
    earlier, later = (exposition.read(read(path)) for path in (EARLIER, LATER))
    assert exposition.models(later) == [MODEL]
    found = exposition.counted(later, MODEL, since=earlier)
    assert found.buckets[1.0] == 127
    assert found.buckets[64.0] == 773
    assert found.buckets[math.inf] == 786
    assert found.generated == pytest.approx((8598 - 8) / 786)


def test_one_scrape_counts_from_the_servers_start():
    found = exposition.counted(exposition.read(read(LATER)), MODEL)
    assert found.buckets[math.inf] == 794


def test_engines_of_one_model_are_added_and_other_models_left_out():
    scrape = exposition.read(
        text(engine="0") + text(engine="1", counts=(2, 2, 2)) + text(model="other")
    )
    assert exposition.models(scrape) == ["m", "other"]
    assert exposition.counted(scrape, "m").buckets == {1.0: 3, 8.0: 5, math.inf: 6}


def test_a_server_that_was_restarted_between_two_scrapes_is_noticed_though_it_counted_more():
    earlier, later = text(), text(counts=(9, 9, 9), started=200)
    with pytest.raises(BadMetricsError, match="restarted"):
        exposition.counted(exposition.read(later), "m", since=exposition.read(earlier))


def test_an_engine_that_came_between_two_scrapes_is_refused():
    earlier, later = exposition.read(text()), exposition.read(text() + text(engine="1"))
    with pytest.raises(BadMetricsError, match="later scrape alone"):
        exposition.counted(later, "m", since=earlier)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("", "no histogram"),
        ("<html>not here</html>", "no histogram"),
        ("vllm:num_requests_running 3\n", "no histogram"),
        (f'{exposition.TOKENS}_bucket{{le="1.0"', "no sample"),
        (f'{exposition.TOKENS}_bucket{{le="1.0"}} many\n', "no sample"),
        (f"{exposition.TOKENS}_bucket 3\n", "le=''"),
        (f'{exposition.TOKENS}_bucket{{le="wide"}} 3\n', "le='wide'"),
        (text() + text(), "twice"),
    ],
)
def test_what_is_no_metrics_text_is_refused_with_the_reason(body, why):
    with pytest.raises(BadMetricsError, match=why):
        exposition.read(body)


def test_lines_of_other_metrics_are_passed_over_whatever_they_hold():
    assert exposition.read("}{ garbage\x1b[2J\n" + text()).histograms
