"""Two doctors on two NFS nodes: what they find, as each prints it."""

import json
import os
import subprocess
import sys
import uuid
from pathlib import Path

import guest
from nodes import VOLUME, Node, serve

DOCTOR = [sys.executable, "-m", "warmer", "doctor", "--volume", VOLUME, "--join", "--json"]
DOCTOR += ["--timeout", "300"]  # on a busy machine one is done alone minutes before the other


def boot(node):
    """Give a node a boot id of its own, as a machine has; the guest's kernel has one for all."""
    path = f"/run/boot-{node.name}"
    Path(path).write_text(f"{uuid.uuid4()}\n")
    node.call("mount", "--bind", path, "/proc/sys/kernel/random/boot_id")


def main():
    asked = guest.args()
    export = serve()
    names = {name: asked.get("hostname", name) for name in ("alpha", "beta")}
    nodes = [Node(name, hostname=hostname) for name, hostname in names.items()]
    for node in nodes:
        boot(node)
        node.mount(asked["vers"], asked.get("options", ""))
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE}
    doctors = [node.run(*DOCTOR, **pipes) for node in nodes]
    answers = [json.loads(doctor.communicate()[0]) for doctor in doctors]
    left = sorted(set(os.listdir(export)) - {"lost+found"})
    guest.result(codes=[doctor.returncode for doctor in doctors], answers=answers, left=left)


main()
