"""Drivers are found by their files. A machine here is a folder with a few real files of one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from runed.bootstrap.drivers import Driver, find_drivers, is_at_least
from tests.users import OTHER, needs_root, run_as

NVIDIA = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu Oct 19 18:56:32 UTC 2023\nGCC version: 12.2.0\n"
OPEN_NVIDIA = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (dvs-builder@U22)\n"


class Root:
    """A folder that stands for the root directory of a machine."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, name: str, content: str | bytes = "") -> Path:
        path = self.path / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def icd(self, library: str, *, folder: str = "usr/share/vulkan/icd.d", exists: bool = True) -> Path:
        if exists:
            os.utime(self.write(library), (7, 7))
        document = {"file_format_version": "1.0.0", "ICD": {"library_path": library, "api_version": "1.3.230"}}
        return self.write(f"{folder}/{Path(library).name}.json", json.dumps(document))

    def node(self, name: str, vendor: str) -> None:
        self.write(f"dev/dri/{name}")
        self.write(f"sys/class/drm/{name}/device/vendor", f"{vendor}\n")

    def nvidia(self, version: str = NVIDIA, library: str = "libcuda.so.535.129.03") -> None:
        self.write("proc/driver/nvidia/version", version)
        self.write(f"usr/lib64/{library}")
        self.path.joinpath("usr/lib64/libcuda.so.1").symlink_to(library)

    def find(self, accelerator: str, **environment: str) -> Driver | None:
        found = find_drivers(environment, root=self.path, system="linux")
        return next((driver for driver in found if driver.accelerator == accelerator), None)


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root(tmp_path)


def test_a_machine_without_drivers_has_none(root: Root) -> None:
    assert find_drivers({}, root=root.path, system="linux") == []


@pytest.mark.parametrize(
    ("file", "library", "version"),
    [
        (NVIDIA, "libcuda.so.535.129.03", "535.129.03"),
        (OPEN_NVIDIA, "libcuda.so.580.65.06", "580.65.06"),
        (NVIDIA, "libcuda.so.580.65.06", "535.129.03"),  # updated, and not restarted since
        (OPEN_NVIDIA, "libcuda.so.470.1", "470.1"),  # of a container
        ("", "libcuda.so.535.129.03", "535.129.03"),
        ("\x00\xff junk Kernel Module for", "libcuda.so.1.1", ""),  # as in WSL, which tells no version
    ],
)
def test_the_driver_of_nvidia_tells_its_version(root: Root, file: str, library: str, version: str) -> None:
    root.nvidia(file, library)
    root.write("dev/nvidia0")
    root.write("dev/nvidiactl")
    assert root.find("cuda") == Driver("cuda", version)


def test_a_driver_of_nvidia_without_a_device_is_not_used_and_not_complained_of(root: Root) -> None:
    root.nvidia()
    root.write("dev/nvidiactl")
    assert root.find("cuda") == Driver("cuda", "535.129.03", has_device=False)


def test_a_driver_of_nvidia_without_its_library_is_a_problem(root: Root) -> None:
    root.write("proc/driver/nvidia/version", NVIDIA)
    assert root.find("cuda") is None  # the folder remains when a container leaves the device out
    root.write("dev/nvidia0")
    driver = root.find("cuda")
    assert driver is not None
    assert not driver.has_device
    assert "lacks its library libcuda.so.1: install" in driver.problem


def test_a_library_is_found_by_the_cache_of_the_linker_and_by_the_environment(root: Root) -> None:
    root.write("dev/nvidia0")
    root.write("opt/odd/libcuda.so.1")
    assert root.find("cuda") is None
    assert root.find("cuda", LD_LIBRARY_PATH="relative::/opt/odd") == Driver("cuda")
    root.write("etc/ld.so.cache", b"glibc-ld.so.cache1.1\0\xff\0libcuda.so.1\0/gone/libcuda.so.1\0/opt/odd/libcuda.so.1\0")
    assert root.find("cuda") == Driver("cuda")


def test_rocm_needs_its_version_and_a_node_that_computes(root: Root) -> None:
    root.write("dev/kfd")
    assert root.find("rocm") is None
    root.write("opt/rocm-6.2.0/.info/version", "6.2.0-66\n")
    root.write("opt/rocm-10.0.1/.info/version", "10.0.1-12\n")
    root.write("sys/class/kfd/kfd/topology/nodes/0/properties", "cpu_cores_count 16\nsimd_count 0\n")
    assert root.find("rocm") == Driver("rocm", "10.0.1", has_device=False)
    root.write("sys/class/kfd/kfd/topology/nodes/1/properties", "cpu_cores_count 0\nsimd_count 256\n")
    assert root.find("rocm") == Driver("rocm", "10.0.1")


def test_the_drivers_that_mesa_installs_everywhere_are_no_device(root: Root) -> None:
    for name in ("intel", "radeon", "lvp"):
        root.icd(f"/usr/lib/libvulkan_{name}.so")
    driver = root.find("vulkan")
    assert driver is not None
    assert not driver.has_device
    assert driver.problem == ""
    root.node("renderD128", "0x1af4")  # that of a virtual machine
    assert root.find("vulkan") == driver
    root.node("renderD129", "0x1002")
    assert root.find("vulkan") == Driver("vulkan", driver.version)
    assert "libvulkan_radeon.so 1.3.230 7" in driver.version


