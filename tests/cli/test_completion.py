"""A shell that has been told so completes verbs, options, their words and paths."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from warmer.cli import VERBS

TOP = os.path.join(os.path.dirname(__file__), "..", "..")
SHELLS = ("bash", "zsh", "fish")


@pytest.fixture(scope="module")
def env(tmp_path_factory):
    """A `warmer` of this checkout on the PATH, nothing else of warmer's in the environment."""
    place = tmp_path_factory.mktemp("bin")
    script = place / "warmer"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m warmer "$@"\n')
    script.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WARMER_")}
    path = os.pathsep.join((str(place), kept["PATH"]))
    return kept | {"PATH": path, "PYTHONPATH": os.path.abspath(TOP)}


def lines():
    """Shell → the line of docs/cli.md for its own file."""
    with open(os.path.join(TOP, "docs", "cli.md"), encoding="utf-8") as f:
        found = re.findall(r"^(.*_WARMER_COMPLETE=(\w+)_source.*?) +# ", f.read(), re.MULTILINE)
    return {shell: line for line, shell in found}


def completed(env, words):
    """What bash offers for the last of the words, once its file holds the page's line."""
    script = """
        {line}
        COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
        offers=$(complete -p warmer) || exit 9
        [[ $offers =~ -F\\ ([^ ]+) ]] && "${{BASH_REMATCH[1]}}" warmer "${{@: -1}}" "${{@: -2:1}}"
        printf '%s\\n' "${{COMPREPLY[@]}}"
        """
    argv = ["bash", "--norc", "-c", script.format(line=lines()["bash"]), "bash", "warmer", *words]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ([""], list(VERBS)),
        (["pre"], ["prefill"]),
        (["prefill", "--comp"], ["--compile"]),
        (["prefill", "--compile", ""], ["run", "harvest", "never"]),
        (["check", "--d"], ["--deep"]),
        (["check", ""], ["--warm-dir", "--deep", "--json", "--help"]),
        (["prefill", "--", "--max"], []),
        (["--"], ["--version", "--help"]),
    ],
    ids=" ".join,
)
def test_bash_offers_what_can_stand_there(env, words, offered):
    assert completed(env, words) == offered


def test_every_option_of_a_verb_is_offered(env):
    run = subprocess.run(["warmer", "gc", "--help"], env=env, capture_output=True, text=True)
    named = re.findall(r"^  (--[a-z-]+)", run.stdout, re.MULTILINE)
    assert len(named) > 3
    assert completed(env, ["gc", "--"]) == named


@pytest.mark.parametrize("option", ["--warm-dir", "--config", "--vllm"])
def test_a_path_is_left_to_the_shell(env, option):
    words = {"COMP_WORDS": f"warmer prefill {option} /op", "COMP_CWORD": "3"}
    asked = env | words | {"_WARMER_COMPLETE": "bash_complete"}
    run = subprocess.run(["warmer"], env=asked, capture_output=True, text=True, check=True)
    assert run.stdout == ("dir,/op\n" if option == "--warm-dir" else "file,/op\n")


@pytest.mark.parametrize("named", ["an option", "a variable"])
def test_a_configuration_that_never_ends_holds_no_shell_up(env, tmp_path, named):
    pipe = tmp_path / "warmer.yaml"
    os.mkfifo(pipe)
    words = ["--config", str(pipe)] if named == "an option" else []
    asked = env | ({} if words else {"WARMER_CONFIG": str(pipe)})
    assert completed(asked, ["prefill", *words, "--adop"]) == ["--adopt"]


@pytest.mark.parametrize("shell", SHELLS)
def test_each_shells_line_gives_it_a_script_that_it_can_read(env, shell):
    assert set(lines()) == set(SHELLS)
    asked = env | {"_WARMER_COMPLETE": f"{shell}_source"}
    run = subprocess.run(["warmer"], env=asked, capture_output=True, text=True, check=True)
    assert f"_WARMER_COMPLETE={shell}_complete" in run.stdout
    if not shutil.which(shell):
        return
    argv = [shell, "-n"]  # reads it, runs nothing
    subprocess.run(argv, input=run.stdout, env=env, text=True, check=True, capture_output=True)
