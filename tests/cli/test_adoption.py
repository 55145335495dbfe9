"""What lies in a Hugging Face cache or a folder is verified and taken, and only the rest fetched."""

import contextlib
import glob
import os
import shutil
import subprocess
import sys

import pytest
from huggingface_hub import snapshot_download

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import runs
import s3
import volumes

from warmer.fill import capacity, transfer

BIG = "org/big"
WEIGHTS = "model-00002-of-00002.safetensors"
SIZES = {"model-00001-of-00002.safetensors": 300_000, WEIGHTS: (16 << 20) + 17}
TEXTS = {"config.json": b'{"a": 1}', "sub dir/tökenizer.json": b"{}" * 500, "empty.txt": b""}
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a filesystem, which takes root")


@pytest.fixture
def place(tmp_path):
    """A pod that wants a model with one file that is big enough to be linked."""
    top = f"{tmp_path}/hub/{BIG}"
    for path, data in TEXTS.items():
        os.makedirs(os.path.dirname(f"{top}/{path}"), exist_ok=True)
        with open(f"{top}/{path}", "wb") as stream:
            stream.write(data)
    for path, size in SIZES.items():
        with open(f"{top}/{path}", "wb") as stream:
            stream.write(bytes(range(251)) * (size // 251) + bytes(size % 251))
    with runs.place(tmp_path) as place:
        yield place.but(model=place.pinned(BIG))


TOTAL = sum(SIZES.values()) + sum(map(len, TEXTS.values()))


def cache(place, top):
    """Download the model as everybody does, into a cache at this path."""
    sha = place.hub.sha(BIG)
    snapshot_download(BIG, revision=sha, cache_dir=top, endpoint=place.hub.url)
    return str(top), f"{top}/models--org--big/snapshots/{sha}"


def folder(place, top):
    shutil.copytree(f"{place.hub.root}/{BIG}", top)
    return str(top), str(top)


def tree(top):
    """Every name below a directory, with all that would show a change but the link count."""
    found = {}
    for directory, names, files in os.walk(top):
        for name in (*names, *files):
            path = os.path.join(directory, name)
            info = os.lstat(path)
            data = os.readlink(path) if os.path.islink(path) else ""
            if os.path.isfile(path):
                with open(path, "rb") as stream:
                    data += str(hash(stream.read()))
            found[path] = (info.st_mode, info.st_ino, info.st_mtime_ns, info.st_uid, data)
    return found


def adopt(place, *options, **more):
    """Prefill the weights; return the outcome, and the names that were fetched."""
    asked = len(place.hub.requests)
    result = place.warmed("--compile", "never", *options, **more)
    (generation,) = place.generations("weights")
    assert volumes.read_tree(f"{generation}/files") == volumes.read_tree(f"{place.hub.root}/{BIG}")
    volumes.assert_invariants(place.volume, clean=True)
    return result.json, place.fetched(asked)


def published(place, path=WEIGHTS):
    (generation,) = place.generations("weights")
    return f"{generation}/files/{path}"


def overwrite(path):
    """Write other bytes over a file where it lies, as ``cp`` and an editor on a link do."""
    with open(path, "r+b") as stream:
        stream.write(b"edited!")


@pytest.mark.parametrize("kind", [cache, folder])
def test_what_is_there_is_taken_and_nothing_fetched(place, tmp_path, kind):
    top, _ = kind(place, f"{tmp_path}/there")
    before = tree(top)
    outcome, fetched = adopt(place, "--adopt", top)
    assert fetched == []
    assert (outcome["bytes"]["weights"], outcome["taken_over_bytes"]) == (0, TOTAL)
    assert tree(top) == before


@pytest.mark.parametrize("where", ["HF_HOME", "HF_HUB_CACHE", "the volume", "the volume's hub"])
def test_a_cache_is_found_where_one_usually_is(place, tmp_path, where):
    tops = {
        "HF_HOME": f"{tmp_path}/hf/hub",
        "HF_HUB_CACHE": f"{tmp_path}/hf",
        "the volume": place.volume,
        "the volume's hub": f"{place.volume}/hub",
    }
    cache(place, tops[where])
    outcome, fetched = adopt(place, env={where: f"{tmp_path}/hf"} if where in HF else {})
    assert fetched == []
    assert outcome["taken_over_bytes"] == TOTAL


HF = ("HF_HOME", "HF_HUB_CACHE")


@pytest.mark.parametrize("name", [WEIGHTS, "config.json"])
@pytest.mark.parametrize("kind", [cache, folder])
def test_a_file_with_a_wrong_byte_is_fetched_and_not_taken(place, tmp_path, kind, name):
    top, files = kind(place, f"{tmp_path}/there")
    runs.flip(os.path.realpath(f"{files}/{name}"))
    before = tree(top)
    outcome, fetched = adopt(place, "--adopt", top)
    assert fetched == [name]
    size = SIZES.get(name) or len(TEXTS[name])
    assert (outcome["bytes"]["weights"], outcome["taken_over_bytes"]) == (size, TOTAL - size)
    assert tree(top) == before


def test_of_an_older_snapshot_all_is_taken_that_did_not_change(place, tmp_path):
    top, _ = cache(place, f"{tmp_path}/there")
    with open(f"{place.hub.root}/{BIG}/config.json", "wb") as stream:
        stream.write(b'{"a": 2}')
    _, fetched = adopt(place.but(model=place.pinned(BIG)), "--adopt", top)
    assert fetched == ["config.json"]


def test_the_second_place_is_looked_into_where_the_first_has_other_bytes(place, tmp_path):
    top, _ = folder(place, f"{tmp_path}/spoiled")
    runs.flip(f"{top}/{WEIGHTS}")
    good, _ = cache(place, f"{tmp_path}/good")
    _, fetched = adopt(place, "--adopt", top, "--adopt", good)
    assert fetched == []


@pytest.mark.parametrize("kind", [cache, folder])
def test_a_small_file_that_is_edited_where_it_lies_changes_nothing_published(place, tmp_path, kind):
    top, files = kind(place, f"{tmp_path}/there")
    adopt(place, "--adopt", top)
    before = runs.published(place.volume)
    for name in (*TEXTS, "model-00001-of-00002.safetensors"):
        overwrite(f"{files}/{name}")
    assert runs.published(place.volume) == before


def test_what_is_no_file_or_has_another_size_is_passed_over(place, tmp_path):
    top, _ = folder(place, f"{tmp_path}/there")
    os.unlink(f"{top}/config.json")
    os.mkfifo(f"{top}/config.json")
    os.unlink(f"{top}/empty.txt")
    os.mkdir(f"{top}/empty.txt")
    os.truncate(f"{top}/{WEIGHTS}", 5)
    outcome, fetched = adopt(place, "--adopt", top, "--adopt", f"{tmp_path}/nothing-here")
    assert fetched == ["config.json", WEIGHTS], "and of an empty file there is nothing to fetch"
    assert outcome["taken_over_bytes"] == TOTAL - len(TEXTS["config.json"]) - SIZES[WEIGHTS]


def test_a_cache_of_other_models_is_no_hindrance(place, tmp_path):
    other = place.hub.sha(runs.OTHER)
    where = {"cache_dir": f"{tmp_path}/there", "endpoint": place.hub.url}
    snapshot_download(runs.OTHER, revision=other, **where)
    outcome, fetched = adopt(place, env={"HF_HUB_CACHE": f"{tmp_path}/there"})
    assert (len(fetched), outcome["taken_over_bytes"]) == (4, 0)


def test_a_directory_of_nobody_vouched_for_files_is_copied_not_taken(place, tmp_path):
    """A file:// source has no hashes: that the sizes agree proves nothing."""
    top, _ = folder(place, f"{tmp_path}/there")
    runs.flip(f"{top}/{WEIGHTS}")
    model = f"file://{place.hub.root}/{BIG}"
    outcome, _ = adopt(place.but(model=model), "--adopt", top)
    assert (outcome["bytes"]["weights"], outcome["taken_over_bytes"]) == (TOTAL, 0)


def test_a_plan_counts_what_is_there_as_not_to_be_fetched(place, tmp_path):
    def weighs(*options):
        step = place.run("plan", "--json", *options).json["steps"][0]
        assert step["kind"] == "weights"
        return step["bytes"], step["predicted_seconds"], step["predicted_from"]

    assert weighs() == (TOTAL, round(TOTAL / 200e6, 3), "200 MB/s assumed")
    top, files = cache(place, f"{tmp_path}/there")
    assert weighs("--adopt", top)[:2] == (0, 0)
    blob = os.path.realpath(f"{files}/{WEIGHTS}")
    os.truncate(blob, 5)
    assert weighs("--adopt", top)[0] == SIZES[WEIGHTS]


# --- filesystems ---------------------------------------------------------------------------------


@contextlib.contextmanager
def disk(top, make):
    """Mount a new filesystem of 400 MB, or skip where this machine cannot."""
    if shutil.which(make[0]) is None:
        pytest.skip(f"no {make[0]} here")
    os.mkdir(top)
    with open(f"{top}.img", "wb") as stream:
        stream.truncate(400 << 20)
    subprocess.run([*make, f"{top}.img"], check=True, capture_output=True)
    words = ["mount", "-o", "loop", f"{top}.img", top]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"this machine mounts none: {done.stderr.strip()}")
    try:
        yield top
    finally:
        subprocess.run(["umount", "-l", top], check=True)


def on(place, top):
    """Return the place with its volume on this filesystem."""
    os.mkdir(f"{top}/volume")
    return place.but(volume=f"{top}/volume")


@needs_root
@pytest.mark.parametrize("kind", [cache, folder])
@pytest.mark.parametrize(
    "make", [("mkfs.xfs", "-q", "-m", "reflink=1"), ("mkfs.btrfs", "-q")], ids=["xfs", "btrfs"]
)
def test_blocks_are_shared_and_later_writes_are_not_where_the_filesystem_can(
    place, tmp_path, make, kind
):
    with disk(f"{tmp_path}/disk", make) as top:
        place = on(place, top)
        there, files = kind(place, f"{top}/there")
        _, fetched = adopt(place, "--adopt", there)
        assert fetched == []
        theirs = os.path.realpath(f"{files}/{WEIGHTS}")
        assert not os.path.samefile(published(place), theirs)
        extents = subprocess.run(
            ["filefrag", "-v", published(place)], capture_output=True, text=True
        )
        assert "shared" in extents.stdout, extents
        before = runs.published(place.volume)
        overwrite(theirs)
        assert runs.published(place.volume) == before


@needs_root
@pytest.mark.parametrize("kind", [cache, folder])
def test_a_big_file_is_linked_where_blocks_cannot_be_shared(place, tmp_path, kind):
    with runs.tmpfs(f"{tmp_path}/disk", "256m") as top:
        place = on(place, top)
        there, files = kind(place, f"{top}/there")
        _, fetched = adopt(place, "--adopt", there)
        assert fetched == []
        assert os.path.samefile(published(place), f"{files}/{WEIGHTS}")
        assert not os.path.samefile(published(place, "config.json"), f"{files}/config.json")


@needs_root
def test_a_file_that_the_servers_user_could_not_read_is_copied_not_linked(place, tmp_path):
    with runs.tmpfs(f"{tmp_path}/disk", "256m") as top:
        place = on(place, top)
        there, files = folder(place, f"{top}/there")
        os.chmod(f"{files}/{WEIGHTS}", 0o600)
        _, fetched = adopt(place, "--adopt", there)
        assert fetched == []
        assert os.stat(published(place)).st_mode & 0o444 == 0o444
        assert os.stat(f"{files}/{WEIGHTS}").st_mode & 0o777 == 0o600


@needs_root
@pytest.mark.parametrize("kind", [cache, folder])
def test_from_another_mount_the_bytes_are_copied(place, tmp_path, kind):
    with runs.tmpfs(f"{tmp_path}/disk", "256m") as top:
        there, files = kind(place, f"{top}/there")
        outcome, fetched = adopt(place, "--adopt", there)
        assert (fetched, outcome["taken_over_bytes"]) == ([], TOTAL)
        before = runs.published(place.volume)
        overwrite(f"{files}/{WEIGHTS}")
        assert runs.published(place.volume) == before


@needs_root
def test_what_has_to_be_copied_must_fit_too_and_is_asked_for_before_the_first_byte(place, tmp_path):
    there, _ = folder(place, f"{tmp_path}/there")
    with runs.tmpfs(f"{tmp_path}/disk", "72m") as top:
        place = on(place, top)
        options = ("--compile", "never", "--adopt", there)
        error = place.fails(6, "no-space", "too few", options=options)
        assert f"expected {TOTAL + capacity.RESERVE}: " in error["message"]
        assert place.fetched() == []


@needs_root
def test_parts_that_fit_on_the_volume_but_once_are_given_up_for_the_sake_of_the_whole(
    place, tmp_path
):
    size = 3 * transfer.PART
    with open(f"{place.hub.root}/{BIG}/{WEIGHTS}", "wb") as stream:
        stream.truncate(size)
    slow = place.hub.fault(WEIGHTS, times=1, stall=60.0)
    with runs.tmpfs(f"{tmp_path}/disk", "180m") as top:
        place = on(place.but(model=place.pinned(BIG)), top)
        filling = place.start("prefill", "--compile", "never")

        def two_parts():
            return any(map(two_lines, glob.glob(f"{place.volume}/v1/staging/*/partial/*.parts")))

        runs.eventually(two_parts, 30.0)
        runs.kill(filling)
        slow.times = 0
        _, fetched = adopt(place)
        assert fetched.count(WEIGHTS) == 3


def two_lines(path):
    with open(path, "rb") as stream:
        return len(stream.readlines()) == 2


def test_files_of_a_bucket_are_taken_from_a_folder_too(place, tmp_path):
    """Its listing vouches for nothing; a question about the one file does."""
    server = s3.seaweed()
    bucket, client = server.bucket(), server.client()
    for path in (*SIZES, *TEXTS):
        with open(f"{place.hub.root}/{BIG}/{path}", "rb") as stream:
            client.put_object(Bucket=bucket, Key=f"model/{path}", Body=stream.read())
    top, _ = folder(place, f"{tmp_path}/there")
    runs.flip(f"{top}/config.json")
    place = place.but(model=f"s3://{bucket}/model")
    weighs = place.run("plan", "--json", "--adopt", top, env=server.environment()).json["steps"][0]
    assert weighs["bytes"] == 0
    outcome, _ = adopt(place, "--adopt", top, env=server.environment())
    fetched = len(TEXTS["config.json"])
    assert (outcome["bytes"]["weights"], outcome["taken_over_bytes"]) == (fetched, TOTAL - fetched)
