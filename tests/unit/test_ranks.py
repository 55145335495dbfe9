"""Which ranks an engine has, and which of them a tree lacks (`warmer.ranks`)."""

import pytest

from warmer import argv, keys, ranks
from warmer.errors import UsageError
from warmer.ranks import Rank, World

TOP = "vllm/torch_compile_cache"


def function(rank, dp=0, group="a" * 64):
    return f"{TOP}/torch_aot_compile/{group}/rank_{rank}_{dp}/model"


def world(*serve, configured=None):
    """The ranks that a key says of an engine which is started so."""
    flags = argv.parse(serve)
    others = flags.keys() - ranks.SIZES.values()
    factors = {f"argv.{name}": flags[name] for name in others}
    return ranks.world(factors | ranks.sizes(flags, configured or {}))


@pytest.mark.parametrize(
    ("serve", "expected"),
    [
        ((), World()),
        (("-tp", "2"), World(2)),
        (("--tensor", "2"), World(2)),
        (("-tp", "2", "-pp", "3"), World(2, 3)),
        (("-tp=2", "-pcp", "2"), World(4)),
        (("-dp", "4"), World(1, 1, 4)),
        (("-dp", "4", "--data-parallel-size-local", "2"), World(1, 1, 0)),
        (("-tp", "8", "--nnodes", "2"), World(8, 1, 0)),
    ],
    ids=str,
)
def test_a_key_says_which_ranks_its_engine_has(serve, expected):
    assert world(*serve) == expected
    assert expected.several == bool(serve)


def test_a_yaml_file_of_vllms_own_says_so_too_and_the_command_line_wins():
    configured = {"--tensor-parallel-size": "4", "--pipeline-parallel-size": "2"}
    assert world(configured=configured) == World(4, 2)
    assert world("-tp", "2", configured=configured) == World(2, 2)
    assert world(configured={"--tensor-parallel": "4"}) == World(4), "argparse knows abbreviations"
    with pytest.raises(UsageError, match="tensor-parallel-size: 'many' in a --config file"):
        world(configured={"--tensor-parallel-size": "many"})


@pytest.mark.parametrize("factors", [{}, {"parallel.tp": None}, {"parallel.tp": "x"}], ids=str)
def test_a_key_that_says_nothing_of_ranks_is_of_one(factors):
    assert ranks.world(factors) == World()


@pytest.mark.parametrize(
    ("paths", "ours", "lacking"),
    [
        ([function(0), function(1)], World(2), []),
        ([function(0)], World(2), [Rank(0, 1)]),
        ([function(1)], World(2), [Rank(0, 0)]),
        ([function(0)], World(1), []),
        ([], World(2), []),  # an engine that keeps no compiled function
        (["inductor/fxgraph/a", "triton/b/c.cubin"], World(2), []),
        ([function(0), function(1), function(0, group="b")], World(2), [Rank(0, 1)]),
        # A pipeline's stages compile different things: what one has, another need not have.
        ([function(n) for n in range(4)] + [function(0, group="b"), function(1, group="b")], World(2, 2), []),
        ([function(n) for n in range(4)] + [function(2, group="b")], World(2, 2), [Rank(0, 3)]),
        ([function(0), function(1)], World(2, 2), [Rank(0, 2), Rank(0, 3)]),
        ([function(0), function(0, 1)], World(1, 1, 2), []),
        ([function(0)], World(1, 1, 2), [Rank(1, 0)]),
        ([function(0, 3), function(1, 3)], World(2, 1, 0), []),  # the others may be elsewhere
        ([function(0, 3)], World(2, 1, 0), [Rank(3, 1)]),
        ([function(0), function(1), function(2)], World(2), []),  # not the world that was thought
    ],
    ids=str,
)  # fmt: skip
def test_the_ranks_that_a_tree_lacks_are_found(paths, ours, lacking):
    assert ranks.lacking(paths, ours) == tuple(lacking)


def test_the_graphs_of_an_older_vllm_are_of_ranks_too_and_its_notes_of_a_graph_are_not():
    graph = f"{TOP}/0123456789/rank_0_0/backbone/artifact_compile_range_1_2048_subgraph_0"
    assert ranks.lacking([graph], World(2)) == (Rank(0, 1),)
    assert ranks.lacking(
        [graph, f"{TOP}/0123456789/rank_1_0/backbone/computation_graph.py"], World(2)
    )
    assert not ranks.lacking([f"{TOP}/0123456789/rank_0_0/backbone/computation_graph.py"], World(2))
    assert ranks.ranked([graph, function(1), "triton/b/c.cubin"]) == sorted([graph, function(1)])


def tuning(rank, group="c", dp=0):
    return f"autotune/{group}/autotune_configs_dp{dp}_rank{rank}.json"


@pytest.mark.parametrize(
    ("paths", "added", "torn"),
    [
        ([tuning(0), tuning(1)], [tuning(0), tuning(1)], []),
        ([tuning(0)], [tuning(0)], [tuning(0)]),
        ([tuning(0)], [], []),  # of another model's engine, which has one rank
        ([tuning(0), tuning(1)], [tuning(1)], []),
        ([tuning(0, "d"), tuning(0), tuning(1)], [tuning(0), tuning(1)], []),
        ([tuning(0), tuning(1), tuning(0, dp=1)], [tuning(0, dp=1)], [tuning(0), tuning(1), tuning(0, dp=1)]),
    ],
    ids=str,
)  # fmt: skip
def test_tuning_that_a_run_added_for_some_ranks_alone_is_found(paths, added, torn):
    assert ranks.torn(paths, set(added), World(2)) == sorted(torn)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ([Rank(0, 1)], "rank 1"),
        ([Rank(0, 3), Rank(0, 1)], "ranks 1, 3"),
        ([Rank(0, 1), Rank(2, 0)], "rank 1; rank 0 of data-parallel index 2"),
        ([], ""),
    ],
    ids=str,
)
def test_ranks_are_named_for_people(found, said):
    assert ranks.named(found) == said


def test_a_file_says_whose_it_is():
    assert ranks.owner(function(7, 2)) == Rank(2, 7)
    assert ranks.owner("triton/b/c.cubin") is None


def test_what_every_rank_shares_has_no_rank_in_its_key():
    """Tensor-parallel sizes share FlashInfer's and the JITs' kernels, and the bytecode."""
    assert set(ranks.SIZES) == {"parallel.tp", "parallel.pp", "parallel.dp"}
    assert "flags" not in keys.shared_key.__annotations__
    assert "flags" not in keys.bytecode_key.__annotations__
