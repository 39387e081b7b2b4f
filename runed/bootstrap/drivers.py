"""Finds the drivers of accelerators by their files. No code of a driver is loaded, and no program is run.

All functions look below a root directory, by default "/".
"""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec

from runed.files import read_regular

_LIBRARY_FOLDERS = (
    *("usr/lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu", "usr/lib64", "usr/lib", "usr/local/lib"),
    *("usr/lib/wsl/lib", "usr/local/nvidia/lib64", "usr/local/cuda/compat", "run/opengl-driver/lib", "opt/rocm/lib"),
)
"""Folders of libraries that `ld.so.cache` may not list: of WSL, of containers, of NixOS, and of ROCm."""

_MAX_BYTES = 4 * 1024 * 1024
"""Most bytes of a file of a driver. The largest one is `ld.so.cache`, with some 100 KB."""

_NVIDIA_VERSION = re.compile(rb"Kernel Module\D*?(?:for \S+)?\s+(\d+(?:\.\d+)+)")
_VERSION = re.compile(r"\d+(?:\.\d+)*")

_SOFTWARE = ("lvp", "swrast", "swiftshader")
"""Parts of the names of Vulkan drivers that compute on the processors."""

_VENDORS = {
    "0x8086": ("intel",),
    "0x1002": ("radeon", "amd"),
    "0x10de": ("nvidia", "nouveau"),
    "0x1af4": ("virtio",),
}
"""Parts of the names of Vulkan drivers, by the PCI vendor of their devices. Mesa installs the drivers of all vendors."""


@dataclass(frozen=True, slots=True)
class Driver:
    """A driver that is installed.

    Attributes:
        accelerator: As in `Device`.
        version: Its version, as far as its files tell it. Another driver has another one.
        has_device: Whether it has a device that this user may open.
        problem: A sentence on the reason why it has none although the machine does, or "".
    """

    accelerator: str
    version: str = ""
    has_device: bool = True
    problem: str = ""


def find_drivers(environment: Mapping[str, str], *, root: Path = Path("/"), system: str = sys.platform) -> list[Driver]:
    """Find the drivers of this machine.

    Args:
        environment: The environment of the engine, by which it finds its libraries and drivers.
        root: The root directory of the machine.
        system: The operating system, as in `sys.platform`.
    """
    if system == "darwin":
        return [Driver("metal", platform.mac_ver()[0])] if platform.machine() == "arm64" else []
    machine = _Machine(root, environment)
    return [driver for driver in (_cuda(machine), _rocm(machine), _vulkan(machine)) if driver]


def is_at_least(version: str, minimum: str) -> bool:
    """Return whether a version such as "535.129.03" is at least another one, such as "525". An unknown one ("") is."""
    found = _VERSION.match(version)
    return found is None or _numbers(found[0]) >= _numbers(minimum)


class _Machine:
    """The files of a machine."""

    def __init__(self, root: Path, environment: Mapping[str, str]) -> None:
        self.root = root
        self.environment = environment

    def path(self, path: str) -> Path:
        """Return the place of a path."""
        return self.root / path.lstrip("/")

    def read(self, path: str) -> bytes:
        """Return the content of a file; nothing if it cannot be read."""
        try:
            return read_regular(self.path(path), limit=_MAX_BYTES)
        except OSError:
            return b""

    def library(self, name: str) -> Path | None:
        """Return the place of a library, such as "libcuda.so.1", as the dynamic linker would find it."""
        folders = [*self.folders("LD_LIBRARY_PATH"), *_LIBRARY_FOLDERS]
        cached = re.findall(rb"(/[^\0]*/" + re.escape(name.encode()) + rb")\0", self.read("etc/ld.so.cache"))
        places = [*map(os.fsdecode, cached), *(f"{folder}/{name}" for folder in folders)]
        return next((path for path in map(self.path, places) if os.path.isfile(path)), None)  # noqa: PTH113 # as in `_icd_files`

    def folders(self, variable: str, default: str = "") -> list[str]:
        """Return the paths in a variable of the environment. As everywhere, relative ones do not count."""
        value = self.environment.get(variable) or default
        return [path for path in value.split(":") if path.startswith("/")]

    def nodes(self, *patterns: str) -> tuple[list[Path], list[Path]]:
        """Return the device files that match, those that this user may open and the others."""
        found = [path for pattern in patterns for path in sorted(self.root.glob(pattern))]
        open_ones = [path for path in found if os.access(path, os.R_OK | os.W_OK)]
        return open_ones, [path for path in found if path not in open_ones]


