"""`warmer prefill --tune-loader`: vLLM's loaders measured on the volume, kept, and used."""

import json
import mmap
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import fakeengine
import runs

from warmer import loaders
from warmer.errors import TerminatedError, WarmerError
from warmer.fill import load, trial
from warmer.layout import Volume

# As much of torch and of vLLM's loaders as is asked for: what each does, and how long it takes, is
# said in a file beside them.
TORCH = """\
import types
cuda = types.SimpleNamespace(is_available=lambda: False)
device = str
zeros = lambda *_, **__: None
empty_like = lambda tensor, device: tensor
"""
CONFIG = """\
class LoadConfig:
    def __init__(self, use_tqdm_on_load, load_format="auto", safetensors_load_strategy=None,
                 model_loader_extra_config=None):
        assert not use_tqdm_on_load
        self.name = safetensors_load_strategy or load_format
        if model_loader_extra_config:
            self.name = "multithread"
"""
LOADER = """\
import glob, json, os, time

class Tensor:
    def copy_(self, other):
        pass

def hot(path):
    with open(path, "rb") as f:
        try:
            os.preadv(f.fileno(), [bytearray(1)], os.fstat(f.fileno()).st_size - 1, os.RWF_NOWAIT)
        except BlockingIOError:
            return False
    return True

class Loader:
    def __init__(self, name):
        if os.environ.get("INSTANTTENSOR_BACKEND") == "BUFFERED":
            name += "-buffered"
        with open(os.path.join(os.path.dirname(__file__), "does.json")) as f:
            self.does = json.load(f)[name]

    def get_all_weights(self, config, model):
        with open(os.path.join(os.path.dirname(__file__), "asked"), "a") as f:
            print(os.environ.get("VLLM_CACHE_ROOT"), file=f)
        with open(os.path.join(os.path.dirname(__file__), "hot"), "a") as f:
            print(all(map(hot, glob.glob(config.model + "/*.safetensors"))), file=f)
        if self.does == "end":
            os._exit(9)
        if self.does == "raise":
            raise RuntimeError("this disk cannot\\nwhatever else")
        time.sleep(self.does)
        for path in glob.glob(config.model + "/*.safetensors"):
            with open(path, "rb") as f:
                f.read()
            yield path, Tensor()

def get_model_loader(config):
    return Loader(config.name)
"""
SLOW, QUICK = 1.0, 0.05


