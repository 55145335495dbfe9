"""Keys (`warmer.keys`): every factor counts, what is free does not, and a digest is for ever."""

import dataclasses
import json

import pytest

from warmer import argv, families, freedoms, keys
from warmer.machine import Accelerator, Stack
from warmer.model import Difference, Key, ModelRef, Nearest

MODEL = ModelRef("hf", "org/model", "0123456789abcdef0123456789abcdef01234567")
STACK = Stack(
    vllm="0.32.0",
    torch="2.13.0+cu130",
    cuda="13.0",
    python="3.12.1",
    libc="glibc 2.36",
    site="/opt/venv/lib/python3.12/site-packages",
    packages={"triton": "3.6.0", "flashinfer-python": "0.6.14", "numpy": "2.3.0"},
    command=("vllm",),
)
GPU = Accelerator("gpu", "NVIDIA H200", "9.0", driver="580.1", count=8)
SERVE = "--max-model-len 512 -tp 2 --port 8000"
INHERITED = {"PATH": "/bin", "VLLM_USE_V2": "1", "VLLM_PORT": "5000", "HF_TOKEN": "hf_secret"}
COMMON = {"stack": STACK, "accelerator": GPU, "image": "sha256:1", "warm_dir": "/warm"}


def compile_key(serve=SERVE, **changed):
    given = {
        "weights": keys.weights_key(MODEL),
        "model_path": "/warm/models/org--model/0123456789ab",
        "flags": argv.parse(serve.split()),
        "config_digests": {"/etc/vllm.yaml": "ab" * 32},
        "environment": {"VLLM_CACHE_ROOT": "/warm/cache/compile/vllm", "VLLM_ENGINE": "1"},
        "inherited": INHERITED,
        **COMMON,
    }
    return keys.compile_key(**given | changed)


def changed_factors(one, other):
    return [difference.factor for difference in keys.differences(one.factors, other.factors)]


def stack(**changed):
    return {"stack": dataclasses.replace(STACK, **changed)}


def gpu(**changed):
    return {"accelerator": dataclasses.replace(GPU, **changed)}


# --- bytecode ------------------------------------------------------------------------------------


BYTECODE = {"stack": STACK, "image": "sha256:1"}


@pytest.mark.parametrize(
    ("changed", "factor"),
    [
        (stack(vllm="0.33.0"), "engine.vllm"),
        (stack(torch="2.14.0"), "engine.torch"),
        (stack(python="3.12.2"), "engine.python"),
        (stack(cache_tag="pypy311"), "engine.cache_tag"),
        (stack(site="/elsewhere"), "engine.site"),
        (stack(packages=STACK.packages | {"numpy": "2.3.1"}), "engine.packages"),
        ({"image": None}, "engine.image"),
    ],
)
def test_each_thing_that_decides_over_sources_is_a_factor_of_bytecode(changed, factor):
    one, other = keys.bytecode_key(**BYTECODE), keys.bytecode_key(**BYTECODE | changed)
    assert changed_factors(one, other) == [factor]
    assert one.digest != other.digest


def test_bytecode_is_shared_by_all_models_and_accelerators_of_an_image():
    names = {"vllm", "torch", "python", "cache_tag", "site", "packages", "image"}
    assert keys.bytecode_key(**BYTECODE).factors.keys() == {f"engine.{name}" for name in names}


# --- digests are for ever -------------------------------------------------------------------------


def test_the_digest_of_fixed_factors_never_changes():
    """A change here orphans every volume in the field: raise a version factor on purpose instead."""
    factors = {"b": [1, 2.5, True, None], "a": {"y": "ü", "x": ""}, "n": -3}
    digest = "4fbd394e135c277eb42398b1245eee41f7168eea3fdcee426e71a58797fcf594"
    assert Key("compile", factors).digest == digest
    assert Key("compile", dict(reversed(factors.items()))).digest == digest
    assert Key("jit", factors).digest != digest


def test_the_weights_key_of_a_fixed_model_never_changes():
    assert (
        keys.weights_key(MODEL).digest
        == "f8147200cdfb3924be87fccdfe487872c6b1e4d1431e87aea38f4d1dcb198d83"
    )


def test_the_compile_key_of_a_fixed_start_never_changes():
    assert (
        compile_key().digest == "af6f91b09817ea2722c46b72cdc19396266d895b736e4797f9fd80815f45c084"
    )


def test_the_shared_key_of_a_fixed_stack_never_changes():
    assert (
        keys.shared_key("flashinfer", environment={}, **COMMON).digest
        == "a71f8d5e2c261a0b4dcb2660406d2f436c6b511392e5aea6866c55916110966c"
    )


def test_a_key_is_named_by_the_first_twelve_digits():
    assert Key("jit", {}).short == Key("jit", {}).digest[:12]


