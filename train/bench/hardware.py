"""Describe the machine that figures were measured on, and sample how busy its GPU is.

The driver is asked through NVML (package ``nvidia-ml-py``), which needs no CUDA context. Without
the package or a driver, answers about the driver are None or empty.

NVML counts all GPUs of a machine. A GPU is therefore named by its number among all, or by its
unique number (``GPU-…``, ``MIG-…``); None stands for the first that CUDA may use.
"""

import contextlib
import datetime
import os
import platform
import shlex
import sys
import threading
from collections import defaultdict
from importlib import metadata
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from shardify.process_cost import processor

_LIBRARIES = (
    "shardline", "torch", "triton", "nvidia-dali-cuda130", "nvidia-dali-cuda120", "webdataset",
    "litdata", "mosaicml-streaming", "ffcv", "numba", "numpy", "pillow",
)  # fmt: skip


def _open_nvml() -> Any:
    """The module ``pynvml``, initialised; None without it or without a driver."""
    try:
        import pynvml
    except ModuleNotFoundError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


_NVML = _open_nvml()


def hardware(device: str) -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "cpu": processor(),
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


def conditions(device: str, program: str | None = None) -> dict[str, Any]:
    """When, where and by which command something was measured.

    Args:
        device: What it was measured on.
        program: Begins the command; by default the name of the script that runs.

    Returns:
        ``driver_cuda`` is the newest CUDA that the driver runs.
    """
    machine = hardware(device)
    cuda = _call_nvml("nvmlSystemGetCudaDriverVersion")
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": f"{program or Path(sys.argv[0]).name} {shlex.join(sys.argv[1:])}",
        "device": machine["gpu"] or device,
        "driver": _call_nvml("nvmlSystemGetDriverVersion"),
        "driver_cuda": None if cuda is None else f"{cuda // 1000}.{cuda % 1000 // 10}",
        "hardware": machine,
        "versions": versions(),
    }


def visible_gpu(place: int = 0) -> int | str:
    """The GPU at a place among those that CUDA may use here.

    As ``CUDA_VISIBLE_DEVICES`` has it: places among all, or unique numbers, comma-separated.
    Without it, or where it names none at that place, the place is that among all.
    """
    names = [one.strip() for one in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    if place >= len(names) or not names[place]:
        return place
    return int(names[place]) if names[place].isdecimal() else names[place]


def gpu_of(device: str) -> int | str | None:
    """What NVML calls the GPU that torch calls ``device``; None for a CPU.

    Torch counts the GPUs that this process may see, and in an order of its own; NVML counts all, so
    only the GPU's unique number says for certain which one is meant.
    """
    if not device.startswith("cuda"):
        return None
    place = int(device.partition(":")[2] or 0)
    if torch.cuda.is_available():
        unique = getattr(torch.cuda.get_device_properties(place), "uuid", None)
        if unique is not None and _handle(f"GPU-{unique}") is not None:
            return f"GPU-{unique}"
    return visible_gpu(place)


def gpu_utilisation(gpu: int | str | None = None) -> dict[str, float]:
    """How busy a GPU's parts are right now; what it does not report is left out.

    Returns:
        ``compute``, ``memory_bus``, ``jpeg``, ``video``: per cent of the driver's last sampling
        period; ``memory_gb``: in use, by all processes.
    """
    found: dict[str, float] = {}
    handle = _handle(gpu)
    if handle is None:
        return found
    if rates := _call_nvml("nvmlDeviceGetUtilizationRates", handle):
        found |= {"compute": float(rates.gpu), "memory_bus": float(rates.memory)}
    if jpeg := _call_nvml("nvmlDeviceGetJpgUtilization", handle):  # Per cent, and sampling period.
        found["jpeg"] = float(jpeg[0])
    if video := _call_nvml("nvmlDeviceGetDecoderUtilization", handle):
        found["video"] = float(video[0])
    if memory := _call_nvml("nvmlDeviceGetMemoryInfo", handle):
        found["memory_gb"] = memory.used / 1e9
    return found


class GpuMonitor:
    """Samples a GPU's utilisation in a thread, as long as its ``with`` lasts."""

    def __init__(self, gpu: int | str | None = None, *, every: float = 0.05) -> None:
        """Begin with ``with``."""
        self._gpu, self._every = gpu, every
        self._samples: defaultdict[str, list[float]] = defaultdict(list)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="shardline-nvml", daemon=True)

    def __enter__(self) -> "GpuMonitor":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def means(self) -> dict[str, float]:
        """Mean of every part over all samples; empty where there is no GPU."""
        return {part: round(fmean(values), 2) for part, values in sorted(self._samples.items())}

    def peaks(self) -> dict[str, float]:
        """The highest of every part."""
        return {part: round(max(values), 2) for part, values in sorted(self._samples.items())}

    def _run(self) -> None:
        while not self._stop.is_set():
            for part, value in gpu_utilisation(self._gpu).items():
                self._samples[part].append(value)
            self._stop.wait(self._every)


def _handle(gpu: int | str | None) -> Any:
    """NVML's handle of a GPU, or None."""
    if gpu is None:
        gpu = visible_gpu()
    if isinstance(gpu, int):
        return _call_nvml("nvmlDeviceGetHandleByIndex", gpu)
    if (handle := _call_nvml("nvmlDeviceGetHandleByUUID", gpu)) is not None:
        return handle
    # CUDA takes the beginning of a unique number for the whole, NVML does not.
    for index in range(_call_nvml("nvmlDeviceGetCount") or 0):
        handle = _call_nvml("nvmlDeviceGetHandleByIndex", index)
        if handle is not None and (_call_nvml("nvmlDeviceGetUUID", handle) or "").startswith(gpu):
            return handle
    return None


def _call_nvml(function: str, *arguments: Any) -> Any:
    """What NVML answers; None without NVML, or where it has no answer."""
    if _NVML is not None:
        # AttributeError: an older nvidia-ml-py lacks the function.
        with contextlib.suppress(AttributeError, _NVML.NVMLError):
            return getattr(_NVML, function)(*arguments)
    return None
