"""vLLM's own keys, told by vLLM's own code: imported once, then one fork for each start.

Reads ``{"starts": [{"argv": [...], "env": {...}}, ...]}`` and writes one JSON line. A start's keys
are the parts of what vLLM 0.32 names its compiled functions by (``aot_compile_hash_factors`` in
``vllm/compilation/caching.py``): the variables that it hashes, ``VllmConfig.compute_hash`` as
`vllm serve` would make it, and the configuration of Inductor, which also keys Inductor's cache.

The sweep asks the other way round: which variables do vLLM and torch read into those keys, though
`warmer.freedoms` leaves them out? Triton's key, of which kernels on a GPU depend, is asked too.
"""

import contextlib
import hashlib
import importlib
import json
import mmap
import os
import re
import sys

# What is imported here prints and logs; the answer has a descriptor of its own.
ANSWER = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

import torch
import vllm
from vllm import envs
from vllm.compilation.compiler_interface import get_inductor_factors
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.usage.usage_lib import UsageContext
from vllm.utils.argparse_utils import FlexibleArgumentParser

from warmer import freedoms

CONFIGS = ("torch._inductor.config", "torch._functorch.config", "torch._dynamo.config")
READ = re.compile(r"(?:environ\.get|environ\[|getenv|env_name_\w+=)\W*\"([A-Z][A-Z0-9_]*)\"")
NAME = re.compile(rb"\0([A-Z][A-Z0-9]*_[A-Z0-9_]{3,60})(?=\0)")
VALUES = ("1", "0", "nothing-that-is-there")
"""One of them is not what a switch has by default."""


def parser():
    """vLLM's parser of `vllm serve`; the module moved from version to version."""
    for home in ("launchers", "common", "openai"):
        with contextlib.suppress(ModuleNotFoundError):
            module = importlib.import_module(f"vllm.entrypoints.{home}.cli_args")
            return module.make_arg_parser(FlexibleArgumentParser())
    raise SystemExit("got no parser of vllm serve, expected one of those known")


def inductor():
    """The parts of Inductor's key that variables decide: read anew, as a new process would."""
    for name in CONFIGS:
        sys.modules.pop(name, None)  # not there where the last value was refused
        importlib.import_module(name)
    return get_inductor_factors()


def digest(value):
    return hashlib.sha256(str(value).encode()).hexdigest()[:16]


def start(serve, argv, env):
    os.environ.clear()
    os.environ.update(env)
    args = AsyncEngineArgs.from_cli_args(serve.parse_args(argv))
    config = args.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)
    return {
        "variables": digest(sorted(envs.compile_factors().items())),
        "config": config.compute_hash()[:16],
        "inductor": digest(inductor()),
    }


def sweep():
    """Variables in the keys that are no factor of warmer's."""
    hashed = set(envs.compile_factors())
    read = set()
    for name in CONFIGS:
        with open(sys.modules[name].__file__, encoding="utf-8") as f:
            read |= set(READ.findall(f.read()))
    left_out = set(filter(free, hashed | read))
    missed = left_out & hashed | set(filter(free, triton()))
    before = digest(inductor())
    for name in sorted(left_out - hashed):
        for value in VALUES:
            with variables({name: value}), contextlib.suppress(ValueError, AssertionError):
                if digest(inductor()) != before:
                    missed.add(name)
    return {"swept": len(hashed | read), "left_out": len(left_out), "missed": sorted(missed)}


def free(name):
    return not freedoms.hashed_variable(name, "1", freedoms.version(vllm.__version__))


def triton():
    """The variables in Triton's key: of all names in its library, those it says so of."""
    try:
        from triton._C import libtriton  # noqa: PLC0415 - a CPU may be without
    except ImportError:
        return set()
    with open(libtriton.__file__, "rb") as f, mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ) as text:
        names = {name.decode() for name in NAME.findall(text)} - os.environ.keys()
    with variables(dict.fromkeys(names, "1")):
        return set(libtriton.get_cache_invalidating_env_vars())


@contextlib.contextmanager
def variables(values):
    """Set variables for the length of a block."""
    held = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        for name in values:
            del os.environ[name]
        os.environ.update(held)


def forked(work):
    """Run `work` in a fork, as nothing may be left of it; its result, or why there is none."""
    mine, its = os.pipe()
    child = os.fork()
    if not child:
        try:
            result = work()
        except (Exception, SystemExit) as exc:  # noqa: BLE001 - told to whoever asked
            result = {"error": f"{type(exc).__name__}: {exc}"}
        with os.fdopen(its, "w") as f:
            json.dump(result, f)
        os._exit(0)
    os.close(its)
    with os.fdopen(mine) as f:
        text = f.read()
    _, status = os.waitpid(child, 0)
    return json.loads(text) if text else {"error": f"the process ended with {status}"}


def main():
    asked = json.load(sys.stdin)
    get_inductor_factors()  # hashes torch's sources, once
    serve = parser()
    starts = [forked(lambda s=s: start(serve, s["argv"], s["env"])) for s in asked["starts"]]
    found = {"starts": starts, "sweep": forked(sweep) if asked.get("sweep") else None}
    found["versions"] = {"vllm": vllm.__version__, "torch": torch.__version__}
    json.dump(found, ANSWER)
    ANSWER.flush()


if __name__ == "__main__":
    main()
