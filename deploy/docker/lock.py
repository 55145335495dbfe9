"""Write requirements.txt: what the image installs beside the engine, each file by its hash.

    make lock

It resolves pyproject.toml's dependencies and what builds warmer, for Linux and every Python that
warmer runs on, at the package index alone, with uv. The first line says of what it was made; a test
compares it with pyproject.toml.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

TOP = Path(__file__).parents[2]
LOCK = Path(__file__).with_name("requirements.txt")


def wanted() -> list[str]:
    """Read what is needed to build and to run warmer."""
    told = tomllib.loads((TOP / "pyproject.toml").read_text(encoding="utf-8"))
    return sorted([*told["project"]["dependencies"], *told["build-system"]["requires"]])


def stamp() -> str:
    """Name what the lock is made of."""
    return f"# make lock, of {hashlib.sha256(json.dumps(wanted()).encode()).hexdigest()}"


def main() -> None:
    """Resolve, and write the lock."""
    words = ["pip", "compile", "--quiet", "--no-config", "--universal", "--python-version", "3.11"]
    words += ["--generate-hashes", "--no-header", "--no-annotate", "-"]
    # What cannot be on Linux is left out of a universal resolution by saying where one is.
    asked = "".join(f"{one} ; sys_platform == 'linux'\n" for one in wanted())
    done = subprocess.run(
        [os.path.join(os.path.dirname(sys.executable), "uv"), *words],
        input=asked,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    LOCK.write_text(f"{stamp()}\n{done.stdout}", encoding="utf-8")


if __name__ == "__main__":
    main()
