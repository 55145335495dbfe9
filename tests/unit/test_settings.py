"""Strings of the command line → values (`warmer.settings`)."""

import dataclasses

import pytest

from warmer.errors import UsageError
from warmer.model import KERNEL_KINDS, KINDS, ModelRef
from warmer.settings import Settings, consistent, parse_directory, parse_on_miss, parse_read_ahead
from warmer.urls import parse_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("uri", "scheme", "name", "revision"),
    [
        ("hf://org/name", "hf", "org/name", "main"),
        ("org/name", "hf", "org/name", "main"),
        ("gpt2", "hf", "gpt2", "main"),
        ("hf://gpt2", "hf", "gpt2", "main"),
        ("hf://org/Name-1.5_x@main", "hf", "org/Name-1.5_x", "main"),
        (f"org/name@{COMMIT}", "hf", "org/name", COMMIT),
        ("hf://org/name@refs/pr/1", "hf", "org/name", "refs/pr/1"),
        ("hf://org/name@v1.0..2", "hf", "org/name", "v1.0..2"),
        ("hf://org/name@a@b", "hf", "org/name", "a@b"),
        ("file:///models/llama", "file", "/models/llama", ""),
        ("file:///models/llama/", "file", "/models/llama", ""),
        ("file:///models/../data/./llama", "file", "/data/llama", ""),
        ("file:///models/a@b", "file", "/models/a@b", ""),
        ("file:///models/with space", "file", "/models/with space", ""),
    ],
)
def test_a_model_uri_is_read(uri, scheme, name, revision):
    assert parse_model(uri) == ModelRef(scheme, name, revision)


BAD = [
    *("", "hf://", "@main", "hf://@main", "/models/llama", "hf:///models/llama", "a/b/c", "org/"),
    *("/name", "org//name", "org/na me", "org/name?x", "org/n\0", "örg/name", "~/llama"),
    *("../name", "hf://../name", "org/..", "hf://org/../name", "hf://..", "./name", "hf://./name"),
    *(".", "org/.", "-x/name"),
    *("org/name@", "hf://org/name@", "org/name@..", "org/name@../../x", "org/name@a/../b"),
    *("org/name@/x", "org/name@x/", "org/name@a//b", "org/name@.", "org/name@a/./b"),
    *("file://models/llama", "file://", "file:models", "file://./x", "file://../x"),
    *("s3://", "s3://bucket", "s3://bucket/", "s3://bucket/a//b", "s3://BUCKET/x", "s3://b/../x"),
    *("http://host/x", "https://huggingface.co/org/name", "HF://org/name"),
]


@pytest.mark.parametrize("uri", BAD)
def test_what_is_no_model_uri_is_refused_with_what_would_be_one(uri):
    with pytest.raises(UsageError) as refused:
        parse_model(uri)
    assert refused.value.reason == "bad-model"
    assert repr(uri) in refused.value.message
    assert refused.value.hint


@pytest.mark.parametrize(
    "uri", ["org/name\n", "hf://org/name\n", f"org/name@{COMMIT}\n", "a/b@x y"]
)
def test_white_space_never_gets_into_a_name_or_a_revision(uri):
    """As a variable read from a mounted file would end."""
    try:
        model = parse_model(uri)
    except UsageError as exc:
        assert exc.reason == "bad-model"
    else:
        assert model.name.split() == [model.name]
        assert model.revision.split() == [model.revision]


@pytest.mark.parametrize("uri", ["org/name", "gpt2", f"org/name@{COMMIT}", "file:///models/llama"])
def test_the_slug_of_a_model_is_one_path_component(uri):
    slug = parse_model(uri).slug
    assert slug
    assert "/" not in slug
    assert slug not in (".", "..")


ALL_COLD = dict.fromkeys(KINDS, "cold")


@pytest.mark.parametrize(
    ("words", "policies"),
    [
        ([], {}),
        (["cold"], ALL_COLD),
        (["fail"], dict.fromkeys(KINDS, "fail")),
        (["kernels=fail"], dict.fromkeys(KERNEL_KINDS, "fail")),
        (["weights=cold"], {"weights": "cold"}),
        (["compile=fail", "jit=cold"], {"compile": "fail", "jit": "cold"}),
        (["compile=fail,jit=cold"], {"compile": "fail", "jit": "cold"}),
        (["cold", "weights=fail"], ALL_COLD | {"weights": "fail"}),
        (["weights=fail", "cold"], ALL_COLD),
        (
            ["kernels=fail,compile=cold"],
            dict.fromkeys(KERNEL_KINDS, "fail") | {"compile": "cold"},
        ),
        (["bytecode=fail"], {"bytecode": "fail"}),
    ],
    ids=str,
)
def test_policies_are_read_and_later_ones_win(words, policies):
    assert parse_on_miss(words) == policies


