"""A first pod builds nothing, its server does, and the sidecar makes the next pod warm."""

import itertools
import json
import os
import shutil
import signal
import sys
import threading
from pathlib import Path

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import beside
import fakeengine
import runs
import volumes


@pytest.fixture
def pod(tmp_path):
    """A pod with a GPU, so that there are shared kinds too."""
    with runs.place(tmp_path) as place:
        cuda = fakeengine.make_engine(tmp_path / "cuda", torch="2.13.0+cu130", cuda="13.0")
        path = f"{cuda.bin}:{os.defpath}"
        yield Gpu(place.but(engine=cuda), path)


class Gpu(beside.Pod):
    """The same with an nvidia-smi on the path of its prefill."""

    def __init__(self, place, path, port=None):
        super().__init__(place, port)
        self.path = path

    def prefill(self, *options, **more):
        return super().prefill(*options, env={"PATH": self.path} | more.pop("env", {}), **more)

    def anew(self, port=None):
        other = super().anew(port)
        return Gpu(other.place, self.path, other.port)


def seal(directory):
    return json.loads(Path(directory, "seal.json").read_bytes())


def members(directory):
    manifest = json.loads(Path(directory, "manifest.json").read_bytes())
    return {file["path"] for file in manifest["files"]}


def test_a_first_pod_runs_no_engine_and_hands_off_empty_trees_at_the_keys_paths(pod):
    plan = pod.place.run(
        "plan", "--json", "--compile", "harvest", env={"PATH": pod.path}, serve=runs.SERVE
    ).json
    assert set(plan["without"]) == set(beside.KERNELS)
    assert all("harvest" in why for why in plan["without"].values())
    done = pod.prefill()
    assert (done["left"], pod.place.engine.starts) == ([], [])
    assert set(done["without"]) == set(beside.KERNELS)
    env = pod.place.handoff()["env"]
    for kind in beside.KERNELS:
        assert os.listdir(f"{pod.place.warm}/cache/{kind}") == []
        assert any(v.startswith(f"{pod.place.warm}/cache/{kind}/") for v in env.values()), kind
    checked = pod.place.run("check", "--json")
    assert (checked.code, checked.json["warm"]) == (0, True)
    assert pod.prefill()["left"] == [], "the second time too"


def test_the_next_pod_restores_what_the_first_ones_server_built_and_builds_nothing(pod):
    pod.prefill()
    with pod.server() as server:
        before = pod.tree()
        with pod.sidecar() as sidecar:
            sidecar.says("harvested", '"compile": 1', '"flashinfer": 1', '"jit": 1')
            assert server.poll() is None
        assert pod.tree() == before, "the live trees are untouched"
    assert (pod.place.staged(), pod.place.held()) == ([], [])
    assert not os.path.exists(f"{pod.place.warm}/harvest")
    (generation,) = pod.harvested()
    record = seal(generation)
    assert (record["source"], record["needs"]) == ("harvest", {"flashinfer": 1, "jit": 1})
    later = pod.anew()
    done = later.prefill()
    assert done["warm"] is True
    assert set(later.place.verdicts().values()) == {"sealed"}
    with later.server(modes="") as server:
        before = later.tree()
        with later.sidecar() as sidecar:
            sidecar.says("nothing to harvest")
        server.terminate()
        out, _ = server.communicate()
    assert "Directly load AOT compilation" in out
    assert "Starting torch.compile" not in out
    assert later.tree() == before
    assert len(later.harvested()) == 1


def test_compiled_code_and_tuning_of_one_rank_alone_are_not_harvested(pod):
    pod.prefill(serve=(*beside.serving(pod.port), "--tensor-parallel-size", "2"))
    with pod.server(modes="unsaved=1"), pod.sidecar() as sidecar:
        sidecar.says("compiled code is not there of every rank", "rank 1")
        sidecar.says("harvested", '"jit": 1')
    assert pod.harvested() == []
    (shared,) = pod.harvested("flashinfer")
    assert not any("autotune" in path for path in members(shared))


def test_what_a_second_model_adds_is_merged_with_what_is_published(pod):
    pod.prefill("--compile", "run")
    other = Gpu(pod.place.but(model=pod.place.pinned(runs.OTHER)), pod.path).anew()
    other.prefill()
    with other.server(modes="op=another"), other.sidecar() as sidecar:
        sidecar.says("harvested", '"jit": 2', '"flashinfer": 2', '"compile": 1')
    first, second = other.harvested("jit")
    assert members(first) < members(second)
    assert {Path(path).name for path in members(second)} == {"op.so", "another.so"}
    assert len(other.harvested("compile")) == 2, "two models, a generation each"


