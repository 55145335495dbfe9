"""Two GPU architectures and two vLLM versions share one volume without touching each other."""

import dataclasses
import itertools
import json
import os
import shutil
import sys
from collections import Counter
from typing import NamedTuple

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import aging
import fakeengine
import runs
import volumes

KERNELS = ("compile", "flashinfer", "jit")
GPUS = {"hopper": ("NVIDIA H200", "9.0"), "ada": ("NVIDIA L4", "8.9")}
VERSIONS = ("0.31.0", "0.32.0")
# Of what a handoff sets, vLLM hashes these until 0.32.
HASHED_ONCE = {
    "env.VLLM_CONFIG_ROOT",
    "env.VLLM_FLASHINFER_AUTOTUNE_CACHE_DIR",
    "env.VLLM_XLA_CACHE_PATH",
}
FLEETS = tuple(itertools.product(GPUS, VERSIONS))
FIRST, *OTHERS = FLEETS
# Each process sees its fleet's image and a warm dir of its own at the paths that all have.
OWN = 'mount --bind "$1" "$2" && mount --bind "$3" "$4" && shift 4 && exec "$@"'

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="bind mounts are root's"),
    pytest.mark.skipif(os.path.exists("/dev/nvidiactl"), reason="NVML knows the GPU that is here"),
]


@dataclasses.dataclass
class Pod:
    """A pod of a fleet: what differs from others is what its vLLM and its nvidia-smi say.

    Attributes:
        place: the volume, and the paths of the engine and the warm dir as each pod sees them.
        fleet: its GPU and its version.
        own: its warm dir, as it is seen from outside.
    """

    place: runs.Place
    fleet: tuple[str, str]
    own: str

    @property
    def engine(self):
        """The engine of its fleet, as it is seen from outside."""
        top = image(self.place, self.fleet)
        return self.place.engine._replace(top=top)

    def under(self):
        there = (self.own, self.place.warm, self.engine.top, self.place.engine.top)
        return {
            "prefix": ("unshare", "-m", "sh", "-c", OWN, "sh", *there),
            "env": {"PATH": f"{self.place.engine.bin}:{os.defpath}"},
        }

    def start(self, verb, *options, **more):
        return self.place.start(verb, *options, **self.under(), **more)

    def run(self, verb, *options, **more):
        return runs.finish(self.start(verb, *options, **more), timeout=60)

    def warmed(self, **more):
        return warm(self.run("prefill", "--json", **more))

    def handed(self, *kinds):
        """The (kind, key) of each piece of these kinds, by default kernels, that it was handed."""
        with open(f"{self.own}/handoff/handoff.json", encoding="utf-8") as stream:
            pieces = json.load(stream)["pieces"]
        return {(p["kind"], p["key"]) for p in pieces if p["kind"] in (kinds or KERNELS)}

    def tree(self):
        """What its server would load: path → bytes and time."""
        found = {}
        for kind in KERNELS:
            for at, _, names in os.walk(f"{self.own}/cache/{kind}"):
                for path in (os.path.join(at, name) for name in names):
                    if "lock" not in path.removeprefix(self.own) and "/tmp_" not in path:
                        with open(path, "rb") as stream:
                            found[os.path.relpath(path, self.own)] = (
                                stream.read(),
                                os.stat(path).st_mtime_ns,
                            )
        return found


class Turn(NamedTuple):
    """One fleet's first prefill, and all that was published before and after it."""

    pod: Pod
    before: dict
    after: dict


class Filled(NamedTuple):
    """A volume that four fleets filled in turn, and a copy from when one had."""

    place: runs.Place
    turns: list[Turn]
    fetched: list[str]
    builds: dict
    by_one: str

    @property
    def pods(self):
        return {turn.pod.fleet: turn.pod for turn in self.turns}


def image(place, fleet):
    return f"{place.top}/images/{'-'.join(fleet)}"


def warm(result):
    assert (result.code, result.json["warm"]) == (0, True), result
    return result


def builds(place):
    """How often each fleet's engine was started so far."""
    return {fleet: len(Pod(place, fleet, "").engine.starts) for fleet in FLEETS}


def since(place, before):
    """Name the fleets whose engine was started since, as often as it was."""
    return Counter(builds(place)) - Counter(before)


def pod(place, fleet, top):
    own = os.path.join(top, f"pod-{len(runs.listing(top))}")
    os.mkdir(own)
    return Pod(place, fleet, own)


def pieces(names):
    """Name the (kind, key) of files in the words of `runs.published`."""
    return {tuple(name.split("/")[:2]) for name in names}


