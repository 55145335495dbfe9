"""Loaders of vLLM's: how weights get from the volume into the engine, and which is the fastest. Pure.

Which one is fastest depends on the disk, the model and the versions, so they are tried on the user's
own volume (``prefill --tune-loader``) and the fastest is kept beside the model. What is kept names a
loader; its flags stand here, so that nothing on the volume decides a word of a server's arguments.

None of them is in vLLM's key of compiled kernels: ``LoadConfig.compute_hash`` has no factors
(vllm/config/load.py in 0.32), and their flags are free (warmer/freedoms.py).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from warmer.model import canonical

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from warmer.machine import Accelerator, Stack

SCHEMA_VERSION: Final = 1
DEFAULT: Final = "default"
_PAGE_CACHE: Final = "page_cache"
_GAIN: Final = 0.9
"""What the slower measure of another loader may be of the default's faster one, at most."""
_THREADS: Final[Mapping[str, Any]] = {"enable_multithread_load": True, "num_threads": 8}


@dataclass(frozen=True, slots=True)
class Loader:
    """One way to load weights.

    Attributes:
        name: what people call it.
        flags: `vllm serve` arguments that choose it.
        config: the same, as fields of vLLM's ``LoadConfig``.
        package: the module it is, where vLLM does not bring it.
        whole: whether it may hold all weights in the node's memory at once.
        environment: variables that go with the flags.
    """

    name: str
    flags: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    package: str = ""
    whole: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)


def _format(name: str, package: str, *, whole: bool = False) -> Loader:
    return Loader(name, ("--load-format", name), {"load_format": name}, package, whole)


LOADERS: Final = (
    Loader(DEFAULT),
    Loader(
        "prefetch",
        ("--safetensors-load-strategy", "prefetch"),
        {"safetensors_load_strategy": "prefetch"},
    ),
    Loader(
        "multithread",
        ("--model-loader-extra-config", canonical(_THREADS)),
        {"model_loader_extra_config": _THREADS},
        whole=True,
    ),
    _format("fastsafetensors", "fastsafetensors"),
    _format("instanttensor", "instanttensor"),
    # It reads past the page cache by default: what read-ahead has fetched it would fetch again.
    Loader(
        "instanttensor-buffered",
        ("--load-format", "instanttensor"),
        {"load_format": "instanttensor"},
        "instanttensor",
        environment={"INSTANTTENSOR_BACKEND": "BUFFERED"},
    ),
    _format("runai_streamer", "runai_model_streamer", whole=True),
)
NAMES: Final = tuple(loader.name for loader in LOADERS)
_DISTRIBUTIONS: Final = ("fastsafetensors", "instanttensor", "runai-model-streamer", "safetensors")
"""Packages whose version a measure holds for, beside vLLM's and torch's."""

OWN: Final = ("--loa", "--model-l", "--sa")
"""Beginnings of flags by which the user says himself how weights are loaded: vLLM's parser takes
abbreviations as short as these."""
UNMEASURED: Final = ("--quantization", "--spec-method", "--spec-model", "--speculative-config")
"""Flags with which vLLM loads otherwise, or more, than what is measured."""
_CONVERTED: Final = ("bitsandbytes", "gguf", "torchao")
"""Quantizations for which vLLM itself decides how weights are loaded."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What was measured on one volume, for one model and one set of versions.

    Attributes:
        holds_for: the versions and the device, by name.
        device: where the weights went: a GPU's name, or ``cpu`` for the memory of the node.
        size: bytes of weights.
        seconds: loader → seconds it took, each time.
        left_out: loader → why it was not measured.
        chosen: the loader to use.
        why: why none was chosen but the default; empty where one was, or the default is fastest.
    """

    holds_for: Mapping[str, str | None]
    device: str = ""
    size: int = 0
    seconds: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    chosen: str = DEFAULT
    why: str = ""

    @property
    def loader(self) -> Loader:
        """The one to use."""
        return next(loader for loader in LOADERS if loader.name == self.chosen)

    @property
    def page_cache(self) -> str:
        """How the page cache was of the weights before each: ``filled`` or ``emptied``."""
        return self.holds_for.get(_PAGE_CACHE) or ""

    @property
    def reason(self) -> str:
        """What was found, in a few words."""
        if self.chosen == DEFAULT:
            return self.why or "measured: none is faster than vLLM's default on this volume"
        took, default = max(self.seconds[self.chosen]), min(self.seconds[DEFAULT])
        return (
            f"{self.chosen}: {took:.2f} s for {default:.2f} s by default, measured on this volume"
            f" with the page cache {self.page_cache}"
        )