def test_what_another_pod_published_meanwhile_is_kept_and_the_live_tree_is_not(pod):
    pod.prefill()
    with pod.server(modes="op=mine"):
        before = pod.tree()
        # Another model's pod publishes an operation between this server's start and its harvest.
        aside = pod.place.but(warm=f"{pod.place.top}/elsewhere", model=pod.place.pinned(runs.OTHER))
        os.mkdir(aside.warm)
        script = 'mount --bind "$1" "$2" && shift 2 && exec "$@"'
        if os.geteuid() != 0:
            pytest.skip("bind mounts are root's")
        there = ("unshare", "-m", "sh", "-c", script, "sh", aside.warm, pod.place.warm)
        inside = pod.place.but(model=aside.model)
        done = inside.run(
            "prefill", "--json", env={"PATH": pod.path, "FAKE_ENGINE": "op=theirs"}, prefix=there
        )
        assert done.code == 0, done
        with pod.sidecar() as sidecar:
            sidecar.says("harvested", '"jit": 2')
        assert pod.tree() == before
    assert {Path(path).name for path in members(pod.harvested("jit")[1])} == {
        "mine.so",
        "theirs.so",
    }


def test_two_sidecars_that_harvest_one_key_publish_it_once(pod):
    if os.geteuid() != 0:
        pytest.skip("bind mounts are root's")
    pod.prefill()
    with pod.server():
        # The same warm dir at the same path, and a copy of it bound there for the second sidecar.
        script = 'mount --bind "$1" "$2" && rm -f "$2/sidecar.lock" && shift 2 && exec "$@"'
        twin = f"{pod.place.top}/twin"
        shutil.copytree(pod.place.warm, twin, symlinks=True)
        os.unlink(f"{twin}/server.json")
        os.link(f"{pod.place.warm}/server.json", f"{twin}/server.json")
        there = ("unshare", "-m", "sh", "-c", script, "sh", twin, pod.place.warm)
        with pod.sidecar() as one, pod.sidecar(prefix=there) as two:
            for sidecar in (one, two):
                runs.eventually(
                    lambda s=sidecar: s.events("harvested") or s.events("nothing to harvest"), 30
                )
    for kind in beside.KERNELS:
        assert len(pod.harvested(kind)) == 1, kind
    assert pod.place.held() == []
    volumes.assert_invariants(pod.place.volume, warm=[pod.place.warm, twin], clean=True)


def test_kernels_that_come_later_are_the_next_generation(pod):
    pod.prefill()
    with pod.server(), pod.sidecar() as sidecar:
        sidecar.says("harvested", '"compile": 1')
        second = beside.Sidecar(pod.place, ())
        assert second.process.wait(20) == 3, "one sidecar in each pod"
        late = Path(pod.place.warm, "cache/compile/inductor/late/artifact")
        late.parent.mkdir(parents=True)
        late.write_bytes(b"built at a request")
        sidecar.says("harvested", '"compile": 2')
        sidecar.process.kill()
        late.with_name("other").write_bytes(b"built at another")
        with pod.sidecar() as successor:
            successor.says("harvested", '"compile": 3')
    first, second, _ = pod.harvested()
    assert members(second) - members(first) == {"inductor/late/artifact"}


def test_a_server_that_was_warm_and_adds_kernels_is_harvested_too(pod):
    pod.prefill("--compile", "run")
    with pod.server(modes="op=new"), pod.sidecar() as sidecar:
        (done,) = sidecar.says("harvested", '"jit": 2')
    assert "compile" not in done, "nothing was added to it"
    assert seal(pod.harvested("jit")[1])["source"] == "harvest offline"


def test_only_the_first_server_in_a_warm_dir_is_harvested_until_a_prefill_makes_it_anew(pod):
    pod.prefill()
    half = Path(pod.place.warm, "cache/compile/inductor/half.so")
    with pod.sidecar() as sidecar:
        with pod.server("--max-num-seqs", "4", env={"TRITON_FOO": "PLANTED"}):
            sidecar.says("not harvesting", "2 further arguments")
            half.write_bytes(b"half of what would have been")  # it is killed in the middle of it
        with pod.server():  # the kubelet starts the container again
            sidecar.says("not harvesting", "may have torn what it wrote")
        assert pod.harvested() == []
        pod.prefill()
        assert not half.exists()
        with pod.server():
            sidecar.says("harvested", '"compile": 1')
        assert "PLANTED" not in Path(sidecar.log).read_text()
    assert "inductor/half.so" not in members(pod.harvested()[0])