def holdings(volume):
    """Read what every published generation says it holds: path → sha256."""
    found = {}
    for kind, key, number in volumes.assert_invariants(volume, clean=True):
        top = f"{volume}/v1/pieces/{kind}/{key}/{number}"
        listing = "seal.json" if kind == "weights" else "manifest.json"
        with open(f"{top}/{listing}", encoding="utf-8") as stream:
            files = json.load(stream)["files"]
        named = (file for file in files if file["path"] != "key.json")
        found[kind, key, number] = {file["path"]: file["sha256"] for file in named}
    return found


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    with runs.place(tmp_path_factory.mktemp("place")) as bare:
        place, at = bare, f"{bare.top}/cuda"
        os.makedirs(f"{place.top}/images")
        os.mkdir(f"{place.top}/pods")
        for gpu, version in FLEETS:
            told = ", ".join(GPUS[gpu])
            how = {"torch": "2.13.0+cu130", "cuda": "13.0", "gpu": told}
            place = bare.but(engine=fakeengine.make_engine(at, version=version, **how))
            os.rename(at, image(place, (gpu, version)))
        os.mkdir(at)
        turns = []
        for fleet in FLEETS:
            before = runs.published(place.volume)
            one = pod(place, fleet, f"{place.top}/pods")
            one.warmed()
            turns.append(Turn(one, before, runs.published(place.volume)))
            if fleet == FIRST:
                shutil.copytree(place.volume, f"{place.top}/by-one", symlinks=True)
        yield Filled(place, turns, place.fetched(), builds(place), f"{place.top}/by-one")


@pytest.fixture
def place(filled, tmp_path):
    """A copy of the volume that all four filled."""
    shutil.copytree(filled.place.volume, tmp_path / "volume", symlinks=True)
    return filled.place.but(volume=str(tmp_path / "volume"))


def files_of(place):
    return sorted(os.listdir(f"{place.hub.root}/{runs.REPO}"))


def test_four_fleets_in_turn_build_once_each_under_keys_of_their_own(filled):
    assert filled.builds == dict.fromkeys(FLEETS, 1)
    assert filled.fetched == files_of(filled.place), "weights once, for all of them"
    for turn in filled.turns:
        assert turn.before.items() < turn.after.items(), "what others published is as it was"
        first = turn.pod.fleet == FIRST
        mine = turn.pod.handed(*KERNELS, *(("weights",) if first else ()))
        assert pieces(turn.after.keys() - turn.before.keys()) == mine
        assert len(mine) == len(KERNELS) + first
        gpu, version = turn.pod.fleet
        for kind, key in turn.pod.handed():
            path = f"{filled.place.volume}/v1/pieces/{kind}/{key}/1/key.json"
            with open(path, encoding="utf-8") as stream:
                factors = json.load(stream)["factors"]
            assert (factors["hardware.name"], factors["hardware.capability"]) == GPUS[gpu]
            assert factors["engine.vllm"] == version
    kernels = [key for turn in filled.turns for key in turn.pod.handed()]
    assert len(set(kernels)) == len(kernels) == len(FLEETS) * len(KERNELS)
    assert len({key for turn in filled.turns for key in turn.pod.handed("weights")}) == 1


def test_a_second_pod_of_each_fleet_builds_nothing_and_gets_the_bytes_of_its_own(
    filled, place, tmp_path
):
    first = {fleet: one.tree() for fleet, one in filled.pods.items()}
    for one, other in itertools.combinations(FLEETS, 2):
        assert first[one].keys() == first[other].keys()
        assert not [path for path in first[one] if first[one][path][0] == first[other][path][0]], (
            "or nobody could tell whose they are"
        )
    before, started = runs.published(place.volume), builds(place)
    asked = len(place.hub.requests)
    (tmp_path / "pods").mkdir()
    seconds = [pod(place, fleet, tmp_path / "pods") for fleet in FLEETS]
    for second in seconds:
        second.warmed()
        assert second.tree() == first[second.fleet]
        assert second.handed() == filled.pods[second.fleet].handed()
    assert since(place, started) == {}
    assert len(place.hub.requests) == asked
    assert runs.published(place.volume) == before
    for second in seconds:
        proof = warm(second.run("prefill", "--json", "--prove")).json["proof"]
        assert proof["cache"] == "hit", "its engine takes them for what it would make"


def test_four_fleets_at_once_leave_what_four_in_turn_leave(filled, tmp_path):
    for name in ("volume", "pods"):
        (tmp_path / name).mkdir()
    place = filled.place.but(volume=str(tmp_path / "volume"))
    asked, started = len(place.hub.requests), builds(place)
    slow = place.hub.fault(r"\.safetensors$", rate=20_000)
    every = [pod(place, fleet, tmp_path / "pods") for fleet in FLEETS]
    running = [one.start("prefill", "--json") for one in every]
    for one in every:  # it has looked, and found no weights
        runs.eventually(lambda one=one: os.path.exists(f"{one.own}/handoff/plan.json"), 60)
    assert place.generations("weights") == []
    slow.times, slow.rate = 0, 1e9
    for process in running:
        warm(runs.finish(process, timeout=120))
    place.hub.faults.clear()
    assert place.fetched(asked) == files_of(place)
    assert since(place, started) == dict.fromkeys(FLEETS, 1)
    assert (place.staged(), place.held()) == ([], [])
    assert holdings(place.volume) == holdings(filled.place.volume)
    for one in every:
        mine, theirs = one.tree(), filled.pods[one.fleet].tree()
        assert {path: data for path, (data, _) in mine.items()} == {
            path: data for path, (data, _) in theirs.items()
        }


