"""Everything a look finds: what is wanted, what is there, what to do. Changes nothing."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog

from warmer import argv, keys, levers, loaders, wanted, yamltext
from warmer.errors import SourceError, UsageError
from warmer.fill import adopt, revision, trial, weights
from warmer.fill.sources.registry import open_source
from warmer.fill.sources.retry import Patience, Retrying
from warmer.layout import FILES, Volume, WarmDir
from warmer.model import Inventory, Kind, Plan, Wanted
from warmer.observe import host as observe_host
from warmer.observe import inventory
from warmer.plan import plan

if TYPE_CHECKING:
    from collections.abc import Callable

    from warmer.machine import Host
    from warmer.settings import Settings

_log = structlog.get_logger(__name__)
_NOT_IN_A_FILE: Final = ("model", "model-tag", "revision", "uds")
"""Flags warmer has to see: they name the model, or where the build run would not be asked."""


@dataclass(frozen=True, slots=True)
class Situation:
    """One look at the world.

    Attributes:
        settings: what the user chose.
        volume: the shared volume.
        warm: the pod's warm dir.
        host: the machine.
        source: where weights come from, with retries.
        how: how the server will be started.
        wanted: the pieces and their keys.
        held: what is there of them.
        plan: what to do.
        listing: the model's files, where the source was asked for them.
        asked: whether the remote bucket has been asked for what is missing.
        trial: what was measured of loaders on the volume, for this model and this machine.
    """

    settings: Settings
    volume: Volume
    warm: WarmDir
    host: Host
    source: Retrying
    how: wanted.Start
    wanted: Wanted
    held: Inventory
    plan: Plan
    listing: weights.Listing | None = None
    asked: bool = False
    trial: loaders.Trial | None = None

    @property
    def places(self) -> tuple[str, ...]:
        """Where files of the model may lie about already."""
        s = self.settings
        return adopt.places(s.adopt, self.volume.root, s.environment)

    @property
    def model_files(self) -> str:
        """The directory on the volume that holds the weights as the engine reads them."""
        key = self.wanted.keys["weights"]
        number = self.held.held["weights"].generation
        return os.path.join(self.volume.generation("weights", key.digest, number), FILES)


def look(settings: Settings, *, wished: Callable[[Situation], None] = lambda _: None) -> Situation:
    """Observe and plan; changes nothing but the volume's note of what a branch meant.

    Args:
        settings: what the user chose.
        wished: called with what is wanted, before any piece of it is looked at.

    Raises:
        UsageError: the settings name something that is not there.
        SourceError: the model cannot be resolved or listed.
        VolumeError: the volume cannot be read.
    """
    situation = _wish(settings)
    wished(situation)
    return again(situation)


def _wish(settings: Settings) -> Situation:
    """Find out what is wanted; nothing is known to be held yet."""
    volume, warm = Volume(settings.volume), WarmDir(settings.warm_dir)
    inventory.require(volume)
    host = observe_host.observe(vllm=settings.vllm, image=settings.image)
    source = open_source(settings.model, environment=settings.environment)
    patience = Patience()
    model = settings.model
    try:
        model = revision.resolve(model, source, volume, retry=settings.retry, patience=patience)
    except SourceError as exc:
        _tolerate(exc, settings)
    digests, configured, load_format = _configs(settings)
    if load_format and "--load-format" not in settings.flags:
        chosen = dataclasses.replace(settings.selection, load_format=load_format)
        settings = dataclasses.replace(settings, selection=chosen)
    tried = None
    if host.stack is not None and host.accelerator is not None:
        filled = levers.reads_ahead(settings.levers, settings.read_ahead)
        versions = loaders.holds_for(host.stack, host.accelerator, filled=filled)
        tried = trial.read(volume, keys.weights_key(model, settings.selection).digest, versions)
    how = wanted.start(settings, host, model, warm, configured=configured, trial=tried)
    want = wanted.want(settings, host, model, how, digests)
    patient = Retrying(source, budget=settings.retry, patience=patience)
    return Situation(
        settings,
        volume,
        warm,
        host,
        patient,
        how,
        want,
        Inventory({}),
        Plan(()),
        trial=tried,
    )


def again(situation: Situation) -> Situation:
    """Look at the volume and plan again, for the same wishes.

    Raises:
        SourceError: the model cannot be listed.
        VolumeError: the volume cannot be read.
    """
    s = situation
    held = inventory.observe(s.volume, s.warm, s.wanted.keys, trust=s.settings.trust)
    sizes: dict[Kind, int] = {}
    found = s.listing
    if held.held["weights"].verdict != "sealed":
        key = s.wanted.keys["weights"]
        try:
            found = found or weights.listing(s.source, s.wanted.model, s.settings.selection)
            sizes["weights"] = weights.missing_bytes(
                s.volume,
                key,
                found.files,
                held.held["weights"],
                model=s.wanted.model,
                places=s.places,
            )
        except SourceError as exc:
            _tolerate(exc, s.settings)
    remote = "" if s.asked or s.settings.remote is None else str(s.settings.remote)
    steps = plan(
        s.wanted,
        held,
        sizes=sizes,
        forbidden=s.settings.forbidden,
        remote=remote,
        left_out=found.left_out if found else {},
        saved=found.saved if found else 0,
    )
    return dataclasses.replace(s, held=held, plan=steps, listing=found)


def _tolerate(exc: SourceError, settings: Settings) -> None:
    """Go on without the source's answer where the weights may be missing."""
    if settings.policy("weights") == "fail":
        raise exc
    _log.warning("the source does not answer", failure=exc.message)


def _configs(settings: Settings) -> tuple[dict[str, str], dict[str, str], str]:
    """Read the YAML files that are part of the serve arguments.

    Returns:
        Path → sha256 of the content, which is in the key; the flags they set, ``--name`` → value;
        and the load format, which decides what is fetched.

    Raises:
        UsageError: one is missing here, is no YAML object, or sets what warmer must know.
    """
    digests: dict[str, str] = {}
    flags: dict[str, str] = {}
    load_format = ""
    for path in argv.config_files(settings.flags):
        where = f"--config {path} among the vLLM arguments"
        try:
            with open(path, "rb") as f:
                data = f.read()
            values = dict(yamltext.load(data) or {})
        except OSError as exc:
            raise UsageError(
                f"got {where}, expected a file here too ({exc.strerror})",
                reason="no-config-file",
                hint="mount it at the same path in warmer's container",
            ) from exc
        except (TypeError, ValueError) as exc:
            raise UsageError(
                f"got {where}, expected YAML with vLLM's flags as keys",
                reason="bad-config",
                hint="check it with `vllm serve --config`",
            ) from exc
        named = {str(key).replace("_", "-"): value for key, value in values.items()}
        load_format = str(named.get("load-format") or load_format)
        for key in named:
            if key in _NOT_IN_A_FILE or key.startswith("ssl-"):
                raise UsageError(
                    f"got {key} in {where}, expected it on the command line",
                    reason="flag-in-config",
                    hint="the model goes to warmer's --model; where to listen comes after --",
                )
        digests[path] = hashlib.sha256(data).hexdigest()
        flags |= {f"--{key}": str(value) for key, value in named.items()}
    return digests, flags, load_format
