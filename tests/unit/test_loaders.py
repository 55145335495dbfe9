"""Which of vLLM's loaders is tried and chosen, and what is kept of it (`warmer.loaders`)."""

import json

import pytest

from warmer import freedoms, loaders

VERSIONS = {"vllm": "0.32.0", "torch": "2.13.0", "accelerator": "NVIDIA H200", "cuda": None}
TRIAL = loaders.Trial(
    VERSIONS,
    "NVIDIA H200",
    16_000_000_000,
    {"default": (9.0, 8.5), "prefetch": (4.0, 4.2)},
    {"instanttensor": "no package instanttensor is installed"},
    "prefetch",
)
SHARDS = {"model-1.safetensors": 600, "model-2.safetensors": 400, "config.json": 5000}


def names(files=SHARDS, config=None, memory=2000):
    tried, left_out = loaders.apart(files, config or {}, memory=memory)
    assert {x.name for x in tried} | left_out.keys() == set(loaders.NAMES)
    return [x.name for x in tried], left_out


def test_every_loader_is_tried_where_nothing_speaks_against_it_the_default_first():
    assert names() == (list(loaders.NAMES), {})
    assert loaders.NAMES[0] == loaders.DEFAULT


@pytest.mark.parametrize(
    ("files", "config", "why"),
    [
        ({"pytorch_model.bin": 1}, {}, "no *.safetensors"),
        ({"consolidated.safetensors": 1, "model.safetensors": 1}, {}, "consolidated"),
        (SHARDS, {"quantization_config": {"quant_method": "bitsandbytes"}}, "bitsandbytes"),
        (SHARDS, {"quantization_config": {"quant_method": "torchao"}}, "torchao"),
    ],
    ids=str,
)
def test_where_another_loader_would_read_other_files_the_default_is_alone(files, config, why):
    tried, left_out = names(files, config)
    assert tried == [loaders.DEFAULT]
    assert all(why in reason for reason in left_out.values())


@pytest.mark.parametrize("config", [{"quantization_config": "x"}, {"quantization_config": {}}])
def test_a_config_that_says_nothing_of_it_leaves_nothing_out(config):
    assert names(config=config)[1] == {}


def test_what_holds_all_weights_in_memory_is_not_tried_where_they_are_half_of_it():
    assert names(memory=2000)[1] == {}
    tried, left_out = names(memory=1999)
    assert set(left_out) == {"multithread", "runai_streamer"}
    assert "half" in left_out["multithread"]
    assert "fastsafetensors" in tried


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ({}, "default"),
        ({"default": (9.0,)}, "default"),
        ({"default": (9.0, 8.0), "prefetch": (4.0, 5.0), "multithread": (4.5,)}, "prefetch"),
        ({"default": (9.0, 5.0), "prefetch": (4.0, 4.6)}, "default"),
        ({"default": (9.0, 5.0), "prefetch": (1.0,)}, "default"),
        ({"prefetch": (1.0, 1.0)}, "default"),
    ],
    ids=str,
)
def test_another_loader_is_chosen_only_where_it_was_clearly_faster_each_time(seconds, chosen):
    assert loaders.choose(seconds) == chosen


def test_what_is_written_is_read_again():
    data = loaders.encode(TRIAL, by="warmer 1").encode()
    assert loaders.decode(data, VERSIONS) == TRIAL


@pytest.mark.parametrize(
    "changed",
    [
        {"schema_version": 2},
        *({name: "gone"} for name in json.loads(loaders.encode(TRIAL, by="x")) if name != "by"),
        {"for": VERSIONS | {"vllm": "0.33.0"}},
        {"for": None},
        {"chosen": "multithread"},
        {"chosen": "no such"},
        {"chosen": ["--trust-remote-code"]},
        {"seconds": {}},
        {"seconds": {"default": ["x"]}},
        {"seconds": {"default": [], "prefetch": [1]}},
        {"seconds": []},
        {"bytes": "many"},
        {"bytes": float("inf")},
        {"left_out": None},
    ],
    ids=str,
)
def test_a_record_that_others_wrote_chooses_nothing(changed):
    record = json.loads(loaders.encode(TRIAL, by="x")) | changed
    record = {name: value for name, value in record.items() if value != "gone"}
    with pytest.raises(ValueError, match=r"\w"):
        loaders.decode(json.dumps(record).encode(), VERSIONS)


@pytest.mark.parametrize("data", [b"", b"null", b"[]", b"{}", b"\xff", b"[" * 100_000, b"1"])
def test_what_is_no_record_chooses_nothing(data):
    with pytest.raises(ValueError, match=r"\w"):
        loaders.decode(data, VERSIONS)


def test_a_record_is_named_by_the_model_and_the_versions():
    other = loaders.name("b" * 64, VERSIONS)
    newer = loaders.name("a" * 64, VERSIONS | {"vllm": "0.33.0"})
    mine = loaders.name("a" * 64, VERSIONS)
    assert len({mine, other, newer}) == 3
    assert mine == loaders.name("a" * 64, dict(reversed(VERSIONS.items())))


def test_no_flag_of_a_loader_is_in_a_key_of_kernels_and_all_are_known_as_the_users_own():
    flags = [x.flags[0] for x in loaders.LOADERS if x.flags]
    assert all(freedoms.free_flag(flag, (0, 20)) for flag in flags)
    assert all(loaders.own([flag], ()) == flag == loaders.own((), [flag]) for flag in flags)
    assert not loaders.own(["--max-model-len", "--seed"], ["--port"])
