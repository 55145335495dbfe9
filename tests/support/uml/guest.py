"""What a scenario says to the test that started its guest, and what it was told."""

import json
import os
import subprocess
import sys

DISK = "/run/disk"


def args():
    """Return what the test gave."""
    return json.loads(sys.argv[1])


def result(**values):
    """Report; it is on the console when this returns, whatever happens to the guest then."""
    os.write(1, b"\x1e@result " + json.dumps(values).encode() + b"\n")


def mount_disk():
    """Mount the disk the guest was given; returns where."""
    os.makedirs(DISK, exist_ok=True)
    call("mount", "-t", "ext4", "/dev/ubda", DISK)
    return DISK


def call(*command):
    """Run a command that must succeed; what it says goes to the console."""
    subprocess.run([str(word) for word in command], check=True, stdin=subprocess.DEVNULL)