def test_a_software_driver_is_no_device_even_beside_a_real_one(root: Root) -> None:
    root.icd("/usr/lib/libvulkan_lvp.so")
    root.node("renderD128", "0x8086")
    driver = root.find("vulkan")
    assert driver is not None
    assert not driver.has_device


@pytest.mark.parametrize("node", ["dev/dri/renderD128", "dev/dxg"])  # of an ARM board, and of WSL
def test_a_device_without_a_pci_vendor_may_be_that_of_any_driver(root: Root, node: str) -> None:
    root.icd("/usr/lib/libvulkan_panfrost.so")
    root.write(node)
    driver = root.find("vulkan")
    assert driver is not None
    assert driver.has_device


def test_the_vulkan_driver_of_nvidia_needs_its_own_device_file(root: Root) -> None:
    root.icd("/usr/lib/libGLX_nvidia.so.0")
    root.write("dev/nvidiactl")
    driver = root.find("vulkan")
    assert driver is not None
    assert driver.has_device


def test_another_driver_has_another_version(root: Root) -> None:
    root.icd("/usr/lib/libvulkan_radeon.so")
    before = root.find("vulkan")
    os.utime(root.path / "usr/lib/libvulkan_radeon.so", (8, 8))
    after = root.find("vulkan")
    assert before is not None
    assert after is not None
    assert before.version != after.version


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b'{"ICD": {}}',
        b'{"ICD": {"library_path": ""}}',
        b"\xff\x00",
        b"[" * 100_000,
        b'{"ICD": {"library_path": "/x\\u0000y"}}',
        b'{"ICD": {"library_path": 7}}',
    ],
)
def test_a_vulkan_file_that_is_damaged_or_lies_is_no_driver(root: Root, content: bytes) -> None:
    root.write("etc/vulkan/icd.d/bad.json", content)
    root.icd("/usr/lib/libvulkan_gone.so", exists=False)
    root.path.joinpath("etc/vulkan/icd.d/folder.json").mkdir()
    os.mkfifo(root.path / "etc/vulkan/icd.d/pipe.json")
    assert root.find("vulkan") is None


def test_vulkan_drivers_are_where_the_environment_says(root: Root) -> None:
    root.icd("/usr/lib/libvulkan_radeon.so")
    named = root.icd("/opt/libvulkan_intel.so", folder="opt/drivers")
    inside = f"/{named.relative_to(root.path)}"
    for environment in (
        {"VK_DRIVER_FILES": inside},
        {"VK_ICD_FILENAMES": "/opt/drivers"},
        {"VK_DRIVER_FILES": inside, "VK_ICD_FILENAMES": "/ignored"},
    ):
        driver = root.find("vulkan", **environment)
        assert driver is not None
        assert driver.version == "libvulkan_intel.so 1.3.230 7", environment
    driver = root.find("vulkan", VK_ADD_DRIVER_FILES=inside)
    assert driver is not None
    assert driver.version == "libvulkan_intel.so 1.3.230 7, libvulkan_radeon.so 1.3.230 7"
    root.icd("/opt/libvulkan_intel.so", folder="home/data/vulkan/icd.d")
    assert root.find("vulkan", XDG_DATA_HOME="/home/data", XDG_DATA_DIRS="/nowhere") == Driver(
        "vulkan", "libvulkan_intel.so 1.3.230 7", has_device=False
    )


@pytest.mark.parametrize("library", ["libvulkan_radeon.so", "../../../usr/lib64/libvulkan_radeon.so"])
def test_a_vulkan_library_is_found_by_its_name_and_relative_to_its_file(root: Root, library: str) -> None:
    root.write("usr/lib64/libvulkan_radeon.so")
    root.write("etc/vulkan/icd.d/radeon.json", json.dumps({"ICD": {"library_path": library}}))
    assert root.find("vulkan") is not None


@needs_root
def test_a_device_that_the_user_may_not_open_is_a_problem_that_is_told(home: Path) -> None:
    root = Root(home)
    root.nvidia()
    root.icd("/usr/lib/libvulkan_radeon.so")
    root.node("renderD127", "0x8086")  # no driver is for it, so it is not the one to complain about
    root.node("renderD128", "0x1002")
    for node in ("dev/nvidia0", "dev/dri/renderD127", "dev/dri/renderD128"):
        root.write(node).chmod(0o660)
    for folder in (home, *(path for path in home.rglob("*") if path.is_dir())):
        folder.chmod(0o755)
    code = (
        "import pathlib, sys; from runed.bootstrap.drivers import find_drivers\n"
        "for each in find_drivers({}, root=pathlib.Path(sys.argv[1]), system='linux'): print(each.has_device, each.problem)"
    )
    done = run_as(OTHER, code, str(home))
    assert done.stdout.splitlines() == [
        f"False you may not open {home}/{node}: join its group, such as render or video, and log in again"
        for node in ("dev/nvidia0", "dev/dri/renderD128")
    ], done.stderr


@pytest.mark.parametrize(
    ("version", "minimum", "enough"),
    [
        ("535.129.03", "525", True),
        ("525", "525", True),
        ("524.99", "525", False),
        ("1000.1", "580", True),
        ("10.0.1", "10", True),
        ("9.9", "10", False),
        ("", "580", True),
        ("libvulkan_radeon.so 1.3", "1.4", True),
    ],
)
def test_versions_are_compared_by_their_numbers(version: str, minimum: str, enough: bool) -> None:  # noqa: FBT001
    assert is_at_least(version, minimum) is enough