def test_a_prefill_beside_a_running_server_leaves_its_start_the_first(pod):
    pod.prefill("--compile", "run")
    pod.prefill("--compile", "harvest")
    with pod.server(modes="op=late"):
        tree = pod.tree()
        pod.prefill("--compile", "harvest")
        assert pod.tree() == tree
        with pod.sidecar() as sidecar:
            sidecar.says("harvested", '"jit": 2')


def test_what_a_killed_build_has_left_is_no_servers(pod):
    pod.prefill()
    engine = pod.place.engine
    slow = pod.place.start(
        "prefill",
        env={"PATH": pod.path, "FAKE_ENGINE": "spoil,slow=60"},
        serve=beside.serving(pod.port),
    )
    torn = Path(pod.place.warm, "cache/jit/tvm_ffi/half.so")
    runs.eventually(torn.exists, 20)
    runs.kill(slow)
    assert engine.starts
    with pod.server(), pod.sidecar() as sidecar:  # by the handoff that is still there
        sidecar.says("not harvesting", "no handoff yet, or a prefill is at work")
    assert pod.harvested("jit") == []


@pytest.mark.parametrize(
    ("other", "why"),
    [("triton-3.6.0.dist-info", "package.triton 3.6.0"), ("", "package.triton None")],
)
def test_a_server_of_another_image_is_not_harvested(pod, other, why):
    pod.prefill()
    theirs = Path(pod.place.engine.site, "triton-3.5.0.dist-info")
    theirs.rename(theirs.with_name(other or "gone"))
    with pod.server(), pod.sidecar() as sidecar:
        sidecar.says("not harvesting", f"the server has {why}, the compile key has 3.5.0")
    assert pod.harvested() == []


def test_a_server_that_the_handoff_did_not_start_is_not_harvested(pod):
    pod.prefill()
    with pod.sidecar() as sidecar:
        sidecar.says("not harvesting", "no server has been started")
        with pod.server():
            sidecar.says("harvested")
        sidecar.says("not harvesting", "no server runs that was started")
    published = runs.published(pod.place.volume)
    argv = [
        pod.place.engine.vllm,
        "serve",
        pod.place.handoff()["model_path"],
        *beside.serving(pod.port),
    ]
    env = pod.place.handoff()["env"] | {"FAKE_ENGINE": "op=stranger"}
    process = runs.spawn(argv, env)
    try:
        runs.eventually(lambda: beside.healthy(pod.port))
        with pod.sidecar() as sidecar:
            sidecar.says("not harvesting", "no server runs that was started")
    finally:
        runs.kill(process)
    assert runs.published(pod.place.volume) == published


def test_a_tree_that_changes_all_the_time_is_never_harvested(pod):
    pod.prefill()
    stop = threading.Event()
    busy = Path(pod.place.warm, "cache/compile/inductor/busy")

    def write():
        count = 0
        while not stop.wait(0.05):
            count += 1
            busy.parent.mkdir(exist_ok=True)
            busy.write_bytes(b"x" * (count % 7))

    writer = threading.Thread(target=write)
    with pod.server():
        writer.start()
        try:
            with pod.sidecar() as sidecar:
                looks = lambda: busy.exists() and busy.stat().st_atime_ns  # noqa: E731
                assert runs.eventually(looks)
                with pytest.raises(AssertionError):
                    sidecar.says("harvested", timeout=4)
                assert sidecar.events("nothing to harvest") == []
        finally:
            stop.set()
            writer.join()
        assert pod.harvested() == []
        with pod.sidecar() as sidecar:
            sidecar.says("harvested")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_in_a_harvest_leaves_nothing_that_the_next_does_not_mend(pod, signum):
    pod.prefill()
    big = Path(pod.place.warm, "cache/compile/inductor/big")
    with pod.server():
        big.write_bytes(os.urandom(64 << 20))
        before = pod.tree()
        with pod.sidecar() as sidecar:
            runs.eventually(lambda: [s for s in pod.place.staged() if "/compile-" in s], 30)
            sidecar.process.send_signal(signum)
            code = sidecar.process.wait(10)
        assert code == (143 if signum == signal.SIGTERM else -signal.SIGKILL)
        assert pod.harvested("compile") == []
        if signum == signal.SIGTERM:
            assert (pod.place.staged(), pod.place.held()) == ([], [])
            assert not os.path.exists(f"{pod.place.warm}/harvest")
        assert pod.tree() == before
        with pod.sidecar() as sidecar:
            sidecar.says("harvested", '"compile": 1', timeout=60)
        assert pod.tree() == before
    assert pod.place.held() == []
    assert not os.path.exists(f"{pod.place.warm}/harvest")
    volumes.assert_invariants(pod.place.volume, warm=[pod.place.warm], clean=True)
    assert pod.anew().prefill()["warm"] is True


