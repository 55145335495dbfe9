"""What is needed, and what follows from it: tables of looks, no disk."""

import dataclasses

import pytest

from warmer.collect import need
from warmer.collect.decide import STILL, decide
from warmer.collect.need import Aside, Census, Published
from warmer.usage import ANY, Piece, Use

DAY = 86400.0
NOW = 1000 * DAY
KEEP, GRACE = 14 * DAY, 3600.0
A, B = "a" * 64, "b" * 64


def piece(number, digest=A, kind="weights"):
    return Piece(kind, digest, number)


def gen(number, days, digest=A, *, state="sealed", kind="weights", size=10):
    return Published(piece(number, digest, kind), state, size, NOW - days * DAY)


def use(days, *pieces, live=False, name="p"):
    return Use(name * 16, NOW - days * DAY, live, frozenset(pieces), "a pod")


def torn(days, live=False):
    return Use("e" * 16, NOW - days * DAY, live, None, why="cut short")


def census(published=(), uses=(), asides=(), since=500.0, free=0):
    at = None if since is None else NOW - since * DAY
    return Census(NOW, at, tuple(published), tuple(uses), tuple(asides), free)


def plan(look, **limits):
    return decide(look, **{"keep": KEEP, "grace": GRACE} | limits)


def hidden(look, **limits):
    return [s.piece for s in plan(look, **limits).steps if s.action == "hide"]


OLD = [gen(1, 300), gen(2, 200)]
CASES = {
    "nobody uses it": (OLD, [], {1, 2}),
    "used long ago": (OLD, [use(15, piece(2))], {1, 2}),
    "used lately, and what it superseded": (OLD, [use(13, piece(2))], {1}),
    "an old one is used, and the newest is what comes next": (OLD, [use(13, piece(1))], set()),
    "a server runs with it": (OLD, [use(400, piece(2), live=True)], {1}),
    "a pod is on its way to the key": (OLD, [use(0, piece(ANY))], set()),
    "a pod was on its way long ago": (OLD, [use(15, piece(ANY))], {1, 2}),
    "used by a pod whose record is from the future": (OLD, [use(-3, piece(2))], {1}),
    "used by one of two": (OLD, [use(15, piece(1)), use(1, piece(2), name="q")], {1}),
    "another key is used": (OLD, [use(1, piece(2, B))], {1, 2}),
    "the same digest of another kind is used": (OLD, [use(1, piece(2, kind="jit"))], {1, 2}),
    "published lately": ([gen(1, 13)], [], set()),
    "superseded a moment ago": ([gen(1, 300), gen(2, 0)], [], {1}),
    "published a moment ago, superseded at once": ([gen(1, 0.01), gen(2, 0)], [], set()),
    "broken, and superseded": ([gen(1, 300, state="broken"), gen(2, 1)], [], {1}),
    "broken, the newest, and an older one is whole": (
        [gen(1, 300), gen(2, 200, state="broken")],
        [use(1, piece(1))],
        {2},
    ),
    "broken and alone: its good files are taken over": (
        [gen(1, 300, state="broken")],
        [use(1, piece(ANY))],
        set(),
    ),
    "foreign": ([gen(1, 300, state="foreign"), gen(2, 300, state="unreadable")], [], set()),
    "a record that cannot be read": (OLD, [torn(13)], set()),
    "a record of a server that runs cannot be read": (OLD, [torn(400, live=True)], set()),
    "a record that could not be read, long ago": (OLD, [torn(15)], {1, 2}),
    "as old as may be": (OLD, [use(14, piece(2))], {1, 2}),
}


@pytest.mark.parametrize(("published", "uses", "gone"), CASES.values(), ids=CASES)
def test_what_nobody_needs_is_hidden_and_nothing_else(published, uses, gone):
    look = census(published, uses)
    assert {one.number for one in hidden(look)} == gone
    kept = need.needed(look, keep=KEEP)
    assert {one.number for one in kept} == {one.piece.number for one in published} - gone
    assert all(kept.values()), "what stays has a reason"


@pytest.mark.parametrize("since", [None, 0, 13])
def test_what_may_be_in_use_since_before_uses_were_recorded_stays(since):
    assert hidden(census(OLD, since=since)) == []


def test_what_was_published_since_uses_are_recorded_is_judged_by_them():
    look = census([gen(1, 300), gen(2, 12), gen(3, 5)], [use(5, piece(3))], since=13)
    assert hidden(look) == [piece(2)]


