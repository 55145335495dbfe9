"""Exit codes 0 to 3: done, missing, misused, busy."""

import os
import shlex
import shutil
import sys

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import fakeengine
import runs


@pytest.fixture(scope="module")
def seeded(tmp_path_factory):
    with runs.place(tmp_path_factory.mktemp("place")) as place:
        place.warmed()
        yield place


@pytest.fixture
def place(seeded, tmp_path):
    seeded.hub.faults.clear()
    return seeded.fresh(tmp_path)


def test_a_plan_with_missing_pieces_is_1_and_an_empty_one_is_0(place):
    before = runs.published(place.volume)
    missing = place.run("plan", "--json")
    assert missing.code == 1
    assert missing.json["warm"] is False
    assert [(s["action"], s["kind"]) for s in missing.json["steps"]] == [
        ("download", "weights"),
        ("build", "compile"),
    ]
    assert all(step["reason"] for step in missing.json["steps"])
    assert runs.listing(place.warm) == []
    runs.nothing_lost(place, before)
    assert place.run("check").code == 1

    done = place.run("prefill", "--json")
    assert (done.code, done.json["warm"], done.json["left"]) == (0, True, [])
    assert before.items() < runs.published(place.volume).items()
    assert (place.staged(), place.held()) == ([], [])
    empty = place.run("plan", "--json")
    assert (empty.code, empty.json["warm"], empty.json["steps"]) == (0, True, [])
    checked = place.run("check", "--json")
    assert (checked.code, checked.json["warm"]) == (0, True)
    assert {row["kind"]: row["verdict"] for row in checked.json["pieces"]} == {
        "weights": "warm",
        "compile": "warm",
    }


def test_help_is_0_for_every_verb():
    for verb in ("check", "plan", "prefill", "serve"):
        helped = runs.finish(runs.spawn([*runs.WARMER, verb, "--help"], {"PATH": os.defpath}))
        assert (helped.code, helped.err) == (0, "")
        assert "Exit status" in helped.out


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("--nope", "usage"),
        ("--wait soon", "usage"),
        ("--wait -1", "usage"),
        ("--compile maybe", "usage"),
        ("--model s3://bucket", "bad-model"),
        ("--model org/name/more", "bad-model"),
        ("--model hf://org/../name", "bad-model"),
        ("--model org/name@", "bad-model"),
        ("--model org/name@a/../b", "bad-model"),
        ("--model file://models/llama", "bad-model"),
        ("--model ''", "bad-model"),
        ("--warm-dir warm", "relative-path"),
        ("--volume ./volume", "relative-path"),
        ("--on-miss kernel=fail", "bad-value"),
        ("--on-miss weights=maybe", "bad-value"),
        ("--lock k8s", "bad-lock"),
        ("--vllm /nowhere/vllm", "no-engine"),
        ("--config /nowhere/warmer.yaml", "bad-config"),
    ],
)
def test_a_wrong_option_is_2(place, options, reason):
    place.fails(2, reason, options=shlex.split(options), compared=reason != "usage")


def test_a_command_whose_python_has_no_vllm_is_2(place, tmp_path):
    bare = fakeengine.make_engine(tmp_path / "bare")
    shutil.rmtree(f"{bare.site}/vllm")
    place.fails(2, "no-engine", bare.vllm, options=("--vllm", bare.vllm))
    os.unlink(bare.python)
    place.fails(2, "no-engine", bare.python, options=("--vllm", bare.vllm))


@pytest.mark.parametrize(
    ("serve", "reason", "word"),
    [
        (("llama", "--max-model-len", "512"), "positional-argument", "'llama'"),
        (("--model", "llama"), "flag-owned-by-warmer", "--model"),
        (("--model=llama",), "flag-owned-by-warmer", "--model"),
        (("--revision", "main"), "flag-owned-by-warmer", "--revision"),
        (("--download_dir", "/x"), "flag-owned-by-warmer", "--download-dir"),
        (("--api-key", "planted"), "secret-in-argv", "VLLM_API_KEY"),
        (("--api_key=planted",), "secret-in-argv", "VLLM_API_KEY"),
        (("--api-k", "planted"), "secret-in-argv", "VLLM_API_KEY"),
        (("--hf-token", "planted"), "secret-in-argv", "HF_TOKEN"),
        (("-tp", "two"), "bad-value", "'two'"),
        (("--tensor-parallel-size",), "bad-value", "--tensor-parallel-size"),
        (("--config", "/nowhere/vllm.yaml"), "no-config-file", "/nowhere/vllm.yaml"),
    ],
)
def test_a_wrong_word_for_vllm_is_2(place, serve, reason, word):
    error = place.fails(2, reason, word, serve=serve)
    assert "planted" not in str(error)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("volume: [unclosed", "line"),
        ("just words", "a word"),
        ("- a\n- list", "list"),
        ("volumes: /models", "'volumes'"),
        ("config: /other.yaml", "'config'"),
        ("serve-args: --max-model-len 512", "serve-args"),
        ("volume: [/a, /b]", "volume"),
        ("serve-args: [--max-model-len, {a: 1}]", "serve-args"),
        ("serve-args: [--max-model-len, null]", "serve-args"),
    ],
)
def test_a_wrong_configuration_file_is_2(place, tmp_path, text, word):
    path = tmp_path / "warmer.yaml"
    path.write_text(text)
    place.fails(2, "bad-config", word, options=("--config", str(path)), serve=())


