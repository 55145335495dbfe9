"""The verb: figures with where they come from, and measured ones instead of assumed."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import click
import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "support"))
import runs
import s3
from buckets import Bucket
from hub import Hub
from tinymodel import make_tiny_llama

from warmer.advise.case import DEFAULTS
from warmer.cli.advise import command
from warmer.errors import SourceError, UsageError, VolumeError

ARTICLE = (
    "--size",
    "16GB",
    "--starts",
    "40",
    "--price-storage",
    "0.30",
    "--price-transfer",
    "0.03",
)
SMALL = ("--starts", "40", "--sample", "2M", "--measure", "--json")


def fails(kind, reason, *words):
    with pytest.raises(kind) as caught:
        command.main([*map(str, words)], standalone_mode=False)
    assert caught.value.reason == reason, caught.value.message
    assert caught.value.hint
    return caught.value


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    top = tmp_path_factory.mktemp("hub")
    make_tiny_llama(str(top / "org" / "tiny"), layers=1)
    with Hub(str(top)) as hub:
        yield hub


@pytest.fixture
def model(hub, monkeypatch):
    hub.faults.clear()
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    return "org/tiny"


def test_the_published_example(advise):
    found = json.loads(advise(*ARTICLE, "--kernels", "0", "--json"))
    volume = found["strategies"][0]
    assert volume["name"] == "volume"
    assert volume["bill_dollars"] == pytest.approx(24.00)
    screen = advise(*ARTICLE)
    assert re.search(r"shared volume +18\.0 +0\.0 +4\.81 +19\.25 +24\.06", screen)
    assert max(map(len, screen.splitlines())) <= 100


def test_every_figure_says_where_it_comes_from(advise):
    found = json.loads(advise(*ARTICLE, "--network", "10Gbit/s", "--node-hits", "80", "--json"))
    origins = {name: figure["origin"] for name, figure in found["rests_on"].items()}
    assert origins.keys() == DEFAULTS.keys() | {"weights", "starts"}
    given = {"weights", "starts", "price_storage", "price_transfer", "network", "node_hits"}
    assert {name for name, origin in origins.items() if origin == "given"} == given
    assert all(origins[name].startswith("assumed: ") for name in origins.keys() - given)
    assert found["rests_on"]["network"]["value"] == 1.25e9
    screen = advise(*ARTICLE)
    assert len(re.findall(r"  assumed: ", screen)) == len(DEFAULTS) - 2


def test_explain_shows_the_formula_behind_every_number(advise):
    screen = advise(*ARTICLE, "--explain")
    for formula in (
        "stored   16.0 GB × $0.30/GB-month",  # noqa: RUF001 - a sign people read
        "moved    40 starts × 16.0 GB × $0.03/GB",  # noqa: RUF001 - a sign people read
        "weights  16.0 GB ÷ 889 MB/s of the volume",
        "waiting  40 starts × 18.0 s × $2.00/hour",  # noqa: RUF001 - a sign people read
    ):
        assert formula in screen
    assert max(map(len, screen.splitlines())) <= 100


def test_needs_are_heeded(advise):
    zones = ("--availability", "multi-zone", "--zonal", "--zones", "2")
    found = json.loads(advise(*ARTICLE, *zones, "--without-source", "--json"))
    assert found["strategies"][0]["storage_dollars"] == pytest.approx(2 * 0.3 * 16.043)
    assert {way["name"] for way in found["strategies"] if way["against"]} == {
        "download",
        "remote",
        "node",
    }
    none = advise(*ARTICLE, "--max-seconds", "0.1")
    assert "recommended: none of these" in none


def test_a_yaml_file_gives_what_options_give(advise, tmp_path):
    path = tmp_path / "advise.yaml"
    path.write_text(
        "size: 16GB\nstarts: 40\nkernels: '0'\nprice-storage: 0.30\nprice-transfer: 0.03\n"
    )
    found = json.loads(advise("--config", path, "--json"))
    assert found["strategies"][0]["bill_dollars"] == pytest.approx(24.00)


def test_the_size_is_what_the_engine_loads_and_is_asked_of_the_hub(advise, model, hub):
    found = json.loads(advise("--model", model, "--starts", "4", "--json"))
    top = os.path.join(hub.root, "org", "tiny")
    size = sum(os.path.getsize(os.path.join(top, name)) for name in os.listdir(top))
    assert found["rests_on"]["weights"]["value"] == size
    assert found["rests_on"]["weights"]["origin"].startswith("measured: ")
    assert not any("/resolve/" in path for _, path in hub.requests), "nothing was fetched"


def test_a_volume_is_timed_and_left_as_it_was(advise, tmp_path):
    words = ("--size", "1GB", "--volume", tmp_path, "--volume-bandwidth", "5GB/s", *SMALL)
    found = json.loads(advise(*words))["rests_on"]["volume_bandwidth"]
    assert found["origin"].startswith("measured: 2.0 MB, 4 readers, ")
    assert "5,000 MB/s were given" in found["origin"]
    assert found["value"] > 0
    assert os.listdir(tmp_path) == []


def test_the_hub_is_timed_by_ranges_of_the_largest_file_and_no_more_than_the_sample(
    advise, model, hub
):
    before, since = hub.sent, len(hub.log)
    found = json.loads(advise("--model", model, *SMALL, "--sample", "1Mi"))["rests_on"]["network"]
    assert found["origin"].startswith("measured: ")
    assert "4 connections" in found["origin"]
    assert 0 < hub.sent - before <= 1 << 20
    files = {seen.path.rsplit("/", 1)[1] for seen in hub.log[since:] if "/resolve/" in seen.path}
    assert len(files) == 1
    assert files.pop().endswith(".safetensors")


def test_a_bucket_is_timed(advise, monkeypatch):
    with Bucket(s3.seaweed()) as bucket:
        bucket.put("config.json", b"{}")
        bucket.put("model.safetensors", os.urandom(3 << 20))
        for name, value in bucket.environment().items():
            monkeypatch.setenv(name, value)
        found = json.loads(advise("--model", bucket.model, *SMALL))["rests_on"]
        asked = {path.rsplit("/", 1)[1] for path, _ in bucket.wire.ranges}
    assert found["weights"]["value"] == (3 << 20) + 2
    assert found["network"]["origin"].startswith("measured: 2.0 MB of model.safetensors")
    assert asked == {"model.safetensors"}


def test_a_directory_says_that_it_may_come_from_memory(advise, hub):
    top = os.path.join(hub.root, "org", "tiny")
    found = json.loads(advise("--model", f"file://{top}", *SMALL))["rests_on"]["network"]
    assert found["origin"].endswith("from memory where it is there")


def test_a_source_that_fails_is_said_so(model, hub):
    fails(SourceError, "not-found", "--model", "org/none", "--starts", "4", "--retry", "0")
    hub.fault("/resolve/", status=500)
    fails(SourceError, "unavailable", "--model", model, *SMALL, "--retry", "0")
    hub.faults.clear()
    hub.fault("/resolve/", truncate=10)
    fails(SourceError, "unreachable", "--model", model, *SMALL, "--retry", "0")


def test_wrong_words_are_refused():
    fails(UsageError, "usage", "--starts", "4")
    fails(UsageError, "usage", "--starts", "4", "--size", "0")
    fails(UsageError, "usage", "--starts", "4", "--size", "1G", "--measure")
    fails(UsageError, "bad-value", "--starts", "4", "--size", "large")
    fails(UsageError, "bad-value", "--starts", "4", "--size", "1G", "--network", "0")
    fails(UsageError, "bad-value", "--starts", "4", "--size", "1G", "--network", "fast")
    fails(UsageError, "bad-model", "--starts", "4", "--model", "gs://x/y")
    for number in ("nan", "inf", "-1"):
        for option in ("--price-gpu", "--node-hits", "--starts"):
            with pytest.raises(click.BadParameter):
                command.main([*ARTICLE, option, number], standalone_mode=False)
    measured = ("--starts", "4", "--size", "1G", "--measure", "--volume")
    fails(UsageError, "relative-path", *measured, "here")
    fails(UsageError, "bad-value", *measured, "/tmp", "--sample", "1")
    fails(UsageError, "bad-value", *measured, "/tmp", "--sample", "1T")


def test_a_volume_that_is_missing_or_no_directory_fails(tmp_path):
    words = ("--size", "1GB", *SMALL, "--volume")
    fails(VolumeError, "missing", *words, tmp_path / "none")
    (tmp_path / "file").write_text("")
    fails(VolumeError, "not-a-directory", *words, tmp_path / "file")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_volume_without_room_for_the_sample_is_not_filled(tmp_path):
    with runs.mounted(str(tmp_path), ["-t", "tmpfs", "-o", "size=3m", "tmpfs"]):
        error = fails(VolumeError, "no-space", "--size", "1GB", *SMALL, "--volume", tmp_path)
        assert "--sample" in error.hint
        assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_filesystem_without_direct_reads_that_does_not_know_its_size_is_timed(advise, tmp_path):
    with runs.mounted(str(tmp_path), ["-t", "ramfs", "ramfs"]):
        found = json.loads(advise("--size", "1GB", "--volume", tmp_path, *SMALL))
        assert os.listdir(tmp_path) == []
    origin = found["rests_on"]["volume_bandwidth"]["origin"]
    assert origin.endswith("after the page cache was asked to forget it")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_read_only_volume_fails(tmp_path):
    with runs.mounted(str(tmp_path), ["-t", "tmpfs", "-o", "ro,size=64m", "tmpfs"]):
        fails(VolumeError, "read-only", "--size", "1GB", *SMALL, "--volume", tmp_path)


def measuring(volume):
    """Start a measurement that takes long, and wait until its sample is being written."""
    argv = [sys.executable, "-m", "warmer", "advise", "--size", "1GB", "--starts", "4"]
    argv += ["--measure", "--sample", "4G", "--volume", str(volume)]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 30
    while not any(name == "sample" for _, _, names in os.walk(volume) for name in names):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_who_is_stopped_takes_the_sample_away(tmp_path, number, code):
    process = measuring(tmp_path)
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == code
    assert os.listdir(tmp_path) == []


def test_what_a_killed_one_left_is_removed_by_a_later_one(advise, tmp_path):
    process = measuring(tmp_path)
    process.kill()
    process.communicate()
    ((directory, _, _),) = [found for found in os.walk(tmp_path) if "sample" in found[2]]
    long_ago = time.time() - 7200
    os.utime(directory, (long_ago, long_ago))
    advise("--size", "1GB", "--volume", tmp_path, *SMALL)
    assert not os.path.exists(directory)


def test_the_exit_status_says_what_failed(tmp_path):
    base = [sys.executable, "-m", "warmer", "advise", "--json", "--starts", "4"]
    none = f"file://{tmp_path}/none"
    for code, words in ((2, []), (4, ["--model", none, "--retry", "0"])):
        done = subprocess.run([*base, *words], capture_output=True, text=True)
        assert done.returncode == code, done
        assert json.loads(done.stdout)["error"]["code"] == code


def test_a_screen_fits_a_terminal_and_figures_never_touch(advise):
    assert max(map(len, advise(*ARTICLE).splitlines())) <= 80
    huge = advise(*ARTICLE, "--size", "70TB", "--price-gpu", 98.32, "--build", 600)
    rows = [line for line in huge.splitlines() if re.search(r"\d\.\d\d \S+$", line)]
    volume = next(line for line in rows if "shared volume" in line)
    assert volume.split()[-7:] == [
        *("78,740.2", "0.0", "21,000.01", "84,000.05"),
        *("105,000.06", "86,019.30", "191,019.36"),
    ]
    assert len({len(line) for line in rows}) == 1
    assert "kernels from 596.4 starts" in re.sub(" +", " ", huge)


@pytest.mark.parametrize(
    "words",
    [
        ("--size", "16"),
        ("--size", "999999P"),
        ("--kernels", "43"),
        ("--kernels", "999999P"),
        ("--network", "1kbps"),
        ("--volume-bandwidth", "100TB/s"),
        ("--network", "10Gb"),
    ],
)
def test_a_figure_whose_unit_was_forgotten_is_asked_again(words):
    message = fails(UsageError, "bad-value", *ARTICLE, *words).message
    assert message.startswith(f"got {words[0]} {words[1]!r}")
    assert "expected " in message


@pytest.mark.parametrize("text", ["0,30", "$0.30", "", "nan", "inf", "-1", "1e308", "1e7"])
def test_a_price_that_is_none_is_refused_in_plain_words(text):
    with pytest.raises(click.BadParameter) as caught:
        command.main([*ARTICLE, "--price-gpu", text], standalone_mode=False)
    assert f"got {text!r}, expected a number from 0 to 1,000,000" in caught.value.message


def test_the_dearest_and_the_most_have_an_answer(advise):
    most = ("--starts", 1e9, "--size", "1000TB", "--network", "10kB/s", "--build", 1e6)
    prices = ("storage", "transfer", "download", "bucket", "registry", "pull", "gpu")
    dear = [word for name in prices for word in (f"--price-{name}", "1000000")]
    assert "recommended: " in advise(*most, *dear, "--explain")
    json.loads(advise(*most, *dear, "--json"), parse_constant=pytest.fail)


def test_without_a_start_no_hour_of_waiting_pays(advise):
    screen = advise(*ARTICLE, "--starts", 0)
    assert "shared volume starts 149.0 s sooner." in screen
    assert "worth more than $0.00" not in screen
