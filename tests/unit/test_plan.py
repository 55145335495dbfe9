"""Wanted and held → steps (`warmer.plan`): a table of situations."""

import pytest

from warmer.model import (
    KERNEL_KINDS,
    KINDS,
    Difference,
    Held,
    Inventory,
    Key,
    ModelRef,
    Nearest,
    Plan,
    Wanted,
)
from warmer.plan import ASSUMED_RATE, plan

MODEL = ModelRef("hf", "org/model", "main")
KEYS = {kind: Key(kind, {"about": kind, "n": 1}) for kind in KINDS}
WARM = {
    kind: Held("sealed", "generation 1", 1, 1, 100, restored=kind != "weights") for kind in KEYS
}
UNUSABLE = ("absent", "partial", "foreign", "corrupt", "stale")


def planned(held, *, kinds=KEYS, without=None, nearest=None, rates=None, **more):
    wanted = Wanted(MODEL, {kind: KEYS[kind] for kind in kinds}, without or {})
    return plan(wanted, Inventory(held, nearest or {}, rates or {}), **more)


def actions(steps):
    return [(step.kind, step.action) for step in steps.steps]


@pytest.mark.parametrize("forbidden", ["", "why"])
def test_a_warm_pods_plan_is_empty(forbidden):
    assert planned(WARM, forbidden=forbidden) == Plan(())
    assert planned(WARM, forbidden=forbidden).empty


ROWS = [
    ("sealed", True, True, "nothing"),
    ("sealed", True, False, "nothing"),
    ("sealed", False, True, "restore"),
    ("sealed", False, False, "restore"),
    *((verdict, restored, True, "build") for verdict in UNUSABLE for restored in (True, False)),
    *((verdict, restored, False, "without") for verdict in UNUSABLE for restored in (True, False)),
]


@pytest.mark.parametrize("kind", KERNEL_KINDS)
@pytest.mark.parametrize(("verdict", "restored", "build", "outcome"), ROWS)
def test_a_kernel_piece_is_built_restored_or_done_without(kind, verdict, restored, build, outcome):
    held = Held(verdict, "because", 3, 3, 100, restored=restored)
    forbidden = "" if build else "why"
    result = planned(WARM | {kind: held}, forbidden=forbidden)
    expected = [] if outcome in ("nothing", "without") else [(kind, outcome)]
    assert actions(result) == expected
    assert list(result.without) == ([kind] if outcome == "without" else [])
    assert result.empty is (expected == [])


def test_what_is_unneeded_is_told_and_leaves_the_plan_warm():
    kinds = [kind for kind in KEYS if kind != "bytecode"]
    wanted = Wanted(MODEL, {kind: KEYS[kind] for kind in kinds}, unneeded={"bytecode": "because"})
    result = plan(wanted, Inventory({kind: WARM[kind] for kind in kinds}))
    assert result == Plan((), unneeded={"bytecode": "because"})
    assert result.empty


@pytest.mark.parametrize("forbidden", ["", "why"])
@pytest.mark.parametrize("verdict", ["sealed", *UNUSABLE])
def test_weights_are_downloaded_whenever_they_are_not_sealed(verdict, forbidden):
    result = planned(WARM | {"weights": Held(verdict, "because")}, forbidden=forbidden)
    assert actions(result) == ([] if verdict == "sealed" else [("weights", "download")])
    assert result.without == {}


def test_steps_come_in_the_order_of_what_is_wanted_each_with_its_key_and_verdict():
    held = {kind: Held("absent", f"no {kind}") for kind in KEYS}
    steps = planned(held | {"jit": Held("sealed", "", 7, 55)}).steps
    assert [(s.kind, s.action, s.key, s.verdict) for s in steps] == [
        ("weights", "download", KEYS["weights"], "absent"),
        ("compile", "build", KEYS["compile"], "absent"),
        ("flashinfer", "build", KEYS["flashinfer"], "absent"),
        ("jit", "restore", KEYS["jit"], "sealed"),
        ("bytecode", "build", KEYS["bytecode"], "absent"),
    ]
    assert [step.reason for step in steps[:3]] == ["no weights", "no compile", "no flashinfer"]
    assert "generation 7" in steps[3].reason
    assert (steps[3].size, steps[3].seconds, steps[3].basis) == (55, None, "")


