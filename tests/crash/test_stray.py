"""What does not belong on a volume: it is not believed, not published, not touched, and stops nobody.

Torn seals and owners' records, and strange names where a generation should be, are the matter of
tests/volume and tests/cli.
"""

import json
import os
import shutil
import signal
import stat
import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent.parent / "support"), str(Path(__file__).parent)]

import pods
import runs
import volumes

from warmer import situation
from warmer.fill import publish


@pytest.fixture(scope="module")
def seeded(tmp_path_factory):
    """A volume where the first model is warm."""
    top = tmp_path_factory.mktemp("stray")
    with pytest.MonkeyPatch.context() as patched:
        site = pods.Site(top, pods.gpu_engine(f"{top}/engine", patched))
        pods.run(site.pods[0].prefill)
        site.save()
        yield site


@pytest.fixture
def site(seeded):
    seeded.damaged = None
    seeded.put_back()
    return seeded


def snapshot(*tops):
    """Read all there is at some paths and below: modes, inodes, times, content; no link is followed."""
    found = {}
    for top in tops:
        walked = [] if os.path.islink(top) else os.walk(top)
        below = [f"{at}/{name}" for at, dirs, files in walked for name in (*dirs, *files)]
        for path in (str(top), *below):
            info = os.lstat(path)
            content = b""
            if stat.S_ISLNK(info.st_mode):
                content = os.readlink(path)
            elif stat.S_ISREG(info.st_mode):
                content = Path(path).read_bytes()
            found[path] = (info.st_mode, info.st_ino, info.st_mtime_ns, content)
    return found


def strangers(directory):
    """Put a file, a tree and links that lead out into a directory; return their names."""
    made = [Path(directory, name) for name in (".DS_Store", "lost+found", ".snapshot", "up")]
    made[0].write_bytes(b"finder")
    (made[1] / "#12").mkdir(parents=True)
    (made[1] / "#12" / "seal.json").write_bytes(b"{}")
    made[2].symlink_to("/nowhere")
    made[3].symlink_to("..")
    return made


def test_strangers_at_every_level_of_the_volume_stop_nobody_and_stay(site):
    first, second, _ = site.pods
    weights, compiled = site.generations("weights") + site.generations("compile")
    top = Path(site.volume, "v1")
    for name in ("quarantine", "refs", "staging"):
        (top / name).mkdir(exist_ok=True)
    keys = {os.path.dirname(weights), os.path.dirname(compiled)}
    levels = [site.volume, top, *top.iterdir(), *(top / "pieces").iterdir(), *keys]
    made = [path for level in levels for path in strangers(level)]
    for key in keys:  # as a person would who copies things by hand
        shutil.copytree(f"{key}/1", f"{key}/copy of 1")
        made.append(f"{key}/copy of 1")
    before = snapshot(*made)
    pods.run(first.clean, second.clean, first.clean)
    assert snapshot(*made) == before
    assert len(site.generations("jit")) >= 2


def test_a_stranger_in_a_published_tree_stays_there_and_gets_no_further(site):
    """It is in no seal: it is neither restored, nor handed on to the next generation."""
    (weights,), (compiled,) = site.generations("weights"), site.generations("compile")
    made = [*strangers(weights), *strangers(f"{weights}/files"), *strangers(compiled)]
    before = snapshot(*made)
    site.new_pod()
    pods.run(site.pods[0].clean)
    os.unlink(f"{weights}/files/config.json")
    pods.run(site.pods[0].clean)
    assert snapshot(*made) == before
    _, after = site.generations("weights")
    names = {str(path.relative_to(after)) for path in Path(after).rglob("*") if path.is_file()}
    sealed = {file["path"] for file in json.loads(Path(after, "seal.json").read_bytes())["files"]}
    assert names == sealed | {"seal.json"}


