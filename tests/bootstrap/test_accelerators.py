"""The choice of engine and device on machines of plain files, with engines that are small programs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from runed.bootstrap import Installation, install
from runed.bootstrap.device_failures import DeviceFailures, DeviceUse
from runed.bootstrap.manifest import current_platform
from runed.bootstrap.programs import list_devices
from runed.domain.device import CPU, Device
from runed.errors import BootstrapError, ForeignPathError
from tests.bootstrap.conftest import Machine
from tests.bootstrap.parts import IMPATIENT, VERSION_SCRIPT, Release, archive, check_magic, sha256
from tests.bootstrap.site import Site, drop_after, status
from tests.bootstrap.test_drivers import NVIDIA, OPEN_NVIDIA, Root
from tests.users import OTHER, needs_root

MIB = 1024**2

LISTS = """#!/bin/sh
case "$*" in
--version) echo 'version: {version}' >&2 ;;
--list-devices) {action} ;;
esac
"""


def engine(action: str, version: str = "4242 (fake)") -> str:
    """Return an engine that does something for `--list-devices`."""
    return LISTS.format(action=action, version=version)


def listing(*devices: str) -> str:
    """Return an engine that lists devices."""
    lines = "".join(f"  {device}\\n" for device in devices)
    return engine(f"printf 'noise: 1 found\\nAvailable devices:\\n{lines}'")


VULKAN = listing("Vulkan0: AMD Radeon RX 7900 (24560 MiB, 24000 MiB free)")
CUDA = listing("CUDA0: NVIDIA H100 (81559 MiB, 80000 MiB free)", "CUDA1: NVIDIA H100 (81559 MiB, 80000 MiB free)")


class Gpus(Release):
    """A release with engines for accelerators: entries of the manifest, and the files of the site."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.entries: list[dict[str, Any]] = []

    def add(self, name: str, program: str, *, driver: str = "", libraries: tuple[bytes, ...] = (), **changes: object) -> str:
        """Add an engine, and return the path of its archive on the site."""
        data = archive(("llama-b1/llama-server", program))
        path = f"/{name}{len(self.entries)}.tar.gz"
        self.site.files[path] = data
        entry = {"name": name, "driver": driver, "url": path, "sha256": sha256(data), "size": len(data), "extract": "tar.gz"}
        entry["libraries"] = [{"url": f"{path}.{n}", "sha256": sha256(each)} for n, each in enumerate(libraries)]
        self.site.files |= {f"{path}.{n}": each for n, each in enumerate(libraries)}
        self.entries.append(entry | {"exec": "llama-b1/llama-server"} | changes)
        return path

    def document(self) -> dict[str, Any]:
        document = super().document()
        document["platforms"][current_platform()]["accelerators"] = self.entries
        return document


@pytest.fixture
def gpus(site: Site) -> Gpus:
    return Gpus(site)


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root(tmp_path / "root")


@pytest.fixture
def radeon(root: Root) -> Root:
    root.icd("/usr/lib/libvulkan_radeon.so")
    root.node("renderD128", "0x1002")
    return root


@pytest.fixture
def nvidia(root: Root) -> Root:
    root.nvidia()
    root.write("dev/nvidia0")
    return root


async def settle(
    machine: Machine,
    root: Root,
    manifest: str,
    *,
    failures: DeviceFailures | None = None,
    **settings: Any,  # noqa: ANN401
) -> Installation:
    """Install on a machine."""
    machine.settings = type(machine.settings)(home=machine.settings.home, manifest=manifest, **settings)
    return await install(
        machine.settings,
        machine.paths,
        report=machine.progress.append,
        check_model=check_magic,
        policy=IMPATIENT,
        failures=failures,
        root=root.path,
    )


async def test_an_accelerator_is_chosen_by_its_driver_and_installed_beside_the_processors(
    machine: Machine, gpus: Gpus, radeon: Root
) -> None:
    gpus.add("cuda", CUDA)
    path = gpus.add("vulkan", VULKAN)
    url = gpus.publish()
    first = await settle(machine, radeon, url)
    assert first.device == Device("vulkan", "Vulkan0", "AMD Radeon RX 7900", 24560 * MIB, 24000 * MIB)
    assert first.llama_server == machine.paths.home / "bin/llama-cpp-vulkan/llama-b1/llama-server"
    assert first.warnings == ()
    assert machine.paths.llama_cpp.is_dir()
    assert gpus.site.count("/cuda0.tar.gz") == 0
    assert machine.leftovers() == []
    assert machine.audit()["accelerators"]["vulkan"]["executable"] == "bin/llama-cpp-vulkan/llama-b1/llama-server"
    assert [step.message for step in machine.progress if "vulkan" in step.message][-1] == "unpacking llama-server for vulkan"
    assert await settle(machine, radeon, url) == first
    assert gpus.site.count(path) == 1


