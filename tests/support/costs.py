"""Where the time of a run of tests goes: by the clock, and by what was computed.

A test is charged with its set-up and its tear-down, and with the CPU time of the children that it
waited for. What a shared fixture costs is charged to whoever asks for it first; what a guest or a
container computes that is no child of the tests is seen in the machine's idle share alone.
"""

import collections
import os
import resource
from pathlib import Path
from time import monotonic  # the test under way may have another clock put in its module

import pytest

SHOWN = 40


class Costs:
    """A pytest plugin; `table` maps each test that ran to its seconds by the clock and of CPU."""

    def __init__(self):
        self.table = {}

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item):
        clock, cpu = monotonic(), computed()
        try:
            return (yield)
        finally:
            self.table[item.nodeid] = (monotonic() - clock, computed() - cpu)


def computed():
    """CPU seconds of this process and of its children that have ended."""
    both = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(sum(resource.getrusage(who)[:2]) for who in both)


def machine():
    """Ticks that this machine's cores were idle, and all ticks."""
    ticks = [int(word) for word in Path("/proc/stat").read_text().split()[1:9]]
    return ticks[3] + ticks[4], sum(ticks)


def idle(before, after):
    """The share of the time between two looks at the machine that its cores had nothing to do."""
    return (after[0] - before[0]) / max(after[1] - before[1], 1)


def lines(table):
    """Directories, then files, then tests, the longest of each first."""
    summed = [collections.defaultdict(list) for _ in range(3)]
    for name, cost in table.items():
        file = name.split("::")[0]
        for sums, key in zip(summed, (os.path.dirname(file), file, name), strict=True):
            sums[key].append(cost)
    yield f"{'clock':>9} {'CPU':>9} {'tests':>6}"
    for sums in summed:
        found = [(*map(sum, zip(*all_of, strict=True)), name) for name, all_of in sums.items()]
        for clock, cpu, name in sorted(found, reverse=True)[:SHOWN]:
            yield f"{clock:7.1f} s {cpu:7.1f} s {len(sums[name]):6} {name}"
