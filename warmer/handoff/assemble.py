"""A situation → the handoff: which generation of which piece, or why none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from warmer import families, freedoms, ranks, seal
from warmer.handoff import write
from warmer.handoff.render import Handoff, Harvest, Piece
from warmer.model import KERNEL_KINDS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from warmer.model import Kind
    from warmer.situation import Situation


def hand_off(s: Situation, without: Mapping[Kind, str]) -> None:
    """Write the handoff for what is there.

    Args:
        s: the last look.
        without: kinds the server starts without, with the reason.

    Raises:
        VolumeError: the warm dir failed.
    """
    stack = s.host.stack
    if stack is not None and stack.shim:
        write.write_shim(s.warm, stack.shim)
    model_path, model_files = s.how.model_path, s.model_files
    serve_argv, env = list(s.how.argv), dict(s.how.env)
    if "weights" in without:  # the server fetches them itself, under the model's own name
        model_path, model_files = s.wanted.model.name, ""
        if s.wanted.model.scheme == "hf":
            serve_argv += ["--revision", s.wanted.model.revision]
    else:
        write.link_model(model_path, model_files)
    made = s.held.held["compile"].source if "compile" in s.held.held else ""
    # What is cold may need what warmer does not know of, and so may what a server built that had it.
    if set(without) - {"bytecode"} or (made == seal.HARVEST and "compile" not in without):
        env = {name: value for name, value in env.items() if not name.endswith("_OFFLINE")}
    pieces = _pieces(s, without)
    if not any(piece.kind == "bytecode" and piece.verdict == "sealed" for piece in pieces):
        env = {n: v for n, v in env.items() if n not in families.variables("bytecode")}
    write.write(
        s.warm,
        Handoff(
            model_path=model_path,
            model_files=model_files,
            served_name=s.how.served_name,
            env=env,
            argv=serve_argv,
            pieces=pieces,
            command=stack.command if stack is not None else ("vllm",),
            known=[
                name
                for name in freedoms.FREE_VARIABLES
                if stack is None or freedoms.free_variable(name, freedoms.version(stack.vllm))
            ],
            use=s.warm.use,
            uses=s.volume.uses,
            warm=s.warm,
            crashes=s.volume.crashes,
            levers=[name for name, state in s.how.levers.items() if state.on],
            loader=None if "weights" in without else s.how.loader,
            interpreter=stack.interpreter if stack is not None else "",
            read_ahead=s.settings.read_ahead,
            harvest=_harvest(s, without),
            stages=ranks.sizes(s.settings.flags, s.how.configured)["parallel.pp"],
        ),
    )


def _harvest(s: Situation, without: Mapping[Kind, str]) -> Harvest:
    """Say what of the server's building fits its keys."""
    # Servers write no bytecode.
    kinds = [kind for kind in s.wanted.keys if kind in KERNEL_KINDS and kind != "bytecode"]
    forbidden = _forbidden(s, without) if "compile" in kinds else "no kernels have a key here"
    return Harvest(
        forbidden,
        {} if forbidden else {kind: s.wanted.keys[kind] for kind in kinds},
        interpreter=s.host.stack.interpreter if s.host.stack is not None else "",
        trusted=tuple(sorted(s.settings.trust.keys)),
    )


def _forbidden(s: Situation, without: Mapping[Kind, str]) -> str:
    """Say why nothing that the server builds may be published; empty where it may."""
    if s.settings.compile == "never":
        return "--compile=never"
    if "weights" in without:
        return "the weights are not handed off: the server reads them from another path"
    cold = [kind for kind in without if kind != "bytecode"]
    if cold and s.settings.compile != "harvest":
        return f"{cold[0]} was to be built by a run of the engine, and was not"
    return ""


def _pieces(s: Situation, without: Mapping[Kind, str]) -> list[Piece]:
    pieces: list[Piece] = []
    for kind, key in s.wanted.keys.items():
        held = s.held.held[kind]
        ready = held.restored or kind == "weights"
        if kind in without or held.verdict != "sealed" or not ready:
            verdict = "absent" if held.verdict == "sealed" else held.verdict
            pieces.append(Piece(kind, key.digest, verdict, without.get(kind, held.reason)))
            continue
        pieces.append(
            Piece(
                kind,
                key.digest,
                held.verdict,
                generation=held.generation,
                directory=s.volume.generation(kind, key.digest, held.generation),
                size=held.size,
                seal_sha256=held.seal_sha256,
                restored=s.warm.restored(kind) if kind in KERNEL_KINDS else None,
            )
        )
    unkeyed = (kind for kind in without if kind not in s.wanted.keys)
    return pieces + [Piece(kind, "", "absent", without[kind]) for kind in unkeyed]
