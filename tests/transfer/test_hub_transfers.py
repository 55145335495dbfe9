"""A hub that misbehaves, and the whole program: polite, never half, and no token where none belongs."""

import os
import shutil
import sys

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import runs
from pages import cached

from warmer.fill import partial

SHARD = runs.SHARDS[1]
NO_RETRY = ("--retry", "0")
MIB = 1 << 20
PART = 32 * MIB


@pytest.fixture
def place(tmp_path):
    with runs.place(tmp_path) as place:
        yield place


def put(place, path, data):
    """Add a file to the model's repository; returns the place that wants the new commit."""
    target = f"{place.hub.root}/{runs.REPO}/{path}"
    os.makedirs(os.path.dirname(target), exist_ok=True)
    with open(target, "wb") as stream:
        stream.write(data)
    return place.but(model=place.pinned(runs.REPO))


def same(place):
    """Assert that the only generation's files are the hub's."""
    (generation,) = place.generations("weights")
    assert files_below(f"{generation}/files") == files_below(f"{place.hub.root}/{runs.REPO}")


def files_below(top):
    found = {}
    for at, _, names in os.walk(top):
        for name in names:
            with open(os.path.join(at, name), "rb") as stream:
                found[os.path.relpath(stream.name, top)] = stream.read()
    return found


def resolved(hub):
    return [seen for seen in hub.log if "/resolve/" in seen.path]


# --- politeness ----------------------------------------------------------------------------------


def test_one_refusal_with_retry_after_keeps_every_connection_quiet_and_is_counted(place):
    os.mkdir(f"{place.hub.root}/{runs.REPO}/chat")
    for number in range(150):
        with open(f"{place.hub.root}/{runs.REPO}/chat/{number:03}.json", "wb") as stream:
            stream.write(b"%03d" % number)
    place = place.but(model=place.pinned(runs.REPO))
    place.hub.fault("/chat/040", status=429, retry_after=3, times=1)
    done = place.warmed("--retry", "30")
    same(place)
    asked = resolved(place.hub)
    twice = [one for one in asked if sum(one.path == other.path for other in asked) > 1]
    first, again = sorted(one.at for one in twice)
    assert again - first >= 3
    quiet = [one for one in asked if first + 1 < one.at < first + 3]
    assert quiet == [], "what was on its way came; nothing else did"
    assert len([one for one in asked if one.at >= first + 3]) > 75, "most were still to come"
    assert done.json["retries"] == {"rate-limited": 1}
    assert 3 <= done.json["throttled_seconds"] <= 3 * 1.25 + 0.1
    said = [line for line in done.logged if line["event"] == "source failed, trying again"]
    assert len(said) == 1, "the wait is shown"
    assert said[0]["in_s"] >= 3


def test_a_retry_after_beyond_the_budget_ends_at_once_and_keeps_what_came(place):
    place.hub.fault(SHARD, method="GET", status=429, retry_after=3600)
    place.hub.fault("config.json", rate=1e6)
    result = place.run("prefill", "--json", "--retry", "5")
    runs.failed(result, 4, "rate-limited", SHARD)
    asked = [path.rsplit("/", 1)[1] for _, path in place.hub.requests if "/resolve/" in path]
    assert asked.count(SHARD) == 1
    place.hub.faults.clear()
    place.warmed()
    same(place)


def test_a_wait_for_the_answer_what_a_branch_means_is_counted_too(place):
    place.hub.fault("^/api/", status=429, retry_after=1, times=1)
    done = place.but(model=f"hf://{runs.REPO}@main").warmed()
    assert done.json["retries"] == {"rate-limited": 1}
    assert 1 <= done.json["throttled_seconds"] <= 1.25 + 0.1


def test_the_hub_is_asked_what_a_branch_means_once_a_prefill(place):
    branch = place.but(model=f"hf://{runs.REPO}@main")
    branch.warmed()
    assert len([path for _, path in place.hub.requests if path.startswith("/api/")]) == 1
    assert {path.split("/")[4] for _, path in place.hub.requests if "/resolve/" in path} == {
        place.hub.sha(runs.REPO)
    }


def test_a_branch_that_moves_during_a_download_is_not_mixed_with_what_it_was(place):
    branch = place.but(model=f"hf://{runs.REPO}@main")
    place.hub.snapshot(runs.REPO)
    old = files_below(f"{place.hub.root}/{runs.REPO}")
    place.hub.fault(SHARD, rate=1e6)
    filling = branch.start("prefill", "--json")
    runs.eventually(lambda: SHARD in branch.fetched())
    for name in (*runs.SHARDS, "config.json"):
        put(place, name, os.urandom(5000) if name in runs.SHARDS else b'{"new": 1}')
    assert runs.finish(filling).code == 0
    (first,) = branch.generations("weights")
    assert files_below(f"{first}/files") == old
    place.hub.faults.clear()
    branch.warmed()
    (second,) = set(branch.generations("weights")) - {first}
    assert files_below(f"{second}/files") == files_below(f"{place.hub.root}/{runs.REPO}") != old
    assert files_below(f"{first}/files") == old


