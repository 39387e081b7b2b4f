"""Metrics of the GPUs of the machine: their memory and their load, as their drivers tell.

NVIDIA's are asked by the library of the driver (NVML), AMD's by files of the kernel.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from runed.metrics import Labelled, Metrics

_LIBRARY = "libnvidia-ml.so.1"

_AMD = "/sys/class/drm"

_AGE = 1.0
"""Seconds for which a reading counts. Programs that ask for the metrics may come together."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU at one moment.

    Attributes:
        name: Its name, such as "nvidia0".
        used: The bytes of its memory that are used, by all programs.
        total: The bytes of its memory.
        load: The share of the time in which it computed, from 0 to 1.
    """

    name: str
    used: int
    total: int
    load: float


def add_gpus(metrics: Metrics, in_use: Callable[[], bool]) -> None:
    """Add the numbers of the GPUs to the metrics.

    Args:
        metrics: The metrics.
        in_use: Returns whether an engine uses a GPU. Otherwise there are no such numbers, and nothing of a driver is loaded.
    """
    reader = _Reader()

    def each(number: Callable[[Gpu], float]) -> Callable[[], Iterator[Labelled]]:
        return lambda: (({"gpu": gpu.name}, number(gpu)) for gpu in (reader.read() if in_use() else ()))

    text = "The memory of a GPU that is used, by all programs."
    metrics.watch_all("runed_gpu_memory_used_bytes", text, each(lambda gpu: gpu.used))
    metrics.watch_all("runed_gpu_memory_bytes", "The memory of a GPU.", each(lambda gpu: gpu.total))
    text = "The share of the time in which a GPU computed, for all programs."
    metrics.watch_all("runed_gpu_utilization_ratio", text, each(lambda gpu: gpu.load))


class _Reader:
    """Reads the numbers in a thread, since a driver may take long, and tells those of the last time."""

    def __init__(self) -> None:
        self._gpus: tuple[Gpu, ...] = ()
        self._thread: threading.Thread | None = None
        self._read_at = -_AGE

    def read(self) -> tuple[Gpu, ...]:
        now = time.monotonic()
        if (self._thread is None or not self._thread.is_alive()) and now - self._read_at >= _AGE:
            self._read_at = now
            self._thread = threading.Thread(target=self._refresh, name="runed-gpus", daemon=True)
            self._thread.start()
        return self._gpus

    def _refresh(self) -> None:
        self._gpus = (*read_nvidia(), *read_amd())


class _Memory(ctypes.Structure):
    """`nvmlMemory_t`."""

    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


class _Utilization(ctypes.Structure):
    """`nvmlUtilization_t`, in percent."""

    _fields_ = [("gpu", ctypes.c_uint), ("memory", ctypes.c_uint)]


def read_nvidia(library: str = _LIBRARY) -> list[Gpu]:
    """Return NVIDIA's GPUs; none without their driver.

    Args:
        library: The library of the driver.
    """
    try:
        nvml = ctypes.CDLL(library)
        if nvml.nvmlInit_v2():
            return []
    except (OSError, AttributeError):
        return []
    gpus = []
    count = ctypes.c_uint()
    nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
    for index in range(count.value):
        device, memory, load = ctypes.c_void_p(), _Memory(), _Utilization()
        failed = nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(device)) or nvml.nvmlDeviceGetMemoryInfo(
            device, ctypes.byref(memory)
        )
        if not failed:
            nvml.nvmlDeviceGetUtilizationRates(device, ctypes.byref(load))  # a part of a GPU (MIG) has none: it stays 0
            gpus.append(Gpu(f"nvidia{index}", memory.used, memory.total, load.gpu / 100))
    nvml.nvmlShutdown()
    return gpus


def read_amd(folder: str = _AMD) -> list[Gpu]:
    """Return AMD's GPUs; none without their driver.

    Args:
        folder: The files of the kernel.
    """
    gpus = []
    for device in sorted(Path(folder).glob("card*/device")):
        with suppress(OSError, ValueError):
            used, total = (int((device / f"mem_info_vram_{name}").read_text()) for name in ("used", "total"))
            load = int((device / "gpu_busy_percent").read_text()) / 100
            gpus.append(Gpu(f"amd{device.parent.name.removeprefix('card')}", used, total, load))
    return gpus
