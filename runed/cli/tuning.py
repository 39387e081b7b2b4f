"""The part of `runed bench --tune` that is more than flags: engines are measured on each device, and the best is kept."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from msgspec import to_builtins

from runed.backends.gguf import check_model
from runed.backends.llama.tuning import fastest, tune
from runed.backends.samples import LONG_TEXT_WORDS, SOME_TEXTS, sample_texts
from runed.bootstrap import (
    DeviceChoice,
    EngineComparison,
    Installation,
    Progress,
    install_for_comparison,
    keep_choice,
    keep_comparison,
)
from runed.cli.boundary import complain, tell
from runed.cli.engine_trial import compare_engines
from runed.cli.tables import milliseconds, print_table, table
from runed.cli.workbench import Workbench, program_of
from runed.domain.device import Device
from runed.domain.engines import LLAMA_SERVER, ONNX_RUNTIME
from runed.errors import BackendError

if TYPE_CHECKING:
    from rich.table import Table

    from runed.backends.llama.profile import Tuning

TUNE_LIMIT = 360.0
"""Seconds on one device after which the other measurements are left out."""


@dataclass(frozen=True, slots=True)
class Trial:
    """The tuning of one device."""

    installation: Installation
    tuning: Tuning


@dataclass(frozen=True, slots=True)
class Devices:
    """A comparison of devices; the first trial is that of the present one. `kept` tells whether the next start uses it.

    `engines` is the comparison of both engines on the processors, if that was possible.
    """

    trials: Sequence[Trial]
    best: Trial
    kept: bool
    engines: EngineComparison | None = None


def compare_devices(bench: Workbench, *, force: bool) -> Devices:
    """Tune the engine of each device, and keep the results and the fastest device.

    Args:
        bench: The place of the measurements.
        force: Whether to keep the result even if other programs disturbed it.

    Raises:
        BackendError: No device could be measured.
    """

    def report(progress: Progress) -> None:
        bench.display.update(progress.phase.value, progress.bytes_done, progress.bytes_total, detail=progress.message)

    installations = asyncio.run(install_for_comparison(bench.settings, bench.paths, report=report, check_model=check_model))
    for warning in installations[0].warnings:
        complain(warning)
    trials: list[Trial] = []
    for installation in installations:
        try:
            trials.append(Trial(installation, _tune(bench, installation, force=force)))
        except BackendError as error:
            if len(installations) == 1:
                raise
            complain(f"{device_name(installation.device)}: {error.message}")
    if not trials:
        raise BackendError("no device could be measured; see logs/bench.log")
    best = trials[fastest([trial.tuning for trial in trials])]
    kept = force or not any(trial.tuning.is_chance for trial in trials)
    if kept and best.installation.device_uses:
        choice = DeviceChoice(
            model=best.installation.model_sha256,
            compared=best.installation.device_uses,
            chosen=best.installation.device_use,
            chosen_at=best.tuning.measured_at,
        )
        keep_choice(bench.paths.device_choice, choice)
    engines = compare_engines(bench, best.installation, best.tuning)
    if kept and engines is not None:
        keep_comparison(bench.paths.engine_comparisons, engines)
    return Devices(trials, best, kept, engines)


def devices_as_dict(devices: Devices, bench: Workbench) -> dict[str, object]:
    """Return a comparison for programs: the tuning of the best device, and those of all in "devices"."""
    stored = {"stored": str(bench.paths.tuning) if devices.kept else None}
    engines = {"engines": None if devices.engines is None else to_builtins(devices.engines)}
    return stored | _as_dict(devices.best) | {"devices": list(map(_as_dict, devices.trials))} | engines


def show_devices(devices: Devices, bench: Workbench) -> None:
    """Print a comparison for people."""
    several = len(devices.trials) > 1
    for trial in devices.trials:
        if several:
            print(f"{device_name(trial.installation.device)}:")
        print_table(_tuning_table(trial.tuning))
        if trial.tuning.passes:
            print_table(_pass_table(trial.tuning))
        for remark in trial.tuning.remarks:
            complain(remark)
    if several:
        print_table(_device_table(devices))
    if devices.engines is not None:
        _show_engines(devices.engines)
    if not devices.kept:
        complain("the result is not kept; with --force it is")
        return
    tell(f"kept in {bench.paths.tuning} for the next start; `runed stop` ends a daemon that runs without it")
    profile = bench.settings.profile
    print(f"RUNED_PROFILE chooses among them, now {profile}; `runed bench --reset` brings the built-in settings back")
    if devices.best.installation.device_uses:
        best = devices.best.installation.device
        print(f"the device of the next start is kept, too: {device_name(best)}")
        if bench.settings.engine not in {"auto", best.accelerator}:
            complain(f"RUNED_ENGINE={bench.settings.engine} decides nevertheless; set it to auto to have the fastest device")


def device_name(device: Device) -> str:
    """Return the name of a device for people."""
    return "the processors" if device.is_cpu else str(device)


def _tune(bench: Workbench, installation: Installation, *, force: bool) -> Tuning:
    where = "measuring the engine" + ("" if installation.device.is_cpu else f" on {installation.device}")
    return tune(
        executable=program_of(installation),
        model=installation.model,
        model_sha256=installation.model_sha256,
        paths=bench.paths,
        ctx_size=bench.settings.ctx_size,
        texts=sample_texts(SOME_TEXTS, LONG_TEXT_WORDS),
        seconds=bench.seconds,
        limit=TUNE_LIMIT,
        report=lambda done, total, what: bench.display.update(where, done, total, unit="ways", detail=f"{where}: {what}"),
        force=force,
        device=installation.device,
    )


def _as_dict(trial: Trial) -> dict[str, object]:
    device = trial.installation.device
    return {"accelerator": device.accelerator, "device": device.description} | asdict(trial.tuning)


def _device_table(devices: Devices) -> Table:
    result = table("device", "alone", "texts/s", "tokens/s", "")
    for trial in devices.trials:
        top = max(trial.tuning.measurements, key=lambda each: each.texts_per_second)
        result.add_row(
            device_name(trial.installation.device),
            milliseconds(min(each.lone_seconds for each in trial.tuning.measurements)),
            f"{top.texts_per_second:,.1f}",
            f"{top.tokens_per_second:,.0f}",
            "chosen" if trial is devices.best else "",
        )
    return result


def _show_engines(engines: EngineComparison) -> None:
    result = table("engine", "texts/s", "")
    result.add_row(LLAMA_SERVER, f"{engines.llama_server_rate:,.1f}", "" if engines.chooses_onnx else "chosen")
    result.add_row(ONNX_RUNTIME, f"{engines.onnx_rate:,.1f}", "chosen" if engines.chooses_onnx else "")
    print_table(result)
    if engines.objection:
        complain(f"{ONNX_RUNTIME} cannot serve the model: {engines.objection}")


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
