"""Small parts, so that small files have many."""

import os
import sys

import pytest

sys.path.insert(0, os.path.dirname(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))

from warmer.fill import transfer


@pytest.fixture
def small_parts(monkeypatch):
    """Parts of 64 KiB through buffers of 16 KiB; returns the part's size."""
    monkeypatch.setattr(transfer, "PART", 64 << 10)
    monkeypatch.setattr(transfer, "BUFFER", 16 << 10)
    return transfer.PART
