"""Which levers a start uses, and why (`warmer.levers`)."""

import dataclasses

import pytest

from warmer import argv, families, levers, loaders, wanted
from warmer.errors import UsageError
from warmer.layout import WarmDir
from warmer.machine import Accelerator, Host, Stack
from warmer.model import ModelRef
from warmer.settings import Settings, parse_read_ahead

GPU = Accelerator("gpu", "NVIDIA H200", "9.0")
CPU = Accelerator("cpu", "a CPU", "avx2")
STACK = Stack(
    vllm="0.32.0",
    torch="2.13.0",
    cuda="13.0",
    python="3.12.1",
    libc="glibc 2.36",
    site="/s",
    packages={},
    command=("/bin/vllm",),
    cache_tag="cpython-312",
)
MODEL = ModelRef("hf", "org/model", "0" * 40)
PREFIX = "PYTHONPYCACHEPREFIX"
PLAN = "VLLM_ENABLE_STARTUP_PLAN"


VERSIONS = loaders.holds_for(STACK, GPU, filled=True)
SECONDS = {"default": (9.0, 8.0), "prefetch": (2.0, 3.0)}
TRIAL = loaders.Trial(VERSIONS, "a GPU", 1, SECONDS, chosen="prefetch")


def decide(
    *chosen,
    accelerator="gpu",
    serve=(),
    inherited=None,
    read_ahead=None,
    configured=(),
    trial=TRIAL,
):
    return levers.decide(
        levers.parse(chosen),
        accelerator=accelerator,
        flags=argv.parse(serve),
        inherited=inherited or {},
        read_ahead=read_ahead,
        configured=configured,
        trial=trial,
    )


def start(
    *chosen, accelerator=GPU, stack=STACK, configured=None, environment=None, trial=TRIAL, **changed
):
    settings = Settings(
        volume="/v", warm_dir="/w", model=MODEL, levers=levers.parse(chosen), **changed
    )
    settings = dataclasses.replace(settings, environment=environment or {})
    host = Host(stack, accelerator, None)
    how = wanted.start(
        settings, host, MODEL, WarmDir("/w"), configured=configured or {}, trial=trial
    )
    return how, wanted.want(settings, host, MODEL, how, {})


def test_all_are_on_where_they_were_measured():
    assert {name: state.on for name, state in decide().items()} == dict.fromkeys(levers.NAMES, True)


@pytest.mark.parametrize("name", levers.NAMES)
@pytest.mark.parametrize("word", ["on", "off"])
def test_each_is_switched_by_its_name_and_says_by_what(name, word):
    states = decide(f"{name}={word}", accelerator="cpu")
    assert states[name] == levers.State(word == "on", f"--lever {name}={word}")
    untouched = decide(accelerator="cpu")
    assert {n: s for n, s in states.items() if n != name} == {
        n: s for n, s in untouched.items() if n != name
    }


def test_several_stand_in_one_value_and_the_last_of_a_name_counts():
    assert levers.parse(["fork=off,imports=on", "fork=on"]) == {"fork": True, "imports": True}


ALL = f"levers: {', '.join(levers.NAMES)}"


@pytest.mark.parametrize(
    ("word", "expected", "hint"),
    [
        ("fork", "NAME=on or NAME=off", ALL),
        ("fork=", "NAME=on or NAME=off", ALL),
        ("", "NAME=on or NAME=off", ALL),
        ("frok", "NAME=on or NAME=off", f"did you mean fork? {ALL}"),
        ("=on", "a lever's name before =", ALL),
        ("xyzzy=on", "a lever's name before =", ALL),
        ("frok=off", "a lever's name before =", f"did you mean fork? {ALL}"),
        ("read_ahead=off", "a lever's name before =", f"did you mean read-ahead? {ALL}"),
        ("fork=yes", "on or off after =", "as fork=off"),
        ("fork=off=on", "on or off after =", "as fork=off"),
    ],
)
def test_what_is_no_lever_is_told_by_what_is_wrong_with_it(word, expected, hint):
    with pytest.raises(UsageError) as caught:
        levers.parse(["imports=on", word])
    assert caught.value.message == f"got --lever {word!r}, expected {expected}"
    assert caught.value.hint == hint


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ({"accelerator": "cpu"}, "OpenMP"),
        ({"accelerator": ""}, "OpenMP"),
        ({"serve": ["--pipeline-parallel-size=2"]}, "--pipeline-parallel-size"),
        ({"serve": ["--data_parallel_size", "8"]}, "--data-parallel-size"),
        ({"serve": ["--nnodes", "2"]}, "--nnodes"),
        ({"serve": ["-n2"]}, "--nnodes"),
        ({"serve": ["-tp", "2", "-pp", "2"]}, "--pipeline-parallel-size"),
        ({"serve": ["-pcp", "2"]}, "--prefill-context-parallel-size"),
        ({"serve": ["-tp", "2"], "configured": ["--nnodes"]}, "--nnodes"),
        (
            {"serve": ["-tp", "2", "--distributed-executor-backend", "ray"]},
            "--distributed-executor",
        ),
        ({"serve": ["-tp", "2", "--distributed-executor=external_launcher"]}, "--distributed-exec"),
        (
            {"serve": ["-tp", "2"], "configured": ["--distributed-executor-backend"]},
            "--distributed-executor-backend",
        ),
        ({"inherited": {"VLLM_WORKER_MULTIPROC_METHOD": "spawn"}}, "is set"),
    ],
    ids=str,
)
def test_nothing_is_forked_where_nobody_measured_it_or_somebody_chose(how, why):
    state = decide(**how)["fork"]
    assert (state.on, why in state.why) == (False, True)
    assert decide("fork=on", **how)["fork"].on, "who insists gets it"


