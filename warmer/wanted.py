"""Settings and host → what this pod needs: keys, environment, argv. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from warmer import argv, families, freedoms, keys, levers
from warmer.model import KERNEL_KINDS, Key, Kind, Wanted
from warmer.secrecy import secret_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from warmer.layout import WarmDir
    from warmer.loaders import Loader, Trial
    from warmer.machine import Host
    from warmer.model import ModelRef
    from warmer.settings import Settings

_SERVED: Final = "--served-model-name"


@dataclass(frozen=True, slots=True)
class Start:
    """How the server will be started, and so how the engine is run to build its kernels.

    Attributes:
        model_path: the model argument; hashed by vLLM, so the same for every pod.
        served_name: the name clients use.
        argv: `vllm serve` arguments after the model.
        env: what the handoff sets: warmer's block, and what vLLM hashes of the rest.
        build_env: the whole environment of the build run; no secrets, nothing of warmer's own.
        levers: what makes the start faster, and whether it is used.
        configured: flag → value, as a YAML file of vLLM's own sets them.
        loader: how weights are loaded, where not by default; not for what is built.
    """

    model_path: str
    served_name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    build_env: Mapping[str, str]
    levers: Mapping[str, levers.State] = field(default_factory=dict)
    configured: Mapping[str, str] = field(default_factory=dict)
    loader: Loader | None = None


def start(
    settings: Settings,
    host: Host,
    model: ModelRef,
    warm: WarmDir,
    *,
    configured: Mapping[str, str],
    trial: Trial | None = None,
) -> Start:
    """Decide how the server will be started.

    Args:
        settings: what the user chose.
        host: the machine.
        model: at its resolved revision.
        warm: the warm dir.
        configured: flag → value, as a YAML file of vLLM's own sets them.
        trial: what was measured of loaders on the volume.
    """
    inherited = settings.environment
    block: dict[str, str] = {}
    hashed: dict[str, str] = {}
    if host.stack is not None and host.accelerator is not None:
        block = families.environment(
            warm,
            host.accelerator.kind,
            stack=host.stack,
            capability=host.accelerator.capability,
            inherited=inherited,
        )
        vllm = freedoms.version(host.stack.vllm)
        hashed = {n: v for n, v in inherited.items() if freedoms.hashed_variable(n, v, vllm)}
    states = levers.decide(
        settings.levers,
        accelerator=host.accelerator.kind if host.accelerator and host.stack else "",
        flags=settings.flags,
        inherited=inherited,
        read_ahead=settings.read_ahead,
        configured=configured,
        trial=trial,
    )
    for name, variables in levers.VARIABLES.items():
        if not states[name].on:
            block = {n: v for n, v in block.items() if n not in variables}
    given = (*settings.flags, *configured)
    if any(argv.spelt(given, flag) for flag in families.OTHER_REPOSITORIES):
        block = {n: v for n, v in block.items() if not n.endswith("_OFFLINE")}
    name = model.name if model.scheme == "hf" else model.name.rstrip("/").rsplit("/", 1)[-1]
    words = list(settings.serve_argv)
    named = [settings.flags[n][-1] for n in argv.spelt(settings.flags, _SERVED)]
    if named and named[-1]:
        name = named[-1][0]
    elif not argv.spelt(configured, _SERVED):
        words += [_SERVED, name]
    clean = {
        n: v for n, v in inherited.items() if not secret_name(n) and not n.startswith("WARMER_")
    }
    return Start(
        model_path=warm.model(model.slug, model.revision[:12]),
        served_name=name,
        argv=tuple(words),
        env=hashed | block,
        build_env=clean | block | {n: v for n, v in families.BUILDING.items() if n in block},
        levers=states,
        configured=configured,
        loader=trial.loader if trial is not None and states["loader"].on else None,
    )


def _over_nodes(flags: argv.Flags, configured: Mapping[str, str]) -> bool:
    """Whether the engine spans several nodes, or is one of those that answer nobody."""
    if argv.spelt(flags, "--headless") or configured.get("--headless") == "True":
        return True
    given = argv.spelt(flags, "--nnodes")
    if not given:
        return any(configured[name] != "1" for name in argv.spelt(configured, "--nnodes"))
    return any(argv.integer(flags, name, 1) > 1 for name in given)


def want(
    settings: Settings,
    host: Host,
    model: ModelRef,
    how: Start,
    config_digests: Mapping[str, str],
) -> Wanted:
    """Name every piece this pod needs, with its key."""
    weights = keys.weights_key(model, settings.selection)
    wanted: dict[Kind, Key] = {"weights": weights}
    if host.stack is None or host.accelerator is None:
        reason = host.missing or "no accelerator was found"
        return Wanted(model, wanted, dict.fromkeys(KERNEL_KINDS, reason))
    without: dict[Kind, str] = {}
    if _over_nodes(settings.flags, how.configured):
        reason = "one node alone cannot run an engine that spans several"
        without = {kind: reason for kind in KERNEL_KINDS if kind != "bytecode"}
    unneeded: dict[Kind, str] = {}
    vllm = freedoms.version(host.stack.vllm)
    for kind in families.kinds(host.accelerator.kind):
        if why := families.unneeded(kind, host.stack):
            unneeded[kind] = why
        elif kind == "bytecode" and (off := how.levers.get(kind)) and not off.on:
            unneeded[kind] = off.why
        elif kind in without:
            continue
        elif kind == "bytecode":
            wanted[kind] = keys.bytecode_key(stack=host.stack, image=host.image)
        elif kind == "compile":
            wanted[kind] = keys.compile_key(
                weights=weights,
                model_path=how.model_path,
                flags=settings.flags,
                config_digests=config_digests,
                environment=how.env,
                inherited=settings.environment,
                stack=host.stack,
                accelerator=host.accelerator,
                image=host.image,
                warm_dir=settings.warm_dir,
                configured=how.configured,
                order=argv.order(
                    settings.serve_argv,
                    lambda flag: freedoms.free_flag(flag, vllm),
                ),
            )
        else:
            wanted[kind] = keys.shared_key(
                kind,
                stack=host.stack,
                accelerator=host.accelerator,
                image=host.image,
                warm_dir=settings.warm_dir,
                environment=how.env,
            )
    return Wanted(model, wanted, without, unneeded)
