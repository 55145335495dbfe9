"""Which files of a repository are fetched (`warmer.selection`), on listings as they are on hubs."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

from warmer.errors import UsageError
from warmer.fill import weights
from warmer.fill.sources import SourceFile
from warmer.model import ModelRef
from warmer.selection import ENGINE, RULE, Selection, choose, loadable
from warmer.settings import parse_selection

TEXTS = ("README.md", "config.json", "generation_config.json", "tokenizer.json")


def shards(count, name="model", extension="safetensors"):
    return tuple(f"{name}-{n:05d}-of-{count:05d}.{extension}" for n in range(1, count + 1))


LLAMA = (
    *(".gitattributes", "LICENSE", *TEXTS, "tokenizer_config.json", "special_tokens_map.json"),
    *(*shards(4), "model.safetensors.index.json"),
    *("original/consolidated.00.pth", "original/params.json", "original/tokenizer.model"),
)
MISTRAL = (
    *(*TEXTS, "params.json", "tekken.json", "consolidated.safetensors"),
    *(*shards(3), "model.safetensors.index.json"),
)
UNINDEXED = (*TEXTS, "params.json", "consolidated.safetensors", "model.safetensors")
OFFICIAL = (*TEXTS, "params.json", "tekken.json", "consolidated.safetensors")
QWEN = (*TEXTS, "merges.txt", "vocab.json", *shards(4), "model.safetensors.index.json")
OMNI = (*QWEN, "spk_dict.pt")
GGUF = (*TEXTS, "gemma-2-2b-it-Q4_K_M.gguf", "gemma-2-2b-it-Q8_0.gguf", "imatrix.dat")
TRAINED_GGUF = (*GGUF, "training_args.bin")
BOTH = (*TEXTS, "model.safetensors", "model-Q4_0.gguf", "quantised/model-Q8_0.gguf")
PHI = (
    *(*TEXTS, "modeling_phi3.py", "configuration_phi3.py", "sample_finetune.py"),
    *(*shards(2), "model.safetensors.index.json", "decoder_model.onnx", "decoder_model.onnx_data"),
    *("onnx/model.onnx", "onnx/model.onnx_data", "onnx/genai_config.json"),
)
SENTENCES = (
    *(*TEXTS, "modules.json", "config_sentence_transformers.json", "1_Pooling/config.json"),
    *("2_Dense/config.json", "2_Dense/pytorch_model.bin", "3_Dense/model.safetensors"),
    *("3_Dense/pytorch_model.bin", "model.safetensors", "pytorch_model.bin"),
    *("openvino/openvino_model.bin", "openvino/openvino_model.xml", "onnx/model.onnx"),
)
BGE = (
    *(
        *TEXTS,
        "pytorch_model.bin",
        "colbert_linear.pt",
        "sparse_linear.pt",
        "sentencepiece.bpe.model",
    ),
    *("onnx/model.onnx", "onnx/model.onnx_data", "imgs/bm25.jpg", "1_Pooling/config.json"),
)
NEW_BGE = (*BGE, "model.safetensors")
LORA = ("README.md", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json")
LORAS = (*LORA, "adapter_model.bin", "training_args.bin", "optimizer.pt", "rng_state.pth")
WHISPER = (
    *(*TEXTS, "preprocessor_config.json", "normalizer.json", "model.safetensors"),
    *("pytorch_model.bin", "flax_model.msgpack", "tf_model.h5", "rust_model.ot"),
)
TORCH = (*TEXTS, *shards(2, "pytorch_model", "bin"), "pytorch_model.bin.index.json")
OLD = (*TEXTS, "model.pt", "optimizer.pt", "scheduler.pt")
PTH = ("params.json", "tokenizer.model", "consolidated.00.pth", "checklist.chk", "ggml-q4.gguf")
REMOTE = (
    *(
        *TEXTS,
        "modeling_custom.py",
        "kernels/attention.cu",
        "assets/prompt.txt",
        "model.safetensors",
    ),
    *("chat_template.jinja", "chat_template.json", "additional_chat_templates/tool_use.jinja"),
)
DIFFUSION = (
    *("model_index.json", "transformer/config.json", "transformer/diffusion_model.safetensors"),
    *("vae/diffusion_pytorch_model.bin", "vae/diffusion_pytorch_model.safetensors"),
)
LISTINGS = {
    name.lower(): value
    for name, value in list(vars().items())
    if name.isupper() and isinstance(value, tuple) and name not in ("TEXTS", "ENGINE", "RULE")
}
ORIGINAL = {path for path in LLAMA if path.startswith("original/")}
PHI_FOREIGN = {path for path in PHI if ".onnx" in path or path.startswith("onnx/")}
SENTENCES_FOREIGN = {path for path in SENTENCES if path.startswith(("openvino/", "onnx/"))}
WHISPER_FOREIGN = {"flax_model.msgpack", "tf_model.h5", "rust_model.ot"}
LEFTOVERS = {"training_args.bin", "optimizer.pt"}
GGUFS = {"model-Q4_0.gguf", "quantised/model-Q8_0.gguf"}
SPARE_BINS = {"pytorch_model.bin", "3_Dense/pytorch_model.bin"}

AS_HF = ("hf", "safetensors", "fastsafetensors", "instanttensor")
BY_DEFAULT = ("auto", "runai_streamer", *AS_HF)
AS_TORCH = ("pt", "npcache")
TABLE = [
    (BY_DEFAULT, "llama", ORIGINAL),
    (AS_TORCH, "llama", ORIGINAL),
    (("mistral",), "llama", ORIGINAL),
    (("auto", "runai_streamer", *AS_TORCH), "mistral", set()),
    (AS_HF, "mistral", {"consolidated.safetensors"}),
    (("mistral",), "mistral", {*shards(3)}),
    ((*BY_DEFAULT, *AS_TORCH), "unindexed", set()),
    (("mistral",), "unindexed", {"model.safetensors"}),
    ((*BY_DEFAULT, "mistral"), "official", set()),
    (BY_DEFAULT, "qwen", set()),
    ((*BY_DEFAULT, *AS_TORCH), "omni", set()),
    ((*BY_DEFAULT, "gguf"), "gguf", set()),
    (BY_DEFAULT, "trained_gguf", set()),
    (BY_DEFAULT, "both", GGUFS),
    (("gguf",), "both", {"model.safetensors"}),
    (BY_DEFAULT, "phi", PHI_FOREIGN),
    (BY_DEFAULT, "sentences", SENTENCES_FOREIGN | SPARE_BINS),
    (AS_TORCH, "sentences", SENTENCES_FOREIGN),
    (BY_DEFAULT, "bge", {"onnx/model.onnx", "onnx/model.onnx_data"}),
    (BY_DEFAULT, "new_bge", {"onnx/model.onnx", "onnx/model.onnx_data", "pytorch_model.bin"}),
    (BY_DEFAULT, "lora", set()),
    (BY_DEFAULT, "loras", {"adapter_model.bin", "rng_state.pth"} | LEFTOVERS),
    (BY_DEFAULT, "whisper", {"pytorch_model.bin"} | WHISPER_FOREIGN),
    (AS_TORCH, "whisper", WHISPER_FOREIGN),
    ((*BY_DEFAULT, *AS_TORCH), "torch", set()),
    ((*BY_DEFAULT, "pt"), "old", {"optimizer.pt", "scheduler.pt"}),
    (BY_DEFAULT, "pth", set()),
    (BY_DEFAULT, "remote", set()),
    (BY_DEFAULT, "diffusion", set()),
]
CASES = [(load, name, out) for loads, name, out in TABLE for load in loads]


@pytest.mark.parametrize(("load_format", "name", "out"), CASES)
def test_what_the_load_format_never_opens_is_left_out(load_format, name, out):
    assert set(choose(LISTINGS[name], Selection(load_format))) == out


@pytest.mark.parametrize(
    "load_format", ["sharded_state", "tensorizer", "dummy", "bitsandbytes", "x"]
)
@pytest.mark.parametrize("name", LISTINGS)
def test_with_a_load_format_the_rule_does_not_know_nothing_is_left_out(load_format, name):
    assert choose(LISTINGS[name], Selection(load_format)) == {}


@pytest.mark.parametrize("load_format", [*BY_DEFAULT, *AS_TORCH, "mistral", "gguf"])
@pytest.mark.parametrize("name", LISTINGS)
def test_no_file_that_is_no_weights_file_is_left_out_beside_the_weights(load_format, name):
    texts = (".json", ".py", ".jinja", ".txt", ".md", ".model", ".cu", ".chk")
    left = choose(LISTINGS[name], Selection(load_format))
    wrong = [path for path in left if path.endswith(texts)]
    assert all(path.startswith(("original/", "onnx/")) for path in wrong), wrong
    assert not {"chat_template.jinja", "tekken.json", "params.json", "modeling_phi3.py"} & {*left}


@pytest.mark.parametrize("load_format", BY_DEFAULT)
@pytest.mark.parametrize("name", LISTINGS)
def test_whoever_has_weights_keeps_some(load_format, name):
    paths = LISTINGS[name]
    kept = [path for path in paths if path not in choose(paths, Selection(load_format))]
    assert any(map(loadable, kept))


def test_each_left_out_file_has_a_reason_people_can_read():
    reasons = choose(LORAS, ENGINE) | choose(LLAMA, ENGINE) | choose(WHISPER, ENGINE)
    assert {
        reasons[name] for name in ("tf_model.h5", "flax_model.msgpack", "training_args.bin")
    } == {
        ".h5: weights of another framework",
        ".msgpack: weights of another framework",
        "left over from training",
    }
    assert reasons["original/params.json"] == "original/: the same weights for something else"
    assert reasons["pytorch_model.bin"] == ".bin beside .safetensors"


@pytest.mark.parametrize(
    ("include", "exclude", "out"),
    [
        (("original/*",), (), set()),
        (("original/",), (), set()),
        (("*.pth",), (), ORIGINAL - {"original/consolidated.00.pth"}),
        ((), ("LICENSE",), ORIGINAL | {"LICENSE"}),
        (("original/*",), ("*.pth",), {"original/consolidated.00.pth"}),
        (("original/*",), ("original/*",), ORIGINAL),
        ((), ("model*.safetensors",), {*shards(4)}),
        ((), ("ORIGINAL/*",), ORIGINAL),
    ],
)
def test_exclude_wins_over_include_and_both_over_the_rule(include, exclude, out):
    selection = parse_selection({}, include=include, exclude=exclude)
    assert set(choose(LLAMA, selection)) == out


def test_where_the_better_format_is_excluded_the_other_one_is_taken():
    left = choose(WHISPER, Selection(exclude=("*.safetensors",)))
    assert "pytorch_model.bin" not in left
    assert left["model.safetensors"] == "excluded"


class Listed:
    """A source that lists."""

    def __init__(self, paths):
        self._files = tuple(SourceFile(path, 1000) for path in paths)

    def files(self, _model):
        return self._files


@pytest.mark.parametrize("exclude", [("*",), ("*.safetensors", "*.pth")])
def test_patterns_that_leave_nothing_to_load_are_refused(exclude):
    with pytest.raises(UsageError) as caught:
        weights.listing(
            Listed(LLAMA), ModelRef("hf", "org/name", "main"), Selection(exclude=exclude)
        )
    assert caught.value.reason == "nothing-selected"
    assert "hf://org/name@main" in caught.value.message
    assert caught.value.hint


def test_a_model_without_weights_is_no_mistake_of_the_patterns():
    found = weights.listing(Listed(TEXTS), ModelRef("hf", "org/name", "main"), ENGINE)
    assert [file.path for file in found.files] == list(TEXTS)


def test_a_listing_says_what_is_left_out_and_how_much_it_weighs():
    found = weights.listing(Listed(LLAMA), ModelRef("hf", "org/name", "main"), ENGINE)
    assert {file.path for file in found.files} == set(LLAMA) - ORIGINAL
    assert (set(found.left_out), found.saved) == (ORIGINAL, 3000)


def test_what_stands_in_the_key_is_stable():
    assert ENGINE.factor == RULE == "engine/1", "another factor makes every volume's weights a miss"
    assert Selection("mistral", ("b", "a"), ("c",)).factor == {
        "rule": "engine/1",
        "format": "mistral",
        "include": ["a", "b"],
        "exclude": ["c"],
    }
    assert Selection("runai_streamer").factor == ENGINE.factor
    assert Selection("NPCache").factor == Selection("pt").factor
    assert len({json.dumps(Selection(name).factor) for name in AS_HF}) == 1
    kinds = ("auto", "hf", "pt", "mistral", "gguf", "tensorizer")
    assert len({json.dumps(Selection(name).factor) for name in kinds}) == len(kinds)


@pytest.mark.parametrize("pattern", ["", "/etc/*", "a\0b"])
def test_a_pattern_that_can_match_no_path_is_refused(pattern):
    with pytest.raises(UsageError, match="expected one of paths inside the model"):
        parse_selection({}, include=(pattern,), exclude=())


@pytest.mark.parametrize(
    ("given", "load_format"),
    [
        ({}, "auto"),
        ({"--load-format": [["mistral"]]}, "mistral"),
        ({"--load-format": [["hf"], ["pt"]]}, "pt"),
        ({"--load-format": [[]]}, "auto"),
    ],
)
def test_the_load_format_is_read_from_the_serve_arguments(given, load_format):
    assert parse_selection(given, include=(), exclude=()).load_format == load_format


# What vLLM's own loaders say they would read of each directory; loading by index, they fail where
# a file is missing that the index names.
ASK = """
import json, sys
from vllm.config.load import LoadConfig
from vllm.model_executor.model_loader import get_model_loader
answers = []
for load_format, directory in json.load(sys.stdin):
    try:
        loader = get_model_loader(LoadConfig(load_format=load_format))
        if load_format == "runai_streamer":
            files = loader._prepare_weights(directory, None)
        else:
            _, files, _, _ = loader._prepare_weights(directory, None, None, True, None)
    except (RuntimeError, ValueError, ImportError) as exc:
        files = f"{type(exc).__name__}: {exc}"
    answers.append(files)