@pytest.mark.parametrize(
    "how",
    [
        {"serve": ["-tp", "2"]},
        {"serve": ["--tensor", "8"]},
        {"serve": ["-tp", "2", "--distributed-executor-backend", "mp"]},
        {"configured": {"--tensor-parallel-size": "2"}},
    ],
    ids=str,
)
def test_tensor_parallel_ranks_of_one_node_are_forked(how):
    assert decide(**how)["fork"] == levers.State(on=True)


def test_one_rank_that_is_written_out_is_one_rank():
    states = decide(serve=["-tp", "1", "-pp=1", "--data-parallel-size", "1"])
    assert (states["fork"].on, states["startup-plan"].on) == (True, True)


@pytest.mark.parametrize(
    "how", [{"serve": ["-tp", "2"]}, {"configured": {"--pipeline-parallel-size": "2"}}], ids=str
)
def test_no_rank_takes_a_memory_plan_that_another_may_not(how):
    state = decide(**how)["startup-plan"]
    assert (state.on, "wait for each other" in state.why) == (False, True)
    assert decide("startup-plan=on", **how)["startup-plan"].on, "who insists gets it"


def test_a_cpu_has_no_plan_of_its_memory():
    state = decide(accelerator="cpu")["startup-plan"]
    assert state == levers.State(on=False, why="a GPU's memory alone is planned")
    assert decide(accelerator="")["startup-plan"].on, "who plans elsewhere than on the GPU's node"


def test_no_bytes_to_read_ahead_are_no_reading_ahead():
    for chosen in ((), ("read-ahead=on",)):
        state = decide(*chosen, read_ahead=0)["read-ahead"]
        assert state == levers.State(on=False, why="--read-ahead off")
    assert decide(read_ahead=1)["read-ahead"].on


@pytest.mark.parametrize(
    ("text", "most"), [("auto", None), ("off", 0), ("0", 0), ("2GiB", 2 << 30), ("10M", 10_000_000)]
)
def test_how_much_is_read_ahead_is_a_size_or_a_word(text, most):
    assert parse_read_ahead(text) == most


@pytest.mark.parametrize("text", ["", "on", "-1", "much", "1 parsec"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(UsageError):
        parse_read_ahead(text)


def test_the_loader_that_was_measured_is_used_and_says_what_it_gained():
    state = decide()["loader"]
    assert state.on
    assert "prefetch: 3.00 s for 8.00 s by default" in state.why
    assert start()[0].loader.flags == ("--safetensors-load-strategy", "prefetch")


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ({"trial": None}, "--tune-loader"),
        ({"trial": loaders.Trial(VERSIONS)}, "none is faster"),
        ({"trial": loaders.Trial(VERSIONS, why="it is begun")}, "it is begun"),
        ({"serve": ["--load-format", "auto"]}, "--load-format is given"),
        ({"serve": ["--load_format=auto"]}, "--load-format is given"),
        ({"serve": ["--safetensors-prefetch-num-threads", "2"]}, "is given"),
        ({"serve": ["--model-loader-extra-config.num_threads", "2"]}, "is given"),
        ({"configured": ["--safetensors-load-strategy"]}, "is given"),
    ],
    ids=str,
)
def test_no_loader_is_chosen_where_none_was_measured_or_the_user_chose_whoever_insists(how, why):
    for chosen in ((), ("loader=on",)):
        state = decide(*chosen, **how)["loader"]
        assert (state.on, why in state.why) == (False, True)
    assert decide("loader=off", **how)["loader"].why == "--lever loader=off"


@pytest.mark.parametrize(
    "how",
    [
        {"serve": ["-tp", "2"]},
        {"configured": ["--pipeline-parallel-size"]},
        {"serve": ["--quantization", "bitsandbytes"]},
        {"serve": ["--speculative-config", "{}"]},
    ],
    ids=str,
)
def test_no_loader_is_chosen_where_a_start_loads_other_than_was_measured(how):
    assert "measured with" in decide(**how)["loader"].why
    assert not decide(**how)["loader"].on
    assert decide("loader=on", **how)["loader"].on, "who insists gets it"


def test_what_warmer_itself_runs_loads_by_default():
    how, _ = start()
    assert not set(how.loader.flags) & set(how.argv)
    assert start("loader=off")[0].loader is None


