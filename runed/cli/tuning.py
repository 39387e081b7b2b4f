"""The part of `runed bench` that measures engines: on each device with several profiles, and with variants of the model."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import runed
from runed.backends.llama import check_model
from runed.backends.llama.tuning import fastest
from runed.backends.llama.tuning import tune as tune_engine
from runed.backends.llama.variants import closeness, measure_variant, most_exact
from runed.bootstrap import DeviceChoice, Installation, Progress, install_for_comparison, keep_choice
from runed.cli.boundary import ExitCode, complain, tell
from runed.cli.install import install_shown, open_home
from runed.cli.progress import ProgressDisplay
from runed.cli.samples import sample_texts
from runed.cli.tables import milliseconds, print_table, table
from runed.cli.waiting import ANSWER_SECONDS
from runed.domain.device import Device
from runed.errors import BackendError, DaemonUnavailableError, DeadlineExceededError, RunedError, SettingsError
from runed.paths import Paths
from runed.settings import Settings

if TYPE_CHECKING:
    from rich.table import Table

    from runed.backends.llama.profile import Tuning
    from runed.backends.llama.variants import VariantMeasurement

TUNE_LIMIT = 360.0
"""Seconds on one device after which `--tune` leaves out the other measurements."""

TUNE_TEXTS = 256
LONG_TEXT_WORDS = 40

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is wanted.

    Attributes:
        devices: Whether to compare devices and profiles, and to keep the result.
        variants: The variants of the model to compare; all if it is empty, none if it is None.
        seconds: The time of one measurement.
        force: Whether to keep a result that other programs disturbed.
        as_json: Whether to print one JSON object instead of tables.
    """

    devices: bool
    variants: Sequence[str] | None
    seconds: float
    force: bool
    as_json: bool


@dataclass(frozen=True, slots=True)
class _Trial:
    """The tuning of one device."""

    installation: Installation
    tuning: Tuning

    @property
    def rate(self) -> float:
        """The most texts per second."""
        return max(each.texts_per_second for each in self.tuning.measurements)


@dataclass(frozen=True, slots=True)
class _Devices:
    """The result of a comparison of devices; the first trial is that of the present device."""

    trials: Sequence[_Trial]
    best: _Trial
    kept: bool

    def as_dict(self, paths: Paths) -> dict[str, object]:
        """Return the result for programs: the tuning of the best device, and those of all."""
        devices = [_device_names(trial.installation.device) | asdict(trial.tuning) for trial in self.trials]
        stored = {"stored": str(paths.tuning) if self.kept else None}
        return stored | _device_names(self.best.installation.device) | asdict(self.best.tuning) | {"devices": devices}


def tune(request: Request) -> ExitCode:
    """Measure what is wanted, print the results, and return the exit code."""
    settings, paths = open_home("bench.log")
    if _daemon_is_busy(paths):
        complain("the daemon is embedding now, so the figures will be too low; measure again when it is idle")
    devices, variants, device = None, None, None
    with ProgressDisplay() as display:
        if request.devices:
            devices = _compare_devices(settings, paths, request, display)
            device = devices.best.installation
        if request.variants is not None:
            variants = _compare_variants(settings, paths, request, device, display)
    if request.as_json:
        document = devices.as_dict(paths) if devices else {}
        print(json.dumps(document | ({"variants": _variants_as_dicts(variants)} if variants else {}), indent=2))
    else:
        if devices:
            _show_devices(devices, settings, paths)
        if variants:
            _show_variants(variants, paths)
    return ExitCode.OK if devices is None or devices.kept else ExitCode.FAILED


def _daemon_is_busy(paths: Paths) -> bool:
    try:
        with runed.connect(home=paths.home, spawn=False, timeout=ANSWER_SECONDS) as client:
            return client.health().in_flight_requests > 0
    except (DaemonUnavailableError, DeadlineExceededError):
        return False


# Devices


