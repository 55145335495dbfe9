"""The commands that docs/tune.md and docs/advise.md show are run, and say what the pages say."""

import os
import re
import shlex
import shutil
import sys

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "support"))
from hub import Hub
from scrapes import EARLIER, LATER, Web
from tinymodel import make_tiny_llama

from warmer.cli import advise, tune

VERBS = {"tune": tune.command, "advise": advise.command}
ROW = re.compile(
    r"^(?:[> ] )?(?:shared volume|download,|node disk|image, |proposed|vLLM's own) .*$"
)


def page(name):
    with open(os.path.join(HERE, "..", "..", "docs", name), encoding="utf-8") as f:
        return f.read()


def commands(text):
    """The words of each `warmer` command in the page's shell blocks."""
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("warmer ")]


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run a command where its files, its volume, its hub and its Prometheus are."""
    monkeypatch.setattr("warmer.cli.logs.configure", lambda: None)
    monkeypatch.chdir(tmp_path)
    shutil.copy(EARLIER, "before.txt")
    shutil.copy(LATER, "after.txt")
    (tmp_path / "warmer.yaml").write_text("serve-args: []\n")
    (tmp_path / "models").mkdir()
    make_tiny_llama("hub/org/name", layers=1)
    web = Web()
    points = b'[[1, "3"], [2, "5"]]'
    web.body = (
        b'{"status": "success", "data": {"resultType": "matrix", "result": '
        b'[{"metric": {"model_name": "llama"}, "values": ' + points + b"}]}}"
    )
    with Hub(str(tmp_path / "hub")) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
        places = {"http://prometheus:9090": web.url, "/models": str(tmp_path / "models")}

        def call(words):
            verb, *rest = (places.get(word, word) for word in words)
            assert VERBS[verb].main(rest, standalone_mode=False) == 0
            return capsys.readouterr().out

        yield call
    web.close()


@pytest.mark.parametrize("name", ["tune.md", "advise.md"])
def test_every_command_runs_and_the_first_prints_the_table_that_is_shown(run, name):
    text = page(name)
    said = [run(words) for words in commands(text)]
    assert len(said) >= 2
    shown = [line.rstrip() for line in text.splitlines() if ROW.match(line)]
    assert len(shown) >= 2
    for row in shown:
        assert row in said[0].splitlines()
