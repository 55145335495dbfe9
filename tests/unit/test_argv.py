"""`vllm serve` arguments (`warmer.argv`): one spelling for what reads the same, and refusals."""

import ast
import importlib.util
import os
import re

import pytest

from warmer import argv
from warmer.errors import UsageError
from warmer.model import canonical


def words(line):
    return line.split()


SPELLINGS = [
    ("--max-model-len 512", {"--max-model-len": [["512"]]}),
    ("--max-model-len=512", {"--max-model-len": [["512"]]}),
    ("--max_model_len 512", {"--max-model-len": [["512"]]}),
    ("--max_model_len=512", {"--max-model-len": [["512"]]}),
    ("--max-model_len=a_b", {"--max-model-len": [["a_b"]]}),
    ("--enforce-eager", {"--enforce-eager": [[]]}),
    ("--dtype=", {"--dtype": [[""]]}),
    ("--override a=b=c", {"--override": [["a=b=c"]]}),
    ("--override=a=b=c", {"--override": [["a=b=c"]]}),
    ("-tp 2", {"--tensor-parallel-size": [["2"]]}),
    ("-tp=2", {"--tensor-parallel-size": [["2"]]}),
    ("-q awq", {"--quantization": [["awq"]]}),
    ("-qawq", {"--quantization": [["awq"]]}),
    ("-n2 -t 2", {"--nnodes": [["2"]], "--tensor-parallel-size": [["2"]]}),
    ("-p 2", {"-p": [["2"]]}),
    ("--device_memory_utilization 0.5", {"--gpu-memory-utilization": [["0.5"]]}),
    ("-O2", {"--optimization-level": [["2"]]}),
    ("-O=2", {"--optimization-level": [["2"]]}),
    ("-O 2", {"--optimization-level": [["2"]]}),
    ("--optimization-level 2", {"--optimization-level": [["2"]]}),
    ("--compilation-config.mode 3", {"--compilation-config.mode": [["3"]]}),
    ("--compilation_config.use_inductor=0", {"--compilation-config.use_inductor": [["0"]]}),
    ("-cc.mode 3", {"--compilation-config.mode": [["3"]]}),
    ("-cc.mode=3", {"--compilation-config.mode": [["3"]]}),
    ("--cudagraph-capture-sizes 1 2 4", {"--cudagraph-capture-sizes": [["1", "2", "4"]]}),
    ("--x -1", {"--x": [["-1"]]}),
    ("--x -0.5 -2. -", {"--x": [["-0.5", "-2.", "-"]]}),
    ("--x 1 --y --x 2", {"--x": [["1"], ["2"]], "--y": [[]]}),
    ("--x=1 2", {"--x": [["1", "2"]]}),
    ("--no-enable-prefix-caching", {"--no-enable-prefix-caching": [[]]}),
    ("", {}),
]


@pytest.mark.parametrize(("line", "flags"), SPELLINGS, ids=[line for line, _ in SPELLINGS])
def test_a_spelling_is_read_as_what_vllm_makes_of_it(line, flags):
    assert argv.parse(words(line)) == flags


@pytest.mark.parametrize(
    ("value", "spelling"),
    [
        pytest.param('{"b": 1, "a": [1, 2]}', '{"a":[1,2],"b":1}', id="object"),
        pytest.param(' {"a": 1}', ' {"a": 1}', id="leading-space-is-no-object"),
        pytest.param("[4, 2]", "[4,2]", id="list"),
        pytest.param('{"a": "ü"}', '{"a":"\\u00fc"}', id="not-ascii"),
        pytest.param("{{ messages }}", "{{ messages }}", id="template"),
        pytest.param("{", "{", id="broken"),
        pytest.param("007", "007", id="number"),
        pytest.param("true", "true", id="word"),
        pytest.param("", "", id="empty"),
    ],
)
def test_json_objects_and_lists_have_one_spelling_and_other_values_stay(value, spelling):
    assert argv.parse(["--x", value]) == argv.parse([f"--x={value}"]) == {"--x": [[spelling]]}


def factors(line):
    return canonical(argv.parse(words(line)))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("--x 1", "--x 2"),
        ("--x 1", "--x 1.0"),
        ("--x a_b", "--x a-b"),
        ("--x", "--x="),
        ("--x 1 2", "--x 1 --x 2"),
        ("--x 1 --x 2", "--x 2 --x 1"),
        ("--x 1 --y", "--x --y 1"),
        ("--compilation-config.a_b 1", "--compilation-config.a-b 1"),
        ("--x [1,2]", "--x [2,1]"),
        ("--enforce-eager --no-enforce-eager", "--no-enforce-eager --enforce-eager"),
    ],
    ids=lambda line: line or None,
)
def test_a_difference_that_might_matter_is_not_lost(one, other):
    try:
        assert factors(one) != factors(other)
    except UsageError as exc:  # refusing what contradicts itself loses nothing either
        assert exc.exit_code == 2


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("--max-model-le 1 --max-model-len 2", ["--max-model-le", "--max-model-len"]),
        ("--max-model-len 2 --a 1 --max-model-le 1", ["--max-model-len", "--max-model-le"]),
        ("--no-enable-pre --enable-prefix", ["--no-enable-pre", "--enable-prefix"]),
        ("--x.a {} --x.a.b 1", ["--x.a", "--x.a.b"]),
        ("-cc.a 1 --compilation-config.b 1", ["-cc.a", "--compilation-config.b"]),
        ("-cc.a 1 -cc.b=1", []),
        ("--x.a 1 --x.b 1 --y 2 --x.a 3", []),
        ("-tp 1 --tensor-parallel-size 2 -O2 --max-num-seqs 1", []),
        ("--free 1 --free-too 2", []),
    ],
)
def test_flags_whose_order_decides_are_named_in_it(line, names):
    assert argv.order(words(line), lambda flag: flag.startswith("--free")) == names