# --- what they are to the keys and the environment ------------------------------------------------


@pytest.mark.parametrize("accelerator", [GPU, CPU], ids=lambda a: a.kind)
@pytest.mark.parametrize("name", levers.NAMES)
def test_no_lever_is_in_the_key_of_another_piece(name, accelerator):
    _, on = start(accelerator=accelerator)
    _, off = start(f"{name}=off", accelerator=accelerator)
    missing = {"bytecode"} if name == "bytecode" else set()
    assert on.keys.keys() - off.keys.keys() == missing
    assert {kind: key.digest for kind, key in off.keys.items()} == {
        kind: key.digest for kind, key in on.keys.items() if kind not in missing
    }


def test_without_bytecode_none_is_made_nor_handed_off():
    how, on = start()
    assert how.env.keys() >= families.variables("bytecode")
    assert "bytecode" in on.keys
    how, off = start("bytecode=off")
    assert not how.env.keys() & families.variables("bytecode")
    assert not how.build_env.keys() & {PREFIX}
    assert off.unneeded == {"bytecode": "--lever bytecode=off"}


def test_without_a_startup_plan_neither_the_build_nor_the_server_has_one():
    how, _ = start()
    assert (how.env[PLAN], how.build_env[PLAN]) == ("1", "1")
    how, _ = start("startup-plan=off")
    assert PLAN not in how.env.keys() | how.build_env.keys()


def test_before_the_plan_was_free_it_is_a_factor_on_or_off():
    """vLLM 0.25 hashes the variable: with other words it compiles other kernels' key."""
    old = dataclasses.replace(STACK, vllm="0.25.1")
    keys = {
        start(word, stack=old)[1].keys["compile"].digest
        for word in ("startup-plan=on", "startup-plan=off")
    }
    assert len(keys) == 2


ANOTHER = (
    "--speculative-config.model o/d",
    "-sc.model=o/d",
    "--spec-model o/d --spec-tokens 2",
    "--lora-mod a=o/d",
    "--hf_config_path o/d",
)


@pytest.mark.parametrize("line", ANOTHER)
def test_an_engine_that_may_need_another_repository_may_fetch_it(line):
    words = tuple(line.split())
    how, _ = start(serve_argv=words, flags=argv.parse(words))
    assert "HF_HUB_OFFLINE" not in how.env
    assert "HF_HUB_OFFLINE" in start()[0].env
    how, _ = start(configured={"--speculative-config.model": "o/d"})
    assert "HF_HUB_OFFLINE" not in how.env


@pytest.mark.parametrize("flag", ["-sc.method", "--speculative-config.model", "--spec-method"])
def test_no_loader_is_chosen_for_a_model_that_drafts_however_it_is_said(flag):
    states = decide(serve=[flag, "ngram"])
    assert "measured without it" in states["loader"].why


@pytest.mark.parametrize("words", [("--served-model", "mine"), ("--served_model_name=mine",)])
def test_a_name_that_the_user_chose_is_the_last_word(words):
    how, _ = start(serve_argv=words, flags=argv.parse(words))
    assert (how.served_name, how.argv) == ("mine", words)


OVER_NODES = [
    ({"serve_argv": ("--headles",)}, {}),
    ({"serve_argv": ("-n2",)}, {}),
    ({"serve_argv": ("--nnode", "2")}, {}),
    ({}, {"--headless": "True"}),
    ({}, {"--nnodes": "2"}),
]


@pytest.mark.parametrize(("serve", "configured"), OVER_NODES)
def test_no_kernels_are_built_for_an_engine_over_several_nodes(serve, configured):
    flags = argv.parse(serve.get("serve_argv", ()))
    _, wants = start(configured=configured, flags=flags, **serve)
    assert "one node alone" in wants.without["compile"]
    assert not start(configured={"--headless": "False", "--nnodes": "1"})[1].without


RIVALS = [
    (
        "--max-num-batched-tok 8 --max-num-batched-tokens 9",
        "--max-num-batched-tokens 9 --max-num-batched-tok 8",
    ),
    ("-cc.mode 0 --compilation-config.backend eager", "-cc.mode 0 -cc.backend eager"),
    ("-cc.a {} -cc.a.b 1", "-cc.a.b 1 -cc.a {}"),
    (
        "--device-memory-utilization 0.5 --gpu-memory-utilization 0.9",
        "--gpu-memory-utilization 0.9 --device-memory-utilization 0.5",
    ),
]


@pytest.mark.parametrize(("one", "other"), RIVALS)
def test_starts_that_vllm_tells_apart_by_the_order_of_their_words_share_no_kernels(one, other):
    found = [
        start(serve_argv=w, flags=argv.parse(w))[1]
        for w in (tuple(line.split()) for line in (one, other))
    ]
    assert found[0].keys["compile"] != found[1].keys["compile"]
    assert found[0].keys["jit"] == found[1].keys["jit"]