@pytest.mark.parametrize("uses", [[], [use(1, piece(2))], [use(0, piece(ANY))]], ids=str)
def test_a_plan_carried_out_leaves_nothing_to_hide(uses):
    look = census(OLD, uses)
    gone = set(hidden(look))
    after = [one for one in OLD if one.piece not in gone]
    assert hidden(dataclasses.replace(look, published=tuple(after))) == []


def trashed(number, hours, **more):
    return Aside("trash", f"/t/{number}", 5, NOW - hours * 3600, piece(number), **more)


TRASH = {
    "young": (trashed(1, 0.9), [], [], []),
    "old enough": (trashed(1, 1), [], [], ["remove"]),
    "of the future": (trashed(1, -5), [], [], []),
    "named by a record": (trashed(1, 9), [use(1, piece(1))], [], ["put back"]),
    "named by an old record": (trashed(1, 9), [use(20, piece(1))], [], ["remove", "forget"]),
    "its key came into use, and nothing else is there": (
        trashed(1, 9),
        [use(0, piece(ANY))],
        [],
        ["put back"],
    ),
    "its key came into use, and has another": (
        trashed(1, 9),
        [use(0, piece(ANY))],
        [gen(2, 0)],
        ["remove"],
    ),
    "half removed and named": (trashed(1, 0, going=True), [use(1, piece(1))], [], ["remove"]),
    "a record cannot be read": (trashed(1, 9), [torn(1)], [], []),
    "half removed and a record cannot be read": (
        trashed(1, 0, going=True),
        [torn(1)],
        [],
        ["remove"],
    ),
}


@pytest.mark.parametrize(("aside", "uses", "published", "actions"), TRASH.values(), ids=TRASH)
def test_what_is_hidden_is_removed_after_the_grace_or_put_back(aside, uses, published, actions):
    assert [s.action for s in plan(census(published, uses, [aside])).steps] == actions


def test_of_two_that_are_hidden_the_newest_comes_back():
    look = census([], [use(0, piece(ANY))], [trashed(9, 9), trashed(10, 9)])
    assert [(s.action, s.piece.number) for s in plan(look).steps] == [
        ("put back", 10),
        ("remove", 9),
    ]


@pytest.mark.parametrize(
    ("sort", "days", "goes"),
    [
        ("staging", STILL / DAY, True),
        ("staging", 0.9, False),
        ("quarantine", 14, True),
        ("quarantine", 13, False),
        ("leftover", 1, True),
        ("leftover", 0.9, False),
    ],
)
def test_what_was_left_over_goes_when_it_is_old(sort, days, goes):
    aside = Aside(sort, "/x", 7, NOW - days * DAY, None if sort == "leftover" else piece(ANY))
    steps = plan(census(asides=[aside])).steps
    assert [(s.action, s.aside, s.size) for s in steps] == ([("remove", aside, 7)] if goes else [])
    assert all(s.name and s.reason for s in steps)


def test_records_are_forgotten_when_they_are_old_and_renewed_while_their_server_runs():
    old, gone = use(20, piece(1)), torn(30)
    running = use(20, piece(2), live=True, name="q")
    young = use(1, piece(3), live=True, name="r")
    steps = plan(census(uses=[old, gone, running, young])).steps
    assert [(s.action, s.use) for s in steps] == [
        ("forget", old),
        ("forget", gone),
        ("renew", running),
    ]


def test_with_enough_room_models_stay_and_the_least_recently_used_goes_first():
    published = [gen(1, 300, d, size=100) for d in ("a" * 64, "b" * 64, "c" * 64)]
    uses = [use(30, piece(1, "a" * 64)), use(40, piece(1, "c" * 64), name="q")]
    look = census(published, uses, free=50)
    order = [one.digest[0] for one in hidden(look)]
    assert order == ["b", "c", "a"]
    for enough, gone in ((0, 0), (50, 0), (51, 1), (150, 1), (151, 2), (251, 3), (10_000, 3)):
        decision = plan(look, min_free=enough)
        going = [s.piece.digest[0] for s in decision.steps if s.action == "hide"]
        assert going == order[:gone], enough
        assert len(decision.kept) == 3 - gone


def test_what_was_superseded_goes_though_there_is_room():
    assert hidden(census(OLD, free=10**9), min_free=0) == [piece(1)]


def test_what_is_in_use_stays_though_there_is_no_room():
    assert hidden(census(OLD, [use(1, piece(2))], free=0), min_free=10**12) == [piece(1)]


def test_what_is_hidden_already_counts_as_room():
    look = census(OLD[1:], asides=[dataclasses.replace(trashed(9, 0.1), size=60)], free=50)
    assert hidden(look, min_free=110) == []
    assert hidden(look, min_free=111) == [piece(2)]