def test_the_order_of_different_flags_does_not_matter():
    assert factors("--x 1 --y 2") == factors("--y 2 --x 1")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("org/model --x 1", "positional-argument"),
        ("-1", "positional-argument"),
        ("-", "positional-argument"),
        ("--x 1 --", "positional-argument"),
        ("-- --x 1", "positional-argument"),
        ("--api-key k", "secret-in-argv"),
        ("--api-key=k", "secret-in-argv"),
        ("--api_key k", "secret-in-argv"),
        ("--api-k k", "secret-in-argv"),
        ("--api-ke=k", "secret-in-argv"),
        ("--x 1 --hf-token k", "secret-in-argv"),
        ("--hf_token=k", "secret-in-argv"),
        ("--hf-t k", "secret-in-argv"),
        ("--model m", "flag-owned-by-warmer"),
        ("--model=m", "flag-owned-by-warmer"),
        ("--revision r", "flag-owned-by-warmer"),
        ("--code_revision=r", "flag-owned-by-warmer"),
        ("--download-dir d", "flag-owned-by-warmer"),
    ],
    ids=lambda text: text,
)
def test_what_warmer_must_not_be_given_is_refused(line, reason):
    with pytest.raises(UsageError) as refused:
        argv.parse(words(line))
    assert refused.value.reason == reason
    assert refused.value.hint
    assert refused.value.exit_code == 2


@pytest.mark.parametrize("line", ["--api-key hunter2", "--api-key=hunter2", "--hf_tok=hunter2"])
def test_the_refusal_of_a_secret_does_not_repeat_it(line):
    with pytest.raises(UsageError) as refused:
        argv.parse(words(line))
    assert "hunter2" not in refused.value.message + refused.value.hint


@pytest.mark.parametrize(
    "line", ["--api-server-count 2", "--model-impl auto", "--hf-overrides {}", "--hf-config-path p"]
)
def test_a_flag_that_only_looks_like_a_refused_one_is_taken(line):
    flag, value = words(line)
    assert argv.parse([flag, value]) == {flag: [[value]]}


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("", 1),
        ("--other 5", 1),
        ("--n 2", 2),
        ("--n 2 --n 4", 4),
        ("--n=-1", -1),
    ],
    ids=["default", "other", "given", "last-wins", "negative"],
)
def test_an_integer_flag_is_the_last_value_given(line, value):
    assert argv.integer(argv.parse(words(line)), "--n", 1) == value


@pytest.mark.parametrize("line", ["--n", "--n two", "--n=", "--n 1.5"])
def test_an_integer_flag_with_anything_else_is_refused(line):
    with pytest.raises(UsageError, match="got --n ") as refused:
        argv.integer(argv.parse(words(line)), "--n", 1)
    assert refused.value.reason == "bad-value"


@pytest.mark.parametrize(
    ("line", "files"),
    [
        ("--x 1", []),
        ("--config a.yaml", ["a.yaml"]),
        ("--config=a.yaml --config b.yaml", ["a.yaml", "b.yaml"]),
    ],
    ids=["none", "one", "two"],
)
def test_config_files_are_named_in_order(line, files):
    assert list(argv.config_files(argv.parse(words(line)))) == files


# --- the table of short spellings beside the real parser ------------------------------------------


def installed(path):
    spec = importlib.util.find_spec("vllm")
    if spec is None:
        pytest.skip("vLLM is not installed")
    with open(os.path.join(spec.submodule_search_locations[0], path), encoding="utf-8") as f:
        return f.read()


def short_spellings():
    found = {}
    for path in ("engine/arg_utils.py", "entrypoints/launchers/cli_args.py"):
        for node in ast.walk(ast.parse(installed(path))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument":
                names = [a.value for a in node.args if isinstance(a, ast.Constant)]
                long = [name for name in names if name.startswith("--")]
                found |= {name: long[0] for name in names if re.match(r"-[^-]", name)}
    assert len(found) > 15, "the parser was not found"
    return found


def test_every_short_spelling_of_the_installed_vllm_is_known():
    found = short_spellings()
    assert {name: argv._SHORT.get(name) for name in found} == found


def test_no_short_spelling_is_known_that_vllm_lacks():
    if "'0.32." not in installed("_version.py").replace('"', "'"):
        pytest.skip("the table was made from vLLM 0.32")
    assert argv._SHORT.keys() - short_spellings().keys() == set()


@pytest.mark.parametrize("word", ["--max-model-len 512", "--max-model-len\t512", "--x\n", "--c {}"])
def test_a_flag_and_its_value_in_one_word_are_two(word):
    with pytest.raises(UsageError) as caught:
        argv.parse(["--enforce-eager", word])
    flag = word.split()[0]
    assert f"got the one word '{flag} ...'" in caught.value.message
    assert f"{flag}=VALUE" in caught.value.hint


def test_a_secret_in_such_a_word_is_told_as_one_and_not_shown():
    with pytest.raises(UsageError) as caught:
        argv.parse(["--api-key abc"])
    assert caught.value.reason == "secret-in-argv"
    assert "abc" not in caught.value.message


def test_blanks_in_a_value_are_its_own():
    assert list(
        argv.parse(['--compilation-config={"a": 1}', "--chat-template=a b", "-x", "c d"])
    ) == [
        "--compilation-config",
        "--chat-template",
        "-x",
    ]