@pytest.mark.parametrize(
    "word",
    ["", "warm", "=cold", "compile", "compile=", "compile=warm", "lora=cold", "cold,", "a=b=cold"],
)
def test_what_is_no_policy_is_refused_with_the_kinds(word):
    with pytest.raises(UsageError) as refused:
        parse_on_miss([word])
    assert refused.value.reason == "bad-value"
    assert all(kind in refused.value.hint for kind in KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_by_default_missing_weights_fail_and_missing_kernels_start_cold(kind):
    plain = Settings(volume="/v", warm_dir="/w", model=ModelRef("hf", "a", "main"))
    assert plain.policy(kind) == ("fail" if kind == "weights" else "cold")
    chosen = Settings("/v", "/w", plain.model, on_miss={kind: "fail"})
    assert chosen.policy(kind) == "fail"


@pytest.mark.parametrize(
    ("path", "normal"),
    [("/warm", "/warm"), ("/warm/", "/warm"), ("/a/./b/../warm", "/a/warm"), ("/", "/")],
)
def test_a_directory_has_one_spelling(path, normal):
    assert parse_directory(path, "--warm-dir") == normal


@pytest.mark.parametrize("path", ["", "warm", "./warm", "../warm", "~/warm"])
def test_a_relative_directory_is_refused_by_the_name_of_its_flag(path):
    with pytest.raises(UsageError, match=r"^got --warm-dir ") as refused:
        parse_directory(path, "--warm-dir")
    assert refused.value.reason == "relative-path"


def test_a_bound_of_read_ahead_is_a_word_or_a_size():
    found = [parse_read_ahead(text) for text in ("auto", "off", "0", "20G", "20")]
    assert found == [None, 0, 0, 20 * 10**9, 20]
    with pytest.raises(UsageError) as refused:
        parse_read_ahead("False")
    assert refused.value.message == "got --read-ahead 'False', expected auto, off or a size"
    assert refused.value.hint


@pytest.mark.parametrize("words", [["kernels=fail"], ["fail"], ["compile=fail"], ["bytecode=fail"]])
def test_a_start_that_must_not_be_cold_cannot_be_the_one_that_is_harvested(words):
    chosen = Settings("/v", "/w", parse_model("org/name"), on_miss=parse_on_miss(words))
    assert consistent(chosen) is chosen, "a build comes before the start"
    chosen = dataclasses.replace(chosen, compile="harvest")
    with pytest.raises(UsageError, match="would never start") as refused:
        consistent(chosen)
    assert (refused.value.reason, refused.value.exit_code) == ("harvest-or-fail", 2)
    assert "--compile=run" in refused.value.hint


def test_weights_may_fail_the_start_that_is_harvested_and_nothing_of_it_is_proved():
    chosen = Settings("/v", "/w", parse_model("org/name"), compile="harvest")
    assert consistent(chosen).policy("weights") == "fail"
    with pytest.raises(UsageError, match="nothing to prove"):
        consistent(dataclasses.replace(chosen, prove=True))


@pytest.mark.parametrize("path", ["/models/llama", "./llama", "~/llama"])
def test_a_directory_for_a_model_is_told_to_be_a_file_uri(path):
    with pytest.raises(UsageError) as caught:
        parse_model(path)
    assert "file:///dir" in caught.value.hint


@pytest.mark.parametrize(
    ("uri", "hint"),
    [
        ("s3:/bucket/x", "s3://bucket/prefix, with two slashes"),
        ("hf:org/name", "hf://org/name, with two slashes"),
        ("https://huggingface.co/org/name", "write org/name for"),
        ("https://huggingface.co/org/name/tree/main?x=y", "write org/name for"),
        ("https://example.com/org/name", "hf://org/name[@revision], s3://bucket/prefix and"),
    ],
)
def test_a_model_that_is_nearly_one_is_told_how_it_is_written(uri, hint):
    with pytest.raises(UsageError) as caught:
        parse_model(uri)
    assert hint in caught.value.hint
