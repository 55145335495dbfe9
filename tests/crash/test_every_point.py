"""Prefill killed with -9 before each of its durable operations, and in the middle of each write.

After each kill an independent checker reads the volume, the probe must not take torn for whole,
nothing that was published may have changed, and one clean run must end with nothing left to do.
Fills, publishes and restores alone are killed in tests/volume; here it is the pipeline's turn.
"""

import functools
import itertools
import os
import sys
import tempfile
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent.parent / "support"), str(Path(__file__).parent)]

import pods
import runs
import volumes

from warmer import families, prefill
from warmer.fill import kernels

TORN = pytest.mark.parametrize("torn", [False, True], ids=["before", "torn"])


@pytest.fixture(scope="module")
def every(tmp_path_factory):
    """As many sites as kills are done at a time."""
    top = tmp_path_factory.mktemp("crash")
    # Nothing here cuts the power: in memory the thousands of flushes cost nothing.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with (
        pytest.MonkeyPatch.context() as patched,
        tempfile.TemporaryDirectory(prefix="warmer-crash-", dir=memory) as sites,
    ):
        engine = pods.gpu_engine(f"{top}/engine", patched)
        # One shared kind is killed as the other is.
        jit = tuple(family for family in families.FAMILIES if family.kind != "flashinfer")
        patched.setattr(families, "FAMILIES", jit)
        yield [
            pods.Site(f"{sites}/{number}", engine) for number in range(max(2, min(4, pods.CPUS)))
        ]


@pytest.fixture
def sites(every):
    for site in every:
        site.clear()
    return every


def survive(sites, pod, action, *, torn=False):
    """Kill `action` at every point, each time from what the sites hold now.

    Args:
        sites: where; one kill at a time on each.
        pod: called with a site, the pod that runs cleanly after each kill.
        action: called with the site, and with what counts points from then on when called.
        torn: only writes are points, and each is cut in half.

    Yields:
        The site after each kill, in the order of the points.
    """
    for site in sites:
        site.save()
    points = itertools.count(1)
    killed = sites
    while len(killed) == len(sites):
        before = [site.put_back() for site in sites]
        arms = [functools.partial(volumes._arm, next(points), torn=torn) for _ in sites]
        children = [
            pods.fork(functools.partial(action, site, arm))
            for site, arm in zip(sites, arms, strict=True)
        ]
        dead = [pods.wait(child) for child in children]
        killed = [site for site, hit in zip(sites, dead, strict=True) if hit]
        between = [site.published() for site in sites]
        for site, old, new in zip(sites, before, between, strict=True):
            assert old <= new, "a kill changed what is published"
            runs.eventually(lambda site=site: not pod(site).held())
        yield from killed
        pods.join(*[pods.fork(pod(site).clean) for site in sites])
        for site, old in zip(sites, between, strict=True):
            assert old <= site.clean(), "the next run changed what is published"
    assert next(points) > 2 * len(sites), "nothing was ever killed"


@TORN
def test_a_fill_of_weights_killed_anywhere_is_finished_by_the_next(sites, torn):
    def pod(site):
        return site.pods[0].but(compile="never")

    def fill(site, arm):
        arm()
        pod(site).prefill()

    counts = [len(site.generations("weights")) for site in survive(sites, pod, fill, torn=torn)]
    # Connections race: how many operations come before the publish is not the same every time.
    assert set(counts) == {0, 1}
    assert (counts[0], counts[-1]) == (0, 1)
    print(f"{len(counts)} kills")


def second(site):
    return site.pods[1]


@pytest.fixture
def rivals(sites):
    """Sites where the second model's kernels are missing, and a rival's wait to be published."""
    for site in sites:
        pods.run(site.pods[0].prefill, second(site).but(compile="never").prefill)
        pods.run(site.pods[2].prefill)
        os.rename(site.generations("jit")[1], f"{site.volume}/theirs")
        site.new_pod()
    return sites


def test_a_build_killed_anywhere_before_its_engine_runs_is_done_by_the_next(rivals):
    def prepare(site, arm):
        arm()
        kernels.engine.run = lambda **_: os._exit(0)
        second(site).prefill()

    kills = 0
    for site in survive(rivals, second, prepare):
        assert (len(site.generations("compile")), len(site.generations("jit"))) == (2, 1)
        kills += 1
    print(f"{kills} kills")


@TORN
def test_a_publish_killed_anywhere_after_another_pod_published_loses_nothing(rivals, torn):
    """What the engine built is merged with a generation that appeared while it ran."""

    def publish(site, arm):
        run = kernels.engine.run

        def overtaken(**how):
            done = run(**how)
            arm()
            os.rename(f"{site.volume}/theirs", f"{os.path.dirname(site.generations('jit')[0])}/2")
            return done

        kernels.engine.run = overtaken
        second(site).prefill()

    states = []
    for site in survive(rivals, second, publish, torn=torn):
        generations = site.generations("jit")
        states.append((len(site.generations("compile")), len(generations)))
        for one, after in itertools.pairwise(generations):
            assert pods.manifest(one).items() < pods.manifest(after).items()
    assert states == sorted(states)
    # Before theirs appeared, before and after both were merged, after all was published.
    assert set(states) - {(2, 1)} == {(2, 2), (2, 3), (3, 3)}
    print(f"{len(states)} kills")


def test_a_quarantine_killed_anywhere_is_finished_by_the_next_prefill(sites):
    for site in sites:
        pods.run(second(site).prefill)
        (site.damaged,) = site.generations("compile")
        runs.flip(f"{site.damaged}/tree.tar.zst")
        site.new_pod()

    def quarantine(site, arm):
        look = prefill.again

        def over(situation):  # the look at what is left
            look(situation)
            os._exit(0)

        prefill.again = over
        arm()
        second(site).but(compile="never").prefill()

    states = []
    for site in survive(sites, second, quarantine):
        moved = runs.listing(f"{site.volume}/v1/quarantine")
        assert len(moved) + os.path.exists(site.damaged) == 1, "it is in one of two places"
        states.append(len(moved))
    assert states == sorted(states)
    assert set(states) == {0, 1}
    print(f"{len(states)} kills")


@TORN
@pytest.mark.parametrize("used", [False, True], ids=["new", "used"])
def test_a_restore_and_handoff_killed_anywhere_is_never_half_believed(sites, torn, used):
    """A pod on a warm volume, in a new warm dir or where another model was handed off before."""
    for site in sites:
        pods.run(site.pods[0].prefill, second(site).prefill, site.pods[0].prefill)
        if not used:
            site.new_pod()

    def restore(site, arm):
        arm()
        second(site).prefill()

    states = []
    for site in survive(sites, second, restore, torn=torn):
        states.append(["one", None, "two"].index(second(site).believed()))
    assert states == sorted(states)
    assert set(states) == ({0, 1, 2} if used else {1, 2})
    print(f"{len(states)} kills")
