"""Whether something grows: the verdict on the samples of a soak. Pure.

A series may wobble, and may step up once as a cache fills. What counts is the second half: the
median of the slopes between all its pairs (Theil and Sen), which no outlier moves, and whether most
pairs rise at all (Kendall's tau), which noise around a level does not; and whether the end is above
all but the highest of what was usual before: what comes and goes by chance rises for an hour, too.

    python tests/soak/verdict.py samples.jsonl     judges what a soak kept
"""

from __future__ import annotations

import itertools
import json
import math
import statistics
import sys
from typing import NamedTuple

FLOORS = {"rss_kb": 1024.0, "volume_kb": 256.0, "warm_kb": 256.0}
"""Growth over the half that is none, whatever the median; of any other measure less than one."""
LEAST = 1.0
SHARE = 0.03
"""Of the median: less growth than this over the half is none either."""
RISING = 0.25
"""Kendall's tau above which pairs rise more than noise does."""
USUAL = 0.9
"""Of the values between the first quarter and the middle, this share is what was usual before."""
FEWEST = 10
"""Samples that a half must have."""
MOVING = ("starts", "checks", "collections", "removed_kb")
"""What a soak that works has more of at its end: else nothing was tried, and nothing is shown."""
PRESENT = ("rss_kb", "fds", "volume_files", "warm_files", "processes")
"""What is never 0 where the sampler sees anything."""


class Trend(NamedTuple):
    """One measure over the second half."""

    first: float
    median: float
    last: float
    per_hour: float
    grows: bool


def trend(name: str, times: list[float], values: list[float], before: list[float]) -> Trend:
    """Judge one measure; `times` in seconds, `before` what it was before these."""
    pairs = list(itertools.combinations(zip(times, values, strict=True), 2))
    slope = statistics.median((b - a) / (t - s) for (s, a), (t, b) in pairs)
    tau = sum((b > a) - (b < a) for (_, a), (_, b) in pairs) / len(pairs)
    median = statistics.median(values)
    rise = slope * (times[-1] - times[0])
    # A leak of one in a long while has a slope of 0 between most pairs: ends are compared too.
    part = max(len(values) // 4, 1)
    rise = max(rise, statistics.mean(values[-part:]) - statistics.mean(values[:part]))
    floor = max(FLOORS.get(name, LEAST), SHARE * median)
    usual = sorted(before)[int(USUAL * (len(before) - 1))]
    grows = rise >= floor and tau > RISING and statistics.mean(values[-part:]) > usual
    return Trend(values[0], median, values[-1], round(slope * 3600, 3), grows)


def judge(samples: list[dict], *, failures: int, every: float) -> dict:
    """Give the verdict on samples in their order.

    Args:
        samples: `time` in seconds, then every measure and every count of `MOVING`.
        failures: what went wrong beside: starts that failed, invariants that did not hold.
        every: seconds between two samples, as promised.

    Returns:
        `verdict`: `steady`; `grows` with the names; `failed`; `broken` where the samples show nothing.
    """
    half = samples[len(samples) // 2 :]
    if broken := _broken(samples, half, every):
        return {"verdict": "broken", "why": broken, "measures": {}}
    times = [one["time"] for one in half]
    before = samples[len(samples) // 4 : len(samples) // 2]
    measures = {
        name: trend(name, times, [one[name] for one in half], [one[name] for one in before])
        for name in half[0]
        if name not in ("time", *MOVING)
    }
    growing = sorted(name for name, found in measures.items() if found.grows)
    verdict = "failed" if failures else "grows" if growing else "steady"
    table = {name: found._asdict() for name, found in measures.items()}
    return {"verdict": verdict, "why": ", ".join(growing), "measures": table}


def _broken(samples: list[dict], half: list[dict], every: float) -> str:
    """Say why the samples show nothing; no word where they do."""
    if len(half) < FEWEST:
        return f"got {len(half)} samples in the second half, expected at least {FEWEST}"
    return _malformed(samples) or _blind(samples, half, every)


def _malformed(samples: list[dict]) -> str:
    names = samples[-1].keys()
    if missing := {"time", *MOVING, *PRESENT} - names:
        return f"no sample has {', '.join(sorted(missing))}"
    for one in samples:
        if one.keys() != names:
            return f"samples differ in {', '.join(sorted(one.keys() ^ names))}"
        for name, value in one.items():
            if not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
                return f"got {name} of {value!r}, expected a measure"
    return ""


def _blind(samples: list[dict], half: list[dict], every: float) -> str:
    if absent := [name for name in PRESENT if not all(one[name] for one in half)]:
        return f"{', '.join(absent)}: the sampler saw nothing"
    gaps = [b["time"] - a["time"] for a, b in itertools.pairwise(samples)]
    if not all(0 < gap <= 5 * every for gap in gaps):
        return f"samples are {min(gaps):.0f} to {max(gaps):.0f} s apart, expected about {every:.0f}"
    still = [name for name in MOVING if half[-1][name] <= half[0][name]]
    return f"{', '.join(still)} did not move: nothing was tried" if still else ""


def main(path: str) -> int:
    """Judge the samples that a soak kept; each has the failures so far."""
    with open(path, encoding="utf-8") as stream:
        samples = [json.loads(line) for line in stream]
    failures = [one.pop("failures") for one in samples]
    found = judge(samples, failures=failures[-1] if failures else 0, every=60.0)
    print(json.dumps(found))
    return 0 if found["verdict"] == "steady" else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
