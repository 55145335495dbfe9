"""Facts → keys, and the difference between two keys. Pure.

A key holds every factor on which its piece could stop fitting; what may differ is left out by
`warmer.freedoms` alone. vLLM checks its own, inner keys when it loads an artifact; a warmer key
is a superset of them, so that a sealed piece is also a hit.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final

from warmer import families, freedoms, ranks
from warmer.model import Difference, Key, Nearest, canonical
from warmer.selection import ENGINE, Selection

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from warmer import argv
    from warmer.machine import Accelerator, Stack
    from warmer.model import Kind, ModelRef

_ARCHITECTURES: Final = ("FLASHINFER_CUDA_ARCH_LIST", "TORCH_CUDA_ARCH_LIST")
"""Variables that decide for which architectures a JIT builds."""
_FORMAT: Final = "--load-format"
_UNREAD: Final = ("dummy", "sharded_state", "runai_streamer_sharded")
"""Load formats for which vLLM takes a model's own word for tied embeddings, which it hashes; for the others it
looks into the checkpoint (``VllmConfig`` in 0.32)."""


def weights_key(model: ModelRef, selection: Selection = ENGINE) -> Key:
    """Key of the files of a model that an engine loads, at one resolved revision."""
    return Key(
        "weights",
        {
            "source": model.scheme,
            "name": model.name,
            "revision": model.revision,
            "selection": selection.factor,
        },
    )


def compile_key(
    *,
    weights: Key,
    model_path: str,
    flags: argv.Flags,
    config_digests: Mapping[str, str],
    environment: Mapping[str, str],
    inherited: Mapping[str, str],
    stack: Stack,
    accelerator: Accelerator,
    image: str | None,
    warm_dir: str,
    configured: Mapping[str, str] | None = None,
    order: Sequence[str] = (),
) -> Key:
    """Key of the artifacts compiled for one model, command line and stack.

    Args:
        weights: the model's key.
        model_path: the `--model` string; vLLM hashes it.
        flags: the parsed serve arguments.
        config_digests: sha256 of each file named by ``--config``.
        environment: warmer's own block, which wins over `inherited`.
        inherited: the environment the engine would otherwise see.
        stack: software versions.
        accelerator: what the kernels run on.
        image: the container image's digest, if known.
        warm_dir: where the caches are; build files hold the path.
        configured: flag → value, as the files named by ``--config`` set them.
        order: flags whose order may decide (`argv.order`).
    """
    vllm = freedoms.version(stack.vllm)
    factors: dict[str, Any] = {"model.key": weights.digest, "model.path": model_path}
    factors |= _stack(stack, accelerator, image, warm_dir)
    factors["package.triton"] = stack.packages.get("triton")
    factors |= ranks.sizes(flags, configured or {})
    for flag, occurrences in flags.items():
        if not freedoms.free_flag(flag, vllm) and flag not in ranks.SIZES.values():
            factors[f"argv.{flag}"] = occurrences
    if (load_format := flags.get(_FORMAT, [[]])[-1]) and load_format[0].lower() in _UNREAD:
        factors[f"argv.{_FORMAT}"] = load_format[0].lower()
    if order:
        factors["argv.order"] = list(order)
    for path, digest in config_digests.items():
        factors[f"file.{path}"] = digest
    for name, value in (dict(inherited) | dict(environment)).items():
        if freedoms.hashed_variable(name, value, vllm):
            factors[f"env.{name}"] = value
    return Key("compile", factors)


def shared_key(
    kind: Kind,
    *,
    stack: Stack,
    accelerator: Accelerator,
    image: str | None,
    warm_dir: str,
    environment: Mapping[str, str],
) -> Key:
    """Key of a JIT kind that every model on one stack and architecture shares.

    Variables that stand in build files are factors where they are set.
    """
    factors = _stack(stack, accelerator, image, warm_dir)
    for name in families.packages(kind, accelerator.kind):
        factors[f"package.{name}"] = stack.packages.get(name)
    for name in _ARCHITECTURES:
        factors[f"env.{name}"] = environment.get(name)
    vllm = freedoms.version(stack.vllm)
    for name, value in environment.items():
        if freedoms.built_variable(name, value, vllm):
            factors[f"env.{name}"] = value
    return Key(kind, factors)


def bytecode_key(*, stack: Stack, image: str | None) -> Key:
    """Key of the bytecode of one image's Python; neither the model nor its flags matter.

    Entries hold the hash of their source, so that a tree of another image with equal factors
    costs time and nothing else.
    """
    return Key(
        "bytecode",
        {
            "engine.vllm": stack.vllm,
            "engine.torch": stack.torch,
            "engine.python": stack.python,
            "engine.cache_tag": stack.cache_tag,
            "engine.site": stack.site,
            "engine.packages": hashlib.sha256(canonical(dict(stack.packages)).encode()).hexdigest(),
            "engine.image": image,
        },
    )


def _stack(
    stack: Stack, accelerator: Accelerator, image: str | None, warm_dir: str
) -> dict[str, Any]:
    return {
        "engine.vllm": stack.vllm,
        "engine.torch": stack.torch,
        "engine.cuda": stack.cuda,
        "engine.python": stack.python,
        "engine.libc": stack.libc,
        "engine.site": stack.site,
        "engine.image": image,
        "hardware.kind": accelerator.kind,
        "hardware.name": accelerator.name,
        "hardware.capability": accelerator.capability,
        "hardware.threads": accelerator.threads,
        "warmer.warm_dir": warm_dir,
        "warmer.environment": families.ENVIRONMENT_VERSION,
    }


def differences(wanted: Mapping[str, Any], held: Mapping[str, Any]) -> tuple[Difference, ...]:
    """List the factors on which two keys differ, by name; None stands for "not set"."""
    return tuple(
        Difference(name, wanted.get(name), held.get(name))
        for name in sorted(wanted.keys() | held.keys())
        if wanted.get(name) != held.get(name)
    )


def nearest(wanted: Key, held: Iterable[tuple[str, Mapping[str, Any]]]) -> Nearest | None:
    """Find the held key with the fewest differences; ties go to the smaller digest.

    Args:
        wanted: the key that is not there.
        held: (digest, factors) of the keys that are.
    """
    candidates = [Nearest(digest, differences(wanted.factors, f)) for digest, f in held]
    return min(candidates, key=lambda n: (len(n.differences), n.digest), default=None)
