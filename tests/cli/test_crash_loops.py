"""No crash loop survives a kernel that crashes the engine at load: it is told, retired and rebuilt."""

import json
import os
import shutil
import signal
import sys
import urllib.request
from contextlib import contextmanager

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import fakeengine
import runs
import volumes

ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="mounts filesystems, as root alone may")
TWICE = "these kernels crashed the engine at load twice: starting without them"
ONCE = "warmer: a start crashed: now without imports"


@pytest.fixture
def place(tmp_path):
    """A pod whose compiled kernels crash every engine that loads them."""
    with runs.place(tmp_path) as place:
        place.warmed(env={"FAKE_ENGINE": "poison"})
        yield place


@pytest.fixture
def gpu(tmp_path):
    """A pod with a GPU: it has kernels that models share."""
    with runs.place(tmp_path) as place:
        cuda = fakeengine.make_engine(tmp_path / "cuda", torch="2.13.0+cu130", cuda="13.0")
        yield place.but(engine=cuda)


def on_gpu(place, mode=""):
    return {"PATH": f"{place.engine.bin}:{os.defpath}", "FAKE_ENGINE": mode}


def watchers(place):
    return runs.processes(f"{place.warm}/handoff/ready.py")


def begin(place, *, mode="", more=None, prefix=()):
    env = {"PATH": os.defpath, "FAKE_ENGINE": mode} | (more or {})
    words = (f"{place.warm}/handoff/serve", "--port", str(runs.closed_port()))
    return runs.spawn([*prefix, *words], env)


def crash(place, **how):
    """Start a server that ends by itself, as the kubelet would; return what it said."""
    result = runs.finish(begin(place, **how))
    assert result.code == 1, result
    assert "Engine core initialization failed" in result.out
    runs.eventually(lambda: runs.unwatched(place.warm))  # a container's processes end with it
    return result


@contextmanager
def ready(place, **how):
    """Start a server and wait until its start is known to have gone well."""
    process = begin(place, **how)
    port = process.args[-1]

    try:
        runs.ready(process, port)
        runs.eventually(lambda: not watchers(place))
        assert process.poll() is None
        yield process
    finally:
        process.terminate()
        process.result = runs.finish(process)


@contextmanager
def hanging(place):
    """Start a server that is never ready, and kill it with what watches it."""
    before = len(place.engine.starts)
    process = begin(place, mode="hang")
    try:
        runs.eventually(lambda: len(place.engine.starts) > before)
        yield process
    finally:
        process.kill()
        process.result = runs.finish(process)
        runs.eventually(lambda: runs.unwatched(place.warm))


def told(place):
    return runs.listing(f"{place.volume}/v1/crashes")


def starts(place, sort):
    return [name for name in runs.listing(f"{place.warm}/starts") if f"-{sort}-" in name]


def plan(place):
    """What `warmer plan` says: kind → (verdict, reason) of each step."""
    result = place.run("plan", "--json")
    return {step["kind"]: (step["verdict"], step["reason"]) for step in result.json["steps"]}


def numbers(place, kind="compile"):
    return [os.path.basename(path) for path in place.generations(kind)]


def another_pod(place):
    """The pod is deleted, and its warm dir with it; the next has the same paths."""
    shutil.rmtree(place.warm)
    os.mkdir(place.warm)


STALE = {"compile": ("stale", "generation 1 crashed the engine at load twice")}