def _cuda(machine: _Machine) -> Driver | None:
    library = machine.library("libcuda.so.1")
    match = _NVIDIA_VERSION.search(machine.read("proc/driver/nvidia/version"))
    kernel = match[1].decode() if match else ""
    usable, barred = machine.nodes("dev/nvidia[0-9]*", "dev/dxg")
    if library is None:
        if not (kernel and (usable or barred)):
            return None
        problem = f"the driver {kernel} of NVIDIA lacks its library libcuda.so.1: install all of the driver"
        return Driver("cuda", kernel, has_device=False, problem=problem)
    # The library's file has the version in its name. After an update without a restart, the kernel has an older one.
    own = library.resolve().name.partition(".so.")[2]
    versions = [version for version in (kernel, own) if "." in version and own != "1.1"]  # "1.1" is that of WSL
    version = min(versions, key=_numbers, default="")
    return Driver("cuda", version, bool(usable), _may_not_open(usable, barred))


def _rocm(machine: _Machine) -> Driver | None:
    files = sorted(machine.root.glob("opt/rocm*/.info/version"))
    versions = [
        found[0] for file in files if (found := _VERSION.match(_text(machine.read(str(file.relative_to(machine.root))))))
    ]
    usable, barred = machine.nodes("dev/kfd")
    if not versions:
        return None
    nodes = machine.root.glob("sys/class/kfd/kfd/topology/nodes/*/properties")
    computes = any(
        re.search(rb"^simd_count [1-9]", machine.read(str(node.relative_to(machine.root))), re.MULTILINE) for node in nodes
    )
    return Driver("rocm", max(versions, key=_numbers), bool(usable) and computes, _may_not_open(usable, barred))


class _Icd(msgspec.Struct):
    library_path: Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]
    api_version: str = ""


class _IcdFile(msgspec.Struct):
    icd: _Icd = msgspec.field(name="ICD")


def _vulkan(machine: _Machine) -> Driver | None:
    """Find the Vulkan drivers as the loader of Khronos does: by JSON files that name their libraries."""
    drivers = dict(_icds(machine))
    if not drivers:
        return None
    hardware = [library for library in drivers if not any(part in library.name.lower() for part in _SOFTWARE)]
    usable, barred = (
        [node for node in nodes if any(_drives(machine, library, node) for library in hardware)]
        for nodes in machine.nodes("dev/dri/renderD[0-9]*", "dev/nvidiactl", "dev/dxg")
    )
    version = ", ".join(sorted(drivers.values()))
    return Driver("vulkan", version, bool(usable), _may_not_open(usable, barred))


def _icds(machine: _Machine) -> Iterator[tuple[Path, str]]:
    """Yield the library of each Vulkan driver, and its name, version and time of change."""
    for path in _icd_files(machine):
        try:
            icd = msgspec.json.decode(read_regular(path, limit=_MAX_BYTES), type=_IcdFile).icd
        except (OSError, ValueError, RecursionError):
            continue
        library = machine.path(icd.library_path) if icd.library_path.startswith("/") else path.parent / icd.library_path
        if "/" not in icd.library_path:
            library = machine.library(icd.library_path) or library
        try:
            changed = int(library.stat().st_mtime)
        except (OSError, ValueError):
            continue
        yield library, f"{library.name} {icd.api_version} {changed}"


def _icd_files(machine: _Machine) -> Iterator[Path]:
    named = machine.folders("VK_DRIVER_FILES") or machine.folders("VK_ICD_FILENAMES")
    if not named:
        home = machine.environment.get("HOME", "/")
        named = machine.folders("VK_ADD_DRIVER_FILES") + [
            f"{folder}/vulkan/icd.d"
            for folder in (
                *machine.folders("XDG_CONFIG_HOME", f"{home}/.config"),
                *machine.folders("XDG_CONFIG_DIRS", "/etc/xdg"),
                "/etc",
                *machine.folders("XDG_DATA_HOME", f"{home}/.local/share"),
                *machine.folders("XDG_DATA_DIRS", "/usr/local/share:/usr/share"),
            )
        ]
    for path in map(machine.path, named):
        # Path.is_dir and is_file raise where this user may not look, such as in the home of another one.
        if os.path.isdir(path):  # noqa: PTH112 # see above
            yield from sorted(path.glob("*.json"))
        elif os.path.isfile(path):  # noqa: PTH113 # see above
            yield path


def _drives(machine: _Machine, library: Path, node: Path) -> bool:
    """Return whether a Vulkan driver may be that of a device, by the vendor of the device."""
    name = library.name.lower()
    if node.name == "nvidiactl":
        return "nvidia" in name
    vendor = _text(machine.read(f"sys/class/drm/{node.name}/device/vendor"))
    return any(part in name for part in _VENDORS.get(vendor, [""]))


def _may_not_open(usable: list[Path], barred: list[Path]) -> str:
    if usable or not barred:
        return ""
    return f"you may not open {barred[0]}: join its group, such as render or video, and log in again"


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d{1,9}", version)]


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace").strip()
