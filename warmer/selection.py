"""Which of a repository's files the engine loads. Pure.

vLLM's default loader takes ``*.safetensors`` where a directory has any, else ``*.bin``, else
``*.pt`` (vllm/model_executor/model_loader/default_loader.py). What it never opens beside them
is left out: the same weights in other formats. Everything that is no weights file is kept:
tokenizers, configurations, chat templates, remote code. In doubt a file is kept: one too many
costs a download, one too few a start.
"""

from __future__ import annotations

import fnmatch
import posixpath
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

RULE: Final = "engine/1"
"""Names what `choose` does; part of every weights key, so that a new rule is a new piece."""

_SAFETENSORS: Final = (".safetensors",)
_TORCH: Final = (".bin", ".pt", ".pth", ".ckpt")
_READ: Final = (".safetensors", ".bin", ".pt")
"""What the default loader looks for, in this order, and only beside the configuration."""
_GGUF: Final = (".gguf",)
_TENSORIZED: Final = (".tensors",)
_FOREIGN: Final = (
    *(".msgpack", ".h5", ".ot", ".tflite", ".onnx", ".onnx_data"),
    *(".mlmodel", ".mlpackage", ".nemo"),
)
"""Weights of other frameworks; no loader of vLLM's opens them."""
_DIRECTORIES: Final = ("original", "onnx", "openvino", "coreml", "flax", "tf", "metal")
"""Top-level directories by which repositories carry the same weights for something else."""
_TRAINING: Final = (
    "training_args.bin",
    "optimizer.bin",
    "optimizer.pt",
    "scheduler.pt",
    "scaler.pt",
)
"""Ends of names of what training leaves; vLLM's loader passes them over wherever it meets them."""
_WHOLE: Final = ("model", "consolidated")
"""In the name of a ``*.pt`` that holds a model. Others are a few tensors that no other file has:
bge-m3's ``sparse_linear.pt``, Qwen2.5-Omni's ``spk_dict.pt``."""
_INDEX: Final = "model.safetensors.index.json"
_FAMILIES: Final = {
    **dict.fromkeys(("auto", "runai_streamer"), "auto"),
    **dict.fromkeys(("hf", "safetensors", "fastsafetensors", "instanttensor"), "safetensors"),
    **dict.fromkeys(("pt", "npcache"), "torch"),
    **{name: name for name in ("mistral", "gguf")},
}
"""Load format → those that read the same files are one, and share a weights key."""
_ANY: Final = "any"
"""Load formats of which the rule does not know what they read: nothing is left out."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What the user and the serve arguments say about files.

    Attributes:
        load_format: ``--load-format`` of the serve arguments.
        include: patterns of paths that are kept whatever the rule says.
        exclude: patterns of paths that are left out whatever the rule says; it then judges the
            others as if these were not there.
    """

    load_format: str = "auto"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    @property
    def factor(self) -> str | dict[str, object]:
        """What stands in a weights key for it."""
        family = _family(self.load_format)
        if family == "auto" and not self.include and not self.exclude:
            return RULE
        patterns = {"include": sorted(self.include), "exclude": sorted(self.exclude)}
        return {"rule": RULE, "format": family, **patterns}


ENGINE: Final = Selection()
"""What the engine loads, nothing more and nothing less."""


def choose(paths: Collection[str], selection: Selection) -> dict[str, str]:
    """Say which files are left out, and why.

    Args:
        paths: of all files, relative, with ``/``, each once.
        selection: what is asked for.

    Returns:
        Path → reason, for each file that is left out.
    """
    found = {path: "excluded" for path in sorted(paths) if _matches(path, selection.exclude)}
    rest = [path for path in sorted(paths) if path not in found]
    repository = _Repository(rest, _family(selection.load_format))
    for path in rest:
        if not _matches(path, selection.include) and (why := repository.why(path)):
            found[path] = why
    return found


def loadable(path: str) -> bool:
    """Whether a file holds weights that some loader of vLLM's takes."""
    return _extension(path) in (*_SAFETENSORS, *_TORCH, *_GGUF, *_TENSORIZED)


def _family(load_format: str) -> str:
    return _FAMILIES.get(load_format.lower(), _ANY)


class _Repository:
    """The files of a model, and what they mean to a load format."""

    def __init__(self, paths: list[str], family: str) -> None:
        self._family = family
        self._formats: dict[str, set[str]] = {}
        for path in paths:
            if not path.endswith(_TRAINING):
                self._formats.setdefault(posixpath.dirname(path), set()).add(_extension(path))
        self._loaded = (
            any(set(_GGUF) & here for here in self._formats.values())
            if family == "gguf"
            else bool(self._formats.get("", set()) & set(_READ))
        )
        """Whether the repository has what a load format reads."""
        names = [path for path in paths if "/" not in path and path.endswith(_SAFETENSORS)]
        self._consolidated = {name for name in names if name.startswith("consolidated")}
        self._others = set(names) - self._consolidated
        self._indexed = _INDEX in paths

    def why(self, path: str) -> str:
        """Return why a file is left out; empty where it is kept."""
        if self._family == _ANY or not self._loaded:
            return ""
        top, below, _ = path.partition("/")
        extension = _extension(path)
        if below and top in _DIRECTORIES:
            return f"{top}/: the same weights for something else"
        if extension in _FOREIGN:
            return f"{extension}: weights of another framework"
        if path.endswith(_TRAINING):
            return "left over from training"
        return self._duplicate(path, extension)

    def _duplicate(self, path: str, extension: str) -> str:
        """Return what stands for a weights file that the load format does not read."""
        if extension in _GGUF:
            return "" if self._family == "gguf" else ".gguf beside the weights that are loaded"
        if self._family == "gguf":
            return f"{extension} beside .gguf" if loadable(path) and "/" not in path else ""
        if self._passed_over(path, extension):
            return f"{extension} beside .safetensors"
        # Which of the two "auto" takes changed between versions of vLLM: both are kept there.
        # Without an index, all that end in .safetensors are loaded.
        if path in self._consolidated and self._indexed and self._family == "safetensors":
            return "consolidated weights beside those that are loaded"
        if path in self._others and self._consolidated and self._family == "mistral":
            return "weights beside the consolidated ones that are loaded"
        return ""

    def _passed_over(self, path: str, extension: str) -> bool:
        """Whether it is a file of torch's where safetensors are loaded instead."""
        name = posixpath.basename(path)
        return (
            extension in _TORCH
            and self._family != "torch"
            and ".safetensors" in self._formats[posixpath.dirname(path)]
            and (extension != ".pt" or any(word in name.lower() for word in _WHOLE))
        )


def _extension(path: str) -> str:
    return posixpath.splitext(path)[1].lower()


def _matches(path: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)