async def test_a_machine_without_a_device_downloads_nothing_for_it(machine: Machine, gpus: Gpus, root: Root) -> None:
    for name in ("cuda", "rocm", "vulkan"):
        gpus.add(name, VULKAN)
    root.icd("/usr/lib/libvulkan_lvp.so")
    installation = await settle(machine, root, gpus.publish())
    assert (installation.device, installation.warnings) == (CPU, ())
    assert installation.program.is_relative_to(machine.paths.llama_cpp)
    assert {request.path for request in gpus.site.requests} == {"/manifest.json", "/engine.tar.gz", "/models/tiny.gguf"}


async def test_the_processors_can_be_named(machine: Machine, gpus: Gpus, radeon: Root) -> None:
    gpus.add("vulkan", VULKAN)
    installation = await settle(machine, radeon, gpus.publish(), engine="cpu")
    assert (installation.device, installation.warnings) == (CPU, ())


@pytest.mark.parametrize(
    ("version", "chosen"),
    [(OPEN_NVIDIA, "13"), (NVIDIA, "12"), ("", "12")],  # of an unknown driver, the least is asked
)
async def test_the_engine_for_cuda_suits_the_driver(
    machine: Machine, gpus: Gpus, root: Root, version: str, chosen: str
) -> None:
    for name, driver in (("13", "580"), ("12", "525")):
        gpus.add("cuda", CUDA.replace("4242 (fake)", name), driver=driver)
    root.nvidia(version, "libcuda.so.1.1" if not version else "libcuda.so.999.9")
    root.write("dev/nvidia0")
    installation = await settle(machine, root, gpus.publish())
    assert installation.device.name == "CUDA0"
    assert installation.engine_version == chosen


async def test_a_driver_that_is_too_old_is_told(machine: Machine, gpus: Gpus, root: Root) -> None:
    gpus.add("cuda", CUDA, driver="580")
    gpus.add("cuda", CUDA, driver="525")
    root.nvidia(NVIDIA.replace("535.129.03", "470.10"))
    root.write("dev/nvidia0")
    installation = await settle(machine, root, gpus.publish())
    assert installation.device == CPU
    assert installation.warnings == (
        "the processors serve: the driver 470.10 for cuda is older than 525, which its engine needs: update it",
    )


async def test_the_libraries_of_an_engine_lie_beside_its_program(machine: Machine, gpus: Gpus, nvidia: Root) -> None:
    flat = archive(("libcudart.so.12.8", b"cudart"), ("llama-server", b"not this one"))
    deep = archive(("some/where/libcublas.so.12", b"cublas"), ("some/EULA.txt", b"terms"))
    gpus.add("cuda", CUDA, libraries=(flat, deep))
    installation = await settle(machine, nvidia, gpus.publish())
    folder = installation.program.parent
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        "llama-server": CUDA.encode(),
        "libcudart.so.12.8": b"cudart",
        "libcublas.so.12": b"cublas",
        "EULA.txt": b"terms",
    }
    assert installation.device_use is not None
    assert installation.device_use.engine.splitlines()[1:] == [sha256(flat), sha256(deep)]
    assert machine.leftovers() == []


async def test_other_libraries_are_another_engine(machine: Machine, gpus: Gpus, nvidia: Root) -> None:
    gpus.add("cuda", CUDA, libraries=(archive(("libcudart.so", b"old")),))
    await settle(machine, nvidia, gpus.publish())
    gpus.entries.clear()
    gpus.add("cuda", CUDA, libraries=(archive(("libcudart.so", b"new")),))
    installation = await settle(machine, nvidia, gpus.publish())
    assert installation.program.with_name("libcudart.so").read_bytes() == b"new"


