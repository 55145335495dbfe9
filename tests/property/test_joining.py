"""Nodes that grow a shared kind apart come together in the bucket, in whatever order they push."""

import hashlib
import os
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, os.path.dirname(__file__))
from hostile import examples

from warmer.fill import members
from warmer.fill.remote import join

NODES = 3
BUILD, PULL, LOSE = "builds", "pulls", "builds, and its push fails"
EVENTS = st.tuples(
    st.sampled_from([BUILD, BUILD, PULL, LOSE]), st.integers(0, NODES - 1), st.integers(0, 9)
)


def tree(*paths, by="somebody", empty=()):
    digest = hashlib.sha256(by.encode()).hexdigest()
    named = (members.Member(path, 1, digest, 0o644, 1) for path in paths)
    return members.Manifest({member.path: member for member in named}, tuple(empty))


class Model:
    """Volumes and a bucket, with the rule that pushers follow; a tree is its manifest."""

    def __init__(self):
        self.volumes = [tree() for _ in range(NODES)]
        self.bucket = []

    def build(self, node, name):
        held = self.volumes[node].members
        mine = {f"{name}.so": tree(f"{name}.so", by=str(node)).members[f"{name}.so"]}
        self.volumes[node] = members.Manifest({**mine, **held})

    def pull(self, node):
        """A volume takes what has all of its own, and nothing else."""
        if self.bucket and self.volumes[node].members.keys() <= self.bucket[-1].members.keys():
            self.volumes[node] = self.bucket[-1]

    def push(self, node):
        mine = self.volumes[node]
        if not self.bucket:
            self.bucket.append(mine)
            return
        theirs = self.bucket[-1]
        standing = join.standing(mine.members.keys(), theirs.members.keys())
        if standing != "covered":
            self.bucket.append(mine if standing == "grown" else join.together(mine, theirs))


@given(st.lists(EVENTS, max_size=30))
@examples(200)
def test_whatever_order_they_push_in_all_is_there_and_then_nothing_more_is_pushed(events):
    model, built = Model(), 0
    for what, node, name in events:
        if what == PULL:
            model.pull(node)
            continue
        model.build(node, name)
        built += 1
        if what == BUILD:
            model.push(node)
            assert model.volumes[node].members.keys() <= model.bucket[-1].members.keys()
    assert len(model.bucket) <= built, "no push without a build"
    for node in range(NODES):  # each pushes once more, as after a last build
        model.push(node)
    settled = len(model.bucket)
    for node in reversed(range(NODES)):
        model.push(node)
    assert len(model.bucket) == settled, "they do not answer each other"
    for older, newer in zip(model.bucket, model.bucket[1:], strict=False):
        assert older.members.keys() < newer.members.keys(), "every number adds, and loses nothing"
    everything = {path for volume in model.volumes for path in volume.members}
    assert model.bucket[-1].members.keys() == everything


@given(st.sets(st.integers(0, 9)), st.sets(st.integers(0, 9)))
@examples(100)
def test_theirs_wins_where_both_have_a_file(mine, theirs):
    ours = tree(*(f"{name}.so" for name in mine), by="us")
    others = tree(*(f"{name}.so" for name in theirs), by="them")
    both = join.together(ours, others)
    assert both.members == {**ours.members, **others.members}


TUNED = "flashinfer/tuned/autotune_configs_dp0_rank{}.json"


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        (tree("a"), tree("a/b")),
        (tree("a/b"), tree("a")),
        (tree("a/b/c"), tree("a/b")),
        (tree("a"), tree(empty=["a"])),
        (tree("a"), tree(empty=["a/b"])),
        (tree(empty=["a/b"]), tree("a")),
        (tree(TUNED.format(0), TUNED.format(1)), tree(TUNED.format(0))),
    ],
)
def test_trees_that_contradict_each_other_are_not_one(mine, theirs):
    assert join.together(mine, theirs) is None


def test_a_name_that_begins_like_another_is_no_contradiction():
    both = tree("a", "a-b", "a.b/c", "ab", empty=["a-"])
    assert join.together(tree("a-b", "ab"), tree("a", "a.b/c", empty=["a-"])) == both


def test_a_path_of_very_many_parts_costs_what_it_is_long():
    deep = "/".join("a" * 200_000)
    assert join.together(tree(deep), tree("b")) == tree(deep, "b")


def test_tuning_of_the_same_ranks_is_taken_from_one_of_both():
    ours, others = (tree(TUNED.format(0), TUNED.format(1), by=by) for by in ("us", "them"))
    assert join.together(ours, others) == others


def test_a_directory_that_is_empty_here_and_not_there_is_no_contradiction():
    assert join.together(tree(empty=["a", "c"]), tree("a/b")) == tree("a/b", empty=["c"])
