"""The table of caches (`warmer.families`): nothing shares a place, everything is under the warm dir."""

import dataclasses
import os
import re

import pytest

from warmer import families
from warmer.families import EXCLUDED, FAMILIES
from warmer.fill import members
from warmer.layout import WarmDir
from warmer.machine import Stack
from warmer.model import KERNEL_KINDS

WARM = WarmDir("/warm")
STACK = Stack(
    vllm="0.32.0",
    torch="2.13.0",
    cuda=None,
    python="3.12.1",
    libc="glibc 2.36",
    site="/site",
    packages={},
    command=("vllm",),
    cache_tag="cpython-312",
)
PRECOMPILED = dataclasses.replace(STACK, precompiled=True)
SHIMMED = dataclasses.replace(STACK, shim="0.32.0+cpu")


def block(accelerator="gpu", *, stack=STACK, inherited=None):
    return families.environment(
        WARM, accelerator, stack=stack, capability="9.0", inherited=inherited or {}
    )


@pytest.mark.parametrize("field", ["name", "variable"])
def test_no_two_families_share_a_directory_or_a_variable(field):
    values = [getattr(family, field) for family in FAMILIES]
    assert sorted(values) == sorted(set(values))


def test_no_family_sets_what_another_one_sets():
    names = [family.variable for family in FAMILIES]
    names += [name for family in FAMILIES for name in family.also]
    names += [*families._ALWAYS, *families._CPU, "TORCH_CUDA_ARCH_LIST", "PYTHONPATH"]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_family_is_one_directory_of_a_known_kind(family):
    assert re.fullmatch(r"[a-z][a-z0-9_]*", family.name)
    assert re.fullmatch(r"[A-Z][A-Z0-9_]*", family.variable)
    assert family.kind in KERNEL_KINDS
    assert family.on in ("any", "gpu", "cpu")
    assert all(name == re.sub(r"[-_.]+", "-", name).lower() for name in family.packages)


@pytest.mark.parametrize("accelerator", ["cpu", "gpu"])
def test_every_familys_variable_points_into_its_own_place_in_the_warm_dir(accelerator):
    env = block(accelerator)
    mine = [f for f in FAMILIES if f.on in ("any", accelerator)]
    places = {f.variable: f"/warm/cache/{f.kind}/{f.name}" for f in mine}
    assert {name: env[name] for name in places} == places
    others = {f.variable for f in FAMILIES} - places.keys()
    assert not others & env.keys()
    inside = [name for name, value in env.items() if value.startswith("/warm/cache/")]
    assert sorted(inside) == sorted(places)


@pytest.mark.parametrize("accelerator", ["cpu", "gpu"])
def test_no_place_of_a_family_is_inside_another(accelerator):
    places = [v + "/" for v in block(accelerator).values() if v.startswith("/warm/")]
    nested = [(one, other) for one in places for other in places if one != other]
    assert not any(one.startswith(other) for one, other in nested)


@pytest.mark.parametrize("accelerator", ["cpu", "gpu"])
def test_a_server_with_this_environment_asks_no_network(accelerator):
    env = block(accelerator)
    assert (env["HF_HUB_OFFLINE"], env["TRANSFORMERS_OFFLINE"]) == ("1", "1")
    assert env["VLLM_NO_USAGE_STATS"] == "1"


@pytest.mark.parametrize("accelerator", ["cpu", "gpu"])
def test_nothing_of_the_pod_but_what_is_the_users_own_gets_into_the_environment(accelerator):
    inherited = {"HF_TOKEN": "hf_s", "VLLM_API_KEY": "k", "HOME": "/home/me", "POD_NAME": "a-0"}
    inherited |= dict.fromkeys(block(accelerator), "planted")
    inherited |= {"TORCH_CUDA_ARCH_LIST": "9.0a", "PYTHONPATH": "/mine"}
    inherited |= {"VLLM_CONFIG_ROOT": "/etc/vllm", "VLLM_XLA_CACHE_PATH": "/xla"}
    expected = block(accelerator) | {
        "VLLM_CONFIG_ROOT": "/etc/vllm",
        "VLLM_XLA_CACHE_PATH": "/xla",
    }
    expected |= {"TORCH_CUDA_ARCH_LIST": "9.0a"} if accelerator == "gpu" else {}
    assert block(accelerator, inherited=inherited) == expected
    shimmed = block(accelerator, stack=SHIMMED, inherited=inherited)
    assert shimmed == expected | {"PYTHONPATH": "/warm/shim:/mine"}