def test_what_another_pod_compiled_since_stands(pod):
    pod.prefill()
    with pod.server():
        with pod.sidecar() as sidecar:
            sidecar.says("harvested", '"compile": 1')
        lost, *_ = Path(pod.place.warm, "cache/compile/inductor/fxgraph").rglob("artifact")
        lost.rename(lost.with_name("other"))  # as a server of another day would name it
        with pod.sidecar() as sidecar:
            sidecar.says("nothing to harvest")
    assert len(pod.harvested()) == 1


def test_what_a_build_run_completed_keeps_no_server_from_adding_kernels(pod):
    pod.prefill("--compile", "run")
    with pod.server():
        tree = Path(pod.place.warm, "cache/compile")
        (tree / "answer.json").unlink()  # as it is in a pod that was cold when its server began
        (tree / "vllm/more.so").write_bytes(b"kernel")
        with pod.sidecar() as sidecar:
            sidecar.says("harvested", '"compile": 2')


def test_a_server_is_kept_offline_only_where_its_kernels_were_built_so(pod):
    pod.prefill()
    assert "HF_HUB_OFFLINE" not in pod.place.handoff()["env"]
    with pod.server(), pod.sidecar() as sidecar:
        sidecar.says("harvested")
    later = pod.anew()
    assert later.prefill("--compile", "run")["warm"] is True
    assert "HF_HUB_OFFLINE" not in later.place.handoff()["env"], "nothing has shown that it may"


def test_gc_knows_that_the_pod_uses_what_its_sidecar_publishes(pod):
    pod.prefill()
    records = [json.loads(p.read_text()) for p in Path(pod.place.volume, "v1/uses").glob("*.json")]
    (record,) = records
    found = {piece["kind"]: piece["generation"] for piece in record["pieces"]}
    assert found == {"weights": 1} | dict.fromkeys(beside.KERNELS, 0)


def test_a_file_that_holds_a_secret_is_not_published_nor_a_reason_to_publish(pod):
    pod.prefill()
    with pod.server():
        leak = Path(pod.place.warm, "cache/compile/inductor/leak.json")
        leak.write_text('{"key": "sk-planted-planted"}')
        before = pod.tree()
        env = {"VLLM_API_KEY": "sk-planted-planted"}
        with pod.sidecar(env=env) as sidecar:
            sidecar.says("harvested", '"compile": 1')
        with pod.sidecar(env=env) as sidecar:
            sidecar.says("nothing to harvest")
        assert pod.tree() == before
    (generation,) = pod.harvested()
    assert "inductor/leak.json" not in members(generation)
    assert len(members(generation)) > 1


def test_what_crashed_the_engine_is_built_upon_by_nobody_and_replaced_by_what_an_empty_tree_gives(
    pod,
):
    pod.prefill("--compile", "run", env={"FAKE_ENGINE": "poison"})
    keys = {p["kind"]: p["key"] for p in pod.place.handoff()["pieces"]}
    told = Path(pod.place.volume, "v1/crashes")
    handed = pod.anew()
    handed.prefill()
    poison = Path(pod.place.warm, "cache/compile/vllm/poison.so")
    assert poison.exists()
    poison.unlink()  # the server that is beside this sidecar had the luck to start
    for other in Path(pod.place.warm, "cache").rglob("poison.so"):
        other.unlink()
    with pod.server(modes="op=late"):
        runs.eventually(lambda: not runs.listing(f"{pod.place.warm}/starts"))  # or it acquits them
        for kind, start in itertools.product(beside.KERNELS, "ab"):
            (told / f"{kind}-{keys[kind]}-1.{start * 16}").touch()
        with pod.sidecar() as sidecar:
            sidecar.says("nothing to harvest")
    empty = handed.anew()
    assert set(empty.prefill()["without"]) == set(beside.KERNELS)
    with empty.server(), empty.sidecar() as sidecar:
        sidecar.says("harvested", '"compile": 2', '"jit": 2')
    assert not any(path.endswith("poison.so") for path in members(empty.harvested()[1]))
    assert empty.anew().prefill("--compile", "never")["warm"] is True