def test_the_third_start_goes_without_the_kernels_and_the_next_prefill_builds_others(place):
    assert crash(place).err == ""
    assert crash(place).err.splitlines()[:1] == [ONCE]
    assert plan(place) == STALE
    assert place.run("check").out.count("warm: ") == 2
    echo = f"{place.top}/env.json"
    with ready(place, mode="echo-env", more={"FAKE_ENGINE_ENV": echo}) as server:
        check = place.run("check")
        assert (check.code, "cold: compile" in check.out, TWICE[14:43] in check.out) == (
            0,
            True,
            True,
        )
    said = server.result.err.splitlines()
    assert [line.split(":")[0] for line in said] == ["warmer", "hint"]
    assert TWICE in said[0]
    assert "Starting torch.compile" in server.result.out
    with open(echo, encoding="utf-8") as stream:
        env = json.load(stream)
    handed = place.handoff()["env"]
    moved = {name for name in handed if env.get(name) != handed[name]}
    caches = {name for name, value in handed.items() if value.startswith(f"{place.warm}/cache/")}
    assert moved == caches | {"HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"}
    assert all(env[name].startswith(f"{place.warm}/cache.cold/") for name in caches)
    assert len(told(place)) == 2
    assert plan(place) == STALE

    place.warmed()
    assert numbers(place) == ["2"]
    assert [name.split("-")[2] for name in runs.listing(f"{place.volume}/v1/quarantine")] == ["1"]
    assert plan(place) == {}
    with ready(place) as server:
        pass
    assert server.result.err == ""
    assert "Directly load AOT compilation" in server.result.out
    assert runs.listing(f"{place.warm}/starts") == []
    assert runs.listing(f"{place.warm}/cache.cold") == []
    volumes.assert_invariants(place.volume)


def test_a_start_without_the_kernels_that_crashed_has_nothing_of_it_the_next_time(place):
    for _ in range(2):
        crash(place)
    for _ in range(2):  # what it compiled is there for the next start, if the start was ready
        with ready(place) as server:
            pass
        (trees,) = runs.listing(f"{place.warm}/cache.cold")
    assert "Directly load AOT compilation" in server.result.out
    crash(place, mode="spoil,crash")
    assert len(starts(place, "cold")) == 1
    with ready(place) as server:
        pass
    assert TWICE in server.result.err
    assert "Starting torch.compile" in server.result.out
    runs.eventually(lambda: runs.listing(f"{place.warm}/cache.cold") == [trees])
    assert starts(place, "cold") == []
    assert not [
        path for path, _, names in os.walk(f"{place.warm}/cache.cold") if "half.so" in names
    ]


def test_another_pod_on_the_volume_learns_of_it(place):
    for _ in range(2):
        crash(place)
    with ready(place):
        pass
    another_pod(place)
    assert plan(place) == STALE
    place.warmed()
    assert numbers(place) == ["2"]
    with ready(place) as server:
        pass
    assert server.result.err == ""


def test_one_crash_in_each_of_two_pods_is_enough_where_no_lever_is_on_trial(place):
    for count in (1, 2):
        place.warmed("--lever", "imports=off")
        assert numbers(place) == ["1"]
        assert crash(place).err == ""
        process = begin(place, mode="hang")
        runs.eventually(lambda count=count: len(told(place)) == count)
        runs.kill(process)
        another_pod(place)
    assert plan(place) == STALE


def test_the_volume_is_not_told_of_a_crash_that_a_lever_may_have_caused(place):
    for _ in range(2):
        crash(place)
        with hanging(place) as server:
            pass
        assert server.result.err.splitlines()[:1] == [ONCE]
        assert told(place) == []
        another_pod(place)
        assert plan(place) != STALE
        place.warmed()
        assert numbers(place) == ["1"]
    for _ in range(2):
        crash(place)
    with hanging(place):
        runs.eventually(lambda: len(told(place)) == 2)
    assert plan(place) == STALE


def test_a_start_that_crashes_because_of_fork_is_the_last_that_forks(gpu):
    """Until other kernels come: these are loaded by every start after it."""
    gpu.warmed(env=on_gpu(gpu))
    assert {"fork", "imports"} <= set(gpu.handoff()["levers"])
    assert crash(gpu, mode="no-fork", more=on_gpu(gpu, "no-fork")).err == ""
    for _ in range(3):
        with ready(gpu, more=on_gpu(gpu, "no-fork")) as server:
            pass
        said = "warmer: a start crashed: now without fork, imports, startup-plan"
        assert server.result.err.splitlines()[:1] == [said]
        assert "Directly load AOT compilation" in server.result.out
    assert starts(gpu, "warm") == told(gpu) == []
    assert gpu.run("plan", "--json", env=on_gpu(gpu)).json["warm"]
    gpu.warmed("--lever", "fork=off", env=on_gpu(gpu))
    another_pod(gpu)
    gpu.warmed("--lever", "fork=off", env=on_gpu(gpu))
    with ready(gpu, more=on_gpu(gpu, "no-fork")) as server:
        pass
    assert server.result.err == "", "and who switches it off has no crash at all"


