"""The machine as one value: software and accelerator, or why there can be no kernels here."""

from __future__ import annotations

from warmer.machine import Host
from warmer.observe import accelerator, stack


def observe(*, vllm: str | None, image: str | None) -> Host:
    """Look at the machine.

    Args:
        vllm: path of the `vllm` command, or None to find it.
        image: digest of the container image, if the manifest gives it.

    Raises:
        UsageError: `vllm` is given and wrong.
    """
    found = stack.find(vllm)
    if found is None:
        return Host(None, None, image, "no vLLM is installed where warmer runs")
    if found.cuda is None:
        return Host(found, accelerator.cpu(), image)
    gpu = accelerator.gpu()
    if gpu is None:
        missing = f"vLLM {found.vllm} is built for CUDA {found.cuda}, and no GPU is visible here"
        return Host(found, None, image, missing)
    return Host(found, gpu, image)
