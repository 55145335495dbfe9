"""What the kernels would run on: an NVIDIA GPU by NVML or nvidia-smi, or this CPU."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess

from warmer import gpus
from warmer.machine import Accelerator


def gpu() -> Accelerator | None:
    """Describe the GPUs this process can see; None where there are none.

    Several models of GPU in one pod are named together, so that such a pod never shares
    kernels with a pod of one kind.
    """
    found = _nvml() or _nvidia_smi()
    if not found:
        return None
    names = sorted({name for name, _, _ in found})
    capabilities = sorted({capability for _, capability, _ in found})
    return Accelerator(
        kind="gpu",
        name=" + ".join(names),
        capability=";".join(capabilities),
        driver=found[0][2],
        count=len(found),
    )


def cpu(cpuinfo: str = "/proc/cpuinfo") -> Accelerator:
    """Describe this CPU by model and instruction set; compiled C++ fits no narrower one."""
    fields: dict[str, str] = {}
    try:
        with open(cpuinfo, encoding="utf-8", errors="replace") as f:
            for line in f:
                name, sep, value = line.partition(":")
                if not sep:
                    break
                fields[name.strip()] = value.strip()
    except OSError:
        pass
    flags = " ".join(sorted(fields.get("flags", fields.get("Features", "")).split()))
    return Accelerator(
        kind="cpu",
        name=fields.get("model name", fields.get("CPU part", "unknown")),
        capability=f"isa-{hashlib.sha256(flags.encode()).hexdigest()[:16]}",
        threads=len(os.sched_getaffinity(0)),
    )


def _nvml() -> list[tuple[str, str, str]]:
    try:
        import pynvml  # noqa: PLC0415 - the CPU path need not load it
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        driver = _text(pynvml.nvmlSystemGetDriverVersion())
        found = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
            found.append((_text(pynvml.nvmlDeviceGetName(handle)), f"{major}.{minor}", driver))
    except pynvml.NVMLError:
        return []
    finally:
        pynvml.nvmlShutdown()
    return found


def _nvidia_smi() -> list[tuple[str, str, str]]:
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    if rows := _query(command, "name,compute_cap,driver_version"):
        return [(name, capability, driver) for name, capability, driver in rows]
    # Old drivers know no `compute_cap`; one GPU that is not known leaves none described.
    found = [
        (n, gpus.capability(n), driver) for n, driver in _query(command, "name,driver_version")
    ]
    told = [(name, known, driver) for name, known, driver in found if known is not None]
    return told if len(told) == len(found) else []


def _query(command: str, fields: str) -> list[list[str]]:
    """Ask nvidia-smi for fields of every GPU; nothing where it does not answer all of them."""
    try:
        done = subprocess.run(
            [command, f"--query-gpu={fields}", "--format=csv,noheader"],
            env={n: v for n, v in os.environ.items() if not n.startswith("WARMER_")},
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines()]
    return [row for row in rows if len(row) == fields.count(",") + 1]


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
