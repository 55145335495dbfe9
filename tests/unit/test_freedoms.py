"""What may differ between two starts (`warmer.freedoms`), beside what the installed vLLM hashes."""

import ast
import functools
import glob
import importlib.util
import os
import re

import pytest

from warmer import families, freedoms
from warmer.secrecy import secret_name

NOW = (0, 32, 0)
SECRETS = [
    *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "AWS_SESSION_TOKEN", "GITHUB_TOKEN", "hf_token"),
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "S3_ACCESS_KEY_ID", "S3_SECRET_ACCESS_KEY"),
    *("VLLM_API_KEY", "OPENAI_API_KEY", "WANDB_APIKEY", "CLIENT_SECRET", "SECRET"),
    *("PASSWORD", "DB_PASSWORD", "REDIS_PASSWD", "GOOGLE_APPLICATION_CREDENTIALS"),
]
OPEN = [
    *("PATH", "HOME", "LD_LIBRARY_PATH", "CUDA_HOME", "TORCH_CUDA_ARCH_LIST", "HF_HOME"),
    *("VLLM_CACHE_ROOT", "VLLM_USE_V1", "HF_HUB_OFFLINE", "NCCL_DEBUG", "OMP_NUM_THREADS"),
    *("TOKENIZERS_PARALLELISM", "VLLM_MAX_TOKENS_PER_EXPERT_FP4_MOE", "VLLM_USE_FASTOKENS"),
    *("AWS_SHARED_CREDENTIALS_FILE", "AWS_WEB_IDENTITY_TOKEN_FILE", "DB_PASSWORD_FILE"),
]


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_is_known_by_its_name(name):
    assert secret_name(name)


@pytest.mark.parametrize("name", OPEN)
def test_what_is_no_secret_is_not_lost_as_one(name):
    assert not secret_name(name)


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_is_never_a_factor(name):
    assert not freedoms.hashed_variable(name, "x", NOW)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("0.32.0", (0, 32, 0)),
        ("0.32.0rc1+cpu", (0, 32, 0)),
        ("0.32", (0, 32)),
        ("0.32.0.dev12+g1234", (0, 32, 0)),
        ("1", (1,)),
        ("10.2.33", (10, 2, 33)),
        ("unknown", freedoms.ALWAYS),
        ("", freedoms.ALWAYS),
        ("v0.32", freedoms.ALWAYS),
    ],
)
def test_a_version_is_its_leading_numbers(text, version):
    assert freedoms.version(text) == version


@pytest.mark.parametrize(
    ("name", "vllm", "free"),
    [
        ("--port", NOW, True),
        ("--port", freedoms.ALWAYS, True),
        ("--enable-log-requests", NOW, True),
        ("--no-enable-log-requests", NOW, True),
        ("--max-model-len", NOW, False),
        ("--gpu-memory-utilization", NOW, False),
        ("--kv-cache-memory-bytes", NOW, False),
        ("--por", NOW, False),
        ("--no-no-port", NOW, False),
        ("port", NOW, False),
    ],
)
def test_only_the_listed_flags_are_free(name, vllm, free):
    assert freedoms.free_flag(name, vllm) is free


@pytest.mark.parametrize(
    ("name", "vllm", "free", "hashed"),
    [
        ("VLLM_CONFIG_ROOT", (0, 32), True, False),
        ("VLLM_CONFIG_ROOT", (0, 32, 1), True, False),
        ("VLLM_CONFIG_ROOT", (0, 31, 9), False, True),
        ("VLLM_CONFIG_ROOT", freedoms.ALWAYS, False, True),
        ("VLLM_PORT", freedoms.ALWAYS, True, False),
        ("VLLM_SOMETHING_NEW", NOW, False, True),
        ("TORCHINDUCTOR_MAX_AUTOTUNE", NOW, False, True),
        ("TORCHINDUCTOR_CACHE_DIR", NOW, True, False),
        ("TORCH_COMPILE_DISABLE", NOW, False, True),
        ("RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES", NOW, False, True),
        ("CUDA_HOME", NOW, False, True),
        ("CUDA_HOME_TOO", NOW, False, False),
        ("CXX", NOW, False, True),
        ("CI", NOW, False, True),
        ("ATEN_CPU_CAPABILITY", NOW, False, True),
        ("TORCHDYNAMO_AUTO_FUNCTIONALIZED_V2", NOW, False, True),
        ("AOT_INDUCTOR_DEBUG_SYMBOLS", NOW, False, True),
        ("TRITON_DEFAULT_FP_FUSION", NOW, False, True),
        ("TRITON_CACHE_DIR", NOW, True, False),
        ("FLASHINFER_EXTRA_CUDAFLAGS", NOW, False, True),
        ("FLASHINFER_WORKSPACE_BASE", NOW, True, False),
        ("CC", NOW, False, True),
        ("CUDA_PATH", NOW, False, True),
        ("TORCH_LOGS", NOW, False, False),
        ("PATH", NOW, False, False),
    ],
)
def test_a_variable_is_free_a_factor_or_no_matter(name, vllm, free, hashed):
    assert freedoms.free_variable(name, vllm) is free
    assert freedoms.hashed_variable(name, "x", vllm) is hashed


# --- beside the installed vLLM --------------------------------------------------------------------


