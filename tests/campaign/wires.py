"""Faults of what pods talk to: the hub, the S3 server, and whoever keeps their locks."""

from __future__ import annotations

import time

from faults import BUSY, DONE, INTEGRITY, SOURCE, begin, fault, finish, instants, until
from worlds import LEASE

# name → (what happens, of the hub, of the proxy before S3, of the API server)
WIRES = {
    "5xx": (
        "500, 502, 503 or 504",
        {"status": (500, 502, 503, 504)},
        {"status": (500, 502, 503, 504)},
        {"status": (500, 503, 504)},
    ),
    "429": (
        "429, or S3's 503 Slow Down, with Retry-After or without",
        {"status": (429,), "retry_after": (None, 1)},
        {"status": (429, 503)},
        {"status": (429,), "retry_after": (None, 1)},
    ),
    "reset": (
        "connections closed or reset before or after the answer",
        {"reset": (True,), "truncate": (None, 0, 5000)},
        {"drop": ("before", "after")},
        {"drop": ("before", "after"), "reset": (True, False)},
    ),
    "stall": (
        "no answer for seconds",
        {"stall": (2.0, 5.0)},
        {"delay": (2.0, 5.0)},
        {"delay": (2.0, 5.0)},
    ),
    "truncate": (
        "answers that end early, or whose bytes are wrong",
        {"truncate": (0, 1000, 9000), "corrupt": (False, True)},
        {"truncate": (0, 1000, 9000), "corrupt": (False, True)},
        None,
    ),
    "slow": (
        "answers of a few bytes a second (slow loris), for seconds",
        {"rate": (200.0, 2000.0)},
        {"delay": (0.5, 1.0)},
        {"lag": (0.5, 1.0)},
    ),
}


def _some(world, fields):
    """Choose one value for each field."""
    chosen = {name: world.choose.choice(values) for name, values in fields.items()}
    chosen = {name: value for name, value in chosen.items() if value not in (None, False)}
    return chosen | {"times": world.choose.choice((1, 1, 2, 5, 20))}


def _once(name):
    _, hub, proxy, leases = WIRES[name]

    def once(world):
        ask = world.site.services.ask
        ask("hub", "fault", **_some(world, hub))
        ask("proxy", "fault", **_some(world, proxy))
        if leases and world.lock == "k8s" and world.choose.random() < 0.6:
            ask("leases", "fault", **_some(world, leases))
        for pod in world.pods:
            world.new_pod(pod)
        runs = begin(world, verbs=False)
        world.tried += 1
        time.sleep(world.choose.uniform(0, 1.5))
        for run in runs:
            run.wait(world.choose.uniform(1, 8))
        ask("all", "heal")
        return runs, {DONE, BUSY, SOURCE, INTEGRITY}

    return once


for _name, (_what, *_) in WIRES.items():
    fault(_name, f"of the hub, the bucket, the lock's service: {_what}", tries=3)(_once(_name))


@fault(
    "lock-away",
    "nobody answers where the lock is kept, past the lease",
    tries=2,
    locks=("k8s", "s3"),
)
def lock_away(world):
    server, down, up = {"k8s": ("leases", "down", "up"), "s3": ("proxy", "refuse", "accept")}[
        world.lock
    ]
    runs = begin(world, verbs=False)
    until(instants(world, runs[:1])[0][0])
    world.site.services.ask(server, down)
    world.tried += 1
    time.sleep(60 if world.choose.random() < world.long else world.choose.uniform(1, 2.5) * LEASE)
    world.site.services.ask(server, up)
    finish(world, runs)
    return runs, {DONE, BUSY, SOURCE}


@fault("token", "the token rotates, or expires, while work is under way", tries=3)
def token(world):
    ask = world.site.services.ask
    env = {}
    if world.lock == "s3":
        env = world.site.session()
    model = world.choose.choice([one for one in world.site.models if one.source == "hub"])
    if world.lock == "file":
        ask("all", "private", repo=model.name, token="hf_PLANTEDplantedPLANTEDplanted")
    pods = world.choose.sample(world.pods, 2)
    for pod in pods:
        world.new_pod(pod)
    runs = [world.prefill(pod, model, env=env) for pod in pods]
    until(instants(world, runs[:1])[0][0])
    world.tried += 1
    if world.lock == "k8s":
        ask("all", "rotate")
        return runs, {DONE, BUSY}
    if world.lock == "file":
        ask("all", "private", repo=model.name, token="hf_another")
    for run in runs:
        run.wait(60)
    ask("all", "heal")
    return runs, {DONE, BUSY, SOURCE}
