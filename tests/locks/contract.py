"""What the contract suite needs of a lock: to open it, and a back door to what it keeps.

A bench plants and reads records without warmer's code: the bytes of a file, the objects of an API
server, the objects of a bucket. So a lock that lies to itself consistently is found out.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import struct
from pathlib import Path

import owner
from children import Child
from owner import KEY, OTHER

from warmer.fill.locks.record import Owner
from warmer.fill.locks.sight import Sight

LEASE = 30.0
STRANGER, NONCE = "a stranger", "f" * 16


class Bench:
    """One lock in one state, with its processes and grants; all end with `close`.

    `at` says where it is; `at_once` whether an owner that is killed is succeeded without a lease;
    `beside` whether something besides the record says that the lock is held. `keys` are those
    whose records are removed at the end, where others would find them.
    """

    at_once = False
    beside = True

    def __init__(self, at, *, top):
        self.at = at | {"volume": f"{top}/volume"}
        os.makedirs(self.at["volume"], exist_ok=True)
        self._top, self._register = top, None
        self._children = []
        self._grants = []
        self.keys = [KEY, OTHER]

    def lock(self, me="me", *, lease=LEASE):
        """Open the lock in this process, always on one client of its service."""
        if self.at["mechanism"] in ("k8s", "s3") and self._register is None:
            self._register = owner.open_register(self.at)
        return owner.open_lock(self.at, me=me, lease=lease, register=self._register)

    def waiter(self, me="me", *, lease=LEASE):
        """Open it with a clock that only `Waiter.take` moves."""
        return Waiter(self, self.lock(me, lease=lease))

    def take(self, lock, key=KEY):
        """Take a key that must be free."""
        grant = lock.try_acquire(key)
        assert not isinstance(grant, Owner), f"held by {grant}"
        return self.keep(grant)

    def keep(self, grant):
        """See that a grant ends with the test."""
        self._grants.append(grant)
        return grant

    def child(self, me="holder", *, lease=LEASE):
        """Start a process that has the lock open."""
        return self.start(me, lease=lease).ready()

    def start(self, me="holder", *, lease=LEASE, **how):
        """Start one without waiting until it is `ready`."""
        log = f"{self._top}/log-{len(self._children)}"
        self._children.append(Child(self.at, me=me, lease=lease, log=log, **how))
        return self._children[-1]

    def close(self):
        for child in self._children:
            child.kill()
        for grant in self._grants:
            grant.release()

    # --- the back door -------------------------------------------------------------------------

    def kept(self, key=KEY):
        """Return all that is kept, for comparison; None where nothing is."""
        raise NotImplementedError

    def read(self, key=KEY):
        """Return the record in it."""
        raise NotImplementedError

    def plant(self, data, *, holder=None, key=KEY):
        """Put bytes in the record's place; with a holder, as if that one held the lock."""
        raise NotImplementedError

    def delete(self, key=KEY):
        """Remove what is kept."""
        raise NotImplementedError

    def named(self, key=KEY):
        """How the record of a key is called in a register: docs of each mechanism."""
        text = json.dumps(
            {"factors": dict(key.factors), "kind": key.kind}, sort_keys=True, separators=(",", ":")
        )
        return f"{key.kind}-{hashlib.sha256(text.encode()).hexdigest()}"

    def supplant(self, key=KEY, **record):
        """Make somebody else the owner, by the back door."""
        fields = {"epoch": 99, "name": STRANGER, "nonce": NONCE, "lease": 600.0} | record
        self.plant(json.dumps(fields).encode(), holder=STRANGER, key=key)


class Waiter:
    """A lock whose sight has a clock of its own: leases pass in looks, not in seconds."""

    def __init__(self, bench, lock):
        self._bench, self._lock, self._now = bench, lock, 1000.0
        lock._sight = Sight(lambda: self._now)

    def look(self, key=KEY, *, after=0.0):
        """Let the clock move, then ask: a grant or an owner."""
        self._now += after
        found = self._lock.try_acquire(key)
        return found if isinstance(found, Owner) else self._bench.keep(found)

    def take(self, key=KEY, *, step=2.5, most=600.0):
        """Look every `step` seconds of the clock until it is granted.

        Returns the grant and the seconds it took.
        """
        began = self._now
        found = self.look(key)
        while isinstance(found, Owner):
            assert self._now - began < most, f"still held by {found}"
            found = self.look(key, after=step)
        return found, self._now - began


