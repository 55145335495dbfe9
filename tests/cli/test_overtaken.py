"""Other owners that are faster: what is handed off is what is there, and the start goes on."""

import os
import shutil
import sys
import threading
from pathlib import Path

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import fakeengine
import runs
import volumes

from warmer import argv, check, prefill, settings, urls
from warmer.fill import restore, stagings
from warmer.fill.locks.pace import Pace
from warmer.fill.sources.directory import Directory
from warmer.layout import Volume
from warmer.observe import inventory


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A pod with a GPU, beside a model in a directory."""
    with runs.place(tmp_path) as place:
        cuda = fakeengine.make_engine(tmp_path / "cuda", torch="2.13.0+cu130", cuda="13.0")
        monkeypatch.setenv("PATH", f"{cuda.bin}:{os.defpath}")
        yield place.but(engine=cuda, model=f"file://{tmp_path}/hub/{runs.REPO}")


def chosen(place, **more):
    env = place.env({"PATH": f"{place.engine.bin}:{os.defpath}"})
    return settings.Settings(
        volume=place.volume,
        warm_dir=place.warm,
        model=urls.parse_model(place.model),
        serve_argv=runs.SERVE,
        flags=argv.parse(runs.SERVE),
        vllm=place.engine.vllm,
        environment=env,
        **more,
    )


def test_a_generation_published_during_the_restore_is_handed_off_as_it_is_restored(
    place, tmp_path, monkeypatch
):
    assert prefill.prefill(chosen(place)).left.empty
    shutil.rmtree(place.warm)
    unpack = restore.restore
    published = []

    def overtaken(volume, warm, key, generation, **how):
        manifest = unpack(volume, warm, key, generation, **how)
        if key.kind == "jit" and not published:
            tree = tmp_path / "theirs"
            shutil.copytree(warm.tree("jit"), tree)
            (tree / "tvm_ffi" / "theirs.so").write_bytes(b"built by another pod")
            published.append(volumes.fill_tree(volume, key, tree, after=generation))
        return manifest

    monkeypatch.setattr(restore, "restore", overtaken)
    done = prefill.prefill(chosen(place))
    assert published == [2]
    assert (done.left.steps, done.without) == ((), {})
    assert len(place.engine.starts) == 1, "what is published is taken, not built"
    (piece,) = (piece for piece in place.handoff()["pieces"] if piece["kind"] == "jit")
    assert (piece["verdict"], piece["generation"]) == ("sealed", 2)
    assert Path(place.warm, "cache/jit/tvm_ffi/theirs.so").read_bytes() == b"built by another pod"
    assert check.check(place.warm, True)[1] == 0


class NoLock:
    """A lock that holds nobody back, as on a volume without locks."""

    pace = Pace(0.5)

    def try_acquire(self, _key):
        return volumes.Granted()

    def leave(self, _key):
        pass


def test_losers_of_a_race_for_weights_take_the_winners(place, tmp_path, monkeypatch):
    top = place.model.removeprefix("file://")
    open_range = Directory.open
    volume = Volume(place.volume)
    keys, winner = [], []

    def publish_by_hand():
        contents = {f"files/{path.name}": path.read_bytes() for path in Path(top).iterdir()}
        winner.append(volumes.stage(volume, keys[0], contents))
        volumes.commit(volume, *winner[0])

    both = threading.Barrier(2, action=publish_by_hand)
    # Who comes later takes what is staged already for abandoned, and removes it.
    at_once = threading.Barrier(2)
    make = stagings.make

    def made(staging):
        if threading.current_thread().name.startswith("pod"):
            at_once.wait(60)
        make(staging)

    def opened(self, model, file, start, end):
        if file.path == "config.json":
            both.wait(60)
        return open_range(self, model, file, start, end)

    announce = prefill.write.announce

    def seen(warm, volume, wanted, **more):
        keys.append(wanted["weights"])
        announce(warm, volume, wanted, **more)

    monkeypatch.setattr(Directory, "open", opened)
    monkeypatch.setattr(stagings, "make", made)
    monkeypatch.setattr(prefill, "open_lock", lambda *_, **__: NoLock())
    monkeypatch.setattr(prefill.write, "announce", seen)
    pods = [place.but(warm=f"{tmp_path}/{name}") for name in ("one", "other")]
    done = {}
    threads = [
        threading.Thread(
            name=f"pod {pod.warm}",
            target=lambda pod=pod: done.update(
                {pod.warm: prefill.prefill(chosen(pod, compile="never"))}
            ),
        )
        for pod in pods
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert done.keys() == {pod.warm for pod in pods}, "both ended well"
    assert len(winner) == 1
    (generation,) = place.generations("weights")
    assert winner[0][0].nonce in Path(generation, "seal.json").read_text()
    for pod in pods:
        assert (done[pod.warm].left.steps, "weights" in done[pod.warm].without) == ((), False)
        (piece, *_) = pod.handoff()["pieces"]
        assert (piece["verdict"], piece["directory"]) == ("sealed", generation)
        assert check.check(pod.warm, True)[1] == 0
    assert place.staged() == []
    volumes.assert_invariants(place.volume)


class Blind:
    """Sees what others publish as late as another node's client: from the look after it was told to."""

    def __init__(self, monkeypatch):
        self.looks = 0
        self._published = inventory.numbers._published
        monkeypatch.setattr(inventory.numbers, "_published", self.published)

    def published(self, volume, kind, digest):
        found = self._published(volume, kind, digest)
        if kind != "weights" or not found:
            return found
        self.looks += 1
        return set() if self.looks <= self.unseen else found


@pytest.mark.parametrize("unseen", range(6))
def test_weights_that_come_into_view_at_any_moment_are_not_filled_again(
    place, tmp_path, monkeypatch, unseen
):
    other = place.but(warm=f"{tmp_path}/other")
    assert prefill.prefill(chosen(other, compile="never")).left.steps == ()
    blind = Blind(monkeypatch)
    blind.unseen = unseen
    monkeypatch.setattr(prefill, "open_lock", lambda *_, **__: NoLock())
    done = prefill.prefill(chosen(place, compile="never"))
    assert (done.left.steps, "weights" in done.without) == ((), False)
    assert blind.looks > unseen, "it was seen in the end"
    assert len(place.generations("weights")) == 1
    assert place.staged() == []
    volumes.assert_invariants(place.volume)
