"""What others wrote on the volume is shown, and commands no terminal."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import handed
import runs

from warmer.secrecy import printable

TITLE = "\x1b]0;owned\x07"
ODD = f"argv.--x{TITLE}\x1b[2J\r\n\u202e\x9b31m"


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    with runs.place(tmp_path_factory.mktemp("place")) as place:
        place.warmed()
        yield place


def assert_harmless(text):
    assert not [c for c in text if not c.isprintable() and c != "\n"], repr(text)


@pytest.mark.parametrize("value", [f"v{TITLE}", [[TITLE, 7]], {"a": TITLE}, [[]], "x" * 900_000])
def test_factors_of_a_neighbour_are_shown_escaped_and_cut(filled, value):
    (top,) = filled.generations("compile")
    key = json.loads(Path(top, "key.json").read_bytes())
    key["factors"] |= {ODD: value, "long" * 9000: 1}
    Path(top, "key.json").write_text(json.dumps(key))
    done = filled.run("plan", "--explain", serve=("--max-model-len", "99"))
    assert done.code == 1, done
    assert "--x\\x1b]0;owned\\x07" in done.out
    assert_harmless(done.out)
    assert len(done.out) < 10_000
    as_json = filled.run("plan", "--json", serve=("--max-model-len", "99"))
    (nearest,) = [s["nearest"] for s in as_json.json["steps"] if s["kind"] == "compile"]
    assert {d["factor"]: d["held"] for d in nearest["differences"]}[ODD] == value


def test_names_in_a_seal_are_shown_escaped_by_plan_check_and_the_log_of_a_terminal(tmp_path):
    with runs.place(tmp_path) as place:
        place.warmed()
        for kind in ("weights", "compile"):
            (top,) = place.generations(kind)
            seal = json.loads(Path(top, "seal.json").read_bytes())
            seal["files"].append({"path": f"files/{ODD}", "size": 1, "sha256": "0" * 64})
            Path(top, "seal.json").write_text(json.dumps(seal))
        plan = place.run("plan")
        assert "owned\\x07" in plan.out
        check = place.run("check")
        assert "owned" in check.out
        for done in (plan, check):
            assert done.code == 1
            assert_harmless(done.out + done.err)
        ours, theirs = pty.openpty()
        argv = place.command("prefill", "--compile", "never")
        with subprocess.Popen(argv, env=place.env(), stdout=theirs, stderr=theirs) as process:
            os.close(theirs)
            said = b""
            try:
                while data := os.read(ours, 65536):
                    said += data
            except OSError:  # the other end is closed
                pass
        os.close(ours)
        assert process.returncode == 0, said
        assert b"\x1b]0;" not in said
        assert b"owned\\x07" in said


def test_the_probe_in_the_handoff_escapes_as_well(tmp_path):
    pod = handed.Pod(tmp_path)
    seal = json.loads(pod.seal("weights").read_bytes())
    seal["files"].append({"path": ODD, "size": 1, "sha256": "0" * 64})
    pod.seal("weights").write_text(json.dumps(seal))
    code, out = pod.check()
    assert code == 1
    assert "owned" in out
    assert_harmless(out)


def test_what_can_be_read_is_shown_as_it_is():
    assert printable("3 × “größer”") == "3 × “größer”"  # noqa: RUF001 - signs people read
    assert printable("a\nb\udc80") == "a\\nb\\udc80"
    assert printable("x" * 10, 4) == "xxx…"