# --- every factor counts --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("factor", "changed"),
    [
        ("source", {"scheme": "file"}),
        ("name", {"name": "org/other"}),
        ("revision", {"revision": "f" * 40}),
    ],
)
def test_every_property_of_the_model_is_a_factor_of_its_weights(factor, changed):
    one, other = keys.weights_key(MODEL), keys.weights_key(dataclasses.replace(MODEL, **changed))
    assert changed_factors(one, other) == [factor]
    assert one.digest != other.digest


OTHER_WEIGHTS = keys.weights_key(dataclasses.replace(MODEL, name="org/other"))
PERTURBED = [
    ("model.key", {"weights": OTHER_WEIGHTS}),
    ("model.path", {"model_path": "/warm/models/org--model/other"}),
    ("engine.vllm", stack(vllm="0.32.1")),
    ("engine.torch", stack(torch="2.13.1+cu130")),
    ("engine.cuda", stack(cuda=None)),
    ("engine.python", stack(python="3.12.2")),
    ("engine.libc", stack(libc="glibc 2.39")),
    ("engine.site", stack(site="/usr/lib/python3/dist-packages")),
    ("engine.image", {"image": None}),
    ("package.triton", stack(packages={"triton": "3.6.1"})),
    ("hardware.kind", gpu(kind="cpu")),
    ("hardware.name", gpu(name="NVIDIA H100")),
    ("hardware.capability", gpu(capability="10.0")),
    ("warmer.warm_dir", {"warm_dir": "/elsewhere"}),
    ("parallel.tp", {"serve": "--max-model-len 512 -tp 4"}),
    ("parallel.pp", {"serve": SERVE + " -pp 2"}),
    ("parallel.dp", {"serve": SERVE + " -dp 2"}),
    ("argv.--max-model-len", {"serve": "--max-model-len 1024 -tp 2"}),
    ("argv.--enforce-eager", {"serve": SERVE + " --enforce-eager"}),
    ("argv.--gpu-memory-utilization", {"serve": SERVE + " --gpu-memory-utilization 0.5"}),
    ("argv.--optimization-level", {"serve": SERVE + " -O2"}),
    ("file./etc/vllm.yaml", {"config_digests": {"/etc/vllm.yaml": "cd" * 32}}),
    ("env.VLLM_USE_V2", {"inherited": INHERITED | {"VLLM_USE_V2": "0"}}),
    ("env.VLLM_ENGINE", {"environment": {"VLLM_ENGINE": "2"}}),
    (
        "env.TORCHINDUCTOR_MAX_AUTOTUNE",
        {"inherited": INHERITED | {"TORCHINDUCTOR_MAX_AUTOTUNE": "1"}},
    ),
    ("env.CUDA_HOME", {"inherited": INHERITED | {"CUDA_HOME": "/usr/local/cuda-13"}}),
]


@pytest.mark.parametrize(("factor", "changed"), PERTURBED, ids=[name for name, _ in PERTURBED])
def test_a_changed_factor_is_another_compile_key_and_is_named(factor, changed):
    one, other = compile_key(), compile_key(**changed)
    assert changed_factors(one, other) == [factor]
    assert one.digest != other.digest


def test_no_two_changes_make_the_same_key():
    digests = [compile_key().digest, *(compile_key(**changed).digest for _, changed in PERTURBED)]
    assert len(set(digests)) == len(PERTURBED) + 1


def test_a_change_of_warmers_own_environment_block_is_another_key(monkeypatch):
    one, shared = compile_key(), keys.shared_key("jit", environment={}, **COMMON)
    monkeypatch.setattr(families, "ENVIRONMENT_VERSION", families.ENVIRONMENT_VERSION + 1)
    assert changed_factors(one, compile_key()) == ["warmer.environment"]
    assert changed_factors(shared, keys.shared_key("jit", environment={}, **COMMON)) == [
        "warmer.environment"
    ]


def test_warmers_own_block_wins_over_what_is_inherited():
    key = compile_key(environment={"VLLM_USE_V2": "mine"})
    assert key.factors["env.VLLM_USE_V2"] == "mine"


# --- what is free does not ------------------------------------------------------------------------


@pytest.mark.parametrize("flag", freedoms.FREE_FLAGS)
def test_a_free_flag_changes_nothing(flag):
    assert compile_key(SERVE + f" {flag} 1").digest == compile_key().digest
    no = f"--no-{flag[2:]}"
    assert compile_key(SERVE.removesuffix(" --port 8000") + f" {no}").digest == compile_key().digest


@pytest.mark.parametrize("name", freedoms.FREE_VARIABLES)
def test_a_free_variable_changes_nothing(name):
    assert compile_key(inherited=INHERITED | {name: "1"}).digest == compile_key().digest


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"serve": "--port 8000 -tp 2 --max-model-len 512"}, id="order"),
        pytest.param({"serve": "--max_model_len=512 --tensor-parallel-size=2"}, id="spelling"),
        pytest.param({"serve": SERVE + " -pp 1 -dp 1"}, id="defaults"),
        pytest.param(gpu(driver="590.2", count=4), id="driver-and-count"),
        pytest.param(stack(command=("/opt/venv/bin/vllm",), shim="0.32.0"), id="command"),
        pytest.param(stack(packages={**STACK.packages, "numpy": "2.4.0"}), id="another-package"),
        pytest.param({"inherited": INHERITED | {"PATH": "/usr/bin", "X": "1"}}, id="environment"),
        pytest.param({"inherited": INHERITED | {"HF_TOKEN": "other"}}, id="token"),
    ],
)
def test_what_kernels_do_not_depend_on_changes_nothing(changed):
    assert compile_key(**changed).digest == compile_key().digest