def holds_for(stack: Stack, accelerator: Accelerator, *, filled: bool) -> dict[str, str | None]:
    """Name what a measure depends on besides the volume and the model.

    Args:
        stack: the software.
        accelerator: where weights go.
        filled: whether a start finds the weights in the page cache, as read-ahead leaves them.
    """
    found = {name: stack.packages.get(name) for name in _DISTRIBUTIONS}
    return {
        "vllm": stack.vllm,
        "torch": stack.torch,
        "cuda": stack.cuda,
        "accelerator": accelerator.name,
        _PAGE_CACHE: "filled" if filled else "emptied",
        **found,
    }


def name(weights: str, versions: Mapping[str, str | None]) -> str:
    """Name the record of a model's weights, by their key, and of these versions."""
    digest = hashlib.sha256(canonical(dict(versions)).encode()).hexdigest()
    return f"{weights}-{digest[:16]}"


def own(flags: Iterable[str], configured: Iterable[str]) -> str:
    """Return the flag by which the user chose himself how weights are loaded; empty without."""
    given = (flag for flag in (*flags, *configured) if flag.startswith(OWN))
    return next(given, "")


def unmeasured(flags: Iterable[str], configured: Iterable[str]) -> str:
    """Return the flag with which a start loads other than what is measured; empty without."""
    given = (*flags, *configured)
    heads = [name.partition(".")[0] for name in given]
    return next((f for f in UNMEASURED for h in heads if len(h) > 3 and f.startswith(h)), "")


def apart(
    files: Mapping[str, int], config: Mapping[str, Any], *, memory: int
) -> tuple[list[Loader], dict[str, str]]:
    """Sort out which loaders can load a model at all.

    Args:
        files: of the model's own directory: name → bytes.
        config: its ``config.json``.
        memory: bytes that this container may use and has.

    Returns:
        The loaders to try, the default first; the others with the reason.
    """
    shards = {n: size for n, size in files.items() if n.endswith(".safetensors")}
    quantization = config.get("quantization_config")
    method = quantization.get("quant_method") if isinstance(quantization, dict) else None
    why = ""
    if not shards:
        why = "the model has no *.safetensors"
    elif any(name.startswith("consolidated") for name in shards):
        why = "the model has consolidated weights, which vLLM's default prefers"
    elif method in _CONVERTED:
        why = f"{method}: vLLM itself decides how it loads that"
    left_out: dict[str, str] = {}
    for loader in LOADERS[1:]:
        if why:
            left_out[loader.name] = why
        elif loader.whole and 2 * sum(shards.values()) > memory:
            left_out[loader.name] = (
                "it may hold all weights in memory at once: more than half of it"
            )
    return [loader for loader in LOADERS if loader.name not in left_out], left_out


def choose(seconds: Mapping[str, Sequence[float]]) -> str:
    """Choose a loader: another than the default where it was clearly faster, each time.

    A disk's speed varies, and what serves a volume caches too: the default is measured first and
    last, and its faster measure counts; of another, which is measured twice as well, the slower.
    """
    default = min(seconds.get(DEFAULT, ()), default=0.0)
    slower = {n: max(took) for n, took in seconds.items() if n != DEFAULT and len(took) > 1}
    best = min(slower, key=lambda n: slower[n], default=DEFAULT)
    return best if best in slower and slower[best] < default * _GAIN else DEFAULT


def encode(trial: Trial, *, by: str) -> str:
    """Render a record for the volume."""
    record = {
        "schema_version": SCHEMA_VERSION,
        "by": by,
        "for": dict(trial.holds_for),
        "device": trial.device,
        "bytes": trial.size,
        "seconds": {name: list(took) for name, took in trial.seconds.items()},
        "left_out": dict(trial.left_out),
        "chosen": trial.chosen,
        "why": trial.why,
    }
    return json.dumps(record, indent=1) + "\n"


def decode(data: bytes, versions: Mapping[str, str | None]) -> Trial:
    """Read a record of the volume.

    Args:
        data: its bytes; whoever can write there may have written anything.
        versions: what it must hold for.

    Raises:
        ValueError: it is none, holds for something else, or chooses what it did not measure.
    """
    try:
        record = json.loads(data)
        known = record["schema_version"] == SCHEMA_VERSION
        trial = Trial(
            holds_for=dict(record["for"]),
            device=str(record["device"])[:200],
            size=int(record["bytes"]),
            seconds={
                name: tuple(float(one) for one in record["seconds"][name])
                for name in NAMES
                if name in record["seconds"]
            },
            left_out={
                name: str(record["left_out"][name])[:500]
                for name in NAMES
                if name in record["left_out"]
            },
            chosen=str(record["chosen"]),
            why=str(record["why"])[:500],
        )
    except (KeyError, TypeError, OverflowError, AttributeError, RecursionError) as exc:
        raise ValueError("is no record of a measure") from exc
    if not known or trial.holds_for != versions:
        raise ValueError("holds for something else")
    measured = trial.seconds.get(DEFAULT) and trial.seconds.get(trial.chosen)
    if trial.chosen not in NAMES or not (trial.chosen == DEFAULT or measured):
        raise ValueError("chooses what was not measured")
    return trial
