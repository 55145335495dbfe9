"""An NFS server and nodes that mount it, all in one guest.

A node is a set of namespaces: network, hostname and mounts of its own, joined to the server by a
cable of its own. The kernel's NFS client tells nodes apart by network and the server by hostname,
as it does with machines; the mounts are beside each other, so the same path is another mount on
each node.
"""

import contextlib
import itertools
import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path

from guest import call

EXPORT = "/run/export"
VOLUME = "/run/volume"

_HAND = str(Path(__file__).resolve().parent / "hand.py")
_OPTIONS = "rw,sync,no_root_squash,no_subtree_check,insecure,fsid=0"
_numbers = itertools.count(1)


def serve(*, lease=15, grace=10, backing="ext4", size="256M"):
    """Export EXPORT; returns it.

    Args:
        lease: seconds after which the server gives a silent node's locks away; 10 at least.
        grace: seconds a restarted server waits for nodes to claim what they held; 10 at least.
        backing: the filesystem below, ``ext4`` or ``tmpfs``.
        size: of that filesystem.
    """
    os.makedirs(EXPORT)
    if backing == "ext4":
        call("modprobe", "-d", "/run/modules", "loop")  # nothing else asks for its devices
        call("truncate", "-s", size, f"{EXPORT}.img")
        call("mkfs.ext4", "-q", f"{EXPORT}.img")
        call("mount", "-o", "loop", f"{EXPORT}.img", EXPORT)
    else:
        call("mount", "-t", backing, "-o", f"size={size}", backing, EXPORT)
    os.chmod(EXPORT, 0o777)
    call("mount", "-t", "tmpfs", "tmpfs", "/var/lib/nfs")
    for name in ("sm", "sm.bak", "v4recovery"):
        os.mkdir(f"/var/lib/nfs/{name}")
    for name in ("etab", "rmtab", "state"):
        Path("/var/lib/nfs", name).touch()
    call("modprobe", "-d", "/run/modules", "-a", "ipv6", "nfsd")
    call("mount", "-t", "nfsd", "nfsd", "/proc/fs/nfsd")
    Path("/proc/fs/nfsd/nfsv4leasetime").write_text(f"{lease}\n")
    Path("/proc/fs/nfsd/nfsv4gracetime").write_text(f"{grace}\n")
    call("rpcbind", "-w")
    call("exportfs", "-i", "-o", _OPTIONS, f"*:{EXPORT}")
    call("rpc.nfsd", "-V", "3", "-V", "4", "-V", "4.1", "-V", "4.2", "8")
    call("rpc.mountd")
    # Nobody held anything before. NFSv4 waits for the grace of NFSv3's locks too, 50 s.
    for file in ("nfsd/v4_end_grace", "lockd/nlm_end_grace"):
        Path("/proc/fs", file).write_text("Y\n")
    return EXPORT


class Node:
    """A machine that can mount the export.

    Args:
        name: of the node, and its hostname unless that is given.
        hostname: what the server knows its NFS client by; two nodes may share one.
    """

    def __init__(self, name, *, hostname=None):
        self.name, self.number = name, next(_numbers)
        self.server = f"10.0.{self.number}.1"
        self.address = f"10.0.{self.number}.2"
        self._cable = f"cable{self.number}"
        self._holder = subprocess.Popen(
            ["unshare", "--net", "--uts", "--mount", "sh", "-c", _HOLD, "sh", hostname or name],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        if self._holder.stdout.readline() != b"up\n":
            raise RuntimeError(f"node {name} has no namespaces")
        pid = str(self._holder.pid)
        call("ip", "link", "add", self._cable, "type", "veth", "peer", "eth0", "netns", pid)
        call("ip", "address", "add", f"{self.server}/24", "dev", self._cable)
        self.link(up=True)
        self.call("ip", "address", "add", f"{self.address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            self.call("ip", "link", "set", device, "up")

    def mount(self, vers, options="", *, at=VOLUME):
        """Mount the export on this node; returns where."""
        given = f"vers={vers},addr={self.server},hard,timeo=20,retrans=2"
        if vers.startswith("4"):
            kind, source = "nfs4", f"{self.server}:/"
            given += f",clientaddr={self.address}"
        else:
            kind, source = "nfs", f"{self.server}:{EXPORT}"
            given += f",proto=tcp,mountaddr={self.server},mountproto=tcp"
        os.makedirs(at, exist_ok=True)
        given += f",{options}" if options else ""
        # Without mount.nfs, which would want daemons on this node too.
        self.call("mount", "-i", "-t", kind, "-o", given, source, at)
        return at

    def umount(self, at=VOLUME):
        """Unmount, whatever is still open there."""
        self.call("umount", "-f", "-l", at)

    def link(self, *, up):
        """Plug the cable in, or pull it out."""
        call("ip", "link", "set", self._cable, "up" if up else "down")

    def run(self, *argv, **more):
        """Start a command on this node; returns the Popen, which is the command's own process."""
        enter = ["nsenter", f"--target={self._holder.pid}", "--net", "--uts", "--mount", "--"]
        return subprocess.Popen([*enter, *map(str, argv)], **more)

    def python(self, code, *argv, **more):
        """Start Python code on this node."""
        return self.run(sys.executable, "-c", code, *argv, **more)

    def call(self, *argv):
        """Run a command on this node, which must succeed."""
        with self.run(*argv, stdin=subprocess.DEVNULL) as process:
            if process.wait():
                raise subprocess.CalledProcessError(process.returncode, argv)

    def hand(self):
        """Start a process on this node that does what it is told."""
        return Hand(self)


_HOLD = 'hostname "$1" && echo up && exec sleep infinity'


class Hand:
    """A process on a node, which does one of the acts in hand.py after the other."""

    def __init__(self, node):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.node, self.process = node, node.run(sys.executable, _HAND, **pipes)

    def ask(self, act, *words, timeout=60):
        """Have it do something; returns what that returned, or the name of its OSError."""
        self.begin(act, *words)
        return self.answer(timeout)

    def begin(self, act, *words):
        """Have it begin something that may block."""
        self.process.stdin.write(json.dumps([act, *words]).encode() + b"\n")
        self.process.stdin.flush()

    def answer(self, timeout=60):
        """Return what came of it."""
        if not select.select([self.process.stdout], [], [], timeout)[0]:
            raise TimeoutError(f"no answer from {self.node.name} within {timeout} s")
        if not (line := self.process.stdout.readline()):
            raise EOFError(f"the hand on {self.node.name} is dead")
        return json.loads(line)

    def lock_until(self, path, timeout):
        """Try for a lock until it is there; returns when, on the guest's clock, or None."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if (answer := self.ask("lock", path)) == "ok":
                return time.monotonic()
            if answer not in ("EAGAIN", "EACCES"):
                raise OSError(f"the lock answers {answer}")
            time.sleep(0.05)
        return None

    def kill(self):
        """Kill it with -9."""
        self.process.kill()
        self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with contextlib.suppress(OSError):
            self.kill()
