"""What is a run's own of the machine's network: the names of its cables, and their addresses.

Two checkouts may run these tests at once. A run takes a number that no other has and keeps it while it lives: an
abstract socket, which the kernel gives back with the process, however that ends, and which is known just where
cables are, in one network namespace.
"""

import functools
import socket
import subprocess

SLOTS = 40
"""Runs that one machine may have at once."""


@functools.cache
def _slot():
    """The number of this run, and the socket that holds it."""
    for number in range(SLOTS):
        held = socket.socket(socket.AF_UNIX)
        try:
            held.bind(f"\0warmer-e2e-{number}")
        except OSError:
            held.close()
        else:
            return number, held
    raise RuntimeError(f"got {SLOTS} runs of these tests on this machine, expected fewer")


def cable(number):
    """The name that a pod's cable has on the node."""
    return f"we2e{_slot()[0]}-{number}"


def node(number):
    """The node's address, as that pod sees it."""
    return f"10.{200 + _slot()[0]}.{number}.1"


def pod(number):
    """The pod's own address."""
    return f"10.{200 + _slot()[0]}.{number}.2"


def clear():
    """Remove the cables that an earlier run of this number left; those of others stay."""
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    names = {line.split()[1].split("@")[0].rstrip(":") for line in links.splitlines()}
    for name in (each for each in names if each.startswith(cable(""))):
        subprocess.run(["ip", "link", "del", name], capture_output=True, check=False)
