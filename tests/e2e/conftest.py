"""Podman, the two images, and namespaces whose pods share a volume and a hub."""

import os
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
for each in (HERE, HERE.parent / "support", HERE.parent / "deploy"):
    sys.path.insert(0, str(each))

import cables
import images


def _clear():
    """Remove what a run that was killed left: its pods, and their cables."""
    images.podman("pod", "rm", "--all", "--force", "--time", "0", check=False)
    cables.clear()


@pytest.fixture(scope="session")
def image():
    """Warmer's image on the stand-in of a stock vLLM image."""
    if why := images.missing():
        pytest.skip(why)
    images.set_up()
    _clear()
    images.base()
    yield images.warmer()
    _clear()


@pytest.fixture(scope="session")
def node(image, tmp_path_factory):
    """A directory for a node's volumes that users without rights can reach."""
    top = tmp_path_factory.mktemp("node")
    for each in (top, *top.parents):
        if each.is_relative_to("/tmp") and each != Path("/tmp"):
            each.chmod(0o755)
    yield top
    assert os.path.isdir(top)
