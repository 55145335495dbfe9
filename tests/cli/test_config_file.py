"""The YAML file of --config: what each option takes as a key, and what is said of what it does not."""

import math

import click
import pytest

from warmer.cli import advise, config_file, plan, prefill
from warmer.errors import UsageError

VERBS = {verb.command.name: verb.command for verb in (advise, plan, prefill)}
OPTIONS = [
    (name, param) for name, verb in VERBS.items() for param in verb.params if param.name != "config"
]
FLAGS = [(name, param) for name, param in OPTIONS if getattr(param, "is_flag", False)]


def named(value):
    return value.name if isinstance(value, click.Parameter) else None


@pytest.fixture
def read(tmp_path):
    """Read a file as a verb does; returns what it gives each option."""
    path = tmp_path / "warmer.yaml"

    def read(text, verb="prefill"):
        path.write_text(text, encoding="utf-8")
        ctx = click.Context(VERBS[verb])
        config_file.load(ctx, None, str(path))
        return {
            p.name: p.type_cast_value(ctx, ctx.default_map[p.name])
            for p in VERBS[verb].params
            if p.name in ctx.default_map
        }

    return read


@pytest.fixture
def refused(read, tmp_path):
    """Read a file that is refused; returns the message, less the file, and the hint."""

    def refused(text, verb="prefill"):
        with pytest.raises(UsageError) as caught:
            read(text, verb)
        assert caught.value.reason == "bad-config"
        return caught.value.message.replace(f" in {tmp_path}/warmer.yaml", ""), caught.value.hint

    return refused


@pytest.mark.parametrize(("verb", "param"), FLAGS, ids=named)
@pytest.mark.parametrize("value", [0, 1, 3, 1.0, 0.5, -1, math.inf])
def test_a_number_is_no_answer_to_yes_or_no(refused, verb, param, value):
    key = param.name.replace("_", "-")
    text = ".inf" if value == math.inf else repr(value)
    said, hint = refused(f"{key}: {text}\n", verb)
    assert said == f"got {key}: {value!r}, expected true or false"
    assert hint == f"as `{key}: true`"


@pytest.mark.parametrize(("verb", "param"), FLAGS, ids=named)
def test_yes_and_no_may_be_said_in_yamls_words_and_in_quoted_ones(read, verb, param):
    for text, value in (("true", True), ("off", False), ("'yes'", True), ("'0'", False)):
        assert read(f"{param.name}: {text}\n", verb) == {param.name: value}


@pytest.mark.parametrize(("verb", "param"), OPTIONS, ids=named)
def test_what_a_hint_gives_as_an_example_is_taken(read, verb, param):
    assert read(config_file.example(param), verb).keys() == {param.name}


def test_off_without_quotes_is_the_word_where_an_option_has_it(read):
    assert read("read-ahead: off\n") == read("read-ahead: 'off'\n") == {"read_ahead": "off"}


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("lever: {fork: off}", "got lever: a mapping, expected a list of words", "[fork=off]"),
        ("lever: fork=off", "got lever: 'fork=off', expected a list of words", "[fork=off]"),
        (
            "lever: [imports=on, {fork: off}]",
            "got item 2 of lever: a mapping, expected a word",
            "[fork=off]",
        ),
        (
            "serve-args: [null]",
            "got item 1 of serve-args: nothing, expected a word",
            "as `serve-args: [--max-model-len, 8192]`",
        ),
        ("volume:", "got volume: nothing, expected one word", "as `volume: /warm`"),
        ("volume: [/v]", "got volume: a list, expected one word", "as `volume: /warm`"),
        ("image: 2026-01-01", "got image: a date, expected one word", "as `image: sha256:0123`"),
        ("workers: yes", "got workers: true, expected one word", "as `workers: 2`"),
        ("read-ahead: on", "got read-ahead: true, expected one word", "as `read-ahead: 20G`"),
        ("signing-key: [s3cret]", "got signing-key: a list, expected one word", "as `signing-key"),
        ("levers: []", "got the key 'levers', expected", "did you mean lever? known: adopt, "),
        ("warm_dri: /w", "got the key 'warm_dri', expected", "did you mean warm-dir? known: "),
        ("xyzzy: 1", "got the key 'xyzzy', expected", "known: adopt, compile"),
    ],
)
def test_what_a_key_does_not_take_is_told_with_an_example_of_it(refused, text, message, hint):
    said, helped = refused(text)
    assert said.startswith(message)
    assert hint in helped
    assert helped.startswith(hint) or "known:" not in helped


def test_what_is_no_mapping_is_told_in_words_of_yaml(refused):
    assert "with a list, expected keys and values" in refused("- volume\n")[0]
    assert "with a word, expected keys and values" in refused("volume\n")[0]


@pytest.mark.parametrize(
    ("text", "key", "hint"),
    [
        ("volume: /a\njson: true\nvolume: /b\n", "volume", "lines 1 and 3"),
        ("warm_dir: /a\nwarm-dir: /a\n", "warm-dir", "lines 1 and 2"),
    ],
)
def test_a_key_that_is_there_twice_is_refused(refused, text, key, hint):
    assert refused(text) == (f"got {key} twice, expected it once", hint)