def test_a_start_that_crashes_because_of_its_plan_of_memory_is_the_last_that_has_one(gpu):
    """A model that only just fits fails by the little that a plan leaves free."""
    gpu.warmed(env=on_gpu(gpu))
    assert crash(gpu, mode="no-plan", more=on_gpu(gpu, "no-plan")).err == ""
    for _ in range(2):
        with ready(gpu, more=on_gpu(gpu, "no-plan")) as server:
            pass
        assert "without fork, imports, startup-plan" in server.result.err
        assert "Directly load AOT compilation" in server.result.out
    assert starts(gpu, "warm") == told(gpu) == []


def test_a_server_that_was_ready_and_crashes_later_does_not_count(tmp_path):
    with runs.place(tmp_path) as place:
        place.warmed()
        for _ in range(4):
            process = begin(place, mode="die")
            runs.eventually(lambda: starts(place, "warm"))
            runs.eventually(lambda: starts(place, "warm") == [])
            url = f"http://127.0.0.1:{process.args[-1]}/v1/completions"
            with pytest.raises(OSError):
                urllib.request.urlopen(urllib.request.Request(url, data=b"{}"))
            result = runs.finish(process)
            assert (result.code, result.err) == (139, "")
            assert "Directly load AOT compilation" in result.out
        assert told(place) == []
        assert plan(place) == {}


def test_a_start_that_is_ready_acquits_the_kernels_everywhere(tmp_path):
    """Two crashes that no kernel was to blame for, with a good start between them."""
    with runs.place(tmp_path) as place:
        place.warmed()
        for _ in range(3):
            crash(place, mode="crash")
            with ready(place) as server:
                pass
            assert server.result.err.splitlines()[:1] == [ONCE]
            assert (starts(place, "warm"), told(place)) == ([], [])


@ROOT
def test_where_the_server_may_not_write_on_the_volume_its_own_warm_dir_tells(place):
    with runs.read_only(place.volume):
        for _ in range(2):
            crash(place)
        with ready(place) as server:
            pass
        assert TWICE in server.result.err
    assert told(place) == []
    assert plan(place) == STALE
    place.warmed()
    assert numbers(place) == ["2"]


def test_a_start_that_is_killed_with_all_its_processes_counts_and_one_on_its_way_does_not(tmp_path):
    with runs.place(tmp_path) as place:
        place.warmed()
        for count in (1, 2):
            process = begin(place, mode="hang")
            runs.eventually(lambda count=count: len(starts(place, "warm")) == count)
            runs.eventually(lambda: watchers(place))
            assert plan(place) == {}, "its server may still become ready"
            for pid in watchers(place):
                os.kill(pid, signal.SIGKILL)
            runs.kill(process)
            runs.eventually(lambda: runs.unwatched(place.warm))
        assert plan(place) == STALE


@pytest.mark.parametrize("prefix", [(), runs.AS_FIRST])
def test_starts_that_somebody_stops_do_not_count_and_one_that_crashes_still_does(tmp_path, prefix):
    """Nodes that are drained, one after the other, while the engine loads."""
    with runs.place(tmp_path) as place:
        place.warmed()
        for count in range(1, 4):
            process = begin(place, mode="slow=60", prefix=prefix)
            runs.eventually(lambda count=count: len(place.engine.starts) == count + 1)
            (inner,) = children(process.pid) if prefix else (process.pid,)
            os.kill(inner, signal.SIGTERM)
            result = runs.finish(process)
            assert (result.code, result.err) == (143 if prefix else -signal.SIGTERM, "")
            runs.eventually(lambda: runs.unwatched(place.warm))
            assert starts(place, "warm") == []
        assert plan(place) == {}
        assert crash(place, mode="crash").err == ""
        assert len(starts(place, "warm")) == 1