def test_garbage_in_the_staging_of_the_dead_is_neither_published_nor_followed(site, tmp_path):
    repo = pods.make_model(f"{tmp_path}/hub/org/model", seed="hub")
    outside = Path(shutil.copytree(repo, tmp_path / "outside"))
    before = snapshot(outside)
    model = pods.pinned(f"{tmp_path}/hub", "org/model")
    with pods.hub(f"{tmp_path}/hub") as url:
        pod = site.pods[0].but(model=model, hub=url)
        key = pod.key("weights")
        dead, other = (
            Path(f"{site.volume}/v1/staging/weights-{k}-{'0' * 16}") for k in (key, "f" * 64)
        )
        (dead / "files/config.json").mkdir(parents=True)
        (dead / "files/model.safetensors").symlink_to(outside / "model.safetensors")
        (dead / "files/tokenizer").symlink_to(outside / "tokenizer")
        (dead / "files/extra.bin").write_bytes(b"of nobody")
        (dead / "download" / os.fsdecode(b"\xff\n")).mkdir(parents=True)
        (dead / "download/up").symlink_to(outside)
        (dead / "seal.json").write_bytes(b'{"schema_version": 1, "kind": "wei')
        (dead / "key.json").mkdir(mode=0)
        os.mkfifo(dead / "download/fifo")
        shutil.copytree(dead / "download/up", other)
        theirs = snapshot(other)
        pods.run(pod.clean)
    assert snapshot(outside) == before, "a link out of the staging was followed"
    assert snapshot(other) == theirs, "another key's owner may be at work"
    assert staged(site) == [other.name]
    assert len(site.published()) > 0
    generation = f"{site.volume}/v1/pieces/weights/{key}/1/files"
    assert volumes.read_tree(generation) == volumes.read_tree(repo)
    inodes = {info[1] for info in before.values()}
    assert not {info[1] for info in snapshot(generation).values()} & inodes


def die_publishing(kind, *, after=False):
    """In a child: be killed when a piece of this kind is about to be published, or just was."""
    real = publish.publish

    def publish_and_die(volume, staging, **how):
        number = real(volume, staging, **how) if after or staging.key.kind != kind else 0
        if staging.key.kind == kind:
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    publish.publish = publish_and_die


def killed(pod, kind, *, after=False):
    def action():
        die_publishing(kind, after=after)
        pod.prefill()

    assert pods.wait(pods.fork(action))


def test_the_staging_of_the_dead_is_gone_when_the_next_owner_dies_right_after_publishing(site):
    killed(site.pods[1], "weights")
    assert len(staged(site)) == 1
    killed(site.pods[1], "weights", after=True)
    pods.run(site.pods[1].clean)
    assert staged(site) == []


def test_the_staging_of_the_dead_is_gone_when_the_next_owner_has_nothing_to_add(site):
    killed(site.pods[1], "jit")
    assert len(staged(site)) == 1
    pods.run(site.pods[2].but(op=site.pods[0].op).clean)
    assert len(site.generations("jit")) == 1, "it had something to add"
    assert staged(site) == []


def staged(site):
    return runs.listing(f"{site.volume}/v1/staging")


def test_the_tree_of_another_format_is_neither_seen_nor_touched(site):
    """A later warmer on the same volume keeps its pieces, locks and stagings beside ours."""
    second = site.pods[1]
    pods.run(second.but(compile="never").prefill)
    ours, theirs = (Path(site.volume, version) for version in ("v1", "v2"))
    shutil.copytree(ours, theirs)
    key = second.key("weights")
    shutil.rmtree(ours / "pieces/weights" / key)
    shutil.copytree(
        theirs / "pieces/weights" / key / "1/files", theirs / f"staging/weights-{key}-0"
    )
    shutil.copytree(theirs / "pieces/weights" / key / "1", theirs / f"quarantine/weights-{key}-9-0")
    before = snapshot(theirs)
    assert situation.look(second.settings()).held.held["weights"].verdict == "absent"
    pods.run(second.clean)
    assert runs.listing(f"{ours}/pieces/weights/{key}") == ["1"]
    assert snapshot(theirs) == before


@pytest.mark.parametrize("kind", ["weights", "compile", "jit"])
def test_a_generation_sealed_by_a_later_warmer_is_foreign_and_left_alone(site, kind):
    (theirs,) = site.generations(kind)
    seal = json.loads(Path(theirs, "seal.json").read_bytes())
    Path(theirs, "seal.json").write_text(json.dumps(seal | {"schema_version": 2}))
    before = snapshot(theirs)
    pods.run(site.pods[0].clean, site.pods[0].clean)
    assert snapshot(theirs) == before
    assert site.generations(kind) == [theirs, f"{os.path.dirname(theirs)}/2"]
    site.damaged = theirs
    site.published()
    assert not os.path.exists(f"{site.volume}/v1/quarantine")
