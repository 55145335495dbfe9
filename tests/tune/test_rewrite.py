"""Sizes put into a YAML file: nothing else in it changes, or nothing is done."""

import pytest
import yaml

from warmer.tune.rewrite import NotEditableError, rewrite, words

SIZES = (1, 8)
ARGS = ["--cudagraph-capture-sizes", 1, 8]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "serve-args:\n  - --cudagraph-capture-sizes\n  - 1\n  - 8\n"),
        (
            "# ours\nvolume: /models",
            "# ours\nvolume: /models\nserve-args:\n  - --cudagraph-capture-sizes\n  - 1\n  - 8\n",
        ),
        (
            "serve-args:  # vLLM's\n- --max-num-seqs\n- '64'  # wide\nvolume: /m\n",
            (
                "serve-args:  # vLLM's\n- --max-num-seqs\n- '64'  # wide\n"
                "- --cudagraph-capture-sizes\n- 1\n- 8\nvolume: /m\n"
            ),
        ),
        (
            "serve-args:\n    - --cudagraph_capture_sizes\n    - 2\n    - '4'\n    - --seed\n    - 0\n",
            "serve-args:\n    - --cudagraph-capture-sizes\n    - 1\n    - 8\n    - --seed\n    - 0\n",
        ),
        (
            "serve-args: [--seed, 0]  # one line\nvolume: /m\n",
            "serve-args: [--seed, 0, --cudagraph-capture-sizes, 1, 8]  # one line\nvolume: /m\n",
        ),
        (
            "serve-args: [--cudagraph-capture-sizes, 2, --seed, 0]\n",
            "serve-args: [--cudagraph-capture-sizes, 1, 8, --seed, 0]\n",
        ),
        ("serve_args: []\n", "serve_args: [--cudagraph-capture-sizes, 1, 8]\n"),
        (
            "serve-args:\nvolume: /m\n",
            "serve-args:\n  - --cudagraph-capture-sizes\n  - 1\n  - 8\nvolume: /m\n",
        ),
        (
            "serve-args:\r\n- --seed\r\n- 0\r\n",
            "serve-args:\r\n- --seed\r\n- 0\r\n- --cudagraph-capture-sizes\r\n- 1\r\n- 8\r\n",
        ),
        (
            "serve-args:\n- --seed\n- 0",
            "serve-args:\n- --seed\n- 0\n- --cudagraph-capture-sizes\n- 1\n- 8\n",
        ),
    ],
)
def test_the_words_are_put_in_and_the_rest_stays(before, after):
    assert rewrite(before, SIZES) == after
    assert rewrite(after, SIZES) == after, "once more changes nothing"


@pytest.mark.parametrize(
    "text",
    [
        "a: [b\n",
        "- a\n- b\n",
        "just words\n",
        "serve-args: --seed 0\n",
        "serve-args: [[--seed]]\n",
        "serve-args: []\nserve_args: []\n",
        "serve-args: [--cudagraph-capture-sizes, 1, --seed, 0, --cudagraph-capture-sizes, 2]\n",
        "{volume: /m}\n",
        "base: &b [--seed, 0]\nserve-args: *b\n",
        "volume: /m\n---\nvolume: /n\n",
        "volume: /m\n...\n",
        "[" * 600,
    ],
)
def test_what_cannot_be_edited_safely_is_left_alone(text):
    with pytest.raises(NotEditableError):
        rewrite(text, SIZES)


def test_an_alias_is_not_changed_in_its_other_place():
    text = "adopt: &b [/x]\nserve-args: [--seed, 0]\ninclude: *b\n"
    found = yaml.safe_load(rewrite(text, SIZES))
    assert found["include"] == ["/x"]
    assert found["serve-args"] == ["--seed", 0, *ARGS]


def test_the_words_of_a_file_are_read():
    assert words("serve-args:\n- --seed\n- 0\n") == ["--seed", "0"]
    assert words("# nothing\n") == []


def test_comments_among_the_sizes_that_go_stay():
    text = (
        "serve-args:\n"
        "  - --cudagraph-capture-sizes  # as of spring\n"
        "  - 1\n"
        "  # Bob wants this one\n"
        "  - 2 # and this\n"
        "  - --seed  # never\n"
        "  - 0\n"
    )
    assert rewrite(text, [1, 8]) == (
        "serve-args:\n"
        "  # as of spring\n"
        "  # Bob wants this one\n"
        "  # and this\n"
        "  - --cudagraph-capture-sizes\n"
        "  - 1\n"
        "  - 8\n"
        "  - --seed  # never\n"
        "  - 0\n"
    )
    with pytest.raises(NotEditableError, match="comment"):
        rewrite("serve-args: [--cudagraph-capture-sizes, 1, # c\n  2]\n", [8])


def test_a_line_ends_as_the_one_before_it():
    text = "a: 1\r\nserve-args:\n- --seed\n- 0\nb: 2\r\n"
    assert rewrite(text, [8]) == (
        "a: 1\r\nserve-args:\n- --seed\n- 0\n- --cudagraph-capture-sizes\n- 8\nb: 2\r\n"
    )
