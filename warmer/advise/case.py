"""What a decision rests on: figures, each with where it comes from. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

GIVEN: Final = "given"
ASSUMED: Final = "assumed"

_RECIPE: Final = "assumed: as in the published recipe for vLLM on EFS"


class Figure(NamedTuple):
    """A number, and where it comes from: ``given``, ``measured: ...`` or ``assumed: ...``."""

    value: float
    origin: str


DEFAULTS: Final[Mapping[str, Figure]] = {
    "kernels": Figure(43e6, "assumed: of an 8B model on an H200"),
    "build": Figure(106.0, "assumed: of an 8B model on an H200 (docs/benchmarks.md)"),
    "price_storage": Figure(0.30, f"{_RECIPE}: EFS Standard"),
    "price_transfer": Figure(0.03, f"{_RECIPE}: EFS elastic throughput"),
    "price_download": Figure(0.0, "assumed: traffic from the internet is free; NAT is not"),
    "price_bucket": Figure(0.023, "assumed: S3 Standard"),
    "price_registry": Figure(0.10, "assumed: ECR"),
    "price_pull": Figure(0.0, "assumed: a registry in the same region charges nothing"),
    "price_gpu": Figure(2.0, "assumed: an L40S or an older data-centre GPU"),
    "network": Figure(262e6, f"{_RECIPE}: 16 GB from the hub in 61 s"),
    "volume_bandwidth": Figure(889e6, f"{_RECIPE}: 16 GB from EFS in 18 s"),
    "disk_bandwidth": Figure(1.5e9, "assumed: a node's NVMe"),
    "image_bandwidth": Figure(150e6, "assumed: pulling and unpacking layers"),
    "node_hits": Figure(0.5, "assumed: every other start comes to a node that had one"),
}
"""What stands in where nothing is given or measured; every answer says so."""


@dataclass(frozen=True, slots=True)
class Case:
    """Everything that is known.

    Attributes:
        weights: bytes that the engine loads.
        kernels: bytes of caches that a start takes over.
        starts: a month.
        build: seconds that a start takes longer where it builds its kernels.
        price_storage: dollars per GB-month of the volume.
        price_transfer: dollars per GB read from the volume.
        price_download: dollars per GB that comes from the hub or the bucket.
        price_bucket: dollars per GB-month of the bucket that kernels pass through.
        price_registry: dollars per GB-month of images.
        price_pull: dollars per GB pulled from the registry.
        price_gpu: dollars per hour of what waits while a pod starts.
        network: bytes per second from the hub or the bucket.
        volume_bandwidth: bytes per second that one start reads from the volume.
        disk_bandwidth: bytes per second from the node's own disk.
        image_bandwidth: bytes per second of an image that is pulled.
        node_hits: share of the starts that find the model on their node.
    """

    weights: Figure
    starts: Figure
    kernels: Figure
    build: Figure
    price_storage: Figure
    price_transfer: Figure
    price_download: Figure
    price_bucket: Figure
    price_registry: Figure
    price_pull: Figure
    price_gpu: Figure
    network: Figure
    volume_bandwidth: Figure
    disk_bandwidth: Figure
    image_bandwidth: Figure
    node_hits: Figure


@dataclass(frozen=True, slots=True)
class Needs:
    """What a start must be able to do.

    Attributes:
        copies: volumes that hold the same: one for each zone where a volume lives in one and pods
            start in several.
        without_source: a start must succeed while the hub or the bucket is away.
        seconds: how long getting weights and kernels may take; None for any time.
    """

    copies: int = 1
    without_source: bool = False
    seconds: float | None = None