class FileBench(Bench):
    """The file on the volume."""

    at_once = True

    def __init__(self, top):
        super().__init__({"mechanism": "file"}, top=top)
        self._strangers = {}

    def path(self, key=KEY):
        return f"{self.at['volume']}/v1/locks/{self.named(key)}.lock"

    def kept(self, key=KEY):
        with contextlib.suppress(FileNotFoundError), open(self.path(key), "rb") as stream:
            return stream.read()
        return None

    def read(self, key=KEY):
        return json.loads(self.kept(key))

    def plant(self, data, *, holder=None, key=KEY):
        """Put a file of these bytes in the place; one that a stranger holds is locked."""
        os.makedirs(os.path.dirname(self.path(key)), exist_ok=True)
        fresh = f"{self.path(key)}.planted"
        stream = open(fresh, "w+b")
        self._strangers[fresh] = stream
        stream.write(data)
        stream.flush()
        if holder:
            whole = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            fcntl.fcntl(stream, fcntl.F_OFD_SETLK, whole)
        os.replace(fresh, self.path(key))

    def delete(self, key=KEY):
        os.unlink(self.path(key))

    def close(self):
        super().close()
        for stream in self._strangers.values():
            stream.close()


class LeaseBench(Bench):
    """Leases of a Kubernetes API server: `leases` maps names to them, whatever keeps them."""

    def __init__(self, top, *, leases, namespace):
        prefix = f"warmer-test-{secrets.token_hex(4)}"
        super().__init__({"mechanism": "k8s", "place": namespace, "prefix": prefix}, top=top)
        self._leases = leases

    def named(self, key=KEY):
        kind, digest = super().named(key).split("-")
        return f"{self.at['prefix']}-{kind}-{digest[:32]}"

    def kept(self, key=KEY):
        return self._leases.get(self.named(key))

    def read(self, key=KEY):
        lease = self.kept(key)
        record = json.loads(lease["metadata"]["annotations"]["warmer/owner"])
        held = lease["spec"].get("holderIdentity")
        assert bool(held) == bool(record["name"]), "the Lease and our record in it disagree"
        assert lease["spec"]["leaseTransitions"] == record["epoch"]
        return record

    def plant(self, data, *, holder=None, key=KEY):
        spec = {}
        with contextlib.suppress(Exception):  # it need not be JSON
            spec["leaseTransitions"] = int(json.loads(data)["epoch"])
        if holder:
            # As warmer writes it, so that a record which can be read counts.
            spec["holderIdentity"] = f"{holder} {NONCE if NONCE.encode() in data else ''}".strip()
        annotations = {"warmer/owner": data.decode("latin-1")}
        self._leases[self.named(key)] = {"metadata": {"annotations": annotations}, "spec": spec}

    def delete(self, key=KEY):
        del self._leases[self.named(key)]

    def close(self):
        super().close()
        for key in self.keys:
            if self._leases.get(self.named(key)):
                del self._leases[self.named(key)]


class ObjectBench(Bench):
    """Objects of a bucket: `client` is a plain boto3 client with leave to do everything."""

    beside = False

    def __init__(self, top, *, client, bucket):
        prefix = f"test/{secrets.token_hex(4)}"
        super().__init__({"mechanism": "s3", "place": bucket, "prefix": prefix}, top=top)
        self._client = client

    def named(self, key=KEY):
        kind, digest = super().named(key).split("-")
        return f"{self.at['prefix']}/{kind}-{digest[:32]}"

    def kept(self, key=KEY):
        try:
            found = self._client.get_object(Bucket=self.at["place"], Key=self.named(key))
        except self._client.exceptions.NoSuchKey:
            return None
        return found["Body"].read()

    def read(self, key=KEY):
        return json.loads(self.kept(key))

    def plant(self, data, *, holder=None, key=KEY):
        """Put an object; who holds it is told by its bytes alone."""
        self._client.put_object(Bucket=self.at["place"], Key=self.named(key), Body=data)

    def delete(self, key=KEY):
        self._client.delete_object(Bucket=self.at["place"], Key=self.named(key))


class TicketBench(Bench):
    """The tickets on the volume, which are files; `settle` seconds old before they come first."""

    def __init__(self, top, *, settle):
        super().__init__({"mechanism": "tickets", "settle": settle}, top=top)

    def directory(self, key=KEY):
        return Path(f"{self.at['volume']}/v1/locks/{self.named(key)}.lock.tickets")

    def tickets(self, key=KEY):
        return sorted(self.directory(key).iterdir()) if self.directory(key).exists() else []

    def plant(self, data, *, name, key=KEY):
        self.directory(key).mkdir(parents=True, exist_ok=True)
        (self.directory(key) / name).write_bytes(data)
