"""Words that people and manifests give: a value, or a UsageError that says what was got."""

import contextlib
import json
import os
import sys

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

sys.path.insert(0, os.path.dirname(__file__))
from hostile import TEXTS, VALUES, examples

from warmer import argv, quantities, urls, yamltext
from warmer.cli import config_file, prefill
from warmer.errors import UsageError
from warmer.model import LEVELS, canonical
from warmer.tune import rewrite

WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)


def pieced(*words):
    """Texts of the words that a parser knows, and of others, in any order."""
    return st.lists(st.sampled_from(words) | WORDS, max_size=6).map("".join)


URLS = pieced(
    "hf://", "s3://", "k8s://", "file", "file://", "/", "org", "@", "main", "a" * 64, "?lease=", "30",
    "nan", "bucket", ":", "..", "-", "%2e", "\n", "İ",
)  # fmt: skip

# --- URLs


@examples(150)
@given(URLS)
@example("file:///a\0b")
@example("s3://bucket/a\nb")
def test_a_model_is_read_or_refused_and_means_the_same_when_it_is_written(url):
    with contextlib.suppress(UsageError):
        found = urls.parse_model(url)
        assert "\0" not in found.name + found.revision
        assert urls.parse_model(str(found)) == found


@examples(150)
@given(URLS)
def test_a_lock_is_read_or_refused_and_its_lease_ends(url):
    with contextlib.suppress(UsageError):
        found = urls.parse_lock(url)
        assert urls.SHORTEST_LEASE <= found.lease <= urls.LONGEST_LEASE
        assert not {"", ".", ".."} & set(found.prefix.split("/")) or found.mechanism == "file"


@examples(100)
@given(URLS)
def test_a_bucket_is_read_or_refused_and_means_the_same_when_it_is_written(url):
    with contextlib.suppress(UsageError):
        found = urls.parse_remote(url)
        assert urls.parse_remote(str(found)) == found


@examples(60)
@given(WORDS.filter(lambda w: len(w) > 3 and w.isalnum() and w not in "expected bucket prefix got"))
def test_a_password_in_a_refused_url_is_not_repeated(word):
    word = f"pw{word}"
    for url in (f"s3://user:{word}@host/x y", f"k8s://a:{word}@b/c", f"s3://b/c?token={word}x" * 2):
        for parse in (urls.parse_lock, urls.parse_remote):
            with pytest.raises(UsageError) as caught:
                parse(url)
            assert word not in caught.value.message or len(word) <= 6


# --- quantities

QUANTITIES = pieced("1", "9" * 18, ".", ".5", "k", "Ki", "T", "B", "/s", "bit", "bps", "d", "min", " ", "K", "٣")  # fmt: skip


@examples(150)
@given(QUANTITIES)
def test_a_quantity_is_a_number_that_is_not_negative_or_is_refused(text):
    for parse in (quantities.parse_duration, quantities.parse_size, quantities.parse_rate):
        with contextlib.suppress(UsageError):
            assert 0 <= parse(text, "--x") < float("inf")


# --- vLLM's arguments

ARGUMENTS = st.lists(
    st.sampled_from(
        ["--a-b", "--a_b", "-tp", "-O", "-O3", "--x.y", "--no-x", "--x", "=", "-1", "-"]
    )
    | WORDS
    | st.builds("{}={}".format, st.sampled_from(["--x", "-tp", "-O", "--a.b"]), WORDS)
    | VALUES.map(json.dumps)
    | st.integers(1, 1100).map(lambda n: "[" * n + "]" * n)
    | st.integers(1, 1100).map(lambda n: '{"a":' * n + "1" + "}" * n),
    max_size=5,
)


