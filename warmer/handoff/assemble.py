"""A situation → the handoff: which generation of which piece, or why none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from warmer import families, freedoms
from warmer.handoff import write
from warmer.handoff.render import Handoff, Piece
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
    if set(without) - {"bytecode"}:  # what is cold may need what warmer does not know of
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
            interpreter=stack.interpreter if stack is not None else "",
            read_ahead=s.settings.read_ahead,
        ),
    )


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