async def test_an_archive_that_cannot_be_fetched_leaves_the_processors_and_is_tried_again(
    machine: Machine, gpus: Gpus, radeon: Root
) -> None:
    path = gpus.add("vulkan", VULKAN)
    gpus.site.always[path] = status(404)
    url = gpus.publish()
    installation = await settle(machine, radeon, url)
    assert installation.device == CPU
    assert installation.program.is_relative_to(machine.paths.llama_cpp)
    [warning] = installation.warnings
    assert warning.startswith("the processors serve: the engine for vulkan is missing: http://127.0.0.1")
    assert not machine.paths.device_failures.exists()
    del gpus.site.always[path]
    assert (await settle(machine, radeon, url)).device.name == "Vulkan0"


async def test_half_an_archive_is_kept_for_the_next_start(machine: Machine, gpus: Gpus, radeon: Root) -> None:
    path = gpus.add("vulkan", VULKAN)
    url = gpus.publish()
    size = len(gpus.site.files[path])
    gpus.site.behaviours[path] = [drop_after(size // 2), status(503), status(503)]
    assert (await settle(machine, radeon, url)).device == CPU
    assert (await settle(machine, radeon, url)).device.name == "Vulkan0"
    assert gpus.site.requests[-1].range == f"bytes={size // 2}-"
    assert machine.leftovers() == []


async def test_a_wrong_archive_leaves_the_processors(machine: Machine, gpus: Gpus, radeon: Root) -> None:
    gpus.add("vulkan", VULKAN, sha256="ab" * 32)
    installation = await settle(machine, radeon, gpus.publish())
    assert installation.device == CPU
    assert "vulkan cannot be used: " in installation.warnings[0]


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        (engine("exit 3"), "code 3"),
        (engine("kill -11 $$"), "SIGSEGV"),
        (engine("echo 'ggml_vulkan: device lost' >&2; exit 1"), "ggml_vulkan: device lost"),
        (VERSION_SCRIPT.replace("echo", "exit 1 #"), "without a word"),
    ],
)
async def test_an_engine_that_fails_leaves_the_processors_and_is_remembered(
    machine: Machine, gpus: Gpus, radeon: Root, program: str, expected: str
) -> None:
    path = gpus.add("vulkan", program)
    url = gpus.publish()
    first = await settle(machine, radeon, url)
    assert first.device == CPU
    assert first.warnings[0].startswith("the processors serve: vulkan cannot be used: ")
    assert expected in first.warnings[0]
    again = await settle(machine, radeon, url)
    assert again.device == CPU
    assert "vulkan failed before: " in again.warnings[0]
    assert "`runed install --reset`" in again.warnings[0]
    assert gpus.site.count(path) == 1


async def test_a_device_that_vanished_leaves_the_processors_and_comes_back(
    machine: Machine, gpus: Gpus, radeon: Root, tmp_path: Path
) -> None:
    present = tmp_path / "present"
    gpus.add("vulkan", engine(f"test -e {present} && echo '  Vulkan0: AMD (24560 MiB, 24000 MiB free)'; echo '  (none)'"))
    url = gpus.publish()
    assert (
        (await settle(machine, radeon, url))
        .warnings[0]
        .startswith("the processors serve: llama-server lists no vulkan device: check the driver with `vulkaninfo`; ")
    )
    present.touch()
    assert (await settle(machine, radeon, url)).device.name == "Vulkan0"
    present.unlink()
    assert (await settle(machine, radeon, url)).device == CPU


async def test_a_device_needs_memory_for_the_model(machine: Machine, gpus: Gpus, nvidia: Root) -> None:
    gpus.add("cuda", listing("CUDA0: small (300 MiB, 20 MiB free)", "CUDA1: large (900 MiB, 800 MiB free)"))
    url = gpus.publish()
    assert (await settle(machine, nvidia, url)).device.description == "large"
    gpus.entries.clear()
    gpus.add("cuda", listing("CUDA0: full (900 MiB, 5 MiB free)", "CUDA1: small (300 MiB, 20 MiB free)"))
    installation = await settle(machine, nvidia, gpus.publish())
    assert installation.device == CPU
    assert installation.warnings[0].endswith("but cuda: small has only 21 MB of free memory")
    gpus.entries.clear()
    gpus.add("cuda", listing("CUDA0: silent (0 MiB, 0 MiB free)"))
    assert (await settle(machine, nvidia, gpus.publish())).device.name == "CUDA0"