@pytest.mark.parametrize("fleet", OTHERS, ids="-".join)
def test_a_plan_on_the_volume_of_another_fleet_names_what_differs(filled, tmp_path, fleet):
    place = filled.place.but(volume=filled.by_one)
    before = runs.published(place.volume)
    result = pod(place, fleet, tmp_path).run("plan", "--json")
    assert result.code == 1, result
    expected = {}
    (gpu, version), (its_gpu, its_version) = fleet, FIRST
    if version != its_version:
        expected["engine.vllm"] = (version, its_version)
    if gpu != its_gpu:
        (name, capability), (its_name, its_capability) = GPUS[gpu], GPUS[its_gpu]
        expected["hardware.name"] = (name, its_name)
        expected["hardware.capability"] = (capability, its_capability)
        expected["env.TORCH_CUDA_ARCH_LIST"] = (capability, its_capability)
    steps = result.json["steps"]
    assert [(s["kind"], s["action"], s["verdict"]) for s in steps] == [
        (kind, "build", "absent") for kind in KERNELS
    ]
    for step in steps:
        told = {d["factor"]: (d["wanted"], d["held"]) for d in step["nearest"]["differences"]}
        assert expected.items() <= told.items()
        hashed = step["kind"] == "compile" and version != its_version
        assert told.keys() - expected.keys() == (HASHED_ONCE if hashed else set())
        causes = [factor for factor in told if not factor.startswith(("argv.", "env."))]
        assert causes
        assert all(factor in step["reason"] for factor in causes[:4])
    assert runs.published(place.volume) == before


@pytest.mark.parametrize("kind", KERNELS)
def test_a_corrupt_piece_is_set_aside_and_built_again_by_its_own_fleet_alone(
    filled, place, tmp_path, kind
):
    hurt = filled.pods[FIRST]
    ((_, key),) = hurt.handed(kind)
    runs.flip(f"{place.volume}/v1/pieces/{kind}/{key}/1/tree.tar.zst")
    before, started = runs.published(place.volume), builds(place)
    aside = f"{place.volume}/v1/quarantine"
    (tmp_path / "pods").mkdir()
    for fleet in OTHERS:
        one = pod(place, fleet, tmp_path / "pods")
        one.warmed()
        assert one.tree() == filled.pods[fleet].tree()
    assert (since(place, started), runs.listing(aside)) == ({}, [])
    assert runs.published(place.volume) == before

    again = pod(place, FIRST, tmp_path / "pods")
    again.warmed()
    (moved,) = runs.listing(aside)
    assert moved.startswith(f"{kind}-{key}-1-")
    assert since(place, started) == {FIRST: 1}
    after = runs.published(place.volume)
    stay = {name: how for name, how in before.items() if not name.startswith(f"{kind}/{key}/1/")}
    assert stay.items() < after.items()
    assert pieces(after.keys() - stay.keys()) <= hurt.handed(), "it published under its keys alone"
    assert again.handed() == hurt.handed()

    for fleet in FLEETS:
        pod(place, fleet, tmp_path / "pods").warmed()
    assert since(place, started) == {FIRST: 1}
    assert runs.listing(aside) == [moved]
    volumes.assert_invariants(place.volume, clean=True)


def test_whoever_runs_gc_lists_nothing_that_a_live_pod_of_another_fleet_uses(place, tmp_path):
    serving, young, *gone = (pod(place, fleet, tmp_path) for fleet in FLEETS)
    started = builds(place)
    for one in gone:
        one.warmed()
    serving.warmed(serve=(*runs.SERVE, "--port", str(runs.closed_port())))
    assert since(place, started) == {}, "where it listens is no matter of kernels"
    under = serving.under()
    argv = [*under["prefix"], f"{place.warm}/handoff/serve"]
    server = runs.spawn(argv, place.env(under["env"]))
    try:
        said = list(itertools.takewhile(lambda line: "startup complete" not in line, server.stdout))
        assert [line for line in said if "Directly load AOT" in line], said
        assert server.poll() is None
        aging.age_all(place.volume, 400)
        young.warmed()
        before = runs.published(place.volume)
        dry = ("gc", "--volume", place.volume, "--dry-run", "--json")
        anybody = [{"prefix": (), "env": {}}, *(one.under() for one in (serving, young, *gone))]
        for how in anybody:
            process = runs.spawn([*how["prefix"], *runs.WARMER, *dry], place.env(how["env"]))
            result = runs.finish(process)
            assert result.code == 0, result
            hidden = {(s["kind"], s["key"]) for s in result.json["steps"] if s["action"] == "hide"}
            assert hidden == gone[0].handed() | gone[1].handed()
            why = {(k["kind"], k["key"]): k["reason"] for k in result.json["kept"]}
            assert why.keys() == serving.handed("weights") | serving.handed() | young.handed()
            assert all(why[piece].startswith("used by a server that") for piece in serving.handed())
            assert all(why[piece].startswith("used by ") for piece in young.handed())
        assert runs.published(place.volume) == before
    finally:
        server.terminate()
        server.communicate()