@pytest.mark.parametrize("prefix", [(), runs.AS_FIRST])
def test_a_stop_that_meets_the_script_is_heeded_and_does_not_count(tmp_path, prefix):
    """A shell that is its container's first process would not hear of it, and start the server."""
    with runs.place(tmp_path) as place:
        place.warmed()
        with open(f"{place.warm}/handoff/installed.py", "w", encoding="utf-8") as stream:
            stream.write("import time; time.sleep(1)")
        process = begin(place, mode="hang", prefix=prefix)
        runs.eventually(lambda: starts(place, "warm"))
        (inner,) = children(process.pid) if prefix else (process.pid,)
        os.kill(inner, signal.SIGTERM)
        result = runs.finish(process)
        assert (result.code, result.err) == (143, "")
        assert (starts(place, "warm"), len(place.engine.starts)) == ([], 1)


def test_servers_that_start_beside_each_other_do_not_count_as_crashed(tmp_path):
    with runs.place(tmp_path) as place:
        place.warmed()
        together = []
        for count in (1, 2, 3, 4):
            together.append(begin(place, mode="hang"))
            runs.eventually(lambda count=count: len(place.engine.starts) == count + 1)
        assert len(starts(place, "warm")) == 4
        for process in together:
            process.kill()
            assert process.communicate()[1] == ""


def test_records_that_are_torn_or_not_warmers_tell_nothing(tmp_path):
    with runs.place(tmp_path) as place:
        place.warmed()
        crash(place, mode="crash")
        (name,) = starts(place, "warm")
        mark = name.partition("-")[0]
        with open(f"{place.warm}/starts/{name}", encoding="ascii") as stream:
            piece = stream.read().strip()
        texts = {
            f"{mark}-warm-{'0' * 16}": b"",
            f"{mark}-warm-{'1' * 16}": b"compile-" + b"\xff" * 99,
            f".{mark}-warm-{'2' * 16}": f"{piece}\n".encode(),
            f"{mark}-warm-zz": f"{piece}\n".encode(),
            "note": f"{piece}\n".encode(),
        }
        for name, data in texts.items():
            with open(f"{place.warm}/starts/{name}", "wb") as stream:
                stream.write(data)
        kind, key, _ = piece.split("-")
        os.makedirs(f"{place.volume}/v1/crashes", exist_ok=True)
        for name in (
            f"{kind}-{key}-7.a",
            f"{kind}-{key}-7.b",
            f"{kind}-{'f' * 64}-1.a",
            "x",
            piece,
        ):
            open(f"{place.volume}/v1/crashes/{name}", "wb").close()
        assert plan(place) == {}
        shutil.rmtree(f"{place.volume}/v1/crashes")
        open(f"{place.volume}/v1/crashes", "wb").close()
        assert plan(place) == {}
        place.warmed()


def test_a_warm_dir_where_nothing_can_be_counted_starts_all_the_same(tmp_path):
    with runs.place(tmp_path) as place:
        place.warmed()
        open(f"{place.warm}/starts", "wb").close()
        for _ in range(3):
            with ready(place) as server:
                pass
            assert len(server.result.err.splitlines()) == 2
            assert "a crash at load would not count" in server.result.err
            assert "Directly load AOT compilation" in server.result.out


def test_a_server_that_does_not_say_where_it_listens_is_not_counted(tmp_path):
    with runs.place(tmp_path) as place:
        place.warmed()
        for _ in range(3):
            result = runs.finish(
                runs.spawn(
                    [f"{place.warm}/handoff/serve", "--port", "0"],
                    {"PATH": os.defpath, "FAKE_ENGINE": "crash"},
                )
            )
            assert result.code == 1
            assert "no port is known" in result.err
            assert TWICE not in result.err
        assert runs.listing(f"{place.warm}/starts") == []