def test_no_secret_is_in_a_key():
    secrets = {"VLLM_API_KEY": "s3cret", "VLLM_S3_SECRET": "s3cret", "HF_TOKEN": "s3cret"}
    assert "s3cret" not in json.dumps(dict(compile_key(inherited=secrets).factors))
    assert compile_key(inherited=INHERITED | secrets).digest == compile_key().digest


@pytest.mark.parametrize(
    ("kind", "package"), [("flashinfer", "flashinfer-python"), ("jit", "tilelang")]
)
def test_a_shared_kind_depends_on_its_own_packages_and_on_no_others(kind, package):
    one = keys.shared_key(kind, environment={}, **COMMON)
    other = keys.shared_key(
        kind, environment={}, **COMMON | stack(packages={**STACK.packages, package: "9"})
    )
    foreign = keys.shared_key(
        kind, environment={}, **COMMON | stack(packages={**STACK.packages, "numpy": "9"})
    )
    assert changed_factors(one, other) == [f"package.{package}"]
    assert foreign.digest == one.digest


@pytest.mark.parametrize("kind", ["flashinfer", "jit"])
def test_a_shared_kind_depends_on_what_stands_in_build_files_where_it_is_set(kind):
    one = keys.shared_key(kind, environment={}, **COMMON)
    flags = {"FLASHINFER_EXTRA_CUDAFLAGS": "-lineinfo", "CXX": "clang++", "CUDA_HOME": "/opt/cuda"}
    other = keys.shared_key(kind, environment=flags, **COMMON)
    assert changed_factors(one, other) == [f"env.{name}" for name in sorted(flags)]
    same = {"VLLM_USE_V2": "1", "PATH": "/bin", "FLASHINFER_WORKSPACE_BASE": "/warm/cache"}
    assert keys.shared_key(kind, environment=same, **COMMON).digest == one.digest


def test_shared_kinds_have_different_keys_on_the_same_stack():
    assert (
        keys.shared_key("jit", environment={}, **COMMON).digest
        != keys.shared_key("flashinfer", environment={}, **COMMON).digest
    )


# --- differences ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "held", "found"),
    [
        pytest.param({}, {}, [], id="nothing"),
        pytest.param({"a": 1}, {"a": 1}, [], id="equal"),
        pytest.param({"a": 1}, {"a": 2}, [("a", 1, 2)], id="changed"),
        pytest.param({"a": 1}, {}, [("a", 1, None)], id="gained"),
        pytest.param({}, {"a": 1}, [("a", None, 1)], id="lost"),
        pytest.param({"a": None}, {}, [], id="none-is-not-set"),
        pytest.param(
            {"c": 1, "a": 1},
            {"b": 1},
            [("a", 1, None), ("b", None, 1), ("c", 1, None)],
            id="sorted",
        ),
        pytest.param(
            {"a": [["1"]]}, {"a": [["1"], ["2"]]}, [("a", [["1"]], [["1"], ["2"]])], id="lists"
        ),
    ],
)
def test_differences_are_listed_by_name(wanted, held, found):
    assert keys.differences(wanted, held) == tuple(Difference(*row) for row in found)


def test_the_nearest_key_has_the_fewest_differences():
    wanted = Key("jit", {"a": 1, "b": 2, "c": 3})
    held = [("x", {"a": 1}), ("y", {"a": 1, "b": 2, "c": 4}), ("z", {})]
    assert keys.nearest(wanted, held) == Nearest("y", (Difference("c", 3, 4),))


def test_the_smaller_digest_is_nearest_of_two_that_are_as_near():
    wanted = Key("jit", {"a": 1})
    held = [("y", {"a": 2}), ("x", {"a": 3})]
    assert keys.nearest(wanted, held).digest == keys.nearest(wanted, held[::-1]).digest == "x"


def test_nothing_is_nearest_where_nothing_is_held():
    assert keys.nearest(Key("jit", {"a": 1}), []) is None


def test_load_formats_that_leave_the_checkpoint_unread_have_kernels_of_their_own():
    """vLLM 0.32 hashes tied embeddings, and unties them by what it finds in the checkpoint."""
    found = [compile_key(f"{SERVE} --load-format {name}") for name in ("dummy", "sharded_state")]
    read = compile_key(f"{SERVE} --load-format bitsandbytes")
    assert read.digest == compile_key().digest
    assert [changed_factors(read, one) for one in found] == [["argv.--load-format"]] * 2
