"""The Leases of a namespace as a Kubernetes API server keeps them: what a write does, or why not.

Where lease-transcript.json is silent this follows the server's source: an update of a Lease that is
not there creates it, unless it names a uid. Simpler than there: managedFields tell the last writer.
"""

import copy
import uuid
from collections.abc import MutableMapping
from datetime import UTC, datetime

import leaseschema as schema
from leaseschema import API_VERSION, METADATA, SPEC

_OF_THE_CLIENT = ("labels", "annotations", "ownerReferences", "finalizers")
_MODIFIED = (
    "the object has been modified; please apply your changes to the latest version and try again"
)


class Leases(MutableMapping):
    """Name → object.

    As a mapping it is the back door: copies come out, and what is put in is kept unchecked, made
    complete by the metadata which every stored object has. The methods are what requests do.
    """

    def __init__(self, namespace, lock, revisions):
        self.namespace = namespace
        self._lock, self._revisions = lock, revisions
        self._objects = {}  # an object in it is never changed, only replaced

    def __getitem__(self, name):
        return copy.deepcopy(self._objects[name])

    def __setitem__(self, name, lease):
        lease = copy.deepcopy(lease)
        with self._lock:
            old = self._objects.get(name, {}).get("metadata", {})
            self._put(name, old | lease.get("metadata", {}), lease.get("spec", {}), "planted")

    def __delitem__(self, name):
        with self._lock:
            del self._objects[name]
            next(self._revisions)

    def __iter__(self):
        return iter(list(self._objects))

    def __len__(self):
        return len(self._objects)

    def read(self, name):
        lease = self._objects.get(name)
        if lease is None:
            raise schema.not_found(name)
        return lease

    def create(self, metadata, spec, *, manager, dry_run=False):
        self._check_namespace(metadata)
        name = metadata.get("name") or ""
        if wrong := schema.check_name(name) + schema.check_spec(spec):
            raise schema.invalid(name, wrong)
        if metadata.get("resourceVersion"):
            message = "resourceVersion should not be set on objects to be created"
            raise schema.StatusError(500, "", message)
        with self._lock:
            if name in self._objects:
                raise schema.already_exists(name)
            return self._put(name, _of_the_client(metadata), spec, manager, dry_run=dry_run)

    def replace(self, name, metadata, spec, *, manager, dry_run=False, may_create=None):
        """Return the object; `may_create` is called before one is made, to raise if it must not."""
        if (got := metadata.get("name") or "") != name:
            message = f"the name of the object ({got}) does not match the name on the URL ({name})"
            raise schema.bad_request(message)
        self._check_namespace(metadata)
        with self._lock:
            old = self._objects.get(name)
            kept = old["metadata"] if old else {}
            uid, version = metadata.get("uid"), metadata.get("resourceVersion") or "0"
            if uid and uid != kept.get("uid"):
                raise schema.conflict(
                    name,
                    "StorageError: invalid object, Code: 4,"
                    f" Key: /registry/leases/{self.namespace}/{name}, ResourceVersion: 0,"
                    f" AdditionalErrorMsg: Precondition failed: UID in precondition: {uid},"
                    f" UID in object meta: {kept.get('uid', '')}",
                )
            if old is None:
                may_create()
                fresh = metadata | {"resourceVersion": ""}
                return self.create(fresh, spec, manager=manager, dry_run=dry_run)
            if version == "0":
                wrong = "Invalid value: 0x0: must be specified for an update"
                raise schema.invalid(name, [("metadata.resourceVersion", wrong)], kind="leases")
            if version != kept["resourceVersion"]:
                raise schema.conflict(name, _MODIFIED)
            if wrong := schema.check_spec(spec):
                raise schema.invalid(name, wrong)
            fixed = {key: value for key, value in kept.items() if key not in _OF_THE_CLIENT}
            metadata = fixed | _of_the_client(metadata)
            return self._put(name, metadata, spec, manager, old=old, dry_run=dry_run)

    def patch(self, name, change, *, manager, dry_run=False, validation="Warn"):
        """Merge into what the object is now, unless the change itself names a resourceVersion."""
        with self._lock:
            merged = _merge(self.read(name), change)
            metadata, spec, warnings = schema.decode(merged, validation=validation)
            return self.replace(name, metadata, spec, manager=manager, dry_run=dry_run), warnings

    def delete(self, name, *, dry_run=False):
        with self._lock:
            lease = self.read(name)
            if not dry_run:
                del self[name]
        done = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}
        return done | {"details": schema.details_of(name, uid=lease["metadata"]["uid"])}

    def _check_namespace(self, metadata):
        if (metadata.get("namespace") or self.namespace) != self.namespace:
            message = "the namespace of the provided object does not match the namespace sent on"
            raise schema.bad_request(f"{message} the request")

    def _put(self, name, metadata, spec, manager, *, old=None, dry_run=False):
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        spec = {field: spec[field] for field in SPEC if field in spec}
        by = {"manager": manager, "operation": "Update", "apiVersion": API_VERSION, "time": now}
        by |= {"fieldsType": "FieldsV1"}
        by |= {"fieldsV1": {"f:spec": {f"f:{field}": {} for field in sorted(spec)}}}
        metadata = {"uid": str(uuid.uuid4()), "creationTimestamp": now} | metadata
        metadata |= {"name": name, "namespace": self.namespace}
        metadata |= {"managedFields": [by] if spec else None}
        if old and _content(old) == _content(_lease(metadata, spec)):
            return old  # a write which changes nothing is none
        if dry_run:
            return _lease(metadata, spec)
        metadata |= {"resourceVersion": str(next(self._revisions))}
        self._objects[name] = _lease(metadata, spec)
        return self._objects[name]


def _lease(metadata, spec):
    given = {key: metadata[key] for key in METADATA if metadata.get(key)}
    return {"kind": "Lease", "apiVersion": API_VERSION, "metadata": given, "spec": spec}


def _of_the_client(metadata):
    return {key: metadata[key] for key in _OF_THE_CLIENT if metadata.get(key)}


def _content(lease):
    """What must differ for a new resourceVersion: not who wrote it, nor when."""
    metadata = {key: value for key, value in lease["metadata"].items() if key != "managedFields"}
    return metadata, lease["spec"]


def _merge(value, change):
    """RFC 7396."""
    if not isinstance(change, dict):
        return change
    merged = dict(value) if isinstance(value, dict) else {}
    for key, new in change.items():
        merged[key] = _merge(merged.get(key), new)
        if new is None:
            del merged[key]
    return merged
