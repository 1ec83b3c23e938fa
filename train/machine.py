"""What figures were measured on: processor, memory, GPU, and the versions of libraries.

Asks the system; measures no speed.
"""

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from train import nvml

__all__ = ["gpu_of", "hardware", "versions"]

_LIBRARIES = (
    "shardline", "torch", "triton", "nvidia-dali-cuda130", "nvidia-dali-cuda120", "webdataset",
    "litdata", "mosaicml-streaming", "ffcv", "numba", "numpy", "pillow",
)  # fmt: skip


def hardware(device: str) -> dict[str, Any]:
    """What the figures were measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
        "cores_allowed": len(os.sched_getaffinity(0)),
        "gpu": torch.cuda.get_device_name(device) if device.startswith("cuda") else None,
        "load_1_min": os.getloadavg()[0],
    }


def versions() -> dict[str, str]:
    """Of Python and the libraries that matter for speed."""
    found = {"python": platform.python_version()}
    if torch.version.cuda is not None:
        found["cuda"] = torch.version.cuda
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def gpu_of(device: str) -> int | str | None:
    """What the driver's library calls the GPU that torch calls ``device``; None for a CPU.

    Torch counts the GPUs that this process may see, and in an order of its own; the library counts
    all, so only the GPU's unique number says for certain which one is meant.
    """
    if not device.startswith("cuda"):
        return None
    place = int(device.partition(":")[2] or 0)
    if torch.cuda.is_available():
        unique = getattr(torch.cuda.get_device_properties(place), "uuid", None)
        if unique is not None and nvml.name(f"GPU-{unique}") is not None:
            return f"GPU-{unique}"
    return nvml.visible(place)