@pytest.fixture
def place(tmp_path):
    with runs.place(tmp_path) as place:
        engine = fakeengine.make_engine(tmp_path / "plain", precompiled=False)
        texts = {
            "torch/__init__.py": TORCH,
            "vllm/config/__init__.py": "",
            "vllm/config/load.py": CONFIG,
            "vllm/model_executor/__init__.py": "",
            "vllm/model_executor/model_loader/__init__.py": LOADER,
            "fastsafetensors.py": "",
        }
        for name, text in texts.items():
            path = Path(engine.site, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        yield place.but(engine=engine)


def does(place, **what):
    plain = {"auto": SLOW, "prefetch": QUICK, "multithread": SLOW, "fastsafetensors": "raise"}
    path = Path(place.engine.site, "vllm/model_executor/model_loader/does.json")
    path.write_text(json.dumps(plain | what))


def asked(place):
    path = Path(place.engine.site, "vllm/model_executor/model_loader/asked")
    return path.read_text().splitlines() if path.exists() else []


def records(place):
    return [Path(place.volume, "v1/loaders", n) for n in runs.listing(f"{place.volume}/v1/loaders")]


def test_the_fastest_loader_is_kept_and_handed_off_to_every_pod_of_the_volume(place):
    does(place)
    result = place.warmed("--tune-loader")
    found = result.json["loaders"]
    assert (found["chosen"], found["device"]) == ("prefetch", "cpu")
    assert {name: len(took) for name, took in found["seconds"].items()} == {
        "default": 2,
        "prefetch": 2,
        "multithread": 1,
    }
    assert found["left_out"] == {
        "fastsafetensors": "RuntimeError: this disk cannot",
        "instanttensor": "no package instanttensor is installed",
        "instanttensor-buffered": "no package instanttensor is installed",
        "runai_streamer": "no package runai_model_streamer is installed",
    }
    assert not [line for line in asked(place) if line.startswith(place.warm)], "of what is sealed"
    handed = place.handoff()
    assert handed["loader"] == ["--safetensors-load-strategy", "prefetch"]
    assert "loader" in handed["levers"]
    (record,) = records(place)
    assert json.loads(record.read_text())["chosen"] == "prefetch"

    before = len(asked(place))
    other = place.but(warm=f"{place.top}/another")
    assert other.warmed("--tune-loader").json["loaders"]["chosen"] == "prefetch"
    assert len(asked(place)) == before, "it is measured once"
    plan = json.loads(place.run("plan", "--json").out)["levers"]["loader"]
    assert plan["on"] and "prefetch: 0." in plan["why"]
    assert other.warmed("--lever", "loader=off").json["loaders"] is None
    assert other.handoff()["loader"] == []
    own = (*runs.SERVE, "--load-format", "safetensors")
    assert place.warmed(serve=own).json["warm"]
    assert place.handoff()["loader"] == []


def test_a_loader_whose_process_ends_is_left_out_and_the_default_stays(place):
    does(place, prefetch="end", auto=QUICK)
    found = place.warmed("--tune-loader").json["loaders"]
    assert found["chosen"] == "default"
    assert "its process ended" in found["left_out"]["prefetch"]
    assert place.handoff()["loader"] == []
    assert "off: measured: none is faster" in place.run("plan", "--explain").out


def test_where_the_page_cache_cannot_be_emptied_nothing_is_chosen_or_kept_and_that_is_said(place):
    does(place)
    volume = f"/dev/shm/{os.path.basename(place.top)}-{os.getpid()}"
    os.mkdir(volume)
    try:
        other = place.but(volume=volume)
        result = other.warmed("--tune-loader", "--read-ahead", "off")
        found = result.json["loaders"]
        assert (found["chosen"], found["seconds"]) == ("default", {})
        assert found["reason"] == "100% of the files stayed in the page cache"
        (told,) = [line for line in result.logged if "is not kept" in line["event"]]
        assert told["unmeasured"] == ["default"]
        assert told["hint"]
        assert records(other) == [], "on another node, or later, it may be emptied"
    finally:
        runs.shutil.rmtree(volume)


def test_weights_are_in_memory_or_not_as_a_start_will_find_them(place):
    """With read-ahead they are there; which loader is the fastest may be another one then."""
    does(place)
    seen = Path(place.engine.site, "vllm/model_executor/model_loader/hot")
    found = place.warmed("--tune-loader").json["loaders"]
    assert found["for"]["page_cache"] == "filled"
    assert "with the page cache filled" in found["reason"]
    assert set(seen.read_text().split()) == {"True"}
    seen.unlink()
    found = place.warmed("--tune-loader", "--read-ahead", "off").json["loaders"]
    assert found["for"]["page_cache"] == "emptied"
    assert set(seen.read_text().split()) == {"False"}
    assert len(records(place)) == 2
    for other in (("--read-ahead", "1G"), ("--lever", "read-ahead=off")):
        assert place.warmed("--tune-loader", *other).json["loaders"]["for"] == found["for"]


def test_a_loader_may_be_chosen_by_a_variable_too(place):
    Path(place.engine.site, "instanttensor.py").touch()
    does(place, **{"instanttensor": SLOW, "instanttensor-buffered": QUICK / 5})
    found = place.warmed("--tune-loader").json["loaders"]
    assert found["chosen"] == "instanttensor-buffered"
    assert len(found["seconds"]["instanttensor"]) == 1
    assert place.handoff()["loader"] == ["--load-format", "instanttensor"]
    serve = Path(place.warm, "handoff/serve").read_text()
    assert 'INSTANTTENSOR_BACKEND="${INSTANTTENSOR_BACKEND:-BUFFERED}"' in serve


def test_an_engine_that_cannot_be_asked_is_no_reason_not_to_start(place):
    Path(place.engine.site, "vllm/config/load.py").write_text("raise RuntimeError('no')\n")
    Path(place.engine.site, "vllm/model_executor/model_loader/__init__.py").write_text("1 / 0\n")
    result = place.warmed("--tune-loader")
    assert result.json["loaders"] is None
    told = [line for line in result.logged if line["event"] == "no loader is chosen"]
    assert "ZeroDivisionError" in told[0]["failure"]
    assert records(place) == [], "the next one tries again"


@pytest.mark.parametrize("how", ["TERM", "KILL"])
def test_a_measure_that_is_killed_is_begun_again_only_where_that_was_orderly(place, how):
    """Out of memory, the kernel kills a whole container, and the kubelet starts it again and again."""
    place.warmed()
    does(place, auto=600)
    process = place.start("prefill", "--tune-loader")
    runs.eventually(lambda: asked(place))
    os.kill(process.pid, getattr(signal, f"SIG{how}"))
    code = runs.finish(process).code
    runs.eventually(lambda: not [p for p in runs.processes(place.top) if p != os.getpid()])
    does(place)
    found = place.warmed("--tune-loader").json["loaders"]
    if how == "TERM":
        assert (code, found["chosen"]) == (143, "prefetch")
        return
    assert found["chosen"] == "default"
    assert f"remove {records(place)[0]} to have it made again" in found["reason"]
    records(place)[0].unlink()
    assert place.warmed("--tune-loader").json["loaders"]["chosen"] == "prefetch"


@pytest.mark.parametrize("what", ["pipe", "directory", "link", "text", "torn"])
def test_whatever_stands_in_a_records_place_chooses_the_default_and_is_named(place, what):
    does(place)
    place.warmed("--tune-loader")
    (record,) = records(place)
    text = record.read_text()
    record.unlink()
    made = {
        "pipe": lambda: os.mkfifo(record),
        "directory": record.mkdir,
        "link": lambda: record.symlink_to("/etc/passwd"),
        "text": lambda: record.write_text("--trust-remote-code"),
        "torn": lambda: record.write_text(text[:-20]),
    }
    made[what]()
    assert place.warmed("--tune-loader").json["loaders"]["reason"].startswith(str(record))
    assert place.handoff()["loader"] == []


# --- the page cache, asked ------------------------------------------------------------------------


def test_what_is_in_the_page_cache_is_seen_and_is_gone_once_it_is_dropped(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(3_000_000))
    load.drop([path])
    assert load.resident([path]) == 0
    path.read_bytes()
    assert load.resident([path]) == 1
    load.drop([path])
    assert load.resident([path]) == 0


def test_what_another_process_has_mapped_stays_and_is_seen(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(1_000_000))
    with open(path, "rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert sum(mapped[:: mmap.PAGESIZE]) > 0
        load.drop([path])
        assert load.resident([path]) > 0.5


def test_what_was_read_for_a_measure_is_in_the_page_cache(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(20_000_000))
    load.prepare([path], filled=False)
    assert load.resident([path]) == 0
    load.prepare([path], filled=True)
    assert load.resident([path]) == 1


def limited(size):
    """Make a group whose processes have so many bytes of memory, their page cache included."""
    kinds = {"/sys/fs/cgroup": "memory.max", "/sys/fs/cgroup/memory": "memory.limit_in_bytes"}
    for top, limit in kinds.items():
        if not os.access(f"{top}/cgroup.procs", os.W_OK):
            continue
        group = Path(top, f"warmer-{os.getpid()}")
        group.mkdir()
        if (group / limit).exists():
            (group / limit).write_text(str(size))
            return group
        group.rmdir()
    return pytest.skip("limits a group's memory, as root alone may, where cgroups are mounted")


def test_where_memory_does_not_keep_what_was_read_nothing_is_measured(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(1 << 20) * 160)
    load.drop([path])
    work = (
        "import os, sys\nfrom warmer.fill import load\n"
        "open(sys.argv[1], 'w').write(str(os.getpid()))\n"
        "try: load.prepare([sys.argv[2]], filled=True)\n"
        "except load.PageCacheError as exc: print(exc)\n"
    )
    group = limited(64 << 20)
    try:
        argv = [sys.executable, "-c", work, str(group / "cgroup.procs"), str(path)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    finally:
        runs.eventually(lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()
    assert done.returncode == 0, done.stderr
    assert "of the files were in the page cache, expected all of them" in done.stdout


def test_an_empty_file_is_nowhere(tmp_path):
    (tmp_path / "none").touch()
    assert load.resident([tmp_path / "none"]) == 0


def test_a_signal_while_the_record_is_made_leaves_none(tmp_path, monkeypatch):
    def stopped(*_, **__):
        raise TerminatedError(signal.SIGTERM)

    volume = Volume(str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(loaders, "encode", stopped)
        with pytest.raises(TerminatedError):
            trial.begin(volume, "0" * 64, {})
    assert trial.begin(volume, "0" * 64, {}), "the next pod may measure"
    assert not trial.begin(volume, "0" * 64, {})


def test_without_room_for_temporary_files_the_failure_is_one_that_prefill_goes_on_after(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(WarmerError, match="temporary files"):
        trial.run("python3", "/m", [], environment={}, caches="/c", filled=True, timeout=1.0)