@pytest.mark.parametrize(
    ("kind", "size", "rate", "seconds", "basis"),
    [
        ("weights", 2 * 10**9, None, 2e9 / ASSUMED_RATE, "200 MB/s assumed"),
        ("weights", 2 * 10**9, 1e9, 2.0, "earlier fills of this volume"),
        ("weights", 0, 1e9, 0.0, "earlier fills of this volume"),
        ("weights", None, 1e9, None, ""),
        ("weights", None, None, None, ""),
        ("compile", None, 42.5, 42.5, "earlier builds on this volume"),
        ("compile", None, None, None, ""),
    ],
)
def test_a_prediction_says_what_it_rests_on(kind, size, rate, seconds, basis):
    held = WARM | {kind: Held("absent", "nothing is published under this key")}
    sizes = {} if size is None else {kind: size}
    (step,) = planned(held, sizes=sizes, rates={} if rate is None else {kind: rate}).steps
    assert (step.size, step.seconds, step.basis) == (size, seconds, basis)


def nearest(*factors):
    return Nearest("d" * 64, tuple(Difference(name, 1, 2) for name in factors))


@pytest.mark.parametrize(
    ("verdict", "near", "reason"),
    [
        pytest.param("absent", None, "because", id="no-neighbour"),
        pytest.param("absent", nearest("a"), "because; the nearest differs in a", id="one"),
        pytest.param(
            "absent", nearest(*"abcd"), "because; the nearest differs in a, b, c, d", id="four"
        ),
        pytest.param(
            "absent",
            nearest(*"abcdef"),
            "because; the nearest differs in a, b, c, d and 2 more",
            id="six",
        ),
        pytest.param("absent", nearest(), "because", id="no-difference"),
        pytest.param("corrupt", nearest("a"), "because", id="not-absent"),
    ],
)
def test_a_miss_names_the_factors_on_which_the_nearest_differs(verdict, near, reason):
    held = WARM | {"compile": Held(verdict, "because")}
    (step,) = planned(held, nearest={} if near is None else {"compile": near}).steps
    assert step.reason == reason
    assert step.nearest == near


def test_a_piece_that_may_not_be_built_is_done_without_and_the_reason_says_why():
    result = planned(
        WARM | {"jit": Held("corrupt", "a has not its size")},
        forbidden="--compile=never builds none",
    )
    assert result.without == {"jit": "corrupt: a has not its size; --compile=never builds none"}


def test_what_cannot_be_had_here_stays_in_the_plan_and_needs_no_step():
    without = dict.fromkeys(KERNEL_KINDS, "no vLLM here")
    result = planned({"weights": WARM["weights"]}, kinds=["weights"], without=without)
    assert result == Plan((), without)


def test_planning_changes_nothing_it_is_given():
    without = {}
    planned(
        WARM | {"jit": Held("absent", "")}, without=without, forbidden="--compile=never builds none"
    )
    assert without == {}


@pytest.mark.parametrize("forbidden", ["", "why"])
@pytest.mark.parametrize("kind", KERNEL_KINDS)
@pytest.mark.parametrize("verdict", UNUSABLE)
def test_with_a_bucket_what_is_missing_is_pulled_first(kind, verdict, forbidden):
    held = WARM | {kind: Held(verdict, "because")}
    (step,) = planned(held, forbidden=forbidden, remote="s3://kernels/team").steps
    assert (step.kind, step.action) == (kind, "pull" if forbidden else "pull or build")
    assert step.verdict == verdict
    assert "s3://kernels/team is asked" in step.reason
    assert step.reason.endswith(forbidden)


def test_a_bucket_is_not_asked_for_weights_nor_for_what_is_sealed():
    held = WARM | {"weights": Held("absent", "none"), "jit": Held("sealed", "", 7, 55)}
    result = planned(held, remote="s3://kernels/team")
    assert actions(result) == [("weights", "download"), ("jit", "restore")]
    assert not any("s3://" in step.reason for step in result.steps)
    assert planned(WARM, remote="s3://kernels/team").empty
