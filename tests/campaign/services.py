"""What pods talk to, in a process of its own, so that whoever forks pods has one thread.

As a program it serves a hub, an API server that knows Leases, and a proxy before an S3 server; an
order is a JSON line on its stdin, its answer one on stdout. `Services` starts it.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))


class Services:
    """A running one. `hub`, `leases`, `s3` are URLs; `ask` gives orders."""

    def __init__(self, top, *, hub, s3=""):
        argv = [sys.executable, __file__, json.dumps({"top": top, "hub": hub, "s3": s3})]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(argv, text=True, **pipes)
        found = json.loads(self.process.stdout.readline())
        self.hub, self.leases, self.s3 = found["hub"], found["leases"], found["s3"]

    def ask(self, server, order, **how):
        """Have a server (hub, leases, proxy, all) do something; return its answer."""
        line = json.dumps({"server": server, "do": order, "how": how})
        print(line, file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.process.kill()
        self.process.wait()


class Served:
    """The servers; what can be ordered of them, besides their own methods."""

    def __init__(self, *, top, hub, s3):
        from hub import Hub  # noqa: PLC0415 - whoever imports `Services` needs none of it
        from leases import LeaseServer  # noqa: PLC0415
        from proxy import Proxy  # noqa: PLC0415

        self._top = top
        self.hub = Hub(hub)
        self.leases = LeaseServer(tls=True, tokens={"first-token-of-the-pod": _VERBS})
        self.proxy = Proxy(s3) if s3 else None
        self.rewrite()
        self._rotations = 0

    def rewrite(self):
        """Write the account of a pod anew."""
        self.leases.in_cluster(f"{self._top}/account")

    def rotate(self):
        """Let the account's token be another."""
        self._rotations += 1
        self.leases.rotate(f"token-{self._rotations}-of-the-pod")
        self.rewrite()

    def private(self, repo, token):
        """Let a repository be seen by this token alone."""
        self.hub.private[repo] = token

    def requests(self):
        """Count what the hub and the S3 server were asked so far."""
        return {"hub": len(self.hub.log), "s3": len(self.proxy.requests) if self.proxy else 0}

    def heal(self):
        """End all that goes wrong."""
        self.hub.private.clear()
        self.leases.up()
        if self.proxy:
            self.proxy.accept()
        for server in (self.hub, self.leases, self.proxy):
            if server:
                server.faults.clear()
        for connection in self.hub._connections:  # what trickles would do so for hours
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.hub._connections.clear()


_VERBS = {"get", "create", "update"}


def main():
    served = Served(**json.loads(sys.argv[1]))
    env = {"KUBERNETES_SERVICE_HOST": "127.0.0.1"}
    env["KUBERNETES_SERVICE_PORT"] = str(served.leases.port)
    said = {"hub": served.hub.url, "leases": env}
    said["s3"] = served.proxy.url if served.proxy else ""
    print(json.dumps(said), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        at = served if order["server"] == "all" else getattr(served, order["server"])
        answer = getattr(at, order["do"])(**order["how"])
        print(json.dumps(answer if isinstance(answer, dict) else None), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
