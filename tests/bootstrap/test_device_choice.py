"""Devices are compared, and the fastest one of the comparison is used by the next start, until something else is there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from runed.bootstrap import DeviceChoice, DeviceFailures, Installation, install_for_comparison, keep_choice
from runed.bootstrap.device_choice import read_choice
from runed.bootstrap.device_failures import DeviceUse
from runed.domain.device import CPU
from tests.bad_files import BAD_FILES, put_bad_file
from tests.bootstrap.conftest import Machine
from tests.bootstrap.parts import IMPATIENT, check_magic
from tests.bootstrap.site import Site, status
from tests.bootstrap.test_accelerators import CUDA, VULKAN, Gpus, engine, listing, settle
from tests.bootstrap.test_drivers import NVIDIA, OPEN_NVIDIA, Root

AT = "2026-11-29T01:00:00+00:00"
LATER = "2026-11-29T02:00:00+00:00"


@pytest.fixture
def gpus(site: Site) -> Gpus:
    """A site with engines for CUDA and Vulkan."""
    gpus = Gpus(site)
    gpus.add("cuda", CUDA)
    gpus.add("vulkan", VULKAN)
    return gpus


@pytest.fixture
def root(tmp_path: Path) -> Root:
    """A machine with cards of NVIDIA and AMD."""
    root = Root(tmp_path / "root")
    root.nvidia()
    root.write("dev/nvidia0")
    root.icd("/usr/lib/libvulkan_radeon.so")
    root.node("renderD128", "0x1002")
    return root


async def compare(machine: Machine, root: Root, manifest: str, **settings: Any) -> list[Installation]:  # noqa: ANN401 # see settle
    machine.settings = type(machine.settings)(home=machine.settings.home, manifest=manifest, **settings)
    return await install_for_comparison(
        machine.settings,
        machine.paths,
        report=machine.progress.append,
        check_model=check_magic,
        policy=IMPATIENT,
        root=root.path,
    )


def keep(machine: Machine, compared: list[Installation], accelerator: str, at: str = AT) -> None:
    """Keep what `runed bench --tune` keeps if an accelerator was the fastest."""
    [best] = [each for each in compared if each.device.accelerator == accelerator]
    choice = DeviceChoice(model=best.model_sha256, compared=best.device_uses, chosen=best.device_use, chosen_at=at)
    keep_choice(machine.paths.device_choice, choice)


def accelerators(installations: list[Installation]) -> list[str]:
    return [each.device.accelerator for each in installations]


async def test_all_devices_are_compared_the_present_one_first(machine: Machine, gpus: Gpus, root: Root) -> None:
    url = gpus.publish()
    compared = await compare(machine, root, url)
    assert accelerators(compared) == ["cuda", "vulkan", "cpu"]
    assert compared[0].program.is_relative_to(machine.paths.engine("cuda"))
    assert compared[1].program.is_relative_to(machine.paths.engine("vulkan"))
    assert compared[2].program.is_relative_to(machine.paths.llama_cpp)
    assert {each.model_sha256 for each in compared} == {(await settle(machine, root, url)).model_sha256}
    keep(machine, compared, "cpu")
    assert accelerators(await compare(machine, root, url)) == ["cpu", "cuda", "vulkan"]


@pytest.mark.parametrize(("setting", "expected"), [("cpu", ["cpu"]), ("vulkan", ["vulkan", "cpu"])])
async def test_the_setting_bounds_the_comparison(
    machine: Machine, gpus: Gpus, root: Root, setting: str, expected: list[str]
) -> None:
    compared = await compare(machine, root, gpus.publish(), engine=setting)
    assert accelerators(compared) == expected
    assert [use.accelerator for use in compared[0].device_uses] == expected[:-1]
    assert gpus.site.count("/cuda0.tar.gz") == 0


@pytest.mark.parametrize("chosen", ["cpu", "vulkan", "cuda"])
async def test_the_fastest_device_is_used_by_the_next_start(machine: Machine, gpus: Gpus, root: Root, chosen: str) -> None:
    url = gpus.publish()
    before = await settle(machine, root, url)
    assert (before.device.accelerator, before.device_chosen_at) == ("cuda", "")
    keep(machine, await compare(machine, root, url), chosen)
    after = await settle(machine, root, url)
    assert (after.device.accelerator, after.device_chosen_at, after.warnings) == (chosen, AT, ())
    machine.paths.device_choice.unlink()
    assert await settle(machine, root, url) == before


async def test_a_device_that_is_named_beats_the_choice(machine: Machine, gpus: Gpus, root: Root) -> None:
    url = gpus.publish()
    keep(machine, await compare(machine, root, url), "cpu")
    named = await settle(machine, root, url, engine="vulkan")
    assert (named.device.accelerator, named.device_chosen_at) == ("vulkan", "")


async def test_a_device_in_software_that_was_chosen_need_not_be_named_any_more(
    machine: Machine, site: Site, tmp_path: Path
) -> None:
    gpus, root = Gpus(site), Root(tmp_path / "root")
    gpus.add("vulkan", listing("Vulkan0: llvmpipe (2048 MiB, 2048 MiB free)"))
    root.icd("/usr/lib/libvulkan_lvp.so")
    url = gpus.publish()
    compared = await compare(machine, root, url, engine="vulkan")
    assert accelerators(compared) == ["vulkan", "cpu"]
    assert (await settle(machine, root, url)).device == CPU
    keep(machine, compared, "vulkan")
    installation = await settle(machine, root, url)
    assert (installation.device.description, installation.device_chosen_at) == ("llvmpipe", AT)
    os.utime(root.path / "usr/lib/libvulkan_lvp.so", (8, 8))  # another driver
    assert (await settle(machine, root, url)).device == CPU


async def test_the_choice_is_void_with_another_driver_engine_or_model(machine: Machine, gpus: Gpus, root: Root) -> None:
    keep(machine, await compare(machine, root, gpus.publish()), "cpu")
    gpus.models = {"tiny": b"GGUF another"}
    assert (await settle(machine, root, gpus.publish())).device.accelerator == "cuda"
    keep(machine, await compare(machine, root, gpus.publish()), "cpu", LATER)
    assert (await settle(machine, root, gpus.publish())).device_chosen_at == LATER
    root.write("proc/driver/nvidia/version", NVIDIA.replace("535.129.03", "530.1"))
    assert (await settle(machine, root, gpus.publish())).device.accelerator == "cuda"


async def test_an_accelerator_that_could_not_be_compared_leaves_the_choice_open(
    machine: Machine, gpus: Gpus, root: Root
) -> None:
    gpus.site.always["/cuda0.tar.gz"] = status(404)
    url = gpus.publish()
    compared = await compare(machine, root, url)
    assert accelerators(compared) == ["cpu"], "the archives are on the same server"
    assert "the engine for cuda is missing" in compared[0].warnings[0]
    keep(machine, compared, "cpu")
    del gpus.site.always["/cuda0.tar.gz"]
    assert (await settle(machine, root, url)).device.accelerator == "cuda"


async def test_an_accelerator_that_failed_does_not_leave_it_open(machine: Machine, site: Site, root: Root) -> None:
    gpus = Gpus(site)
    gpus.add("cuda", engine("exit 1"))
    gpus.add("vulkan", VULKAN)
    url = gpus.publish()
    compared = await compare(machine, root, url)
    assert accelerators(compared) == ["vulkan", "cpu"]
    assert [use.accelerator for use in compared[0].device_uses] == ["cuda", "vulkan"]
    keep(machine, compared, "cpu")
    assert (await settle(machine, root, url)).device_chosen_at == AT


async def test_the_two_engines_of_one_accelerator_are_compared_once(machine: Machine, site: Site, tmp_path: Path) -> None:
    gpus, root = Gpus(site), Root(tmp_path / "root")
    for version, driver in (("13", "580"), ("12", "525")):
        gpus.add("cuda", CUDA.replace("4242 (fake)", version), driver=driver)
    root.nvidia(OPEN_NVIDIA, "libcuda.so.580.1")
    root.write("dev/nvidia0")
    url = gpus.publish()
    compared = await compare(machine, root, url)
    assert (compared[0].device.accelerator, compared[0].engine_version) == ("cuda", "13")
    assert accelerators(compared) == ["cuda", "cpu"]
    keep(machine, compared, "cpu")
    assert (await settle(machine, root, url)).device_chosen_at == AT


async def test_a_chosen_device_that_failed_gives_way_and_is_told(machine: Machine, gpus: Gpus, root: Root) -> None:
    url = gpus.publish()
    compared = await compare(machine, root, url)
    keep(machine, compared, "vulkan")
    use = compared[1].device_use
    assert use is not None
    DeviceFailures(machine.paths.device_failures).remember(use, "wrong vectors")
    installation = await settle(machine, root, url)
    assert (installation.device.accelerator, installation.device_chosen_at) == ("cuda", "")
    assert installation.warnings[0].startswith("vulkan failed before: wrong vectors; ")


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_damaged_file_counts_as_empty(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "cache" / "device-choice.json"
    put_bad_file(kind, path)
    assert read_choice(path, "m") is None


async def test_a_choice_of_an_unknown_device_does_not_count(machine: Machine, gpus: Gpus, root: Root) -> None:
    url = gpus.publish()
    compared = await compare(machine, root, url)
    for accelerator in ("", "auto", "cpu", "quantum"):
        use = DeviceUse(accelerator, "b", "", compared[0].model_sha256)
        choice = DeviceChoice(model=use.model, compared=(*compared[0].device_uses, use), chosen=use, chosen_at=AT)
        keep_choice(machine.paths.device_choice, choice)
        assert (await settle(machine, root, url)).device.accelerator == "cuda"


def test_one_choice_a_model_is_kept_and_not_too_many(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "device-choice.json"
    for number in range(40):
        keep_choice(path, DeviceChoice(model=str(number), compared=(), chosen=None, chosen_at=AT))
    keep_choice(path, DeviceChoice(model="39", compared=(), chosen=None, chosen_at=LATER))
    kept = msgspec.json.decode(path.read_bytes(), type=list[DeviceChoice])
    assert [choice.model for choice in kept] == [str(number) for number in range(8, 40)]
    newest = read_choice(path, "39")
    assert newest is not None
    assert newest.chosen_at == LATER