def _compare_devices(settings: Settings, paths: Paths, request: Request, display: ProgressDisplay) -> _Devices:
    """Tune the engine of each device, and keep the results and the fastest device.

    Raises:
        BackendError: No device could be measured.
    """

    def report(progress: Progress) -> None:
        display.update(progress.phase.value, progress.bytes_done, progress.bytes_total, detail=progress.message)

    installations = asyncio.run(install_for_comparison(settings, paths, report=report, check_model=check_model))
    for warning in installations[0].warnings:
        complain(warning)
    measure = partial(_tune_device, settings, paths, request, display)
    trials = [
        _Trial(installation, tuning)
        for installation in installations
        if (tuning := _or_complaint(str(installation.device), partial(measure, installation), last=len(installations) == 1))
    ]
    if not trials:
        raise BackendError("no device could be measured, so nothing is kept; see logs/llama-server.log")
    best = trials[fastest([trial.tuning for trial in trials])]
    kept = request.force or not any(trial.tuning.is_chance for trial in trials)
    if kept and (uses := best.installation.device_uses):
        chosen = best.installation.device_use
        choice = DeviceChoice(
            model=best.installation.model_sha256, compared=uses, chosen=chosen, chosen_at=best.tuning.measured_at
        )
        keep_choice(paths.device_choice, choice)
    return _Devices(trials, best, kept)


def _tune_device(
    settings: Settings, paths: Paths, request: Request, display: ProgressDisplay, installation: Installation
) -> Tuning:
    device = installation.device

    def show(done: int, total: int, what: str) -> None:
        where = "" if device.is_cpu else f" on {device}"
        display.update(f"measuring the engine{where}", done, total, unit="ways", detail=f"measuring the engine{where}: {what}")

    return tune_engine(
        executable=installation.llama_server,
        model=installation.model,
        model_sha256=installation.model_sha256,
        paths=paths,
        ctx_size=settings.ctx_size,
        texts=sample_texts(TUNE_TEXTS, LONG_TEXT_WORDS),
        seconds=request.seconds,
        limit=TUNE_LIMIT,
        report=show,
        force=request.force,
        device=device,
    )


def _show_devices(devices: _Devices, settings: Settings, paths: Paths) -> None:
    for trial in devices.trials:
        if len(devices.trials) > 1:
            print(f"{_name(trial.installation.device)}:")
        print_table(_tuning_table(trial.tuning))
        if trial.tuning.passes:
            print_table(_pass_table(trial.tuning))
        for remark in trial.tuning.remarks:
            complain(remark)
    best = devices.best.installation.device
    if len(devices.trials) > 1:
        print_table(_device_table(devices))
    if not devices.kept:
        complain("the result is not kept; with --force it is")
        return
    tell(f"kept in {paths.tuning} for the next start; `runed stop` ends a daemon that runs without it")
    print(f"RUNED_PROFILE chooses among them, now {settings.profile}; `runed bench --reset` brings the built-in settings back")
    if len(devices.trials) > 1:
        print(f"the device of the next start: {_name(best)}, kept in {paths.device_choice}")
        if settings.engine not in {"auto", best.accelerator}:
            complain(f"RUNED_ENGINE={settings.engine} decides nevertheless; set it to auto to have the fastest device")


def _device_table(devices: _Devices) -> Table:
    result = table("device", "alone", "texts/s", "tokens/s", "")
    for trial in devices.trials:
        top = max(trial.tuning.measurements, key=lambda each: each.texts_per_second)
        result.add_row(
            _name(trial.installation.device),
            milliseconds(min(each.lone_seconds for each in trial.tuning.measurements)),
            f"{top.texts_per_second:,.1f}",
            f"{top.tokens_per_second:,.0f}",
            "chosen" if trial is devices.best else "",
        )
    return result


def _tuning_table(tuning: Tuning) -> Table:
    result = table("texts", "tokens", "threads", "alone", "together", "texts/s", "tokens/s", "best for")
    best_for: dict[tuple[int, int, int], list[str]] = {}
    for profile in tuning.profiles:
        best_for.setdefault((profile.slots, profile.batch_tokens, profile.threads), []).append(profile.name)
    for each in sorted(tuning.measurements, key=lambda each: (each.slots, each.batch_tokens, each.threads)):
        result.add_row(
            str(each.slots),
            str(each.batch_tokens),
            str(each.threads),
            milliseconds(each.lone_seconds),
            milliseconds(each.batch_seconds),
            f"{each.texts_per_second:,.1f}",
            f"{each.tokens_per_second:,.0f}",
            ", ".join(best_for.get((each.slots, each.batch_tokens, each.threads), [])),
        )
    return result


