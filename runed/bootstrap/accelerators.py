"""Chooses the engine and the device: an accelerator that works, or else the processors."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from runed.bootstrap import programs
from runed.bootstrap.device_choice import DeviceChoice
from runed.bootstrap.device_failures import DeviceFailures, DeviceUse
from runed.bootstrap.drivers import Driver, is_at_least
from runed.bootstrap.engine import Engine
from runed.bootstrap.manifest import EngineChoice
from runed.domain.device import CPU, Device
from runed.errors import BootstrapError, DiskSpaceError, DownloadError
from runed.log import get_logger

_SPARE_BYTES = 256 * 1024 * 1024
"""Least memory of a device that an engine needs besides the model: for its buffers and its context."""

_ADVICE = {
    "cuda": "check the driver with `nvidia-smi`, and CUDA_VISIBLE_DEVICES",
    "rocm": "check the driver with `rocminfo`, and HIP_VISIBLE_DEVICES",
    "vulkan": "check the driver with `vulkaninfo`; a device in software counts only if GGML_VK_VISIBLE_DEVICES names it",
    "metal": "a virtual machine may have none",
}
"""Advice for a driver whose device the engine does not list, by accelerator."""

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class EngineOnDevice:
    """The engine and the device to run it on.

    Attributes:
        engine: The engine.
        device: The device.
        use: The key of a failure of the device; None for the processors.
        problems: Sentences for the user on the accelerators that cannot be used.
        chosen_at: The time of the comparison in which it was the fastest, in ISO 8601; "" if no comparison decides.
    """

    engine: Engine
    device: Device
    use: DeviceUse | None = None
    problems: tuple[str, ...] = ()
    chosen_at: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chooser:
    """Chooses among the engines and devices of a machine.

    Attributes:
        setting: One of `runed.settings.ENGINES`.
        drivers: The drivers of the machine.
        failures: The devices that failed before.
        base: The engine for the processors, or the user's own. It may have devices, too.
        own: Whether `base` is the user's own.
        accelerated: The engines of the manifest for accelerators, those to prefer first.
        obtain: Returns such an engine, and installs it before if need be.
        model: The model to serve, and its SHA-256.
        choice: The result of the last comparison of devices for this model, or None. It counts if the setting is "auto".
    """

    setting: str
    drivers: Sequence[Driver]
    failures: DeviceFailures
    base: Engine
    own: bool
    accelerated: Sequence[EngineChoice]
    obtain: Callable[[EngineChoice], Awaitable[Engine]]
    model: tuple[Path, str]
    choice: DeviceChoice | None = None

    async def choose(self) -> EngineOnDevice:
        """Return the device that was the fastest in a comparison, or the first one that has not failed, or the processors."""
        problems: list[str] = []
        choice = self._valid_choice
        found = await self._find(self._attempts_by(choice, problems), problems, most=1)
        if not found and problems:
            _log.warning("the processors serve instead of an accelerator", problems=problems)
            problems[0] = f"the processors serve: {problems[0]}"
        chosen = found[0] if found else EngineOnDevice(self.base, CPU)
        chosen_at = choice.chosen_at if choice and choice.chosen == chosen.use else ""
        return replace(chosen, problems=tuple(problems), chosen_at=chosen_at)

    async def compare(self) -> list[EngineOnDevice]:
        """Return the device that `choose` returns, and then all others: one for each accelerator, and the processors."""
        first = await self.choose()
        problems: list[str] = []
        others = [*await self._find(self.attempts(problems), problems), EngineOnDevice(self.base, CPU)]
        # The processors serve because of these problems.
        told = first if first.problems and first.device.is_cpu else replace(first, problems=tuple(problems))
        return [told, *(each for each in others if each.device.accelerator != first.device.accelerator)]

    def settled(self, found: Sequence[EngineOnDevice]) -> tuple[DeviceUse, ...]:
        """Return the uses of all accelerators about which a comparison tells: those that were found, and those that failed."""
        accelerators = {each.device.accelerator for each in found}
        return tuple(use for use in self._uses() if use.accelerator in accelerators or self.failures.reason(use) is not None)

    def _uses(self) -> list[DeviceUse]:
        """Return the uses of all accelerators that may be tried on this machine."""
        return [self._use(*attempt) for attempt in self.attempts([])]

    async def _find(
        self, attempts: Iterable[tuple[Driver, EngineChoice | None]], problems: list[str], *, most: int | None = None
    ) -> list[EngineOnDevice]:
        """Return at most `most` devices that work, one for each accelerator. Add what prevents others."""
        found: dict[str, EngineOnDevice] = {}
        for driver, choice in attempts:
            if driver.accelerator in found:
                continue  # its engines share a folder
            try:
                working = await self._try(driver, choice, problems)
            except (DownloadError, DiskSpaceError) as error:
                # The next start tries again. The other archives are on the same server, and as large.
                problems.append(f"the engine for {driver.accelerator} is missing: {error.message}")
                break
            if working:
                found[driver.accelerator] = working
            if len(found) == most:  # before the next attempt, whose problems would be told in vain
                break
        return list(found.values())

    async def _try(self, driver: Driver, choice: EngineChoice | None, problems: list[str]) -> EngineOnDevice | None:
        """Return a device that works and has not failed before, with its engine. Otherwise add the reason.

        Raises:
            DownloadError: The engine cannot be fetched.
            DiskSpaceError: The engine has no room on the disk.
        """
        use = self._use(driver, choice)
        if (reason := self.failures.reason(use)) is not None:
            problems.append(f"{driver.accelerator} failed before: {reason}; `runed install --reset` lets it be tried again")
            return None
        try:
            engine = await self.obtain(choice) if choice else self.base
            return EngineOnDevice(engine, await self._find_device(engine, driver.accelerator), use)
        except (DownloadError, DiskSpaceError):
            raise
        except _NoDeviceError as error:
            if choice or self._is_named:  # the user's own engine may be for the processors alone
                problems.append(error.message)
        except BootstrapError as error:
            self.failures.remember(use, error.message)
            problems.append(f"{driver.accelerator} cannot be used: {error.message}")
        return None

    def _use(self, driver: Driver, choice: EngineChoice | None) -> DeviceUse:
        return DeviceUse(driver.accelerator, choice.build if choice else self.base.build, driver.version, self.model[1])

    @property
    def _valid_choice(self) -> DeviceChoice | None:
        """The choice if it decides: the user names nothing else, and no accelerator is there that was not compared."""
        choice = self.choice
        if choice is None or self.setting != "auto" or not set(self._uses()) <= set(choice.compared):
            return None
        # The file may be damaged.
        return choice if choice.chosen is None or choice.chosen.accelerator in _ADVICE else None

    def _attempts_by(self, choice: DeviceChoice | None, problems: list[str]) -> Iterator[tuple[Driver, EngineChoice | None]]:
        """Yield what `attempts` yields, but first the accelerator that was chosen; nothing if the processors were."""
        if choice is None:
            yield from self.attempts(problems)
        elif choice.chosen:
            # One that was named for the comparison, such as a device in software, has to be named again.
            named = replace(self, setting=choice.chosen.accelerator)
            yield from (each for each in named.attempts([]) if self._use(*each) == choice.chosen)
            yield from (each for each in self.attempts(problems) if self._use(*each) != choice.chosen)

    def attempts(self, problems: list[str]) -> Iterator[tuple[Driver, EngineChoice | None]]:
        """Yield the drivers to try, each with an engine of the manifest, or None for `base`. Add what prevents others."""
        drivers = self._usable_drivers(problems)
        if self.own or any(driver.accelerator == "metal" for driver in drivers):
            yield from ((driver, None) for driver in drivers)
            return
        for accelerator in dict.fromkeys(choice.accelerator for choice in self.accelerated):
            for driver in drivers:
                if driver.accelerator == accelerator:
                    yield from ((driver, choice) for choice in self._fitting(driver, problems))
        if self._is_named and drivers and not any(choice.accelerator == self.setting for choice in self.accelerated):
            problems.append(f"the manifest has no engine for {self.setting} on this platform: set RUNED_ENGINE=auto")

    def _usable_drivers(self, problems: list[str]) -> list[Driver]:
        """Return the drivers that the setting admits. One that is named may have a device in software only."""
        if self.setting == "cpu":
            return []
        drivers = [driver for driver in self.drivers if self.setting in {"auto", driver.accelerator}]
        problems.extend(driver.problem for driver in drivers if driver.problem)
        if not self._is_named:
            return [driver for driver in drivers if driver.has_device]
        if not drivers and self.own:
            return [Driver(self.setting)]  # the user's own engine may know where it is
        if not drivers:
            problems.append(f"no driver for {self.setting} is installed on this machine: install it, or set RUNED_ENGINE=auto")
        return drivers

    @property
    def _is_named(self) -> bool:
        """Whether the user names an accelerator."""
        return self.setting != "auto"

    def _fitting(self, driver: Driver, problems: list[str]) -> list[EngineChoice]:
        """Return the engines that work with a driver. If its version is not known, begin with the least demanding one."""
        engines = [choice for choice in self.accelerated if choice.accelerator == driver.accelerator]
        fitting = [choice for choice in engines if is_at_least(driver.version, choice.driver)]
        if not fitting:
            least = engines[-1].driver
            problems.append(
                f"the driver {driver.version} for {driver.accelerator} is older than {least}, which its engine needs: update it"
            )
        return fitting if driver.version else fitting[::-1]

    async def _find_device(self, engine: Engine, accelerator: str) -> Device:
        """Return the first device with enough memory."""
        devices = [each for each in await programs.list_devices(engine.executable) if each.accelerator == accelerator]
        if not devices:
            built = "; RUNED_LLAMA_SERVER may be built without it" if self.own else ""
            raise _NoDeviceError(f"llama-server lists no {accelerator} device: {_ADVICE[accelerator]}{built}")
        needed = self.model[0].stat().st_size + _SPARE_BYTES
        for device in devices:
            if not device.memory or device.free_memory >= needed:
                return device
        best = max(devices, key=lambda device: device.free_memory)
        raise _NoDeviceError(
            f"the model needs {needed / 1e6:,.0f} MB, but {best} has only {best.free_memory / 1e6:,.0f} MB of free memory"
        )


class _NoDeviceError(BootstrapError):
    """The engine runs, but has no device that can be used now."""