@pytest.mark.parametrize("text", ["retry: many", "compile: sometimes", "wait: -5"])
def test_a_wrong_value_in_the_configuration_file_is_2(place, tmp_path, text):
    path = tmp_path / "warmer.yaml"
    path.write_text(text)
    place.fails(2, "usage", text.split(":")[0], options=("--config", str(path)), compared=False)


def test_the_configuration_file_says_what_options_say(place, tmp_path):
    path = tmp_path / "warmer.yaml"
    path.write_text(
        f"volume: {place.volume}\nwarm-dir: /overridden\nmodel: {place.model}\n"
        f"vllm: {place.engine.vllm}\nserve-args: [--max-model-len, 512]\njson: true\n"
    )
    argv = [*runs.WARMER, "plan", "--config", str(path)]
    env = place.env({"WARMER_WARM_DIR": place.warm})
    by_file = runs.finish(runs.spawn(argv, env))
    assert by_file.code == 1
    assert by_file.json == place.run("plan", "--json").json


def test_an_unknown_verb_is_2_and_so_is_none(place):
    for words in (["frobnicate", "--json"], ["--json"], ["pre", "--json"]):
        result = runs.finish(runs.spawn([*runs.WARMER, *words], place.env()))
        runs.failed(result, 2, "usage", compared=False)
    bare = runs.finish(runs.spawn(runs.WARMER, place.env()))
    assert bare.code == 2
    assert "prefill" in bare.out + bare.err


def test_a_wrong_option_of_check_is_2(place):
    for words in (["--nope"], ["--warm-dir", "warm"], ["--warm-dir"], ["extra"]):
        result = runs.finish(runs.spawn([*runs.WARMER, "check", "--json", *words], place.env()))
        runs.failed(result, 2, "usage")


def test_waiting_longer_than_asked_for_another_owner_is_3(place, tmp_path):
    other = place.but(warm=str(tmp_path / "other"))
    before = runs.published(place.volume)
    place.hub.fault(r"\.safetensors$", rate=20_000)
    owner = other.start("prefill")
    try:
        runs.eventually(other.staged)
        result = place.run("prefill", "--json", "--wait", "0.4")
        error = runs.failed(result, 3, "busy", "expected", f"/{owner.pid} ", compared=False)
        assert 0.4 <= result.seconds < 5
        assert error["message"].startswith("waited ")

        # Its probe can tell: somebody is at it.
        checked = place.run("check", "--json")
        assert checked.code == 3
        rows = {row["kind"]: row["verdict"] for row in checked.json["pieces"]}
        assert rows == {"weights": "busy", "compile": "absent"}

        # The owner is left alone, and its warm dir too.
        intruder = other.run("prefill", "--json")
        runs.failed(intruder, 3, "warm-dir-busy", other.warm)
        assert owner.poll() is None
        assert runs.published(place.volume) == before
        assert len(place.staged()) == 1
        place.hub.faults.clear()
    finally:
        runs.kill(owner)
    assert place.held() == other.held() == []
    assert place.run("check").code == 1


def test_a_policy_of_cold_starts_without_the_weights_another_owner_fills(place, tmp_path):
    other = place.but(warm=str(tmp_path / "other"))
    place.hub.fault(r"\.safetensors$", rate=20_000)
    owner = other.start("prefill")
    try:
        runs.eventually(other.staged)
        result = place.warmed("--wait", "0.1", "--on-miss", "weights=cold")
    finally:
        runs.kill(owner)
    assert set(result.json["without"]) >= {"weights", "compile"}
    handoff = place.handoff()
    assert handoff["model_path"] == runs.OTHER
    assert handoff["argv"][-2:] == ["--revision", place.model.partition("@")[2]]
    assert "HF_HUB_OFFLINE" not in handoff["env"]
    checked = place.run("check", "--json")
    assert checked.code == 0
    assert {row["verdict"] for row in checked.json["pieces"]} == {"cold"}
