"""Nodes that share no volume, only a bucket; each has the same image and the same warm dir's path."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from contextlib import contextmanager

import fakeengine
import runs
import s3
from buckets import Bucket

KERNELS = ("compile", "flashinfer", "jit", "bytecode")
TEAM = "kernels/team"


class Fleet:
    """Nodes beside one bucket: `fleet.node()` is the next, with an empty volume and warm dir."""

    def __init__(self, place: runs.Place, bucket: Bucket):
        self.bucket = bucket
        self.url = f"s3://{bucket.name}/{TEAM}"
        self.place = place

    def node(self) -> runs.Place:
        """Move to another node: what the last one had at the warm dir's path is put aside."""
        volume = next(
            path
            for number in itertools.count(1)
            if not os.path.exists(path := f"{self.place.top}/volume-{number}")
        )
        os.mkdir(volume)
        return self.at(self.place.but(volume=volume))

    def at(self, node: runs.Place) -> runs.Place:
        """Put another pod on a node: an empty warm dir at the same path, and its volume."""
        os.rename(node.warm, f"{node.warm}-{next(_moved)}")
        os.mkdir(node.warm)
        return node

    def env(self, keys=None, **more: str) -> dict[str, str]:
        path = f"{self.place.engine.bin}:{os.defpath}"
        # A value that is in no file: what is named like a secret is looked for in what is published.
        nowhere = {"AWS_SHARED_CREDENTIALS_FILE": f"{self.place.top}/no/credentials"}
        mine = {"PATH": path, "WARMER_REMOTE": self.url}
        return self.bucket.environment(keys) | nowhere | mine | more

    def away(self) -> dict[str, str]:
        """The variables of a pod for which nobody listens at the endpoint."""
        return self.env(AWS_ENDPOINT_URL=f"http://127.0.0.1:{runs.closed_port()}")

    def objects(self, under: str = "") -> dict[str, bytes]:
        """Read all that is in the bucket, by name below the prefix."""
        client, top = self.bucket.client, f"{TEAM}/v1/"
        found = client.list_objects_v2(Bucket=self.bucket.name, Prefix=top + under)
        names = [entry["Key"] for entry in found.get("Contents", ())]
        return {name.removeprefix(top): self.read(name.removeprefix(top)) for name in names}

    def read(self, name: str) -> bytes:
        got = self.bucket.client.get_object(Bucket=self.bucket.name, Key=f"{TEAM}/v1/{name}")
        return got["Body"].read()

    def put(self, name: str, data: bytes) -> None:
        self.bucket.client.put_object(Bucket=self.bucket.name, Key=f"{TEAM}/v1/{name}", Body=data)

    def remove(self, name: str) -> None:
        self.bucket.client.delete_object(Bucket=self.bucket.name, Key=f"{TEAM}/v1/{name}")

    def seals(self, kind: str) -> dict[int, dict]:
        """Read the seals of a kind's one key, by number."""
        found = self.objects(f"seals/{kind}/")
        assert len({name.split("/")[2] for name in found}) <= 1, found
        return {
            int(name.split("/")[3].removesuffix(".json")): json.loads(found[name]) for name in found
        }

    def seal_name(self, kind: str, number: int) -> str:
        (name,) = (one for one in self.objects(f"seals/{kind}/") if one.endswith(f"/{number}.json"))
        return name

    def check(self) -> None:
        """Assert what must hold of the bucket whatever was killed: what is sealed is there."""
        there = self.objects()
        sealed = {
            name: json.loads(data) for name, data in there.items() if name.startswith("seals/")
        }
        for name, data in there.items():
            if name.startswith("blobs/"):
                assert name == f"blobs/{hashlib.sha256(data).hexdigest()}"
        numbers = {(name.split("/")[1], seal["generation"]) for name, seal in sealed.items()}
        for name, seal in sealed.items():
            assert name == f"seals/{seal['kind']}/{seal['key']}/{seal['generation']}.json"
            for file in seal["files"]:
                assert len(there[f"blobs/{file['sha256']}"]) == file["size"]
            assert set(seal["needs"].items()) <= numbers, "what it needs is there before it"


_moved = itertools.count(1)


@contextmanager
def fleet(top):
    """Set a fleet up under `top`, with an image for a GPU, and without bytecode."""
    with Bucket(s3.seaweed()) as bucket, runs.place(top) as place:
        image = {"torch": "2.13.0+cu130", "cuda": "13.0", "precompiled": False}
        engine = fakeengine.make_engine(f"{top}/gpu", **image)
        yield Fleet(place.but(engine=engine), bucket)


@contextmanager
def beside(other: Fleet, *, server=None, copied: bool):
    """Set a fleet of the same image up beside another bucket: empty, or with the same objects."""
    with Bucket(server or s3.seaweed()) as bucket:
        fleet = Fleet(other.place, bucket)
        for name, data in other.objects().items() if copied else ():
            fleet.put(name, data)
        yield fleet


def warnings(result: runs.Result) -> list[dict]:
    return [line for line in result.logged if line["level"] in ("warning", "error")]
