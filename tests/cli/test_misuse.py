"""Words that warmer cannot take: what was got, what was expected, and what to do."""

import sys

import pytest

from warmer import cli
from warmer.errors import UsageError

PLACE = ("--volume", "/v", "--model", "org/name")


@pytest.fixture
def refused(monkeypatch, tmp_path):
    """Run a verb; returns the message and the hint of its refusal."""

    def refused(*words, env=None, config=None):
        for name, value in (env or {}).items():
            monkeypatch.setenv(name, value)
        if config is not None:
            path = tmp_path / "warmer.yaml"
            path.write_text(config)
            words = (*words, "--config", str(path))
        monkeypatch.setattr(sys, "argv", ["warmer", *words])
        with pytest.raises(UsageError) as caught:
            cli._run()
        assert caught.value.reason in ("usage", "bad-config", "bad-value", "relative-path")
        return caught.value.message, caught.value.hint

    return refused


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (("plann",), "got 'plann', expected a verb", "advise, check, doctor"),
        (("--verison",), "got --verison, expected an option of warmer", "did you mean --version?"),
        (("gc", "--volme", "/v"), "got --volme, expected an option of warmer gc", "--volume?"),
        (("gc",), "got no --volume, expected one", "the variable WARMER_VOLUME gives it too"),
        (("plan",), "got no --volume, expected one", "WARMER_VOLUME or a key in the file"),
        (("keygen",), "got no FILE, expected one", ""),
        (("gc", "--volume"), "got no value for --volume, expected one", ""),
        (("gc", "--volume", "/v", "--json=1"), "got a value for --json, expected none", ""),
        (("gc", "--volume", "/v", "w"), "got extra argument (w), expected no more words", ""),
        (("report", "cold", "warm"), "got 2 logs, expected one", "cold start goes to --baseline"),
        (("report",), "got neither a log nor --otlp, expected one of them", ""),
        (("report", "warm", "--otlp", "1"), "got a log and --otlp, expected one of them", ""),
        (
            ("prefill", *PLACE, "--wait", "5m"),
            "got --wait '5m', expected a number of seconds, at least 0",
            "",
        ),
        (
            ("advise", "--starts", "1", "--build", "1m"),
            "got --build '1m', expected a number of seconds, from 0 to 1,000,000",
            "",
        ),
        (
            ("plan", *PLACE, "--compile", "always"),
            "got --compile 'always', expected one of run, harvest, never",
            "",
        ),
        (
            ("prefill", *PLACE, "--workers", "1.5"),
            "got --workers '1.5', expected a whole number of at least 1",
            "",
        ),
        (
            ("sidecar", "--volume", "/v", "--http-port", "99999"),
            "got --http-port '99999', expected a whole number from 0 to 65535",
            "",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_mistake_is_told_by_what_was_got_and_what_was_expected(refused, words, message, hint):
    said, helped = refused(*words)
    assert said == message
    assert hint in helped
    assert helped.endswith(" --help")


def test_flags_of_vllm_before_the_two_dashes_are_told_where_they_belong(refused):
    said, hint = refused("prefill", *PLACE, "--max-model-len", "512")
    assert said == "got --max-model-len, expected an option of warmer prefill"
    assert "flags of vllm serve come after --" in hint


@pytest.mark.parametrize("text", ["-1", "abc", "nan", "inf", ""])
@pytest.mark.parametrize("option", ["--wait", "--retry", "--engine-timeout"])
def test_seconds_that_are_no_number_or_have_no_end_are_refused(refused, option, text):
    least = 1 if option == "--engine-timeout" else 0
    expected = f"got {option} {text!r}, expected a number of seconds, at least {least}"
    assert refused("prefill", *PLACE, option, text)[0] == expected


def test_a_wrong_value_is_told_by_where_it_came_from(refused):
    said, _ = refused("prefill", *PLACE, env={"WARMER_WAIT": "soon"})
    assert said == "got WARMER_WAIT 'soon', expected a number of seconds, at least 0"


def test_a_wrong_value_in_the_file_is_told_by_its_key(refused):
    said, _ = refused("prefill", *PLACE, config="wait: soon\n")
    assert (
        said == "got wait in the file of --config: 'soon', expected a number of seconds, at least 0"
    )


def test_a_file_of_options_that_is_not_there_is_named_once(refused, tmp_path):
    said, _ = refused("plan", "--config", f"{tmp_path}/none.yaml")
    reason = "No such file or directory, expected a readable file"
    assert said == f"got --config {tmp_path}/none.yaml: {reason}"


@pytest.mark.parametrize("name", ["WARMER_JSON", "WARMER_EXPLAIN"])
def test_a_variable_that_is_neither_yes_nor_no_is_told_so(refused, name):
    said, _ = refused("advise", "--starts", "1", env={name: "maybe"})
    assert said == f"got {name} 'maybe', expected true or false"


@pytest.mark.parametrize(
    ("words", "shared"),
    [
        (("plan", "--model", "org/name", "--volume", "vol"), True),
        (("plan", *PLACE, "--warm-dir", "warm"), True),
        (("serve", "--warm-dir", "warm"), True),
        (("plan", *PLACE, "--adopt", "rel"), False),
        (("gc", "--volume", "vol"), False),
    ],
)
def test_what_no_server_sees_is_not_told_to_be_at_its_path(refused, words, shared):
    said, hint = refused(*words)
    assert said.endswith(f"{words[-1]}, expected an absolute path")
    assert ("the server's container" in hint) == shared
    assert "start it with /" in hint


@pytest.mark.parametrize(
    ("word", "meant"),
    [("--warmdir", "--warm-dir"), ("--warm_dir", "--warm-dir"), ("--wat", "--wait")],
)
def test_serve_refuses_flags_that_are_nearly_its_own(refused, word, meant):
    said, hint = refused("serve", word, "/x")
    assert said == f"got {word}, expected an option of warmer serve"
    assert meant in hint
    assert "flags of vllm serve come after --" in hint
