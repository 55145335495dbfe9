"""What each way to start costs a month, and takes a start. Pure arithmetic.

A bill is what is stored, and what every start moves; GB are of 10^9 bytes. Seconds are those until
weights and kernels are in the node's memory; what follows is the same for all. While a pod waits,
its GPU is paid for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from warmer.advise.case import Case, Needs

GB: Final = 1e9
HOUR: Final = 3600.0
LARGEST_IMAGE: Final = 50e9
"""Bytes beyond which a model is not baked into an image: registries bound layers, and nodes disks."""


class Sum(NamedTuple):
    """A number, and the formula that it comes from, in words and in figures."""

    value: float
    formula: str


@dataclass(frozen=True, slots=True)
class Strategy:
    """One way to start.

    Attributes:
        name: stable, for programs.
        title: for people.
        weights: seconds for the weights.
        kernels: seconds for the kernels.
        storage: dollars a month, whatever starts.
        transfer: dollars for what one start moves.
        against: why it does not do what is needed; empty where it does.
    """

    name: str
    title: str
    weights: Sum
    kernels: Sum
    storage: Sum
    transfer: Sum
    against: str = ""

    @property
    def seconds(self) -> float:
        """Seconds of a start."""
        return self.weights.value + self.kernels.value

    def bill(self, starts: float) -> float:
        """Return dollars a month for storing and moving."""
        return self.storage.value + starts * self.transfer.value

    def waiting(self, starts: float, price: float) -> float:
        """Return dollars a month for GPUs that wait, at a price per hour."""
        return starts * self.seconds / HOUR * price


def strategies(case: Case, needs: Needs) -> list[Strategy]:
    """Work out every way to start."""
    found = [_volume(case, needs), _download(case), _remote(case), _node(case)]
    if case.weights.value <= LARGEST_IMAGE:
        found.append(_image(case))
    return [_judged(one, needs) for one in found]


def cheaper(one: Strategy, other: Strategy, price: float) -> tuple[float, float] | None:
    """Return between which numbers of starts a month `one` costs less, GPUs that wait included.

    Returns:
        From, and up to, which may be infinite; None where it never does.
    """
    fixed = one.storage.value - other.storage.value
    saved = _each(other, price) - _each(one, price)
    if saved > 0:
        return max(0.0, fixed / saved), math.inf
    if fixed >= 0:
        return None
    return 0.0, fixed / saved if saved else math.inf


def worth(one: Strategy, other: Strategy, starts: float) -> float | None:
    """Return dollars per hour of waiting that `one` saves: it pays where a GPU costs more.

    Returns:
        0 where it costs no more, None where it saves no time.
    """
    hours = starts * (other.seconds - one.seconds) / HOUR
    if hours <= 0:
        return None
    return max(0.0, (one.bill(starts) - other.bill(starts)) / hours)


def _each(one: Strategy, price: float) -> float:
    return one.transfer.value + one.seconds / HOUR * price


def _volume(case: Case, needs: Needs) -> Strategy:
    held = case.weights.value + case.kernels.value
    rate = case.volume_bandwidth.value
    copies = f" × {needs.copies} zones" if needs.copies > 1 else ""  # noqa: RUF001 - a sign people read
    return Strategy(
        "volume",
        "shared volume",
        _over(case.weights.value, rate, "volume"),
        _over(case.kernels.value, rate, "volume"),
        Sum(
            held / GB * case.price_storage.value * needs.copies,
            f"{_gb(held)} × {_money(case.price_storage.value)}/GB-month{copies}",  # noqa: RUF001 - as above
        ),
        _moved(held, case.price_transfer.value),
    )


def _download(case: Case) -> Strategy:
    return Strategy(
        "download",
        "download, build kernels",
        _over(case.weights.value, case.network.value, "network"),
        Sum(case.build.value, f"built at every start: {case.build.value:.1f} s"),
        Sum(0.0, "nothing is stored"),
        _moved(case.weights.value, case.price_download.value),
    )


def _remote(case: Case) -> Strategy:
    return Strategy(
        "remote",
        "download, --remote kernels",
        _over(case.weights.value, case.network.value, "network"),
        _over(case.kernels.value, case.network.value, "network"),
        _bucket(case),
        _moved(case.weights.value + case.kernels.value, case.price_download.value),
    )


def _node(case: Case) -> Strategy:
    hits = case.node_hits.value
    rates = (case.disk_bandwidth.value, case.network.value)
    return Strategy(
        "node",
        "node disk, --remote kernels",
        _mixed(case.weights.value, hits, rates, "network"),
        _mixed(case.kernels.value, hits, rates, "network"),
        _bucket(case),
        _moved((case.weights.value + case.kernels.value) * (1 - hits), case.price_download.value),
    )


def _image(case: Case) -> Strategy:
    rates = (case.disk_bandwidth.value, case.image_bandwidth.value)
    price = case.price_registry.value
    kept = case.weights.value / GB * price + case.kernels.value / GB * case.price_bucket.value
    return Strategy(
        "image",
        "image, --remote kernels",
        _mixed(case.weights.value, case.node_hits.value, rates, "image"),
        _over(case.kernels.value, case.network.value, "network"),
        Sum(kept, f"{_gb(case.weights.value)} × {_money(price)}/GB-month, and the kernels' bucket"),  # noqa: RUF001 - as above
        _pulled(case),
    )


def _judged(one: Strategy, needs: Needs) -> Strategy:
    """Say what keeps a way from doing what is needed."""
    against = ""
    if needs.without_source and one.name in ("download", "remote", "node"):
        against = "a start needs the hub or the bucket, which may be away"
    elif needs.seconds is not None and one.seconds > needs.seconds:
        against = f"{one.seconds:,.1f} s is more than the {needs.seconds:,.1f} s allowed"
    if not against:
        return one
    return Strategy(
        one.name, one.title, one.weights, one.kernels, one.storage, one.transfer, against
    )


def _bucket(case: Case) -> Sum:
    price = case.price_bucket.value
    kept = case.kernels.value / GB * price
    return Sum(kept, f"{_gb(case.kernels.value)} of kernels × {_money(price)}/GB-month")  # noqa: RUF001 - as above


def _pulled(case: Case) -> Sum:
    """Price the layers of a start whose node has none, and the kernels of every start."""
    layers = _moved(case.weights.value * (1 - case.node_hits.value), case.price_pull.value)
    kernels = _moved(case.kernels.value, case.price_download.value)
    return Sum(layers.value + kernels.value, f"({layers.formula} + {kernels.formula})")


def _over(size: float, rate: float, what: str) -> Sum:
    return Sum(size / rate, f"{_gb(size)} ÷ {rate / 1e6:,.0f} MB/s of the {what}")


def _mixed(size: float, hits: float, rates: tuple[float, float], what: str) -> Sum:
    """Divide by the disk's rate where a node has it, by another where not."""
    seconds = size * (hits / rates[0] + (1 - hits) / rates[1])
    shares = f"{hits:.0%} at {rates[0] / 1e6:,.0f} MB/s of the disk"
    rest = f"{1 - hits:.0%} at {rates[1] / 1e6:,.0f} MB/s of the {what}"
    return Sum(seconds, f"{_gb(size)}, {shares}, {rest}")


def _moved(size: float, price: float) -> Sum:
    return Sum(size / GB * price, f"{_gb(size)} × {_money(price)}/GB")  # noqa: RUF001 - as above


def _gb(size: float) -> str:
    return f"{size / GB:.3f} GB" if size < GB else f"{size / GB:.1f} GB"


def _money(amount: float) -> str:
    digits = 2 if math.isclose(amount, round(amount, 2)) else 3
    return f"${amount:.{digits}f}"
