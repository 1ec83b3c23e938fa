"""What NVIDIA's driver says about a GPU: its name, its driver, how busy its parts are.

Speaks to the driver's own library; without it every answer is None. Measures nothing over time but
in ``Watch``, and needs neither torch nor a CUDA context.

A GPU is named as the library does: by its place among all of the machine, or by its unique number
(``GPU-…``, ``MIG-…``). ``visible`` gives that name from a place among those that CUDA may see.
"""

import ctypes
import os
import threading
from collections.abc import Callable
from typing import Any

__all__ = ["Watch", "cuda_version", "driver", "name", "parts", "visible"]

_TEXT = 96


class _Memory(ctypes.Structure):
    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong),
                ("used", ctypes.c_ulonglong)]  # fmt: skip


class _Rates(ctypes.Structure):
    _fields_ = [("gpu", ctypes.c_uint), ("memory", ctypes.c_uint)]


def _open() -> Any:
    """The driver's library, ready; None where there is none."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    return library if library.nvmlInit_v2() == 0 else None


_LIBRARY = _open()


def driver() -> str | None:
    """The driver's version."""
    text = ctypes.create_string_buffer(_TEXT)
    return _said(text, "nvmlSystemGetDriverVersion", text, _TEXT)


def cuda_version() -> str | None:
    """The newest CUDA that the driver runs."""
    number = ctypes.c_int()
    if _asked("nvmlSystemGetCudaDriverVersion", ctypes.byref(number)):
        return f"{number.value // 1000}.{number.value % 1000 // 10}"
    return None


def visible(place: int = 0) -> int | str:
    """The GPU at a place among those that CUDA may use here.

    As ``CUDA_VISIBLE_DEVICES`` has it: places among all, or unique numbers, comma-separated.
    Without it, or where it names none at that place, the place is that among all.
    """
    names = [one.strip() for one in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    if place >= len(names) or not names[place]:
        return place
    return int(names[place]) if names[place].isdecimal() else names[place]


def name(gpu: int | str | None = None) -> str | None:
    """What a GPU is called; None stands for the first that CUDA may use, here and below."""
    text, handle = ctypes.create_string_buffer(_TEXT), _handle(gpu)
    return _said(text, "nvmlDeviceGetName", handle, text, _TEXT) if handle else None


def parts(gpu: int | str | None = None) -> dict[str, float]:
    """How busy a GPU's parts are right now; what it does not report is left out.

    Returns:
        ``compute``, ``memory_bus``, ``jpeg``, ``video``: per cent of the driver's last sampling
        period; ``memory_gb``: in use, by all processes.
    """
    found: dict[str, float] = {}
    handle = _handle(gpu)
    if handle is None:
        return found
    rates, memory = _Rates(), _Memory()
    if _asked("nvmlDeviceGetUtilizationRates", handle, ctypes.byref(rates)):
        found |= {"compute": float(rates.gpu), "memory_bus": float(rates.memory)}
    for part, asked in (
        ("jpeg", "nvmlDeviceGetJpgUtilization"),
        ("video", "nvmlDeviceGetDecoderUtilization"),
    ):
        share, period = ctypes.c_uint(), ctypes.c_uint()
        if _asked(asked, handle, ctypes.byref(share), ctypes.byref(period)):
            found[part] = float(share.value)
    if _asked("nvmlDeviceGetMemoryInfo", handle, ctypes.byref(memory)):
        found["memory_gb"] = memory.used / 1e9
    return found


class Watch:
    """Looks at a GPU again and again in a thread, as long as its ``with`` lasts."""

    def __init__(
        self,
        *,
        every: float = 0.05,
        gpu: int | str | None = None,
        look: Callable[[], dict[str, float]] | None = None,
    ) -> None:
        """Begin with ``with``.

        Args:
            every: Seconds between two looks.
            gpu: Which one.
            look: What to ask in place of ``parts``.
        """
        self._look = look or (lambda: parts(gpu))
        self._every = every
        self._seen: list[dict[str, float]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="shardline-nvml", daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def means(self) -> dict[str, float]:
        """Of every part, over all looks at it; empty where there is no GPU."""
        return self._fold(lambda values: sum(values) / len(values))

    def peaks(self) -> dict[str, float]:
        """The highest of every part."""
        return self._fold(max)

    def _fold(self, fold: Callable[[list[float]], float]) -> dict[str, float]:
        kinds = {part for one in self._seen for part in one}
        return {
            part: round(fold([one[part] for one in self._seen if part in one]), 2)
            for part in sorted(kinds)
        }

    def _run(self) -> None:
        while not self._stop.is_set():
            if seen := self._look():
                self._seen.append(seen)
            self._stop.wait(self._every)


def _handle(gpu: int | str | None) -> ctypes.c_void_p | None:
    if gpu is None:
        gpu = visible()
    handle = ctypes.c_void_p()
    if isinstance(gpu, int):
        got = _asked("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(gpu), ctypes.byref(handle))
        return handle if got else None
    if _asked("nvmlDeviceGetHandleByUUID", gpu.encode(), ctypes.byref(handle)):
        return handle
    return _abbreviated(gpu)


def _abbreviated(unique: str) -> ctypes.c_void_p | None:
    """CUDA takes the beginning of a unique number for the whole, the driver's library does not."""
    count = ctypes.c_uint()
    _asked("nvmlDeviceGetCount_v2", ctypes.byref(count))
    for index in range(count.value):
        handle, text = ctypes.c_void_p(), ctypes.create_string_buffer(_TEXT)
        if not _asked("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(handle)):
            continue
        if (_said(text, "nvmlDeviceGetUUID", handle, text, _TEXT) or "").startswith(unique):
            return handle
    return None


def _asked(function: str, *arguments: Any) -> bool:
    """Whether the driver has a function and it succeeded."""
    call = getattr(_LIBRARY, function, None) if _LIBRARY is not None else None
    return call is not None and call(*arguments) == 0


def _said(text: Any, function: str, *arguments: Any) -> str | None:
    return text.value.decode() if _asked(function, *arguments) else None