@needs_root
@pytest.mark.parametrize("accelerator", ["cpu", "cuda", "rocm", "vulkan"])
async def test_an_engine_in_which_another_user_has_a_hand_is_not_run(
    machine: Machine, gpus: Gpus, root: Root, accelerator: str
) -> None:
    folder = machine.paths.engine(accelerator)
    folder.mkdir(parents=True)
    (folder / "libcudart.so.12").touch()
    os.chown(folder / "libcudart.so.12", OTHER, OTHER)
    with pytest.raises(ForeignPathError, match=r"libcudart\.so\.12 belongs to user id"):
        await settle(machine, root, gpus.publish())


async def test_the_next_accelerator_serves_instead_of_a_failed_one(machine: Machine, gpus: Gpus, nvidia: Root) -> None:
    nvidia.icd("/usr/lib/libGLX_nvidia.so.0")
    nvidia.write("dev/nvidiactl")
    gpus.add("cuda", engine("exit 1"))
    gpus.add("vulkan", VULKAN)
    installation = await settle(machine, nvidia, gpus.publish())
    assert installation.device.accelerator == "vulkan"
    assert "cuda cannot be used" in installation.warnings[0]


async def test_a_failure_is_forgotten_with_another_driver_engine_or_model_or_if_it_is_named(
    machine: Machine, gpus: Gpus, nvidia: Root
) -> None:
    gpus.add("cuda", CUDA)
    url = gpus.publish()
    first = await settle(machine, nvidia, url)
    assert first.device_use is not None
    DeviceFailures(machine.paths.device_failures).remember(first.device_use, "wrong vectors")
    failed = await settle(machine, nvidia, url)
    assert failed.device == CPU
    assert failed.warnings[0].startswith("the processors serve: cuda failed before: wrong vectors; ")

    nvidia.write("proc/driver/nvidia/version", NVIDIA.replace("535.129.03", "535.1"))
    assert (await settle(machine, nvidia, url)).device.name == "CUDA0"
    nvidia.write("proc/driver/nvidia/version", NVIDIA)
    assert (await settle(machine, nvidia, url)).device == CPU
    gpus.models["tiny"] += b"another"
    assert (await settle(machine, nvidia, gpus.publish())).device.name == "CUDA0"
    gpus.models["tiny"] = gpus.models["tiny"].removesuffix(b"another")
    assert (await settle(machine, nvidia, gpus.publish())).device == CPU
    assert (await settle(machine, nvidia, url, engine="cuda")).device.name == "CUDA0"


async def test_a_daemon_that_cannot_write_the_failure_still_knows_it(machine: Machine, gpus: Gpus, nvidia: Root) -> None:
    gpus.add("cuda", CUDA)
    url = gpus.publish()
    failures = DeviceFailures(machine.paths.device_failures)
    first = await settle(machine, nvidia, url, failures=failures)
    assert first.device_use is not None
    machine.paths.device_failures.mkdir()
    machine.paths.device_failures.joinpath("x").touch()
    machine.paths.cache.chmod(0o500)
    try:
        failures.remember(first.device_use, "wrong vectors")
    finally:
        machine.paths.cache.chmod(0o700)
    assert (await settle(machine, nvidia, url, failures=failures)).device == CPU


def test_only_the_last_failures_are_kept_and_a_damaged_file_counts_as_empty(tmp_path: Path) -> None:
    path = tmp_path / "failures.json"
    path.write_text('[{"use": 1}]')
    failures = DeviceFailures(path)
    for number in range(40):
        failures.remember(DeviceUse("cuda", str(number), "", ""), "broken")
    failures.remember(DeviceUse("cuda", "39", "", ""), "broken again")
    again = DeviceFailures(path)
    assert len(json.loads(path.read_text())) == 32
    assert again.reason(DeviceUse("cuda", "39", "", "")) == "broken again"
    assert again.reason(DeviceUse("cuda", "7", "", "")) is None
    assert DeviceFailures(path, forget="cuda").reason(DeviceUse("cuda", "39", "", "")) is None
    assert DeviceFailures(path, forget="vulkan").reason(DeviceUse("cuda", "39", "", "")) == "broken again"


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("rocm", "no driver for rocm is installed on this machine: install it, or set RUNED_ENGINE=auto"),
        ("cuda", "the manifest has no engine for cuda on this platform: set RUNED_ENGINE=auto"),
    ],
)
async def test_an_accelerator_that_is_named_in_vain_is_told(
    machine: Machine, gpus: Gpus, nvidia: Root, setting: str, expected: str
) -> None:
    gpus.add("vulkan", VULKAN)
    installation = await settle(machine, nvidia, gpus.publish(), engine=setting)
    assert installation.device == CPU
    assert installation.warnings == (f"the processors serve: {expected}",)


