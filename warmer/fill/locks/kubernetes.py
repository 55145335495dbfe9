"""Lease objects of the Kubernetes API (coordination.k8s.io/v1) as a register.

Guarantees: a write with a stale ``resourceVersion`` is refused (409), so that of two writers one
wins. Always PUT: a merge patch without a version never conflicts.

Does *not* guarantee any fencing of the volume, as client-go says of its own leader election.

One Lease per key, named ``<prefix>-<kind>-<key>``; never deleted, so that ``leaseTransitions``
goes on growing. The service account needs ``get``, ``create`` and ``update`` on leases. Where
there is no service account, KUBECONFIG is read. The token file is read again when it rotates.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, Final, NoReturn

import httpx2 as httpx
from lightkube import Client
from lightkube.core.exceptions import ApiError, ConfigError
from lightkube.generic_resource import create_namespaced_resource

from warmer.errors import LockError
from warmer.fill import locks, retryafter
from warmer.fill.deadline import within
from warmer.fill.locks import UnansweredError
from warmer.fill.locks.lease import ConflictError
from warmer.fill.locks.record import Owner, as_epoch, as_lease, parse

_LEASE: Final[Any] = create_namespaced_resource("coordination.k8s.io", "v1", "Lease", "leases")
_TIMEOUT: Final = httpx.Timeout(5.0, connect=2.0)
_TOLD: Final = (
    httpx.NetworkError,
    httpx.TimeoutException,
    httpx.RemoteProtocolError,
    ConfigError,
)
"""Errors whose text is of the connection; others may repeat a header, and the token with it."""

_RECORD: Final = "warmer/owner"
"""Annotation that holds the owner's record; the Lease's own fields say the same to others."""


class KubernetesRegister:
    """Records in Lease objects of one namespace.

    Args:
        namespace: where the Leases are.
        prefix: what their names start with; one per volume.

    Raises:
        LockError: there is neither a service account nor a kubeconfig.
    """

    def __init__(self, namespace: str, prefix: str) -> None:
        self._namespace = namespace
        self._prefix = prefix
        self._acquired: dict[str, str] = {}
        try:
            self._client = Client(namespace=namespace, timeout=_TIMEOUT)
        except Exception as exc:
            # A kubeconfig may be anything, and what lightkube makes of it too. It may hold a token.
            why = _line(exc) if isinstance(exc, ConfigError | OSError) else type(exc).__name__
            raise LockError(
                f"got no Kubernetes API to ask for --lock k8s:// ({why}), expected a service account "
                "or KUBECONFIG",
                reason="no-kubernetes",
                hint="let the pod mount its service account's token, or use another --lock",
            ) from exc

    def read(self, name: str) -> tuple[Owner, str] | None:
        """The record and its version; None where there is none.

        Raises:
            LockError: the API failed or refused.
        """
        try:
            lease = within(locks.ANSWER, self._client.get, _LEASE, self._name(name))
        except Exception as exc:  # noqa: BLE001 - `_failed` raises
            if isinstance(exc, ApiError) and exc.response.status_code == 404:
                return None
            self._failed("get", exc)
        meta, spec = lease.get("metadata") or {}, lease.get("spec") or {}
        return _owner(meta, spec), f"{meta.get('resourceVersion')} {meta.get('uid')}"

    def write(self, name: str, owner: Owner, version: str | None) -> str:
        """Write the record over one version, or as a new one; return its version.

        Raises:
            ConflictError: the object has another version.
            UnansweredError: it may be written or not.
            LockError: the API failed or refused.
        """
        acquired = self._acquired.setdefault(owner.nonce, _now())
        lease = _lease(self._name(name), self._namespace, owner, acquired)
        try:
            if version is None:
                written = within(locks.ANSWER, self._client.create, _LEASE(lease))
            else:
                number, uid = version.split()
                lease["metadata"] |= {"resourceVersion": number, "uid": uid}
                written = within(locks.ANSWER, self._client.replace, _LEASE(lease))
        except Exception as exc:
            status = exc.response.status_code if isinstance(exc, ApiError) else 0
            # Not found: an update of what was deleted, or a namespace to make it in.
            if status == 409 or (status == 404 and version is not None):
                raise ConflictError from exc
            self._failed("update" if version else "create", exc)
        meta = written.get("metadata") or {}
        return f"{meta.get('resourceVersion')} {meta.get('uid')}"

    def _name(self, name: str) -> str:
        return f"{self._prefix}-{name}"

    def _failed(self, verb: str, exc: Exception) -> NoReturn:
        """Raise what a failure means; one that nobody foresaw is an answer that did not come."""
        if not isinstance(exc, httpx.HTTPStatusError):
            why = f"{type(exc).__name__}: {_line(exc)}" if isinstance(exc, _TOLD) else ""
            raise UnansweredError(
                f"got no answer from the Kubernetes API ({why or type(exc).__name__})",
                reason="lock-unreachable",
                hint="look at the network policy, the API server and the token; or use another --lock",
                retry_after=_told(exc),
            ) from exc
        status = exc.response.status_code
        # The text of one that is no ApiError has the URL in it, in two lines.
        said = _line(exc) if isinstance(exc, ApiError) else exc.response.reason_phrase
        if status >= 500 or status == 429:
            raise UnansweredError(
                f"the Kubernetes API answered {status}: {said}",
                reason="lock-unavailable",
                hint="run again when the API server is well",
                retry_after=_told(exc),
            ) from exc
        if status == 401:
            reason, hint = "lock-denied", "the token is no longer good: look at the service account"
        else:
            reason = "lock-denied" if status == 403 else "lock-refused"
            hint = (
                f"let the service account {verb} leases in the namespace {self._namespace!r} "
                "(get, create, update), and see that the namespace exists"
            )
        raise LockError(
            f"got {status} from the Kubernetes API for --lock k8s://{self._namespace}: {said}",
            reason=reason,
            hint=hint,
        ) from exc


def _owner(meta: dict[str, Any], spec: dict[str, Any]) -> Owner:
    """Read a Lease; one that somebody else made has no record of ours, but a holder."""
    holder = str(spec.get("holderIdentity") or "")
    record = (meta.get("annotations") or {}).get(_RECORD, "")
    found = parse(record.encode())
    epoch = max(found.epoch, as_epoch(int(spec.get("leaseTransitions") or 0)))
    if not holder:
        return Owner(epoch=epoch, beat=found.beat)
    if found.name and found.nonce and holder.endswith(found.nonce):
        return found
    lease = as_lease(float(spec.get("leaseDurationSeconds") or 0))
    return Owner(epoch=epoch, name=holder, lease=lease)


def _now() -> str:
    """Now, in the one form the API takes; for people to read, compared by nobody."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _lease(name: str, namespace: str, owner: Owner, acquired: str) -> dict[str, Any]:
    spec: dict[str, Any] = {"leaseTransitions": owner.epoch}
    if owner.name:
        spec |= {
            "holderIdentity": f"{owner.name} {owner.nonce}",
            "leaseDurationSeconds": max(1, round(owner.lease)),
            "acquireTime": acquired,
            "renewTime": _now(),
        }
    record = {slot: getattr(owner, slot) for slot in Owner.__slots__}
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "annotations": {_RECORD: json.dumps(record)},
        },
        "spec": spec,
    }


def _told(exc: BaseException) -> float | None:
    """Seconds that the answer behind an error says to wait; lightkube fails over one without a type."""
    if not isinstance(exc, httpx.HTTPStatusError):
        return _told(exc.__context__) if isinstance(exc, KeyError) and exc.__context__ else None
    return retryafter.seconds(exc.response.headers.get("Retry-After") or "")


def _line(exc: Exception) -> str:
    return " ".join(str(exc).split())
