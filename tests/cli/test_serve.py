"""The handoff starts the server, in an image without warmer: `serve`, `check.py`, `warmer serve`."""

import json
import os
import shutil
import subprocess
import sys
import urllib.request
from contextlib import contextmanager

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import runs

# What shells, JSON and people make of command lines.
AWKWARD = (
    "--max-model-len=512",
    "--override-generation-config",
    '{"a b": "it\'s \\"quoted\\""}',
    "--chat-template",
    "$HOME `id` \\ {{ x }}\nsecond line",
    "--enable-prompt-tokens-details",
    "--tool-call-parser",
    "",
    "--port",
    "1",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A place whose paths hold what paths may hold, prefilled."""
    top = tmp_path_factory.mktemp("place")
    with runs.place(top) as plain:
        awkward = f'{top}/it\'s "the" $HOME dir; true'
        os.makedirs(f"{awkward}/volume")
        place = plain.but(volume=f"{awkward}/volume", warm=f"{awkward}/warm")
        env = {"VLLM_USE_V2_MODEL_RUNNER": "it's 'on' $1", "VLLM_LOGGING_LEVEL": "DEBUG"}
        place.warmed(serve=AWKWARD, env=env)
        yield place


@contextmanager
def served(argv, *, env, place):
    """Start a server; yield its port when it answers, then end it."""
    with runs.socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    process = runs.spawn([*argv, "--port", str(port)], env)

    try:
        runs.ready(process, port)
        # Ended before that, it would count as a start that was never ready.
        runs.eventually(lambda: runs.listing(f"{place.warm}/starts") == [])
        yield process, port
    finally:
        process.terminate()
        process.result = runs.finish(process)


def start(place, argv, tmp_path, *, env=None):
    """Start a server by `argv`; return what the engine got, and what was said."""
    echo = str(tmp_path / "env.json")
    given = {"PATH": os.defpath, "FAKE_ENGINE": "echo-env", "FAKE_ENGINE_ENV": echo} | (env or {})
    with served(argv, env=given, place=place) as (process, port):
        body = json.dumps({"prompt": "Hello"}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/completions", data=body)
        with urllib.request.urlopen(request) as reply:
            assert json.load(reply)["choices"]
    with open(echo, encoding="utf-8") as stream:
        got = json.load(stream)
    # Python's own start in the C locale, and the shell's.
    got = {name: value for name, value in got.items() if name not in ("LC_CTYPE", "PWD", "_")}
    assert got.pop("PATH").startswith(os.defpath)
    words = place.engine.starts[-1]["argv"]
    assert words[-2:] == ["--port", str(port)]
    del given["PATH"]
    return words[:-2], got, given, process.result


def test_serve_starts_the_engine_with_what_its_kernels_were_built_with(place, tmp_path):
    built = place.engine.starts[0]["argv"]
    handoff = place.handoff()
    argv = ["sh", f"{place.warm}/handoff/serve"]
    words, env, given, result = start(place, argv, tmp_path)
    assert words == ["serve", handoff["model_path"], *AWKWARD, "--served-model-name", runs.REPO]
    # The build listened where only warmer could ask; nothing else may differ.
    assert built[:-4] == [word for word in words if word not in ("--port", "1")]
    assert env == given | handoff["env"]
    assert handoff["env"]["VLLM_USE_V2_MODEL_RUNNER"] == "it's 'on' $1"
    assert "VLLM_LOGGING_LEVEL" not in handoff["env"], "what is free to differ is the server's own"
    assert "Directly load AOT compilation" in result.out
    assert "Starting torch.compile" not in result.out
    assert result.err == ""


def test_further_arguments_go_last_and_keep_their_words(place, tmp_path):
    argv = [f"{place.warm}/handoff/serve", "--chat-template", "two  words 'and' $x", "*"]
    words, *_ = start(place, argv, tmp_path)
    assert words[-3:] == argv[1:]
    assert words[2:-3] == [*AWKWARD, "--served-model-name", runs.REPO]


def test_serve_warns_of_a_variable_that_kernels_do_not_know(place, tmp_path):
    argv = [f"{place.warm}/handoff/serve"]
    more = {"VLLM_FOO": "1", "VLLM_LOGGING_LEVEL": "INFO", "VLLM_PORT": "7000"}
    more |= {"VLLM_USE_V2_MODEL_RUNNER": "another"}
    _, env, _, result = start(place, argv, tmp_path, env=more)
    assert result.err.splitlines() == [
        "warmer: VLLM_FOO was not set when the kernels were built; they may not hit"
    ]
    assert (env["VLLM_FOO"], env["VLLM_LOGGING_LEVEL"]) == ("1", "INFO")
    assert env["VLLM_USE_V2_MODEL_RUNNER"] == "it's 'on' $1", "what kernels depend on is restored"


def test_warmer_serve_is_the_same_as_the_script(place, tmp_path):
    script = start(place, [f"{place.warm}/handoff/serve", "--seed", "7"], tmp_path)
    for words in (
        ["--warm-dir", place.warm, "--", "--seed", "7"],
        [f"--warm-dir={place.warm}", "--seed", "7"],
    ):
        verb = start(place, [*runs.WARMER, "serve", *words], tmp_path)
        assert verb[:2] == script[:2]
        assert (verb[3].code, verb[3].err) == (script[3].code, script[3].err)
    by_variable = start(
        place, [*runs.WARMER, "serve"], tmp_path, env={"WARMER_WARM_DIR": place.warm}
    )
    assert by_variable[0] == script[0][:-2]


def test_a_server_started_cold_starts_all_the_same(tmp_path):
    with runs.place(tmp_path) as place:
        place.warmed(env={"FAKE_ENGINE": "crash"})
        argv = [f"{place.warm}/handoff/serve"]
        words, *_, result = start(place, argv, tmp_path)
        assert words[:4] == ["serve", place.handoff()["model_path"], *runs.SERVE]
        assert "Starting torch.compile" in result.out
        assert result.err == ""


def test_serve_with_a_handoff_that_cannot_be_looked_at_is_6(tmp_path):
    os.symlink("handoff", tmp_path / "handoff")  # around in a circle, which root may not go either
    for more in ((), ("--wait", "30")):
        words = [sys.executable, "-m", "warmer", "serve", "--warm-dir", str(tmp_path), *more]
        done = subprocess.run(words, capture_output=True, text=True)
        assert done.returncode == 6, done
        assert done.stderr.startswith("warmer: the warm dir failed: Too many levels")


def test_serve_without_a_handoff_is_2(tmp_path):
    for words in (["--warm-dir", str(tmp_path)], ["--warm-dir", "relative"], []):
        env = {"PATH": os.defpath, "WARMER_WARM_DIR": str(tmp_path)}
        result = runs.finish(runs.spawn([*runs.WARMER, "serve", *words], env))
        assert (result.code, result.out) == (2, "")
        assert [line.split(":")[0] for line in result.said] == ["warmer", "hint"]
        assert "expected" in result.said[0]


def pythons():
    """Find the interpreters of this machine that are new enough for the probe."""
    found = {}
    family = os.path.dirname(sys.base_prefix)
    tops = [*os.get_exec_path(), *(f"{family}/{name}/bin" for name in runs.listing(family))]
    for path in (f"{top}/python3.{minor}" for top in tops for minor in range(9, 20)):
        if os.access(path, os.X_OK):
            ask = [path, "-IS", "-c", "import sys; print(sys.version_info[:2])"]
            done = subprocess.run(ask, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                found.setdefault(done.stdout.strip(), os.path.realpath(path))
    return sorted(found.values())


@pytest.mark.parametrize("python", ["python3", *pythons()])
def test_the_probe_runs_on_a_bare_python(place, tmp_path, python):
    # A copy of the volume at the same path: each interpreter damages its own.
    probe = [python, "-IS", f"{place.warm}/handoff/check.py"]

    def check(*words):
        done = runs.finish(runs.spawn([*probe, *words], {"PATH": os.defpath}))
        assert done.err == ""
        return done

    warm = check()
    assert (warm.code, len(warm.out.splitlines())) == (0, 2)
    deep = check("--deep", "--json")
    assert (deep.code, deep.json["warm"], deep.json["code"]) == (0, True, 0)

    (generation,) = place.generations("weights")
    lost = f"{generation}/files/{runs.SHARDS[0]}"
    shutil.move(lost, tmp_path / "lost")
    try:
        missing = check("--json")
        assert missing.code == 1
        (row,) = (row for row in missing.json["pieces"] if row["kind"] == "weights")
        assert (row["verdict"], lost in row["reason"]) == ("absent", True)
        assert check().out.startswith("absent: weights")
    finally:
        shutil.move(tmp_path / "lost", lost)
    os.truncate(lost, os.stat(lost).st_size)  # a new time, the same bytes
    assert check("--deep").code == 0


def test_the_probe_needs_the_unpacked_kernels_and_the_link_too(tmp_path):
    with runs.place(tmp_path) as place:
        place.warmed()
        probe = [sys.executable, "-IS", f"{place.warm}/handoff/check.py"]
        link = place.handoff()["model_path"]
        for path, verdict in ((link, "absent"), (f"{place.warm}/cache/compile.restored.json", "")):
            os.rename(path, f"{path}.away")
            done = runs.finish(runs.spawn(probe, {}))
            assert done.code == 1
            assert done.out.count("absent: ") == 1, verdict
            os.rename(f"{path}.away", path)
        os.unlink(link)
        os.symlink("/", link)
        assert "stale: weights" in runs.finish(runs.spawn(probe, {})).out


@pytest.mark.parametrize("verb", ["serve", "the script"])
def test_a_signing_key_beside_the_server_does_not_reach_it(place, tmp_path, verb):
    words = [*runs.WARMER, "serve", "--warm-dir", place.warm, "--"]
    argv = words if verb == "serve" else [f"{place.warm}/handoff/serve"]
    _, env, given, _ = start(place, argv, tmp_path, env={"WARMER_SIGNING_KEY": "a key"})
    assert "WARMER_SIGNING_KEY" in given
    assert "WARMER_SIGNING_KEY" not in env
    assert place.handoff()["env"].items() <= env.items()