@pytest.mark.parametrize(
    ("accelerator", "inherited", "arches"),
    [
        ("gpu", {}, "9.0"),
        ("gpu", {"TORCH_CUDA_ARCH_LIST": ""}, "9.0"),
        ("gpu", {"TORCH_CUDA_ARCH_LIST": "8.0 9.0"}, "8.0 9.0"),
        ("cpu", {"TORCH_CUDA_ARCH_LIST": "9.0"}, None),
    ],
    ids=["detected", "empty", "the-users-own", "none-on-cpu"],
)
def test_the_arch_list_is_the_detected_one_unless_the_user_has_one(accelerator, inherited, arches):
    assert block(accelerator, inherited=inherited).get("TORCH_CUDA_ARCH_LIST") == arches


def test_the_shim_is_on_the_path_only_where_a_build_needs_it():
    assert "PYTHONPATH" not in block("cpu")
    assert block("cpu", stack=SHIMMED)["PYTHONPATH"] == "/warm/shim"


def test_the_cpu_engine_gets_the_profile_it_needs_and_the_gpu_does_not():
    assert block("cpu")["VLLM_USE_AOT_COMPILE"] == "0"
    assert "VLLM_USE_AOT_COMPILE" not in block("gpu")


@pytest.mark.parametrize(
    ("accelerator", "kinds"), [("cpu", ("compile", "bytecode")), ("gpu", KERNEL_KINDS)]
)
def test_kinds_exist_where_some_family_of_theirs_does(accelerator, kinds):
    assert families.kinds(accelerator) == kinds


def test_packages_of_a_kind_are_listed_once_and_sorted():
    assert families.packages("compile", "gpu") == ("triton",)
    assert families.packages("compile", "cpu") == ()
    listed = families.packages("jit", "gpu")
    assert list(listed) == sorted(set(listed))
    assert {"tilelang", "nvidia-cutlass-dsl"} <= set(listed)


def test_what_is_scratch_a_lock_or_a_secret_stays_out_of_archives_and_the_rest_gets_in(tmp_path):
    kept = ["torch_compile_cache/ab/rank_0_0/computation_graph.py", "inductor/ab/cab.py", "lock"]
    kept += ["flashinfer/ops/build.ninja", "flashinfer/ops/x.so", "locks", "tmp", "x.locked"]
    kept += ["my_cache_key_factors.json", "a/tmp.py"]
    left = ["ops/flashinfer_jit.lock", "a/x.tmp", "a/x.tmp.1234", "tmpab12/x.cubin", "a/tmp/x.o"]
    left += [
        "inductor/locks/abc",
        "vllm/gpu_p2p_access_cache_for_0,1.json",
        "vllm/usage_stats.json",
    ]
    left += ["torch_compile_cache/ab/rank_0_0/cache_key_factors.json"]
    for path in [*(f"kept/{path}" for path in kept), *left]:
        os.makedirs(tmp_path / os.path.dirname(path), exist_ok=True)
        (tmp_path / path).write_bytes(b"x")
    found = members.scan(str(tmp_path), EXCLUDED).members
    assert sorted(found) == sorted(f"kept/{path}" for path in kept)


def test_packages_named_as_scratch_or_locks_are_not_left_out_of_bytecode():
    assert families.excluded("bytecode") == ()
    assert all(families.excluded(kind) == EXCLUDED for kind in ("compile", "flashinfer", "jit"))


@pytest.mark.parametrize(
    ("stack", "why"),
    [
        (STACK, None),
        (PRECOMPILED, "vLLM is installed with its bytecode"),
        (dataclasses.replace(STACK, cache_tag=None), "this Python keeps no bytecode"),
    ],
    ids=["wanted", "precompiled", "keeps-none"],
)
def test_bytecode_elsewhere_is_wanted_only_where_it_hides_none(stack, why):
    assert families.unneeded("bytecode", stack) == why
    assert families.unneeded("compile", stack) is None
    mine = families.variables("bytecode")
    assert mine == {"PYTHONPYCACHEPREFIX", "PYTHONDONTWRITEBYTECODE"}
    assert mine & block(stack=stack).keys() == (mine if why is None else set())
    assert block(stack=stack).keys() | mine == block().keys()


def test_a_server_never_writes_bytecode_and_the_build_run_does():
    assert block()["PYTHONDONTWRITEBYTECODE"] == "1"
    assert families.BUILDING == {"PYTHONDONTWRITEBYTECODE": ""}


@pytest.mark.parametrize("pattern", EXCLUDED)
def test_every_pattern_is_of_one_path_component(pattern):
    assert "/" not in pattern.removesuffix("/")
    assert pattern.strip("*?/")


@pytest.mark.parametrize("accelerator", ["cpu", "gpu"])
@pytest.mark.parametrize("name", ["VLLM_CONFIG_ROOT", "VLLM_XLA_CACHE_PATH", "VLLM_CACHE_ROOT"])
def test_no_place_that_vllm_hashes_follows_home(accelerator, name):
    homes = [block(accelerator, inherited={"HOME": home}) for home in ("/root", "/home/vllm")]
    assert homes[0] == homes[1]
    assert homes[0][name].startswith("/warm/")
