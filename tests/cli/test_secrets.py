"""No secret reaches a file, a log, a message or the engine: after success and after each failure."""

import json
import os
import shutil
import sys

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import runs

SECRETS = {
    "HF_TOKEN": "hf_PlantedTokenOfTheHub",
    "AWS_SECRET_ACCESS_KEY": "Planted/Aws+Secret=Key",
    "AWS_SESSION_TOKEN": "PlantedAwsSessionToken",
    "VLLM_API_KEY": "PlantedKeyOfTheServer",
}
OPEN = {"VLLM_LOGGING_LEVEL": "DEBUG", "OPEN_TO_ALL": "a value that may be seen"}


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A place whose model is gated: its token was needed."""
    gated = {runs.OTHER: SECRETS["HF_TOKEN"]}
    with runs.place(tmp_path_factory.mktemp("place"), gated=gated) as place:
        yield place


@pytest.fixture
def place(filled, tmp_path):
    filled.hub.faults.clear()
    return filled.fresh(tmp_path)


def leaks(text):
    return [name for name, value in SECRETS.items() if value in text]


def written(*tops):
    """Name every file below, or link, that holds a secret in its name, target or bytes."""
    found = []
    for top in tops:
        for at, names, files in os.walk(top):
            for name in names + files:
                path = os.path.join(at, name)
                text = os.path.relpath(path, top)
                if os.path.islink(path):
                    text += os.readlink(path)
                elif os.path.isfile(path):
                    with open(path, "rb") as stream:
                        text += stream.read().decode(errors="replace")
                found += [(path, leak) for leak in leaks(text)]
    return found


def run_with_secrets(place, *options, mode="", **more):
    echo = f"{place.warm}.env.json"
    env = SECRETS | OPEN | {"FAKE_ENGINE": f"{mode},echo-env", "FAKE_ENGINE_ENV": echo}
    env |= more.pop("env", {})
    result = place.run("prefill", "--json", *options, env=env, **more)
    assert leaks(result.out + result.err) == []
    assert written(place.volume, place.warm, f"{place.top}/home") == []
    engine = None
    if os.path.exists(echo):
        with open(echo, encoding="utf-8") as stream:
            engine = json.load(stream)
        assert leaks(json.dumps(engine)) == []
        assert not SECRETS.keys() & engine.keys()
        assert not [name for name in engine if name.startswith("WARMER_")]
        assert OPEN.items() < engine.items(), "what is no secret is passed on"
    return result, engine


def test_a_success_with_a_token_that_was_needed_leaks_nothing(place):
    result, engine = run_with_secrets(place, env={"WARMER_WAIT": "30"})
    assert (result.code, result.json["warm"]) == (0, True)
    assert engine is not None
    assert {seen.authorized for seen in place.hub.log if "/resolve/" in seen.path} == {True}

    # A key is the same with secrets as without, and so is the handoff.
    assert place.run("plan").code == 0
    for verb in ("plan", "check"):
        again = place.run(verb, "--json", env=SECRETS)
        assert (again.code, leaks(again.out + again.err)) == (0, [])
    shutil.rmtree(f"{place.warm}/handoff")
    place.warmed(env=SECRETS)
    assert written(place.warm) == []


def test_a_token_with_the_end_of_the_line_of_the_file_it_came_from_is_the_token(place):
    token = SECRETS["HF_TOKEN"]  # kubectl create secret generic ... --from-file=HF_TOKEN=token.txt
    for end in ("\n", "\r\n"):
        place.warmed(env={"HF_TOKEN": f"{token}{end}", "WARMER_COMPILE": "never"})
        shutil.rmtree(f"{place.volume}/v1")


@pytest.mark.parametrize(
    ("code", "options", "what"),
    [
        (2, ["--nope", SECRETS["HF_TOKEN"]], {}),
        (2, ["--model", f"s3://{SECRETS['AWS_SECRET_ACCESS_KEY']}@bucket/x"], {}),
        (2, [], {"serve": ("--api-key", SECRETS["VLLM_API_KEY"])}),
        (2, [], {"serve": (f"--hf-token={SECRETS['HF_TOKEN']}",)}),
        (2, [], {"serve": (SECRETS["VLLM_API_KEY"],)}),
        (4, ["--model", "org/none"], {}),
        (4, ["--model", f"{runs.OTHER}@{SECRETS['HF_TOKEN']}"], {}),
        (4, [], {"env": {"HF_TOKEN": "hf_PlantedAndWrong"}}),
        (4, ["--retry", "0"], {"fault": {"status": 500, "message": SECRETS["HF_TOKEN"]}}),
        (4, ["--retry", "1"], {"fault": {"status": 429, "message": SECRETS["HF_TOKEN"]}}),
        (4, ["--retry", "0"], {"fault": {"reset": True}}),
        (5, [], {"fault": {"path": runs.SHARDS[0], "corrupt": True}}),
        (6, ["--volume", "/nowhere"], {}),
        (7, ["--on-miss", "kernels=fail"], {"mode": "crash"}),
        (7, ["--on-miss", "kernels=fail", "--engine-timeout", "1"], {"mode": "hang"}),
        (0, [], {"mode": "crash"}),
    ],
)
def test_a_failure_leaks_nothing(place, code, options, what):
    if "fault" in what:
        place.hub.fault(**what.pop("fault"))
    result, _ = run_with_secrets(place, *options, **what)
    assert result.code == code, result
    assert "hf_PlantedAndWrong" not in result.out + result.err


def test_waiting_and_a_signal_leak_nothing(place, tmp_path):
    place.hub.fault(r"\.safetensors$", rate=20_000)
    other = place.but(warm=str(tmp_path / "other"))
    owner = other.start("prefill", env=SECRETS)
    runs.eventually(other.staged)
    result, _ = run_with_secrets(place, "--wait", "0.1")
    assert result.code == 3
    runs.eventually(lambda: place.fetched().count(runs.SHARDS[1]))
    owner.terminate()
    stopped = runs.finish(owner)
    assert leaks(stopped.out + stopped.err) == []
    assert written(place.volume, other.warm) == []


def test_a_traceback_of_a_bug_leaks_nothing(place, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import os, warmer.observe.host\n"
        "def observe(**_):\n"
        "    raise RuntimeError('met ' + os.environ['HF_TOKEN'])\n"
        "warmer.observe.host.observe = observe\n"
    )
    result = place.run("plan", "--json", env=SECRETS | {"PYTHONPATH": str(tmp_path)})
    assert result.code == 70
    assert "RuntimeError: met <HF_TOKEN>" in result.err
    assert leaks(result.out + result.err) == []


def test_a_password_of_the_endpoint_is_in_no_log(place):
    user = {"HF_ENDPOINT": place.hub.url.replace("//", "//user:PlantedInTheAddress@")}
    fault = place.hub.fault(runs.SHARDS[0], method="GET", truncate=1000, times=1)
    place.hub.gated.clear()
    result, _ = run_with_secrets(place, env=user)
    place.hub.gated[runs.OTHER] = SECRETS["HF_TOKEN"]
    assert (result.code, fault.times) == (0, 0)
    assert "PlantedInTheAddress" not in result.out + result.err


def test_a_password_in_an_address_is_not_repeated(place):
    wrong = f"https://user:{'Planted' + 'InTheAddress'}@hub.example/org/name"
    result = place.run("prefill", "--json", "--model", wrong)
    assert result.code == 2
    assert "PlantedInTheAddress" not in result.out + result.err


def test_the_server_gets_its_secrets_from_its_own_environment_alone(place, tmp_path):
    result, _ = run_with_secrets(place)
    assert result.code == 0
    echo = str(tmp_path / "served.json")
    env = {"PATH": os.defpath, "FAKE_ENGINE": "echo-env,crash", "FAKE_ENGINE_ENV": echo}
    env |= {"VLLM_API_KEY": "PlantedKeyOfTheServer"}
    served = runs.finish(runs.spawn([f"{place.warm}/handoff/serve"], env))
    with open(echo, encoding="utf-8") as stream:
        assert json.load(stream)["VLLM_API_KEY"] == "PlantedKeyOfTheServer"
    assert leaks(served.out + served.err) == []
    assert "VLLM_API_KEY" not in served.err, "a secret is no factor of a key: no warning"