def test_weights_that_are_gone_are_named_and_the_kernels_not_blamed_for_it(tmp_path):
    with runs.place(tmp_path) as place:
        place.warmed()
        (weights,) = place.generations("weights")
        os.rename(weights, f"{place.volume}/aside")
        for _ in range(3):
            result = runs.finish(begin(place))
            runs.eventually(lambda: not watchers(place))
            assert (result.code, result.out) == (1, ""), result
            said, hint = result.err.splitlines()
            assert weights in said
            assert hint.startswith("hint: delete the pod")
        assert (told(place), starts(place, "warm")) == ([], [])
        os.rename(f"{place.volume}/aside", weights)
        with ready(place) as server:
            pass
        assert (server.result.err, told(place)) == ("", [])


def test_an_image_without_vllm_is_named_and_the_kernels_not_blamed_for_it(tmp_path):
    with runs.place(tmp_path) as place:
        place.warmed()
        os.rename(place.engine.vllm, f"{tmp_path}/aside")
        for _ in range(3):
            result = runs.finish(begin(place))
            runs.eventually(lambda: not watchers(place))
            assert (result.code, result.out) == (127, ""), result
            said, hint = result.err.splitlines()
            assert place.engine.vllm in said
            assert hint.startswith("hint: serve in the image")
        assert (told(place), starts(place, "warm")) == ([], [])
        os.rename(f"{tmp_path}/aside", place.engine.vllm)
        assert plan(place) == {}


def test_nothing_of_the_watch_is_left_beside_a_server_that_is_ready(tmp_path):
    with runs.place(tmp_path) as place:
        place.warmed()
        with ready(place) as server:
            runs.eventually(lambda: runs.processes(place.warm) == [server.pid])
            assert children(server.pid) == [], "no zombie either"
        assert runs.listing(f"{place.warm}/starts") == []


@ROOT
def test_nothing_is_left_of_a_server_that_is_killed_before_its_watch_looks(tmp_path):
    """Whoever adopts the watch is not the server: it would be watched for an hour."""
    with runs.place(tmp_path) as place:
        place.warmed()
        stopped = tmp_path / "python3"
        stopped.write_text(f'#!/bin/sh\nkill -9 $PPID\nexec {sys.executable} "$@"\n')
        stopped.chmod(0o755)
        server = begin(place, more={"PATH": f"{tmp_path}:{os.defpath}"})
        assert runs.finish(server).code == -signal.SIGKILL
        runs.eventually(lambda: not watchers(place))
        assert runs.unwatched(place.warm)


def test_in_a_container_whose_first_process_is_the_server_it_is_the_same(place):
    """The watch is the server's own child there, and dies with it."""
    for said in ([], [ONCE]):
        result = runs.finish(begin(place, prefix=runs.PID_NAMESPACE))
        assert (result.code, result.err.splitlines()[:1]) == (1, said)
        runs.eventually(lambda: runs.unwatched(place.warm))
    assert plan(place) == STALE
    process = begin(place, prefix=runs.PID_NAMESPACE)
    runs.eventually(lambda: starts(place, "cold"))
    runs.eventually(lambda: starts(place, "cold") == [])
    assert place.engine.starts[-1]["pid"] == 1
    (inner,) = children(process.pid)
    # What watches and what reads ahead: an entry in a table each, and no more.
    runs.eventually(lambda: [state(pid) for pid in children(inner)] == ["Z", "Z"])
    os.kill(inner, signal.SIGTERM)
    result = runs.finish(process)
    assert (result.code, TWICE in result.err) == (0, True)


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as stream:
        return [int(word) for word in stream.read().split()]


def state(pid):
    with open(f"/proc/{pid}/stat", encoding="ascii") as stream:
        return stream.read().rpartition(")")[2].split()[0]


# --- warmer's own runs of the engine ------------------------------------------------------------


def tree(place, kind):
    return sorted(name for _, _, names in os.walk(f"{place.warm}/cache/{kind}") for name in names)