def package():
    spec = importlib.util.find_spec("vllm")
    if spec is None:
        pytest.skip("vLLM is not installed")
    return spec.submodule_search_locations[0]


@functools.cache
def tree(path):
    with open(os.path.join(package(), path), encoding="utf-8") as f:
        return ast.parse(f.read())


def vllm_version():
    with open(os.path.join(package(), "_version.py"), encoding="utf-8") as f:
        return freedoms.version(re.search(r"__version__.*?['\"](\d[^'\"]+)", f.read())[1])


def assigned(top, name):
    """The value assigned to a name somewhere in a tree."""
    for node in ast.walk(top):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(t, ast.Name) and t.id == name for t in targets):
            return node.value
    raise AssertionError(f"nothing is called {name} here; has vLLM moved it?")


def known():
    """vLLM's variables: name → the expression that reads it."""
    table = assigned(tree("envs.py"), "environment_variables")
    return {key.value: value for key, value in zip(table.keys, table.values, strict=True)}


def ignored():
    return ast.literal_eval(assigned(tree("envs.py"), "ignored_factors"))


def test_every_free_variable_is_ignored_by_vllm_or_unknown_to_it():
    held = [n for n in freedoms.FREE_VARIABLES if freedoms.free_variable(n, vllm_version())]
    assert [name for name in held if name in known() and name not in ignored()] == []
    assert len(held) > 20


def test_what_warmer_always_sets_is_ignored_by_vllm_or_unknown_to_it():
    always = [*families._ALWAYS, *(f.variable for f in families.FAMILIES)]
    assert [name for name in always if name in known() and name not in ignored()] == []


def test_where_warmer_puts_a_family_is_a_factor_once_and_not_by_each_variable():
    paths = [family.variable for family in families.FAMILIES]
    assert [name for name in paths if freedoms.hashed_variable(name, "/warm/x", NOW)] == []


@pytest.mark.parametrize(
    ("name", "built"),
    [
        ("FLASHINFER_EXTRA_CUDAFLAGS", True),
        ("FLASHINFER_CUDA_ARCH_LIST", True),
        ("CUDA_HOME", True),
        ("CXX", True),
        ("FLASHINFER_WORKSPACE_BASE", False),
        ("VLLM_PLUGINS", False),
        ("TRITON_OVERRIDE_ARCH", False),
        ("PATH", False),
    ],
)
def test_what_stands_in_build_files_is_a_factor_of_what_all_models_share(name, built):
    assert freedoms.built_variable(name, "x", NOW) is built


def test_every_variable_that_vllm_hashes_is_a_factor():
    hashed = known().keys() - ignored()
    assert len(hashed) > 100
    assert sorted(n for n in hashed if not freedoms.hashed_variable(n, "x", vllm_version())) == []


def test_every_variable_read_on_behalf_of_a_hashed_one_is_a_factor():
    read = set()
    for name in known().keys() - ignored():
        words = {n.value for n in ast.walk(known()[name]) if isinstance(n, ast.Constant)}
        read |= {
            w for w in words if isinstance(w, str) and re.fullmatch("[A-Z0-9]+(_[A-Z0-9]+)+", w)
        }
    read -= {"JAX_PLATFORMS"}  # read on a TPU alone
    assert "NVCC_THREADS" in read
    assert sorted(n for n in read if not freedoms.hashed_variable(n, "x", vllm_version())) == []


def hashed_fields():
    """Names of configuration fields that some class of vllm/config hashes."""
    found = set()
    for path in glob.glob("config/*.py", root_dir=package()):
        for node in ast.walk(tree(path)):
            for method in getattr(node, "body", ()) if isinstance(node, ast.ClassDef) else ():
                if isinstance(method, ast.FunctionDef) and method.name == "compute_hash":
                    found |= of_class(node, method)
    return found


def of_class(node, method):
    calls = {getattr(c.func, "id", "") for c in ast.walk(method) if isinstance(c, ast.Call)}
    if "get_hash_factors" not in calls:
        return {a.attr for a in ast.walk(method) if isinstance(a, ast.Attribute)}
    fields = {f.target.id for f in node.body if isinstance(f, ast.AnnAssign)}
    names = [n.id for n in ast.walk(method) if isinstance(n, ast.Name)]
    without = assigned(method, "ignored_factors") if "ignored_factors" in names else ast.Set([])
    return fields - {n.value for n in ast.walk(without) if isinstance(n, ast.Constant)}


def test_no_free_flag_is_a_field_that_vllm_hashes():
    fields = hashed_fields()
    assert {"max_model_len", "dtype", "tensor_parallel_size", "mode"} <= fields
    free = {f[2:].replace("-", "_") for f in freedoms.FREE_FLAGS}
    assert sorted(free & fields) == []


# --- what was not always free ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "since"), [("VLLM_LOGGING_LEVEL", "0.32.0"), ("VLLM_ENABLE_STARTUP_PLAN", "0.26.0")]
)
def test_a_variable_is_a_factor_until_the_version_that_frees_it(name, since):
    """Before torch 2.12 DEBUG compiles other code; before 0.26 a plan's switch was hashed."""
    first = freedoms.version(since)
    before = (first[0], first[1] - 1, 9)
    for version, free in ((before, False), (first, True), (NOW, True), ((1, 0), True)):
        assert freedoms.free_variable(name, version) is free
        assert freedoms.hashed_variable(name, "DEBUG", version) is not free
