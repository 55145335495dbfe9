"""Load a model's weights with each of vLLM's loaders, and say how long each took.

A script, run by the engine's own Python: it imports nothing of warmer and needs Python 3.9.

    python load.py <what to try, as JSON>

vLLM is imported once; each loader then runs in a process forked from that, which ends with it. It
is vLLM's own loader that reads: what it yields is copied to where the engine would have it, a GPU, or
the memory of a node without one. Before each, the page cache is emptied of the weights' files, or filled
with them, as a start will find it, and the kernel is asked whether it is: where it is not, nothing is
measured. The last line says what was found, as JSON.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import json
import mmap
import os
import select
import signal
import sys
import time
import types

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

_BESIDE = 0.02
"""The part of the files that may be left in the page cache, or may be gone: others use it too."""
_WINDOW, _PIECE = 1 << 28, 1 << 23
_LEAST = 60.0
"""Seconds that a loader has at least; else several times what the default took."""
_PATIENCE = 5


class NotMeasuredError(Exception):
    """A loader could not be measured; the reason, for people."""


class PageCacheError(NotMeasuredError):
    """The page cache was not as asked: of this moment and node, as when another pod there loads them."""


def drop(paths: Iterable[str]) -> None:
    """Ask the kernel to forget what it has of some files; what is not written yet, it keeps."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def fetch(paths: Iterable[str]) -> None:
    """Have some files in the page cache."""
    scratch = bytearray(_PIECE)
    for path in paths:
        with open(path, "rb", buffering=0) as f:
            while f.readinto(scratch):
                pass


def resident(paths: Iterable[str]) -> float:
    """Tell which part of some files is in the page cache (mincore(2))."""
    mincore = ctypes.CDLL(None, use_errno=True).mincore
    mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
    pages = there = 0
    for path in paths:
        with open(path, "rb") as f:
            size = os.fstat(f.fileno()).st_size
            for start in range(0, size, _WINDOW):
                length = min(_WINDOW, size - start)
                # A private mapping that is not touched reads nothing, and has an address.
                with mmap.mmap(f.fileno(), length, access=mmap.ACCESS_COPY, offset=start) as window:
                    seen = ctypes.create_string_buffer(-(-length // mmap.PAGESIZE))
                    view = ctypes.c_char.from_buffer(window)
                    failed = mincore(ctypes.addressof(view), length, ctypes.addressof(seen))
                    del view
                if failed:
                    raise OSError(ctypes.get_errno(), "mincore", path)
                pages += len(seen.raw)
                there += sum(byte & 1 for byte in seen.raw)
    return there / pages if pages else 0.0


def load(model: str, config: dict[str, Any]) -> tuple[float, str]:
    """Load the weights; return the seconds it took, and where they went."""
    torch = importlib.import_module("torch")  # the engine's, which warmer itself never imports
    config_class = importlib.import_module("vllm.config.load").LoadConfig
    get_loader = importlib.import_module("vllm.model_executor.model_loader").get_model_loader

    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    torch.zeros(1, device=device)  # a context of CUDA's is no matter of loading
    loader = get_loader(config_class(use_tqdm_on_load=False, **config))

    def take(weights: Iterable[tuple[str, Any]]) -> None:
        for _, tensor in weights:
            torch.empty_like(tensor, device=device).copy_(tensor)

    asked = types.SimpleNamespace(model=model, revision=None)
    started = time.monotonic()
    if hasattr(loader, "get_all_weights"):
        take(loader.get_all_weights(asked, types.SimpleNamespace()))
    else:
        loader.load_weights(types.SimpleNamespace(load_weights=take), asked)
    if gpu:
        torch.cuda.synchronize()
    took = time.monotonic() - started
    return took, torch.cuda.get_device_name() if gpu else "cpu"


def forked(
    model: str, config: dict[str, Any], *, environment: dict[str, str], patience: float
) -> tuple[float, str]:
    """Load in a process of its own, with some variables more.

    Raises:
        NotMeasuredError: it failed, or took too long.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(reading)
            os.environ.update(environment)
            try:
                answer = list(load(model, config))
            except BaseException as exc:  # noqa: BLE001 - whatever a loader fails with is told
                lines = str(exc).strip().splitlines() or [""]
                answer = [f"{type(exc).__name__}: {lines[0]}"[:300]]
            os.write(writing, json.dumps(answer).encode())
        finally:
            os._exit(0)
    os.close(writing)
    try:
        ready, _, _ = select.select([reading], [], [], patience)
        data = os.read(reading, 1 << 16) if ready else b""
    finally:
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        os.close(reading)
    if not ready:
        raise NotMeasuredError(f"no end within {patience:.0f} s")
    answer = json.loads(data or b"[]")
    if len(answer) != 2:
        raise NotMeasuredError(answer[0] if answer else f"its process ended ({status})")
    return float(answer[0]), str(answer[1])


def prepare(shards: Sequence[str], *, filled: bool) -> None:
    """Empty the page cache of the files, or fill it with them, and make sure of it.

    Raises:
        PageCacheError: it was neither.
    """
    if not filled:
        drop(shards)
    elif resident(shards) < 1:
        fetch(shards)
    there = resident(shards)
    if filled and there < 1 - _BESIDE:
        raise PageCacheError(
            f"{there:.0%} of the files were in the page cache, expected all of them"
        )
    if not filled and there > _BESIDE:
        raise PageCacheError(f"{there:.0%} of the files stayed in the page cache")


def main(words: str) -> None:
    """Measure all; then the default and the fastest other once more."""
    ask = json.loads(words)
    model, names = ask["model"], [one["name"] for one in ask["loaders"]]
    found = sorted(name for name in os.listdir(model) if name.endswith(".safetensors"))
    shards = [os.path.join(model, name) for name in found]
    default, *others = names
    asks = {one["name"]: one for one in ask["loaders"]}
    left_out: dict[str, str] = {}
    for asked in ask["loaders"]:
        if asked["package"] and importlib.util.find_spec(asked["package"]) is None:
            left_out[asked["name"]] = f"no package {asked['package']} is installed"
    importlib.import_module("vllm.model_executor.model_loader")  # once, for all that are forked

    seconds: dict[str, list[float]] = {}
    unlike: list[str] = []
    device = ""
    patience = float(ask["patience"])

    def one(name: str) -> None:
        nonlocal device
        try:
            prepare(shards, filled=ask["filled"])
            config, environment = asks[name]["config"], asks[name]["environment"]
            took, device = forked(model, config, environment=environment, patience=patience)
            seconds.setdefault(name, []).append(round(took, 3))
        except (NotMeasuredError, OSError) as exc:
            left_out[name] = str(exc)
            seconds.pop(name, None)
            if isinstance(exc, PageCacheError):
                unlike.append(name)

    one(default)
    if default in seconds:
        patience = min(patience, max(_LEAST, _PATIENCE * seconds[default][0]))
        for name in others:
            if name not in left_out:
                one(name)
        first = seconds[default][0]
        rivals = [name for name in others if name in seconds and seconds[name][0] < first]
        if rivals:
            one(min(rivals, key=lambda name: seconds[name][0]))
            one(default)
    answer = {"device": device, "seconds": seconds, "left_out": left_out, "unlike": unlike}
    print(json.dumps(answer))  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1])