def test_the_page_cache_keeps_the_weights_unless_it_is_told_not_to(place):
    for options, share in ((("--no-page-cache",), 0), ((), 1)):
        place.warmed("--compile", "never", *options)
        (generation,) = place.generations("weights")
        path = f"{generation}/files/{SHARD}"
        assert cached(path) // os.stat(path).st_size == share
        shutil.rmtree(f"{place.volume}/v1")
        shutil.rmtree(place.warm)
        os.mkdir(place.warm)


# --- wrong answers -------------------------------------------------------------------------------


def test_a_wrong_byte_is_never_published_and_fetched_anew_by_the_next_run(place):
    place.hub.fault(f"/{SHARD}$", corrupt=True, rate=1_000_000)  # the others are done by then
    place.fails(5, "hash-mismatch", SHARD, "sha256")
    place.hub.faults.clear()
    (left,) = place.staged()
    finished = set(runs.listing(f"{left}/files"))
    assert finished
    assert SHARD not in finished
    asked = len(place.hub.requests)
    place.warmed()
    assert place.fetched(asked).count(SHARD) == 1
    assert not finished & set(place.fetched(asked)), "what was right is not fetched again"
    same(place)


@pytest.mark.parametrize("lie", [1, -1, 1000])
def test_a_content_length_that_is_not_the_listed_size_is_refused(place, lie):
    place.hub.fault(f"/{SHARD}$", lie=lie)
    result = place.run("prefill", "--json", *NO_RETRY)
    runs.failed(result, 4, "size-mismatch", SHARD)
    assert runs.published(place.volume) == {}
    place.hub.faults.clear()
    place.warmed()
    same(place)


def test_a_hub_that_ignores_ranges_is_told_from_one_that_sends_parts(place):
    big = put(place, "model-big.safetensors", os.urandom(PART + 5))
    big.hub.fault("/model-big", all=True)
    runs.failed(big.run("prefill", "--json", *NO_RETRY), 4, "bad-answer", "a part was asked for")
    assert runs.published(place.volume) == {}
    big.hub.faults.clear()
    big.warmed()
    same(big)


@pytest.mark.parametrize("end", [{"reset": True}, {}])
def test_a_body_cut_short_goes_on_where_it_stopped(place, end):
    place.hub.fault(f"/{SHARD}$", truncate=10_000, times=1, **end)
    place.warmed("--retry", "20")
    ranges = [seen.range for seen in resolved(place.hub) if seen.path.endswith(SHARD)]
    assert len(ranges) == 2
    start = int(ranges[1].removeprefix("bytes=").split("-")[0])
    assert 0 < start <= 10_000 or (start == 0 and end), "a reset may eat what was on its way"
    same(place)


EVIL = (
    *("../evil", "/evil", "a/../../evil", "a//b", "./a", "a/.", "a/", "", "..", "nul\0l"),
    *("config.json", "config.json/under-a-file"),
)


@pytest.mark.parametrize("name", EVIL)
def test_a_listing_that_names_no_place_for_a_file_of_its_own_is_refused(place, name):
    place.hub.listed.append({"rfilename": name, "size": 3, "blobId": "0" * 40})
    before = sorted(os.listdir(place.top))
    result = place.run("prefill", "--json", *NO_RETRY)
    runs.failed(result, 5, "unsafe-path")
    assert place.fetched() == []
    assert (runs.published(place.volume), place.staged(), place.held()) == ({}, [], [])
    assert sorted(os.listdir(place.top)) == before


ODD = (
    "with space.json",
    "ü/日本 語.json",
    "🙂.txt",
    "100%25.json",
    "a?b#c&d=e+f.json",
    "a\nb.json",
)
ODD += ("empty.json", "deep/" * 9 + "x.json", "-dash.json", "semi;colon.json", "q'uo\"te.json")


def test_names_with_spaces_unicode_and_signs_and_files_of_no_bytes_arrive(place):
    for name in ODD:
        last = put(place, name, b"" if name == "empty.json" else name.encode())
    last.warmed()
    same(last)
    assert last.run("check", "--deep").code == 0


def test_a_repository_with_weights_of_no_bytes_is_sealed_as_it_is(place):
    empty = put(place, "model-empty.safetensors", b"")
    empty.warmed()
    same(empty)


# --- resume --------------------------------------------------------------------------------------


def test_a_killed_process_costs_at_most_a_part_of_each_connection(place):
    big = put(place, "model-big.safetensors", os.urandom(10 * PART))
    big.hub.fault("/model-big", rate=40e6)
    filling = big.start("prefill")
    runs.eventually(lambda: len(parts(big)) >= 2, timeout=60)
    runs.kill(filling)
    kept = parts(big)
    big.hub.faults.clear()
    asked = len(big.hub.log)
    big.warmed(timeout=60)
    same(big)
    ranges = [seen.range for seen in big.hub.log[asked:] if "/model-big" in seen.path]
    every = {f"bytes={at}-{at + PART - 1}" for at in range(0, 10 * PART, PART)}
    assert sorted(ranges) == sorted(every - {f"bytes={start}-{end - 1}" for start, end in kept})


def parts(place):
    """List the finished parts of the big file in staging: start and end."""
    found = []
    for top in place.staged():
        path = partial.place(top, "model-big.safetensors")
        if os.path.exists(f"{path}.parts"):
            with open(f"{path}.parts", encoding="ascii") as stream:
                found += [tuple(map(int, line.split())) for line in stream]
    return found