print("ANSWERS" + json.dumps(answers))
"""


def plant(top, paths):
    """Make files of these names, with an index that names what an index of them would."""
    for path in paths:
        place = os.path.join(top, path)
        os.makedirs(os.path.dirname(place), exist_ok=True)
        with open(place, "w", encoding="ascii") as stream:
            if path == "model.safetensors.index.json":
                named = [name for name in paths if name.startswith("model-0")]
                json.dump(
                    {"weight_map": {f"layer.{n}": name for n, name in enumerate(named)}}, stream
                )


def at_top(path):
    return "" if "/" in path else path.rpartition(".")[2]


@pytest.mark.engine
@pytest.mark.skipif(find_spec("vllm") is None, reason="no vLLM here to ask")
def test_no_file_that_vllm_itself_would_load_is_left_out(tmp_path):
    loads = ("auto", "hf", "safetensors", "fastsafetensors", "mistral", "pt", "npcache")
    asked = [(load, name) for load in (*loads, "runai_streamer") for name in LISTINGS]
    for name, paths in LISTINGS.items():
        plant(f"{tmp_path}/all/{name}", paths)
        for load, _ in asked:
            left = choose(paths, Selection(load))
            plant(f"{tmp_path}/{load}/{name}", [path for path in paths if path not in left])
    questions = [
        (load, f"{tmp_path}/{top}/{name}") for load, name in asked for top in ("all", load)
    ]
    # An address where nothing listens: it must answer by what is on the disk.
    env = dict(os.environ, HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE="1")
    done = subprocess.run(
        [sys.executable, "-c", ASK],
        input=json.dumps(questions),
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("ANSWERS"))
    answers = iter(json.loads(line.removeprefix("ANSWERS")))
    answered = set()
    for load, name in asked:
        whole, chosen = next(answers), next(answers)
        if isinstance(whole, str):
            assert isinstance(chosen, str), (load, name, whole, chosen)
            continue
        names = {os.path.relpath(path, f"{tmp_path}/all/{name}") for path in whole}
        assert not names & choose(LISTINGS[name], Selection(load)).keys(), (load, name)
        assert names == {os.path.relpath(path, f"{tmp_path}/{load}/{name}") for path in chosen}
        answered.add((load, name))
    flat = {
        name for name, paths in LISTINGS.items() if {*map(at_top, paths)} & {"safetensors", "bin"}
    }
    assert {("auto", name) for name in flat - {"trained_gguf"}} <= answered
    assert {("npcache", "whisper"), ("pt", "old"), ("mistral", "mistral")} <= answered