def test_a_shared_kernel_that_crashes_every_build_is_retired_by_a_build_from_none(gpu):
    gpu.warmed(env=on_gpu(gpu, "poison=jit"))
    other = gpu.but(model=gpu.pinned(runs.OTHER))
    result = other.warmed(env=on_gpu(gpu, "op=second"))
    assert result.json["warm"] is True
    (warned,) = (line for line in result.logged if "once more over none" in line["event"])
    assert sorted(warned["kinds"]) == ["flashinfer", "jit"]
    assert "Engine core initialization failed" in warned["failure"]
    for kind in ("flashinfer", "jit"):
        assert numbers(gpu, kind) == ["2"]
        assert tree(other, kind) == ["second.so"]
    retired = sorted(name.split("-")[0] for name in runs.listing(f"{gpu.volume}/v1/quarantine"))
    assert retired == ["flashinfer", "jit"]
    logs = runs.listing(f"{gpu.warm}/logs")
    (anew,) = (name for name in logs if name.endswith("-anew.log"))
    assert anew.replace("-anew", "") in logs, "what the run said that ended is kept"
    volumes.assert_invariants(gpu.volume)


def test_a_build_that_ends_over_none_too_retires_nothing(gpu):
    gpu.warmed(env=on_gpu(gpu))
    before = runs.published(gpu.volume)
    other = gpu.but(model=gpu.pinned(runs.OTHER))
    result = other.run("prefill", "--json", "--on-miss", "kernels=fail", env=on_gpu(gpu, "crash"))
    runs.failed(result, 7, "engine-exited", compared=False)
    assert len(gpu.engine.starts) == 3
    assert before.items() <= runs.published(gpu.volume).items()
    assert runs.listing(f"{gpu.volume}/v1/quarantine") == []


def test_a_base_that_crashed_servers_is_not_built_upon_and_what_it_grew_from_goes_too(gpu):
    """A shared kind's generations only grow: each holds the kernel that crashes."""
    gpu.warmed(env=on_gpu(gpu, "poison=jit"))
    first = numbers(gpu, "jit")
    poisoned = gpu.generations("jit")[0]
    key = poisoned.split("/")[-2]
    shutil.copytree(poisoned, poisoned[:-1] + "2")
    seal = f"{poisoned[:-1]}2/seal.json"
    with open(seal, encoding="utf-8") as stream:
        record = json.load(stream) | {"generation": 2, "nonce": "another"}
    with open(seal, "w", encoding="utf-8") as stream:
        json.dump(record, stream)
    assert (first, numbers(gpu, "jit")) == (["1"], ["1", "2"])
    gpu.warmed(env=on_gpu(gpu))
    for _ in range(2):
        crash(gpu, more=on_gpu(gpu))
    with ready(gpu, more=on_gpu(gpu)):
        assert [name for name in told(gpu) if name.startswith(f"jit-{key}-2.")]
    gpu.warmed(env=on_gpu(gpu))
    assert numbers(gpu, "jit") == ["3"]
    assert len(runs.listing(f"{gpu.volume}/v1/quarantine")) == 4
    assert "poison.so" not in tree(gpu, "jit") + tree(gpu, "flashinfer")


def test_a_proof_that_crashes_counts_like_a_start_and_one_that_succeeds_acquits(place):
    for count in (1, 2):
        result = place.run("prefill", "--json", "--prove")
        runs.failed(result, 7, "engine-exited", compared=False)
        assert len(told(place)) == count
    assert plan(place) == STALE
    assert place.warmed("--prove").json["proof"]
    assert numbers(place) == ["2"]


def test_a_proof_acquits_what_one_crash_was_told_of(tmp_path):
    with runs.place(tmp_path) as place:
        place.warmed()
        result = place.run("prefill", "--prove", env={"FAKE_ENGINE": "crash"})
        assert (result.code, len(told(place))) == (7, 1)
        place.warmed("--prove")
        assert told(place) == []


def test_who_builds_nothing_goes_without_and_moves_nothing(place):
    for _ in range(2):
        crash(place)
    before = runs.published(place.volume)
    result = place.warmed("--compile", "never")
    assert "crashed the engine at load twice" in result.json["without"]["compile"]
    assert runs.published(place.volume) == before
    assert place.verdicts()["compile"] == "stale"
