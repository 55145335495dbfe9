"""Several who push into one bucket at once: of one number one wins, and nothing gets lost."""

import os
import random
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import fleets
import runs
import volumes

from warmer import trust
from warmer.errors import IntegrityError, SourceError
from warmer.fill import archive, members
from warmer.fill.remote import bucket as buckets
from warmer.fill.remote import catalogue
from warmer.fill.remote.push import Pusher
from warmer.fill.sources.retry import Trying
from warmer.layout import Volume
from warmer.model import Key
from warmer.trust import ANYBODY
from warmer.urls import parse_remote

MANY = 6


@pytest.fixture
def here(empty, monkeypatch):
    """This process as a pod of the fleet."""
    for name, value in empty.env().items():
        monkeypatch.setenv(name, value)
    return empty


def pusher(fleet, top, key, tree, *, needs=None, trust=ANYBODY):
    """A volume with one piece, and who pushes from it."""
    (top / "volume").mkdir(parents=True)
    volume = Volume(str(top / "volume"))
    for path, data in tree.items():
        (top / "tree" / path).parent.mkdir(parents=True, exist_ok=True)
        (top / "tree" / path).write_bytes(data)
    volumes.fill_tree(volume, key, top / "tree", needs=needs, trust=trust)
    return Pusher(buckets.Bucket(parse_remote(fleet.url), Trying(budget=5)), volume, trust)


def at_once(pushers, key):
    start = threading.Barrier(len(pushers))

    def push(one):
        start.wait()
        one.push(key, 1)

    with ThreadPoolExecutor(len(pushers)) as pool:
        list(pool.map(push, pushers))


def test_of_many_that_push_one_model_each_is_told_a_number_that_is_there(here, tmp_path):
    key = Key("compile", {"model": "one"})
    trees = [{"a.so": bytes([number]) * 1000} for number in range(MANY)]
    pushers = [pusher(here, tmp_path / str(n), key, tree) for n, tree in enumerate(trees)]
    at_once(pushers, key)
    here.check()
    seals = here.seals("compile")
    assert {one._numbers["compile"] for one in pushers} == seals.keys() == {1}, "one is enough"


def test_shared_kinds_pushed_at_once_never_lose_a_file_from_one_number_to_the_next(here, tmp_path):
    key = Key("jit", {"stack": "one"})
    trees = [{f"{name}.so": b"x" * 1000 for name in range(count + 1)} for count in range(MANY)]
    pushers = [pusher(here, tmp_path / str(n), key, tree) for n, tree in enumerate(trees)]
    at_once(pushers, key)
    here.check()
    seals, sizes = here.seals("jit"), []
    for number in sorted(seals):
        (listing,) = (f for f in seals[number]["files"] if f["path"] == "manifest.json")
        sizes.append(here.read(f"blobs/{listing['sha256']}").count(b'.so"'))
    assert sizes == sorted(set(sizes)), "each has all of the one before"
    assert sizes[-1] == MANY
    for own, one in enumerate(pushers, 1):
        assert sizes[one._numbers["jit"] - 1] >= own, "the number holds what was pushed"


def grow(one, key, generation, tree, top, **more):
    """Publish the next generation of a volume: all of the last, and `tree`."""
    for path, data in tree.items():
        (top / "tree" / path).write_bytes(data)
    volumes.fill_tree(one._volume, key, top / "tree", after=generation - 1, **more)


def unpacked(fleet, record, top):
    """What a piece in the bucket holds: path → bytes."""
    top.mkdir()
    for file in record["files"]:
        (top / file["path"]).write_bytes(fleet.read(f"blobs/{file['sha256']}"))
    manifest = members.parse((top / "manifest.json").read_bytes(), where="the bucket")
    archives = sorted(str(path) for path in top.glob("*.tar.zst"))
    archive.unpack(archives, manifest, str(top / "tree"))
    return {path: (top / "tree" / path).read_bytes() for path in manifest.members}


@pytest.mark.parametrize("seed", range(3))
def test_three_nodes_that_never_pull_bring_together_what_they_build(here, tmp_path, seed):
    key, order = Key("jit", {"stack": "one"}), random.Random(seed)  # noqa: S311 - an order
    nodes = [
        pusher(here, tmp_path / name, key, {f"{name}-1.so": name.encode() * 500, "all.so": b"x"})
        for name in "abc"
    ]
    turns = [(number, generation) for number in range(3) for generation in (2, 3)]
    order.shuffle(turns)
    held = [1, 1, 1]
    for number in order.sample(range(3), 3):
        nodes[number].push(key, 1)
    for number, _ in turns:
        held[number] += 1
        name = "abc"[number]
        more = {f"{name}-{held[number]}.so": os.urandom(1000)}
        grow(nodes[number], key, held[number], more, tmp_path / name)
        nodes[number].push(key, held[number])
    here.check()
    seals = here.seals("jit")
    assert len(seals) == 3 + len(turns), "each push adds, and once"
    expected = {
        str(path.relative_to(tmp_path / name / "tree")): path.read_bytes()
        for name in "abc"
        for path in (tmp_path / name / "tree").iterdir()
    }
    assert unpacked(here, seals[len(seals)], tmp_path / "there") == expected
    asked = here.objects()
    for number in (*range(3), *range(3)):
        nodes[number].push(key, held[number])
    assert here.objects() == asked, "nothing is left to say"
    assert {one._numbers["jit"] for one in nodes} == {len(seals)}
    for one in nodes:
        assert runs.listing(f"{one._volume.root}/v1/staging") == []


