"""Loaders tried on the user's volume: measured by the engine's own Python, and kept beside the model.

A measure takes as long as several cold loads, so it is made when it is asked for and once for each
model and set of versions. Its record is made before it begins, under a name that one process alone
can make: another pod goes on with vLLM's default meanwhile, and a measure that took its whole
container down (out of memory, say) is not begun again by every container after it.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import tempfile
from importlib.resources import as_file, files
from typing import TYPE_CHECKING, Any, Final

from warmer import __version__, loaders, regular
from warmer.errors import EngineError, using
from warmer.fill import process

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from warmer.layout import Volume
    from warmer.loaders import Loader, Trial

_TAIL: Final = 12
"""Last lines shown of a Python that fails."""
_BEGUN: Final = "a measure was begun and has not ended"
"""What a record says from the beginning; at its end it is replaced."""


def read(volume: Volume, weights: str, versions: Mapping[str, str | None]) -> Trial | None:
    """Read what was measured; None where nothing was.

    What is there and cannot be read, or is none of warmer's, chooses the default, and says so.

    Args:
        volume: where.
        weights: digest of the weights' key.
        versions: what it must hold for.
    """
    path = volume.loader(loaders.name(weights, versions))
    try:
        return loaders.decode(regular.read(path), versions)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else exc
        return loaders.Trial(versions, why=f"{path}: {why}")


def begin(volume: Volume, weights: str, versions: Mapping[str, str | None]) -> bool:
    """Make the record of a measure that begins; False where there is one.

    Raises:
        VolumeError: it cannot be written.
    """
    path = volume.loader(loaders.name(weights, versions))
    trial = loaders.Trial(versions, why=f"{_BEGUN}: remove {path} to have it made again")
    with using("the volume"):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        try:
            with open(path, "x", encoding="utf-8") as f:
                f.write(loaders.encode(trial, by=f"warmer {__version__}"))
        except FileExistsError:
            return False
        except BaseException:  # a signal too: a record that nobody ends forbids measuring
            abandon(volume, weights, versions)
            raise
    return True


def end(volume: Volume, weights: str, trial: Trial) -> None:
    """Replace the record by what was measured.

    Raises:
        VolumeError: it cannot be written.
    """
    path = volume.loader(loaders.name(weights, trial.holds_for))
    fresh = f"{path}.{secrets.token_hex(4)}"
    with using("the volume"):
        try:
            with open(fresh, "x", encoding="utf-8") as f:
                f.write(loaders.encode(trial, by=f"warmer {__version__}"))
            os.replace(fresh, path)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(fresh)
            raise


def abandon(volume: Volume, weights: str, versions: Mapping[str, str | None]) -> None:
    """Take back the record of a measure that did not come to its end."""
    with contextlib.suppress(OSError):
        os.unlink(volume.loader(loaders.name(weights, versions)))


def look(model: str) -> tuple[dict[str, int], dict[str, Any]]:
    """Tell a model's own files with their sizes, and its ``config.json``."""
    with using("the volume"):
        found = {one.name: one.stat().st_size for one in os.scandir(model) if one.is_file()}
        config: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError, RecursionError):
            loaded = json.loads(regular.read(os.path.join(model, "config.json")))
            config = loaded if isinstance(loaded, dict) else {}
    return found, config


def run(
    interpreter: str,
    model: str,
    tried: Sequence[Loader],
    *,
    environment: Mapping[str, str],
    caches: str,
    filled: bool,
    timeout: float,
) -> dict[str, Any]:
    """Measure loaders.

    Args:
        interpreter: the engine's Python.
        model: the directory of the weights on the volume.
        tried: the loaders, the default first.
        environment: the whole environment of the build run.
        caches: what is restored there is not written to: it is vouched for.
        filled: whether the page cache holds the weights before each, or nothing of them.
        timeout: seconds for all of them.

    Returns:
        `device`, `seconds` and `left_out` as a `Trial` has them; `unlike`, those of the left out
        that were not tried because the page cache was not as asked.

    Raises:
        EngineError: vLLM could not be imported, or it took too long.
        VolumeError: there is no room for temporary files.
    """
    asked = [
        {
            "name": x.name,
            "config": dict(x.config),
            "package": x.package,
            "environment": dict(x.environment),
        }
        for x in tried
    ]
    ask = json.dumps({"model": model, "loaders": asked, "filled": filled, "patience": timeout})
    inside = os.path.join(caches, "")
    with (
        using("the directory for temporary files"),
        as_file(files("warmer.fill").joinpath("load.py")) as script,
        tempfile.TemporaryDirectory(prefix="warmer-", ignore_cleanup_errors=True) as scratch,
    ):
        quiet = {**environment, "PYTHONDONTWRITEBYTECODE": "1"}
        for name, value in environment.items():
            if value.startswith(inside) and name != "PYTHONPYCACHEPREFIX":
                quiet[name] = os.path.join(scratch, value.removeprefix(inside))
        with process.spawned([interpreter, str(script), ask], quiet) as python:
            try:
                out, _ = python.communicate(timeout=timeout)
            except subprocess.TimeoutExpired as exc:
                raise _failed(f"no end within {timeout:.0f} s", []) from exc
    said = out.decode(errors="replace").splitlines()
    if python.returncode:
        raise _failed(f"status {python.returncode}", said)
    try:
        answer = json.loads(said[-1])
        return {name: answer[name] for name in ("device", "seconds", "left_out", "unlike")}
    except (ValueError, TypeError, KeyError, IndexError) as exc:
        raise _failed("no answer", said) from exc


def _failed(got: str, said: Sequence[str]) -> EngineError:
    tail = [f"  | {line[:400]}" for line in said[-_TAIL:]]
    return EngineError(
        "\n".join([f"got {got} from measuring vLLM's loaders, expected an answer", *tail]),
        reason="loaders-failed",
        hint="the server loads as it does by default",
    )
