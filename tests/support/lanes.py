"""A pytest that takes its turn: it collects all tests, and runs of them what no other claims first.

    python lanes.py CLAIMS NUMBER WORDS...    CLAIMS: a directory that the lanes share

A batch is a file, or what must not run beside itself. Whoever makes the file of its name in CLAIMS
runs it; the long ones come first, so that none is left with one of them in the end.
"""

import json
import os
import sys
from contextlib import suppress
from pathlib import Path

import pytest

if __name__ == "__main__":
    import costs

    sys.path[0] = os.getcwd()  # as `python -m pytest` has it

ENGINES = "engines and containers"
"""A real engine takes all the cores there are; containers share the names of their network."""
FIRST = (ENGINES, "tests/nfs")
"""The batches of several files, the longest there are; every other file is one, in their order."""


class Lane:
    """The pytest plugin; it leaves NUMBER.json in CLAIMS: all that is to run, and what each cost."""

    def __init__(self, claims, number):
        self._claims, self._number = Path(claims), number
        self._costs = costs.Costs()

    def pytest_configure(self, config):
        config.pluginmanager.register(self._costs)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session):
        if session.testsfailed or session.config.option.collectonly:
            return None  # as pytest does it
        items = self._claimed(session.items)
        item = next(items, None)
        while item is not None:
            # Known before this one runs: what both need is not torn down between them.
            following = next(items, None)
            session.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if session.shouldfail:
                raise session.Failed(session.shouldfail)
            if session.shouldstop:
                raise session.Interrupted(session.shouldstop)
            item = following
        return True

    def pytest_sessionfinish(self, session):
        told = {"all": [item.nodeid for item in session.items], "costs": self._costs.table}
        (self._claims / f"{self._number}.json").write_text(json.dumps(told))

    def _claimed(self, items):
        batches = {}
        for item in items:
            batches.setdefault(batch(item), []).append(item)
        for name in sorted(batches, key=rank):
            with suppress(FileExistsError):
                (self._claims / name.replace("/", "+")).touch(exist_ok=False)
                yield from batches[name]


def batch(item):
    """Name what the test runs with, one after the other."""
    file = item.nodeid.split("::")[0]
    directory = os.path.dirname(file)
    engine = any(item.get_closest_marker(name) for name in ("engine", "gpu"))
    if engine or directory == "tests/e2e":
        return ENGINES
    return directory if directory in FIRST else file


def rank(name):
    return (FIRST.index(name) if name in FIRST else len(FIRST), name)


if __name__ == "__main__":
    claims, number, *words = sys.argv[1:]
    sys.exit(pytest.main(words, plugins=[Lane(claims, number)]))
