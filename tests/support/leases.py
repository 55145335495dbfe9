"""A Kubernetes API server on a local port that knows one thing: Leases, for the real `lightkube`.

It answers as 1.33 did, recorded in lease-transcript.json: get, create, update, merge-patch and
delete in the namespaces it has, to the tokens it knows. No list, no watch, no other patch.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import re
import threading
from dataclasses import dataclass
from typing import NamedTuple

import leaseschema as schema
import trustme
from leasehttp import Listener
from leasestore import Leases


class Seen(NamedTuple):
    """One request; `status` is None where the client was told nothing."""

    method: str
    path: str
    status: int | None


@dataclass(kw_only=True)
class Fault:
    """What goes wrong with the requests it hits, `times` times (None: always).

    In this order, and adding up: `delay` seconds and until `gate` is set before anything is done;
    `drop="before"` hangs up then; `status` is the answer in place of the true one, and nothing is done unless `applied`;
    `lag` seconds between deed and answer; `drop="after"` hangs up then, after a write was kept.
    429 is plain text, as from the real server; `bare` sends no body and no type, as a proxy may.
    To hang up is an orderly close, or a RST with `reset`.
    """

    path: str = ""  # a regex, searched in the path; "" is in every one
    method: str | None = None
    times: int | None = None
    delay: float = 0.0
    gate: threading.Event | None = None
    lag: float = 0.0
    drop: str | None = None
    reset: bool = False
    status: int | None = None
    applied: bool = False
    retry_after: int | None = None
    bare: bool = False

    def hits(self, method: str, path: str) -> bool:
        matches = self.method in {None, method} and re.search(self.path, path)
        return self.times != 0 and bool(matches)


class LeaseServer:
    """Serves from construction to `close`; between `down` and `up` connections are refused.

    `tokens` maps each bearer token to its verbs; the first is in the files it writes. `namespaces`
    maps names to `Leases`, of which `leases` is the first; `port` may be one which was closed.
    It listens on `host`; its certificate is for 127.0.0.1 and the further addresses `known_as`.
    """

    def __init__(
        self,
        *,
        namespaces=("warm",),
        tokens=None,
        tls=False,
        port=0,
        host="127.0.0.1",
        known_as=(),
    ):
        lock, revisions = threading.RLock(), itertools.count(101)
        self.namespaces = {name: Leases(name, lock, revisions) for name in namespaces}
        self.namespace, self.leases = next(iter(self.namespaces.items()))
        self.tokens = tokens or {"token-of-the-pod": {"get", "create", "update"}}
        self.requests: list[Seen] = []
        self.faults: list[Fault] = []
        self.port, self.host, self.names = port, host, ("127.0.0.1", *known_as)
        self.authority = trustme.CA() if tls else None
        self._lock = threading.Lock()
        self._listener = None
        self.up()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    @property
    def url(self) -> str:
        return f"{'https' if self.authority else 'http'}://127.0.0.1:{self.port}"

    @property
    def token(self) -> str:
        return next(iter(self.tokens))

    def up(self) -> None:
        if self._listener is None:
            self._listener = Listener((self.host, self.port), self)
            self.port = self._listener.server_address[1]

    def down(self) -> None:
        """Refuse new connections and drop the open ones; what is stored stays."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    close = down

    def fault(self, **what) -> Fault:
        """Add a `Fault` made of these fields; the first of all which hits a request happens."""
        self.faults.append(fault := Fault(**what))
        return fault

    def rotate(self, token: str) -> None:
        """Know the first token by this name from now on; write the files again to tell of it."""
        verbs = self.tokens[self.token]
        self.tokens = {token: verbs} | {t: v for t, v in self.tokens.items() if t != self.token}

    def kubeconfig(self, path) -> str:
        """Write a kubeconfig for KUBECONFIG to name; return its path."""
        cluster = {"server": self.url}
        if self.authority:
            certificate = base64.b64encode(self.authority.cert_pem.bytes()).decode()
            cluster["certificate-authority-data"] = certificate
        context = {"cluster": "here", "user": "pod", "namespace": self.namespace}
        config = {"apiVersion": "v1", "kind": "Config", "current-context": "here"}
        config["clusters"] = [{"name": "here", "cluster": cluster}]
        config["contexts"] = [{"name": "here", "context": context}]
        config["users"] = [{"name": "pod", "user": {"token": self.token}}]
        _write(path, json.dumps(config))
        return os.fspath(path)

    def in_cluster(self, directory) -> dict[str, str]:
        """Write what a pod finds in its service account's directory; return its variables."""
        if not self.authority:
            raise ValueError("a pod speaks https to the API server; expected tls=True")
        os.makedirs(directory, exist_ok=True)
        files = {"token": self.token, "namespace": self.namespace}
        files["ca.crt"] = self.authority.cert_pem.bytes().decode()
        for name, text in files.items():
            _write(os.path.join(directory, name), text)
        address = {"KUBERNETES_SERVICE_HOST": "127.0.0.1"}
        return address | {"KUBERNETES_SERVICE_PORT": str(self.port)}

    def seen(self, method: str, path: str, status: int | None) -> None:
        self.requests.append(Seen(method, path, status))

    def take(self, method: str, path: str) -> Fault:
        with self._lock:
            fault = next((fault for fault in self.faults if fault.hits(method, path)), Fault())
            if fault.times is not None:
                fault.times -= 1
            return fault

    def authorize(self, authorization: str | None, verb: str, space: str, name: str) -> None:
        user = f"system:serviceaccount:{self.namespace}:warmer"
        verbs = self.tokens.get((authorization or "").removeprefix("Bearer "))
        if authorization is None:
            user, verbs = "system:anonymous", set()
        if verbs is None:
            raise schema.StatusError(401, "Unauthorized", "Unauthorized")
        if verb not in verbs or space not in self.namespaces:
            what = f"{schema.RESOURCE} {schema.quote(name)}" if name else schema.RESOURCE
            message = (
                f'{what} is forbidden: User "{user}" cannot {verb} resource "leases" in API group'
                f' "{schema.GROUP}" in the namespace "{space}"'
            )
            raise schema.StatusError(403, "Forbidden", message, schema.details_of(name))


def _write(path, text):
    temporary = f"{os.fspath(path)}.tmp"
    with open(temporary, "w", encoding="utf-8") as stream:
        stream.write(text)
    os.replace(temporary, path)
