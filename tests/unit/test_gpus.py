"""The table of GPUs, and the GPUs that cannot say their capability themselves."""

import os

import pytest

from warmer import gpus
from warmer.observe import accelerator

OLD = """#!/bin/sh
case $1 in
    *compute_cap*) echo "Field \\"compute_cap\\" is not a valid field to query." >&2; exit 2 ;;
esac
echo "{}, 470.57.02"
"""


@pytest.mark.parametrize(
    ("name", "capability"),
    [
        ("Tesla V100-SXM2-16GB", "7.0"),
        ("Tesla T4", "7.5"),
        ("NVIDIA A100-SXM4-80GB", "8.0"),
        ("NVIDIA A10G", "8.6"),
        ("NVIDIA L4", "8.9"),
        ("NVIDIA L40S", "8.9"),
        ("NVIDIA H100 80GB HBM3", "9.0"),
        ("NVIDIA H200", "9.0"),
        ("NVIDIA B200", "10.0"),
        ("NVIDIA GeForce RTX 5090", "12.0"),
        ("NVIDIA RTX 5000 Ada Generation", None),
        ("NVIDIA T400", None),
        ("NVIDIA A1000", None),
    ],
)
def test_a_gpu_is_known_by_the_whole_word_or_not_at_all(name, capability):
    assert gpus.capability(name) == capability


def test_every_entry_of_the_table_is_found_by_its_own_name():
    for gpu in gpus.GPUS:
        assert (
            gpus.capability(f"NVIDIA {gpu.name.replace('RTX 50', 'GeForce RTX 5080')}")
            == gpu.capability
        )


@pytest.mark.parametrize(("name", "capability"), [("Tesla T4", "7.5"), ("NVIDIA X1", None)])
def test_an_old_drivers_gpu_is_described_by_the_table(name, capability, tmp_path, monkeypatch):
    script = tmp_path / "nvidia-smi"
    script.write_text(OLD.format(name))
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(accelerator, "_nvml", list)
    found = accelerator.gpu()
    assert (found and (found.name, found.capability, found.driver)) == (
        capability and (name, capability, "470.57.02")
    )
