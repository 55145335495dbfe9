"""One budget for many calls: what the remote tier's failures may cost a prefill in all."""

import time
import types

import pytest

from warmer import remote
from warmer.errors import SourceError
from warmer.fill.remote import bucket
from warmer.fill.remote.pull import Puller
from warmer.fill.sources import TransientSourceError
from warmer.fill.sources.retry import Trying
from warmer.model import KERNEL_KINDS, Key, Step
from warmer.plan import UNPREDICTED
from warmer.settings import Settings
from warmer.urls import RemoteUrl


class Service:
    """Answers after so many failures."""

    def __init__(self, failures):
        self.failures = failures
        self.asked = 0

    def __call__(self):
        self.asked += 1
        if self.asked <= self.failures:
            raise TransientSourceError("got no answer, expected one", reason="unreachable")
        return self.asked


def test_a_budget_that_all_share_is_spent_once():
    trying = Trying(budget=2.0, once=True)
    away = Service(10**9)
    started = time.monotonic()
    with pytest.raises(TransientSourceError):
        trying.call(away)
    assert away.asked > 1
    while time.monotonic() < started + 2.0:  # the rest of it may be too short for a try
        time.sleep(0.05)
    for _ in range(3):
        again = Service(1)
        with pytest.raises(TransientSourceError):
            trying.call(again)
        assert again.asked == 1, "nothing is left to try it again in"
    assert trying.call(Service(0)) == 1


def test_a_budget_of_each_begins_anew():
    trying = Trying(budget=2.0)
    with pytest.raises(TransientSourceError):
        trying.call(Service(10**9))
    assert trying.call(Service(1)) == 2


def test_all_pulls_together_take_no_longer_than_a_build(monkeypatch):
    """One run of the engine builds all of them: a slow bucket must not cost as much for each."""
    now, asked = [0.0], []

    def slow(_self, kind, *, wait, within):
        asked.append(kind)
        if kind == "jit":  # waiting for another owner is bounded by itself
            claims.waited += 300.0
            now[0] += 300.0
        now[0] += min(0.8 * UNPREDICTED, max(0.0, within))
        if within < 0.8 * UNPREDICTED:
            raise SourceError("got no end", reason="too-slow")

    claims = types.SimpleNamespace(waited=0.0)
    monkeypatch.setattr(remote, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(bucket, "Bucket", lambda *_: None)
    monkeypatch.setattr(Puller, "pull", slow)
    keys = {kind: Key(kind, {}) for kind in KERNEL_KINDS}
    steps = [Step(kind, "pull or build", key, "absent", "") for kind, key in keys.items()]
    settings = Settings("/volume", "/warm", None, remote=RemoteUrl("bucket", "prefix"))
    s = types.SimpleNamespace(
        settings=settings,
        plan=types.SimpleNamespace(steps=steps),
        wanted=types.SimpleNamespace(keys=keys),
        volume=None,
        warm=None,
    )
    remote.Remote(settings).pull(s, claims)
    assert asked == ["flashinfer", "jit"]
    assert now[0] - claims.waited <= UNPREDICTED