def _pass_table(tuning: Tuning) -> Table:
    result = table("tokens at once", "texts of 120", "texts of 500", "best for")
    for each in tuning.passes:
        names = [profile.name for profile in tuning.profiles if profile.pass_tokens == each.pass_tokens]
        speeds = (f"{speed:,.0f} tokens/s" for speed in (each.medium_tokens_per_second, each.long_tokens_per_second))
        result.add_row(str(each.pass_tokens), *speeds, ", ".join(names))
    return result


def _name(device: Device) -> str:
    return "the processors" if device.is_cpu else str(device)


def _device_names(device: Device) -> dict[str, object]:
    return {"accelerator": device.accelerator, "device": device.description}


# Variants


def _compare_variants(
    settings: Settings, paths: Paths, request: Request, chosen: Installation | None, display: ProgressDisplay
) -> Sequence[VariantMeasurement]:
    """Install and measure each variant.

    Args:
        settings: The settings.
        paths: The home.
        request: What is wanted.
        chosen: The installation on the device to measure on; None for the one that serves.
        display: Shows the progress.

    Raises:
        SettingsError: The model is a file of the user's own, which has no variants.
        BackendError: No variant could be measured.
    """
    if settings.model:
        raise SettingsError(
            f"--variants compares the variants that the manifest lists, but RUNED_MODEL={settings.model} is a file; unset it"
        )
    texts = sample_texts(TUNE_TEXTS, LONG_TEXT_WORDS)
    served = chosen or install_shown(settings, paths, display)
    names = list(dict.fromkeys(request.variants or served.variants))
    measured = []
    for number, name in enumerate(names):
        display.update("measuring variants", number, len(names), unit="variants", detail=f"measuring {name}")

        def measure(name: str = name) -> VariantMeasurement:
            return _measure_variant(settings, paths, request, served, name, texts, display)

        if measurement := _or_complaint(name, measure, last=len(names) == 1):
            measured.append(measurement)
    if not measured:
        raise BackendError("no variant could be measured; see logs/llama-server.log")
    return measured


def _measure_variant(
    settings: Settings,
    paths: Paths,
    request: Request,
    served: Installation,
    name: str,
    texts: Sequence[str],
    display: ProgressDisplay,
) -> VariantMeasurement:
    # Without `keep_source`, a variant that was measured would be removed when another one is made from it.
    variant = install_shown(replace(settings, model_variant=name, keep_source=True), paths, display)
    if variant.variant != name:
        raise RunedError("; ".join(variant.warnings))
    return measure_variant(
        name,
        executable=served.llama_server,
        model=variant.model,
        model_sha256=variant.model_sha256,
        paths=paths,
        ctx_size=settings.ctx_size,
        profile=settings.profile,
        texts=texts,
        seconds=request.seconds,
        device=served.device,
    )


def _show_variants(variants: Sequence[VariantMeasurement], paths: Paths) -> None:
    best = most_exact(variants)
    result = table("variant", "file", "memory", "alone", "texts/s", "tokens/s", "mean cosine", "least cosine")
    for each in variants:
        near = closeness(each, best)
        result.add_row(
            each.name,
            f"{each.file_bytes / 1e6:,.0f} MB",
            f"{each.memory_bytes / 1e6:,.0f} MB",
            milliseconds(each.lone_seconds),
            f"{each.texts_per_second:,.1f}",
            f"{each.tokens_per_second:,.0f}",
            *("-" if math.isnan(cosine) else f"{cosine:.5f}" for cosine in (near.mean, near.least)),
        )
    print_table(result)
    tell(
        f"cosines are those to {best.name}, of {len(best.vectors)} texts; RUNED_MODEL_VARIANT chooses, and nothing was switched. "
        f"All variants stay in {paths.models}: remove those that you do not use"
    )


def _variants_as_dicts(variants: Sequence[VariantMeasurement]) -> list[dict[str, object]]:
    best = most_exact(variants)
    result = []
    for each in variants:
        cosines = asdict(closeness(each, best))
        figures = {name: value for name, value in asdict(each).items() if name != "vectors"}
        known = {f"{name}_cosine": None if math.isnan(value) else value for name, value in cosines.items()}
        result.append(figures | known | {"compared_with": best.name})
    return result


def _or_complaint(what: str, measure: Callable[[], _T], *, last: bool) -> _T | None:
    """Measure; complain about a failure, unless it was the last chance."""
    try:
        return measure()
    except RunedError as error:
        if last:
            raise
        complain(f"{what} is left out: {error.message}")
        return None
