"""What the build run completed, written into a tree and read again."""

import os

import pytest

from warmer.errors import VolumeError
from warmer.fill import answer


def test_what_was_kept_is_read_again(tmp_path):
    answer.keep(str(tmp_path), [3, 1, 128_255])
    assert answer.kept(str(tmp_path)) == (3, 1, 128_255)


def test_a_run_that_told_no_tokens_leaves_none_of_an_earlier_one(tmp_path):
    answer.keep(str(tmp_path), [3])
    answer.keep(str(tmp_path), [])
    assert os.listdir(tmp_path) == []
    assert answer.kept(str(tmp_path)) == ()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "\udcff",
        "[" * 100_000,
        '{"schema_version": 2, "tokens": [1]}',
        '{"schema_version": 1}',
        '{"schema_version": 1, "tokens": 7}',
        '{"schema_version": 1, "tokens": [null]}',
        '{"schema_version": 1, "tokens": [1e999]}',
    ],
)
def test_what_somebody_else_wrote_is_no_answer(tmp_path, text):
    (tmp_path / "answer.json").write_text(text, encoding="utf-8", errors="surrogateescape")
    assert answer.kept(str(tmp_path)) == ()


def test_a_link_and_a_pipe_are_no_answer_and_nothing_waits_for_them(tmp_path):
    (tmp_path / "other").write_text('{"schema_version": 1, "tokens": [1]}')
    os.symlink(tmp_path / "other", tmp_path / "answer.json")
    assert answer.kept(str(tmp_path)) == ()
    os.unlink(tmp_path / "answer.json")
    os.mkfifo(tmp_path / "answer.json")
    assert answer.kept(str(tmp_path)) == ()


def test_a_tree_that_is_a_file_is_the_warm_dirs_failure(tmp_path):
    (tmp_path / "tree").write_text("")
    with pytest.raises(VolumeError, match="warm dir"):
        answer.keep(str(tmp_path / "tree"), [1])
