"""Warmer, broken on purpose: a campaign that finds nothing then would find nothing ever.

Each of `PLANTS` breaks one promise in a worker's forks of warmer.
"""

from warmer import keys
from warmer.fill import process, publish, stagings


def unflushed():
    """What is published need not be durable."""
    publish._flush = lambda *_args, **_more: None
    publish._write = _write


def _write(path, data):
    with open(path, "wb") as stream:
        stream.write(data)


def unswept():
    """What is staged stays."""
    stagings.discard = lambda _staging: None


def unwatched():
    """An engine outlives a warmer that was killed."""
    process._LAUNCH = process._LAUNCH.replace("ctypes.CDLL(None).prctl(1, 9, 0, 0, 0);", "")
    process._WATCH = "import os; os.read(0, 1)"


def one_key_for_all():
    """Kernels of one GPU and one vLLM have the keys of another's."""
    real = keys.Key

    def alike(kind, factors):
        for name in ("hardware.name", "hardware.capability", "engine.vllm"):
            factors = {**factors, name: "any"} if name in factors else factors
        return real(kind, factors)

    keys.Key = alike


PLANTS = {
    "unflushed": unflushed,
    "unswept": unswept,
    "unwatched": unwatched,
    "one-key-for-all": one_key_for_all,
}