@examples(200)
@given(ARGUMENTS)
@example(["--x", "[" * 990 + "]" * 990])
@example(["--x", "[" * 400 + "]" * 400])
@example(["--x", "[" * 100_000])
def test_arguments_are_flags_and_values_or_refused(words):
    with contextlib.suppress(UsageError):
        flags = argv.parse(words)
        assert all(name.startswith("-") for name in flags)
        again = [w for name, of in flags.items() for one in of for w in (name, *one)]
        assert argv.parse(again) == flags, "what is canonical stays as it is"
        canonical(flags)
        with contextlib.suppress(UsageError):
            argv.integer(flags, "--x", 1)


def test_json_of_more_levels_than_anybody_writes_is_refused_as_such():
    assert argv.parse(["--x", "[" * LEVELS + "]" * LEVELS])
    for levels in (LEVELS + 1, 500, 995, 50_000):
        with pytest.raises(UsageError, match="levels") as caught:
            argv.parse(["--x", "[" * levels + "]" * levels])
        assert caught.value.reason == "bad-value"


# --- YAML

YAMLS = (
    st.text(max_size=40)
    | pieced("warm-dir", ": ", "\n", "- ", "[", "]", "{", "}", "&a ", "*a", "<<", "!!int ", "!!float ",
             "!!timestamp ", "!!bool ", '""', "2026-13-45", "0b_", "._", "1:60", "'", "|", "#", "  ")
    | VALUES.map(lambda value: f"serve-args: {value!r}")
)  # fmt: skip
NONE = ["2026-13-45", "a: 2026-13-45", "0b_", "a: 0x_", '!!int ""', '!!float ""', "!!timestamp x",
        "!!bool x", "[" * 3000, "\x07", "? [a]\n"]  # fmt: skip


@pytest.mark.parametrize("text", NONE)
def test_what_only_looks_like_a_value_of_yaml_is_told_as_no_yaml(text):
    with pytest.raises(yamltext.NotYamlError):
        yamltext.load(text)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return str(tmp_path_factory.mktemp("config") / "warmer.yaml")


class _Context:
    command = prefill.command
    default_map = None
    resilient_parsing = False


@examples(150)
@given(text=YAMLS)
def test_a_config_file_gives_words_or_is_refused(config, text):
    with open(config, "w", encoding="utf-8", errors="surrogatepass", newline="") as f:
        f.write(text)
    ctx = _Context()
    with contextlib.suppress(UsageError):
        config_file.load(ctx, None, config)
        assert ctx.default_map is not None
        for value in ctx.default_map.values():
            assert isinstance(value, str | int | float | list)


def test_a_value_that_anchors_make_huge_is_not_shown_whole(config):
    lines = ["warm-dir:", "  - &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"  - &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    with open(config, "w", encoding="utf-8") as f:
        f.write("\n".join(lines))
    with pytest.raises(UsageError) as caught:
        config_file.load(_Context(), None, config)
    assert "warm-dir: a list" in caught.value.message


@examples(150)
@given(YAMLS, st.lists(st.integers(1, 512), min_size=1, max_size=3))
@example("serve-args: [--x]\n", [1])
@example("a: 2026-13-45", [1])
def test_a_file_is_edited_to_what_was_meant_or_left_alone(text, sizes):
    with contextlib.suppress(rewrite.NotEditableError):
        after = rewrite.rewrite(text, sizes)
        words = [str(word) for word in yaml.safe_load(after)[_key(after)]]
        at = words.index(rewrite.FLAG)
        assert words[at + 1 : at + 1 + len(sizes)] == [str(size) for size in sizes]


def _key(text):
    return next(k for k in ("serve-args", "serve_args") if k in yaml.safe_load(text))


@examples(30)
@given(TEXTS)
def test_a_secret_inside_json_is_found_at_any_level_that_is_taken(text):
    value = {"hf_token": text + "x"}
    for _ in range(LEVELS - 3):
        value = [value]
    with pytest.raises(UsageError) as caught:
        argv.parse(["--x", json.dumps(value)])
    assert caught.value.reason == "secret-in-argv"
