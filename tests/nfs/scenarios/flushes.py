"""Writes two files to the disk, flushes the second, and waits for its power to be cut."""

import os
import time
from pathlib import Path

import guest

disk = guest.mount_disk()
Path(disk, "lost").write_bytes(b"never flushed")
with open(Path(disk, "kept"), "wb") as stream:
    stream.write(b"flushed")
    stream.flush()
    os.fsync(stream.fileno())
guest.result(written=True)
time.sleep(600)
