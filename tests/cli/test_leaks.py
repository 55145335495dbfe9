"""An engine that writes a secret into its caches: the file stays off the volume, and a warning names it."""

import os
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import fakeengine
import runs
import volumes

from warmer import secrecy
from warmer.fill import leaks

TOKEN = 'hf_Planted"Token\\of/the+Hub'
"""JSON spells it another way than a variable does."""


@pytest.fixture
def place(tmp_path):
    """A pod with a GPU; its engine finds the token in a file."""
    with runs.place(tmp_path) as place:
        cuda = fakeengine.make_engine(tmp_path / "cuda", torch="2.13.0+cu130", cuda="13.0")
        (tmp_path / "token").write_text(TOKEN)
        yield place.but(engine=cuda, model=f"file://{tmp_path}/hub/{runs.REPO}")


def prefill(place, *options, **more):
    env = {"PATH": f"{place.engine.bin}:{os.defpath}", "HF_TOKEN": TOKEN}
    env |= {"FAKE_ENGINE": f"leak={place.top}/token"} | more
    return place.warmed(*options, env=env)


@pytest.mark.skipif(os.path.exists("/dev/nvidiactl"), reason="NVML knows the GPU that is here")
def test_a_file_with_a_token_is_not_published_and_is_named(place, monkeypatch):
    monkeypatch.setitem(volumes.SECRETS, "HF_TOKEN", TOKEN)
    done = prefill(place)
    assert done.json["warm"] is True
    volumes.assert_invariants(place.volume, warm=[place.warm])
    warned = [line for line in done.err.splitlines() if "wrote a secret" in line]
    for kind in ("compile", "flashinfer", "jit"):
        (line,) = [line for line in warned if f'"{kind}"' in line]
        assert "what_was_hashed.json" in line
        assert "HF_TOKEN" in line
        manifest = Path(place.generations(kind)[-1], "manifest.json").read_text()
        assert "what_was_hashed" not in manifest
        assert '"path"' in manifest, "the rest is published"
    assert "Planted" not in done.out + done.err
    starts = len(place.engine.starts)
    shutil.rmtree(place.warm)
    os.mkdir(place.warm)
    assert prefill(place).json["warm"] is True
    assert len(place.engine.starts) == starts


def test_without_such_a_variable_the_file_is_like_any_other(place):
    prefill(place, HF_TOKEN="short")
    listed = Path(place.generations("compile")[0], "manifest.json").read_text()
    assert "what_was_hashed.json" in listed


@pytest.mark.parametrize("at", [0, 1, (1 << 20) - 3, (1 << 20) + 5, (3 << 20) - 20])
def test_a_secret_is_found_wherever_it_stands_in_a_text(tmp_path, at):
    data = bytearray(b"x" * (3 << 20))
    data[at : at + 12] = b"twelve-bytes"
    (tmp_path / "d").mkdir()
    for name in ("d/long.json", "d/machine.so"):
        (tmp_path / name).write_bytes(data)
    (tmp_path / "d/small.so").write_bytes(data[at : at + 4096])
    (tmp_path / "twelve-bytes").touch()
    found = leaks.remove(str(tmp_path), (), {"A_TOKEN": "twelve-bytes"})
    assert found == dict.fromkeys(["d/long.json", "d/small.so", "twelve-bytes"], "A_TOKEN")
    assert os.listdir(tmp_path / "d") == ["machine.so"]


def test_a_secret_that_came_with_the_end_of_a_line_is_found_without_it(tmp_path):
    (tmp_path / "meta.json").write_text('{"token": "hf_abcdefgh"}')
    assert leaks.remove(str(tmp_path), (), {"HF_TOKEN": "hf_abcdefgh\n"}) == {
        "meta.json": "HF_TOKEN"
    }


def test_what_counts_as_a_secret_of_an_environment():
    environment = {
        "HF_TOKEN": "hf_abcdefgh",
        "VLLM_API_KEY": "sk-12345678",
        "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI",
        "DB_PASSWORD": "short",
        "HTTPS_PROXY": "http://me:longpassword@proxy:1",
        "MAX_MODEL_LEN": "8192 and so on",
    }
    assert secrecy.secrets(environment) == {
        "HF_TOKEN": "hf_abcdefgh",
        "VLLM_API_KEY": "sk-12345678",
        "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI",
        "HTTPS_PROXY": "longpassword",
    }
