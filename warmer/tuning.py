"""The stage that has vLLM's loaders measured on this volume, and takes the fastest.

It is no reason not to start: what fails here leaves the server with vLLM's default. Where the page
cache kept the files, which is of this moment and this node, what was found holds for this start alone,
and the next one asked to measures again.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import structlog

from warmer import levers, loaders, wanted
from warmer.errors import WarmerError
from warmer.fill import trial
from warmer.observe import limits

if TYPE_CHECKING:
    from warmer.loaders import Trial
    from warmer.machine import Accelerator, Stack
    from warmer.situation import Situation

_log = structlog.get_logger(__name__)

_FILLED = (
    "run --tune-loader where memory holds all weights, or with the --read-ahead that the server has"
)
_EMPTIED = (
    "run --tune-loader on a node where no other pod loads this model; a volume in memory has "
    "nothing to measure"
)


def tune(situation: Situation) -> Situation:
    """Measure where that has not been done, and return the situation with what is known now."""
    s = situation
    if s.host.stack is None or s.host.accelerator is None:
        _log.warning("no loader is measured", reason=s.host.missing)
        return s
    found = s.trial
    if found is None:
        try:
            found = _measure(s, s.host.stack, s.host.accelerator)
        except WarmerError as exc:
            _log.warning("no loader is chosen", failure=exc.message, hint=exc.hint)
            return s
    how = wanted.start(
        s.settings, s.host, s.wanted.model, s.warm, configured=s.how.configured, trial=found
    )
    return dataclasses.replace(s, trial=found, how=how)


def _measure(s: Situation, stack: Stack, accelerator: Accelerator) -> Trial:
    """Measure all that this vLLM and this model allow.

    Raises:
        EngineError: the engine's Python failed.
        VolumeError: the volume failed.
    """
    filled = levers.reads_ahead(s.settings.levers, s.settings.read_ahead)
    versions = loaders.holds_for(stack, accelerator, filled=filled)
    weights = s.wanted.keys["weights"].digest
    files, config = trial.look(s.model_files)
    tried, left_out = loaders.apart(files, config, memory=limits.free())
    if not trial.begin(s.volume, weights, versions):
        return trial.read(s.volume, weights, versions) or loaders.Trial(versions)
    try:
        _log.info("measuring loaders", of=[loader.name for loader in tried])
        answer = trial.run(
            stack.interpreter,
            s.model_files,
            tried,
            environment=s.how.build_env,
            caches=s.warm.cache,
            filled=filled,
            timeout=s.settings.engine_timeout,
        )
        seconds = {name: tuple(took) for name, took in answer["seconds"].items()}
        found = loaders.Trial(
            holds_for=versions,
            device=answer["device"],
            size=sum(size for name, size in files.items() if name.endswith(".safetensors")),
            seconds=seconds,
            left_out={**left_out, **answer["left_out"]},
            chosen=loaders.choose(seconds),
            why=answer["left_out"].get(loaders.DEFAULT, ""),
        )
        if answer["unlike"]:
            trial.abandon(s.volume, weights, versions)
        else:
            trial.end(s.volume, weights, found)
    except BaseException:
        trial.abandon(s.volume, weights, versions)
        raise
    for name, took in seconds.items():
        _log.info("loader", name=name, seconds=list(took), device=found.device)
    for name, why in found.left_out.items():
        _log.info("loader left out", name=name, why=why)
    if answer["unlike"]:
        kept = "did not keep" if filled else "kept"
        _log.warning(
            f"this measure is not kept: the page cache {kept} the files",
            unmeasured=answer["unlike"],
            hint=_FILLED if filled else _EMPTIED,
        )
    _log.info("loaders are measured", chosen=found.chosen, why=found.reason)
    return found
