"""A Hugging Face Hub on a local port, which the real `huggingface_hub` client takes for one.

`root/<org>/<name>/` holds a repo's plain files. Its one commit is derived from their content, read
again at every request: change a file and `main` has moved. Nothing is sent as xet. A file comes
from the Hub itself (200); with a `cdn`, a second Hub over the same root, an LFS file comes from there
by a signed URL, as the real one's do.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import secrets
import shutil
import socket
import sys
import tempfile
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from hubfault import Fault
from hubrepo import SAYINGS, Commit, File, read_commit, siblings, tree

_REPO = r"(?P<repo>\w[\w.-]*/\w[\w.-]*)"
_API = rf"/api/models/{_REPO}(?:/(?P<verb>revision|tree)/(?P<rev>[^/]+)(?:/(?P<path>.+))?)?"
_RESOLVE = rf"/{_REPO}/(?P<verb>resolve)/(?P<rev>[^/]+)/(?P<path>.+)"


class Seen(NamedTuple):
    """One request; `authorized` says whether an Authorization header came, never which.

    `at` is when, by the monotonic clock.
    """

    method: str
    path: str
    authorized: bool
    range: str | None
    at: float


class RefusedError(Exception):
    """An answer by status, X-Error-Code, X-Error-Message and any further headers."""


class Hub(ThreadingHTTPServer):
    """Serves `root` from construction to `close`; `url` is what HF_ENDPOINT must say.

    `private` maps a repo to the only token which sees it, `gated` to the only one which downloads
    it: as on the real Hub anyone may list what is gated. Clear `faults` to end them all.

    `listed` is told of every repo beside its files. A hub that is a `cdn` serves only URLs that it
    has signed; clear `signed` and they have expired.
    """

    request_queue_size = 128
    block_on_close = False

    def __init__(self, root, *, port=0, host="127.0.0.1", private=None, gated=None, cdn=None):
        self.root = os.fspath(root)
        self.private: dict[str, str] = private or {}
        self.gated: dict[str, str] = gated or {}
        self.log: list[Seen] = []
        self.sent = 0  # bytes of files
        self.faults: list[Fault] = []
        self.listed: list[dict] = []
        self.cdn: Hub | None = cdn
        self.signed: set[str] | None = None
        if cdn:
            cdn.signed = set()
        self.closing = threading.Event()
        self._lock = threading.Lock()
        self._kept: dict[tuple[str, str], str] = {}
        self._connections: list[socket.socket] = []
        super().__init__((host, port), _Handler)
        self.port: int = self.server_address[1]
        self.url = f"http://{host}:{self.port}"
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def __exit__(self, *_):
        self.close()

    def close(self) -> None:
        """Refuse new connections and drop the open ones; done twice is done once."""
        self.closing.set()
        self.shutdown()
        self.server_close()
        for connection in self._connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for copy in self._kept.values():
            shutil.rmtree(copy, ignore_errors=True)

    @property
    def requests(self) -> list[tuple[str, str]]:
        """(method, path without query) of every request so far; `log` knows more."""
        return [(seen.method, seen.path) for seen in self.log]

    def fault(self, path: str = "", **what) -> Fault:
        """Add a `Fault` made of these fields; the first of all which hits a request happens."""
        self.faults.append(fault := Fault(path=path, **what))
        return fault

    def sha(self, repo: str) -> str:
        """Return the commit which `main` of `repo` is at now."""
        return self.commit(repo, "main").sha

    def snapshot(self, repo: str) -> str:
        """Keep serving the present commit by its sha after `main` moves; return the sha."""
        sha = self.sha(repo)
        copy = self._kept[repo, sha] = tempfile.mkdtemp(prefix="hub-")
        shutil.copytree(os.path.join(self.root, repo), copy, dirs_exist_ok=True)
        return sha

    def sign(self, path: str) -> str:
        """Return a URL of this CDN that works until `signed` is cleared."""
        self.signed.add(signature := f"Planted{secrets.token_hex(8)}")
        return f"{self.url}{path}?Expires=1&Signature={signature}"

    def commit(self, repo: str, revision: str) -> Commit:
        kept = self._kept.get((repo, revision))
        found = read_commit(kept or os.path.join(self.root, repo))
        if not kept and revision not in {"main", found.sha}:
            raise RefusedError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return found

    def take(self, method: str, path: str) -> Fault:
        with self._lock:
            fault = next((fault for fault in self.faults if fault.hits(method, path)), Fault())
            if fault.times is not None:
                fault.times -= 1
            return fault

    def add(self, count: int) -> None:
        with self._lock:
            self.sent += count

    def get_request(self):
        request, address = super().get_request()
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
        hub, url = self.server, urlsplit(self.path)
        named = (self.command, url.path, "Authorization" in self.headers, self.headers["Range"])
        hub.log.append(Seen(*named, time.monotonic()))
        self.fault = fault = hub.take(self.command, url.path)
        if hub.closing.wait(fault.stall) or (fault.reset and fault.truncate is None):
            self.reset()
            return
        asked = re.fullmatch(_API, url.path) or re.fullmatch(_RESOLVE, url.path)
        try:
            if fault.status:
                code, message = SAYINGS.get(fault.status, SAYINGS[500])
                code = code if fault.code is None else fault.code
                raise RefusedError(fault.status, code, fault.message or message)
            if not asked:
                raise RefusedError(404, "", "Sorry, we can't find the page you are looking for.")
            self.answer(hub, parse_qs(url.query), **asked.groupdict())
        except RefusedError as refused:
            status, code, message, *more = refused.args
            message = message.replace("{repo}", asked["repo"] if asked else "it")
            headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
            if (after := fault.retry_after) is not None:
                headers |= {"Retry-After": after, "RateLimit": f'"api";r=0;t={after}'}
            self.send_json({"error": message}, status, headers, *more)

    def do_HEAD(self):
        self.do_GET()

    def answer(self, hub, query, *, repo, verb, rev, path):
        self.admit(hub, repo, downloads=verb == "resolve")
        commit, path = hub.commit(repo, unquote(rev or "main")), unquote(path or "")
        flags = {name for name, value in query.items() if value[0].lower() == "true"}
        if hub.signed is not None and not hub.signed & set(query.get("Signature", ())):
            raise RefusedError(403, "", "Request has expired")
        if verb == "resolve":
            if path not in commit.files:
                head = {"X-Repo-Commit": commit.sha}
                raise RefusedError(404, "EntryNotFound", "Entry not found", head)
            self.send_file(commit.files[path], commit.sha)
        elif verb == "tree":
            entries = tree(commit, path, recursive="recursive" in flags)
            if path and not entries:
                raise RefusedError(404, "EntryNotFound", f"{path} does not exist")
            self.send_json(entries)
        else:
            info = {"id": repo, "modelId": repo, "sha": commit.sha, "disabled": False}
            info |= {"private": repo in hub.private}
            info |= {"gated": "manual" if repo in hub.gated else False}
            listed = [*siblings(commit, blobs="blobs" in flags), *hub.listed]
            self.send_json(info | {"siblings": listed})

    def admit(self, hub, repo, *, downloads):
        token = (self.headers["Authorization"] or "").removeprefix("Bearer ")
        hidden = token != hub.private.get(repo, token)
        if hidden or not os.path.isdir(os.path.join(hub.root, repo)):
            if token:
                raise RefusedError(404, *SAYINGS[404])
            # The real Hub gives no code here. The client takes a bare 401 for a missing repo only
            # from https://; from http:// it takes a code to end in the same exception.
            raise RefusedError(401, "RepoNotFound", "Invalid username or password.")
        if downloads and token != hub.gated.get(repo, token):
            status = 403 if token else 401
            raise RefusedError(status, *SAYINGS[status])

    def send_file(self, file: File, sha: str):
        etag = f'"{file.etag}"'
        headers = {"X-Repo-Commit": sha, "Accept-Ranges": "bytes", "ETag": etag}
        if file.pointer_size is not None:
            headers |= {"X-Linked-ETag": etag, "X-Linked-Size": file.size}
        if file.pointer_size is not None and self.server.cdn:
            headers |= {"Location": self.server.cdn.sign(urlsplit(self.path).path)}
            self.send_body(302, io.BytesIO(), 0, headers)
            return
        status, start, end = 200, 0, file.size
        if not self.fault.all and (
            wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers["Range"] or "")
        ):
            status, start = 206, int(wanted[1])
            end = min(int(wanted[2]) + 1, end) if wanted[2] else end
            if start >= end:
                head = {"Content-Range": f"bytes */{file.size}"}
                raise RefusedError(416, "", "Range Not Satisfiable", head)
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{file.size}"
        with open(file.source, "rb") as stream:
            stream.seek(start)
            self.send_body(status, stream, end - start, headers)

    def send_json(self, value, status=200, *headers):
        body = json.dumps(value).encode()
        content = {"Content-Type": "application/json; charset=utf-8"}
        self.send_body(status, io.BytesIO(body), len(body), content, *headers)

    def send_body(self, status, stream, length, *headers):
        self.send_response(status)
        for name, value in [pair for each in headers for pair in each.items()]:
            self.send_header(name, str(value))
        fault, closing = self.fault, self.server.closing
        length += fault.lie if self.command == "GET" else 0
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command == "HEAD":
            return
        upto = length if fault.truncate is None else min(fault.truncate, length)
        step = max(1, int(fault.rate / 20)) if fault.rate else 1 << 20
        at, flip = 0, length // 2 if fault.corrupt else -1
        while at < upto and (chunk := bytearray(stream.read(min(step, upto - at)))):
            if at <= flip < at + len(chunk):
                chunk[flip - at] ^= 0xFF
            if closing.wait(len(chunk) / fault.rate if fault.rate else 0):
                break
            self.wfile.write(chunk)
            at += len(chunk)
            if isinstance(stream, io.BufferedReader):
                self.server.add(len(chunk))
        if at < length:
            self.close_connection = True
            if fault.reset:
                self.reset()

    def reset(self):
        """Hang up with a RST, which is what SO_LINGER of 0 seconds makes of close()."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        os.close(self.connection.detach())
        self.close_connection = True


def main() -> None:
    """Serve a directory until killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", required=True, help="holds <org>/<name>/ directories")
    parser.add_argument("--port", type=int, default=0, help="default: any free one")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port-file", help="write the port here once it answers")
    args = parser.parse_args()
    hub = Hub(args.root, port=args.port, host=args.host)
    if args.port_file:
        with open(args.port_file + ".tmp", "w", encoding="ascii") as stream:
            stream.write(f"{hub.port}\n")
        os.replace(args.port_file + ".tmp", args.port_file)
    print(hub.url, flush=True)
    hub.closing.wait()


if __name__ == "__main__":
    main()
