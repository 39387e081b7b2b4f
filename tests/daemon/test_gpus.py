"""The drivers of GPUs are asked for memory and load: NVIDIA's by its library, AMD's by files of the kernel."""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path

import pytest

from runed.daemon.gpus import Gpu, add_gpus, read_amd, read_nvidia
from runed.metrics import Metrics
from tests.support import wait_until

NVML = """
typedef struct { unsigned long long total, free, used; } memory;
typedef struct { unsigned gpu, memory; } load;
int nvmlInit_v2(void) { return INIT; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) { *device = (void *)(unsigned long)(index + 1); return 0; }
int nvmlDeviceGetMemoryInfo(void *device, memory *found) {
    found->total = 143771ull << 20;
    found->used = (unsigned long)device << 30;
    return 0;
}
int nvmlDeviceGetUtilizationRates(void *device, load *found) {
    if ((unsigned long)device == 2) return 3;
    found->gpu = 37;
    return 0;
}
"""
"""A library with the functions of NVML, whose second GPU is a part of one."""


def library(folder: Path, *, init: int = 0) -> str:
    (folder / "nvml.c").write_text(NVML)
    subprocess.run(["cc", "-shared", "-fPIC", f"-DINIT={init}", "-o", folder / "nvml.so", folder / "nvml.c"], check=True)
    return str(folder / "nvml.so")


def amd(folder: Path, name: str, **files: str) -> None:
    device = folder / name / "device"
    device.mkdir(parents=True)
    for file, text in files.items():
        (device / file).write_text(text)


def test_gpus_of_nvidia(tmp_path: Path) -> None:
    total = 143771 * 1024**2
    assert read_nvidia(library(tmp_path)) == [
        Gpu("nvidia0", 1024**3, total, 0.37),
        Gpu("nvidia1", 2 * 1024**3, total, 0.0),
    ]


def test_a_driver_of_nvidia_that_fails_has_no_gpus(tmp_path: Path) -> None:
    assert read_nvidia(library(tmp_path, init=9)) == []
    assert read_nvidia(str(tmp_path / "missing.so")) == []
    (tmp_path / "junk.so").write_bytes(b"junk")
    assert read_nvidia(str(tmp_path / "junk.so")) == []


def test_gpus_of_amd(tmp_path: Path) -> None:
    amd(tmp_path, "card1", mem_info_vram_used="123\n", mem_info_vram_total="456\n", gpu_busy_percent="50\n")
    amd(tmp_path, "card2")  # of another maker
    amd(tmp_path, "card3", mem_info_vram_used="", mem_info_vram_total="456\n", gpu_busy_percent="50\n")
    assert read_amd(str(tmp_path)) == [Gpu("amd1", 123, 456, 0.5)]
    assert read_amd(str(tmp_path / "missing")) == []


@pytest.mark.parametrize("in_use", [True, False])
def test_a_driver_is_asked_in_a_thread_and_only_for_an_engine_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, *, in_use: bool
) -> None:
    threads = []

    def read() -> list[Gpu]:
        threads.append(threading.current_thread())
        return [Gpu("nvidia0", 1, 4, 0.5)]

    monkeypatch.setattr("runed.daemon.gpus.read_nvidia", read)
    metrics = Metrics()
    add_gpus(metrics, lambda: in_use)
    if not in_use:
        assert b'gpu="' not in metrics.render()
        assert not threads
        return
    wait_until(lambda: b'runed_gpu_memory_used_bytes{gpu="nvidia0"} 1.0' in metrics.render(), what="the numbers")
    text = metrics.render()
    assert b'runed_gpu_memory_bytes{gpu="nvidia0"} 4.0' in text
    assert b'runed_gpu_utilization_ratio{gpu="nvidia0"} 0.5' in text
    assert threading.main_thread() not in threads