def test_many_that_have_grown_apart_and_push_at_once_lose_nothing(here, tmp_path):
    key = Key("jit", {"stack": "one"})
    trees = [{f"{number}.so": bytes([number]) * 1000} for number in range(MANY)]
    pushers = [pusher(here, tmp_path / str(n), key, tree) for n, tree in enumerate(trees)]
    at_once(pushers, key)
    here.check()
    seals = here.seals("jit")
    assert list(seals) == list(range(1, MANY + 1))
    there = unpacked(here, seals[MANY], tmp_path / "there")
    assert there == {path: data for tree in trees for path, data in tree.items()}


def test_what_two_signers_built_is_signed_by_who_put_it_together(here, tmp_path):
    key = Key("jit", {"stack": "one"})
    for name in ("one", "two"):
        trust.generate(str(tmp_path / name))
    both = "".join((tmp_path / f"{name}.pub").read_text() for name in ("one", "two"))
    for name in ("one", "two"):
        signer = trust.load(str(tmp_path / name), both)
        node = pusher(here, tmp_path / f"by-{name}", key, {f"{name}.so": b"x" * 99}, trust=signer)
        node.push(key, 1)
    (joined, *_) = catalogue.acceptable(node._bucket, key, [2, 1], trust.load(None, both))
    assert joined.number == 2
    assert list(joined.seal.signatures) == [signer.signing[0]]
    assert unpacked(here, here.seals("jit")[2], tmp_path / "there").keys() == {"one.so", "two.so"}

    reader = Pusher(node._bucket, node._volume, trust.load(None, both))
    grow(node, key, 2, {"three.so": b"x"}, tmp_path / "by-two", trust=signer)
    here.remove(here.seal_name("jit", 2))  # what is there lacks this one's now
    reader.push(key, 2)
    assert list(here.seals("jit")) == [1], "what it put together nobody would trust"


def test_what_cannot_be_one_with_what_is_there_is_not_pushed(here, tmp_path):
    key = Key("jit", {"stack": "one"})
    pusher(here, tmp_path / "one", key, {"a": b"x", "b": b"x"}).push(key, 1)
    other = pusher(here, tmp_path / "two", key, {"a/c": b"x"})
    other.push(key, 1)
    assert list(here.seals("jit")) == [1]
    assert other._numbers == {}


def test_the_same_piece_pushed_at_once_is_there_once(here, tmp_path):
    key = Key("jit", {"stack": "one"})
    first = pusher(here, tmp_path / "one", key, {"a.so": b"x" * 1000})
    pushers = [Pusher(first._bucket, first._volume, ANYBODY) for _ in range(MANY)]
    at_once(pushers, key)
    assert list(here.seals("jit")) == [1]
    assert {one._numbers["jit"] for one in pushers} == {1}


def test_two_nodes_that_push_at_once_are_both_warm_and_a_third_pulls(empty):
    serve = [("--max-model-len", str(length)) for length in (128, 256)]
    body = {"method": "PUT", "delay": 0.3}
    empty.bucket.wire.fault("/seals/", **body)
    processes, nodes = [], []
    for words, op in zip(serve, ("one", "two"), strict=True):
        node = empty.node()
        nodes.append(node)
        env = empty.env(FAKE_ENGINE=f"op={op}")
        pod = node.start("prefill", "--json", serve=words, env=env)
        processes.append(pod)
        # The next node takes the warm dir's path over once this one has been handed off.
        runs.eventually(lambda node=node: os.path.exists(f"{node.warm}/handoff/handoff.json"), 30)
    for process in processes:
        assert runs.finish(process).json["warm"] is True
    empty.check()
    for words, op in zip(serve, ("one", "two"), strict=True):
        third = empty.node()
        done = third.warmed(serve=words, env=empty.env(FAKE_ENGINE=f"op={op}"))
        assert done.json["warm"] is True
    empty.check()
    for words in serve:
        assert empty.node().warmed("--compile", "never", serve=words, env=empty.env()).json["warm"]


def test_a_planted_number_does_not_end_the_counting(here, tmp_path):
    key = Key("compile", {"model": "one"})
    planted = f"seals/compile/{key.digest}/999999999999999999.json"
    here.put(planted, b"what is this?")
    one = pusher(here, tmp_path, key, {"a.so": b"x"})
    one.push(key, 1)
    here.remove(planted)
    assert list(here.seals("compile")) == [1]


@pytest.mark.parametrize("harm", ["flipped", "a link"])
def test_what_is_not_what_was_sealed_is_not_put(here, tmp_path, harm):
    key = Key("compile", {"model": "one"})
    one = pusher(here, tmp_path, key, {"a.so": b"x" * 1000})
    path = f"{one._volume.generation(key.kind, key.digest, 1)}/tree.tar.zst"
    if harm == "flipped":
        runs.flip(path)
    else:
        os.rename(path, f"{tmp_path}/elsewhere")
        os.symlink(f"{tmp_path}/elsewhere", path)
    with pytest.raises(IntegrityError):
        one.push(key, 1)
    assert here.objects() == {}


def test_a_piece_is_not_pushed_before_what_it_needs(here, tmp_path):
    key = Key("compile", {"model": "one"})
    one = pusher(here, tmp_path, key, {"a.so": b"x"}, needs={"jit": 3})
    one.push(key, 1)
    assert here.objects() == {}
    assert one.pushed == {}


def test_what_goes_on_too_long_ends_however_well_it_goes(here, tmp_path):
    key = Key("compile", {"model": "one"})
    one = pusher(here, tmp_path, key, {"a.so": b"x"})
    one._bucket.until = 0.0
    with pytest.raises(SourceError) as caught:
        one.push(key, 1)
    assert caught.value.reason == "too-slow"
    assert fleets.TEAM in caught.value.message