async def test_an_accelerator_that_is_named_may_be_one_in_software(machine: Machine, gpus: Gpus, root: Root) -> None:
    root.icd("/usr/lib/libvulkan_lvp.so")
    gpus.add("vulkan", listing("Vulkan0: llvmpipe (LLVM 15.0.6, 256 bits) (2048 MiB, 2048 MiB free)"))
    installation = await settle(machine, root, gpus.publish(), engine="vulkan")
    assert installation.device == Device("vulkan", "Vulkan0", "llvmpipe (LLVM 15.0.6, 256 bits)", 2048 * MIB, 2048 * MIB)


async def test_an_engine_of_the_users_own_is_asked_for_its_devices(machine: Machine, gpus: Gpus, radeon: Root) -> None:
    own = machine.paths.home / "own"
    own.write_text(VULKAN)
    own.chmod(0o700)
    url = gpus.publish()
    installation = await settle(machine, radeon, url, llama_server=own)
    assert (installation.llama_server, installation.device.name) == (own, "Vulkan0")
    assert (await settle(machine, radeon, url, llama_server=own, engine="cpu")).device == CPU
    own.write_text(engine("echo '  (none)'"))
    installation = await settle(machine, radeon, url, llama_server=own)
    assert (installation.device, installation.warnings) == (CPU, ())
    for setting, tool in [("vulkan", "vulkaninfo"), ("cuda", "nvidia-smi"), ("rocm", "rocminfo")]:
        (warning,) = (await settle(machine, radeon, url, llama_server=own, engine=setting)).warnings
        assert f"lists no {setting} device: check the driver with `{tool}`" in warning
        assert warning.endswith("; RUNED_LLAMA_SERVER may be built without it")


async def test_devices_are_read_from_the_output_of_an_engine(tmp_path: Path) -> None:
    program = tmp_path / "llama-server"
    program.write_text(
        listing(
            "Vulkan0: llvmpipe (LLVM 15.0.6, 256 bits) (2048 MiB, 1000 MiB free)",
            "ROCm1: \\033[31mAMD\\007 (1 MiB, 1 MiB free)",
            "MTL0: Apple M4 Max (110100 MiB, 110100 MiB free)",
            "BLAS: Accelerate (0 MiB, 0 MiB free)",
            "NPU0: unknown (7 MiB, 7 MiB free)",
            "CUDA0: no memory",
            "Vulkan0; rm -rf x: y (1 MiB, 1 MiB free)",
            "CUDA99999999: y (1 MiB, 1 MiB free)",
        )
    )
    program.chmod(0o700)
    found = await list_devices(program)
    assert [(device.accelerator, device.name) for device in found] == [
        ("vulkan", "Vulkan0"),
        ("rocm", "ROCm1"),
        ("metal", "MTL0"),
    ]
    assert found[0].description == "llvmpipe (LLVM 15.0.6, 256 bits)"
    assert (found[0].memory, found[0].free_memory) == (2048 * MIB, 1000 * MIB)
    assert "\033" not in found[1].description


@pytest.mark.parametrize("action", ["sleep 60", "while :; do echo 'ggml: retrying'; done", "yes 'ggml: retrying'"])
async def test_an_engine_that_hangs_while_it_looks_for_devices_is_ended(tmp_path: Path, action: str) -> None:
    program = tmp_path / "llama-server"
    program.write_text(engine(action))
    program.chmod(0o700)
    with pytest.raises(BootstrapError, match=r"--list-devices did not end within 1 s and was stopped") as caught:
        await list_devices(program, timeout=1.0)
    assert len(caught.value.message) < 1000


async def test_junk_lists_no_device(tmp_path: Path) -> None:
    program = tmp_path / "llama-server"
    program.write_text(engine("head -c 3000000 /dev/urandom; echo; echo '  Vulkan0: a (5 MiB, 5 MiB free)'"))
    program.chmod(0o700)
    assert [device.name for device in await list_devices(program)] == ["Vulkan0"]
