"""The HTTP of a Lease server: its socket, its connections, and requests made into answers.

`leases.LeaseServer` says who may do what, and what goes wrong; `leasestore` what a write does.
"""

import json
import os
import re
import socket
import ssl
import sys
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import leaseschema as schema

_PATH = r"/apis/coordination\.k8s\.io/v1/namespaces/(?P<space>[^/]+)/leases(?:/(?P<name>[^/]+))?"
_VERBS = {
    ("GET", True): "get",
    ("GET", False): "list",
    ("POST", False): "create",
    ("PUT", True): "update",
    ("PATCH", True): "patch",
    ("DELETE", True): "delete",
    ("DELETE", False): "deletecollection",
}
_BUSY = "Too many requests, please try again later."
_SAYINGS = {
    500: ("InternalError", "Internal error occurred: etcdserver: request timed out"),
    503: ("ServiceUnavailable", "the server is currently unable to handle the request"),
    504: ("Timeout", "Timeout: request did not complete within requested timeout"),
}


class Listener(ThreadingHTTPServer):
    request_queue_size = 128
    block_on_close = False

    def __init__(self, address, api):
        self.api = api
        self.closing = threading.Event()
        self._connections: list[socket.socket] = []
        self._tls = None
        if api.authority:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            api.authority.issue_cert(*api.names).configure_cert(self._tls)
        super().__init__(address, _Handler)
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()
        for connection in self._connections:
            with suppress(OSError):
                socket.socket.shutdown(connection, socket.SHUT_RDWR)

    def get_request(self):
        request, address = super().get_request()
        if self._tls:  # the handshake is for the connection's own thread
            request = self._tls.wrap_socket(
                request, server_side=True, do_handshake_on_connect=False
            )
        self._connections.append(request)
        return request, address

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), OSError):  # OSError: one side hung up
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *args):
        pass

    def do_GET(self):
        data = self.rfile.read(int(self.headers["Content-Length"] or 0))
        api, closing, url = self.server.api, self.server.closing, urlsplit(self.path)
        fault = api.take(self.command, url.path)
        status, body, warnings = None, None, []
        closing.wait(fault.delay)
        while fault.gate and not fault.gate.wait(0.02) and not closing.is_set():
            pass
        if not closing.is_set() and fault.drop != "before":
            status, body, warnings = self.outcome(api, url, data, fault)
            if closing.wait(fault.lag) or fault.drop == "after":
                status = None
        api.seen(self.command, url.path, status)
        if status is None:
            self.hang_up(reset=fault.reset)
        else:
            self.send(status, None if fault.bare else body, warnings, fault.retry_after)

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815 - http.server's names

    def outcome(self, api, url, data, fault):
        try:
            if not fault.status:
                return self.answer(api, url, data)
            if fault.applied:
                self.answer(api, url, data)
        except schema.StatusError as error:
            if not fault.status:
                return error.code, error.body, []
        if fault.status == 429:
            return 429, _BUSY, []
        reason, message = _SAYINGS.get(fault.status, ("", f"status {fault.status}"))
        return fault.status, schema.StatusError(fault.status, reason, message, {}).body, []

    def answer(self, api, url, data):
        if not (asked := re.fullmatch(_PATH, url.path)):
            message = "the server could not find the requested resource"
            raise schema.StatusError(404, "NotFound", message, {})
        space, name = asked["space"], asked["name"] or ""
        verb = _VERBS.get((self.command, bool(name)), "")
        api.authorize(self.headers["Authorization"], verb, space, name)
        leases, query = api.namespaces[space], parse_qs(url.query)
        dry_run = query.get("dryRun") == ["All"]
        validation = query.get("fieldValidation", ["Warn"])[0]
        agent = (self.headers["User-Agent"] or "unknown").split("/")[0]
        how = {"manager": query.get("fieldManager", [agent])[0], "dry_run": dry_run}
        if verb == "get":
            return 200, leases.read(name), []
        if verb == "delete":
            return 200, leases.delete(name, dry_run=dry_run), []
        if verb not in {"create", "update", "patch"}:
            message = "the server does not allow this method on the requested resource"
            raise schema.StatusError(405, "MethodNotAllowed", message, {})
        if verb == "patch":
            if self.headers["Content-Type"] != "application/merge-patch+json":
                raise schema.StatusError(415, "UnsupportedMediaType", "only merge-patch is known")
            change = schema.parse_json(data)
            return 200, *leases.patch(name, change, validation=validation, **how)
        metadata, spec, warnings = schema.decode(schema.parse_json(data), validation=validation)
        if verb == "create":
            return 201, leases.create(metadata, spec, **how), warnings
        made = []

        def may_create():
            api.authorize(self.headers["Authorization"], "create", space, name)
            made.append(name)

        lease = leases.replace(name, metadata, spec, may_create=may_create, **how)
        return 201 if made else 200, lease, warnings

    def send(self, status, body, warnings, retry_after):
        text = body if isinstance(body, str) else json.dumps(body, separators=(",", ":"))
        data = b"" if body is None else f"{text}\n".encode()
        self.send_response(status)
        self.send_header("Cache-Control", "no-cache, private")
        if body is not None:
            plain = "text/plain; charset=utf-8"
            self.send_header("Content-Type", plain if body is text else "application/json")
        for warning in warnings:
            self.send_header("Warning", f"299 - {schema.quote(warning)}")
        if retry_after is not None:
            self.send_header("Retry-After", str(retry_after))
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def hang_up(self, *, reset):
        """Close without a word; with a RST, which is what SO_LINGER of 0 seconds makes of it."""
        self.close_connection = True
        if reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            os.close(self.connection.detach())
