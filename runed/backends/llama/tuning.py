"""Measures the engine with several profiles and chooses the best ones, for `runed bench --tune`."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import psutil

from runed.backends.comparing import FASTER
from runed.backends.cores import usable_cores
from runed.backends.gguf import read_gguf
from runed.backends.llama.backend import LlamaBackend
from runed.backends.llama.command import CONTEXT_STEP
from runed.backends.llama.measuring import measure, measure_passes, workshop
from runed.backends.llama.passes import SHORT_PASS, TILED_PASSES, affordable_pass, fitting_pass, free_memory
from runed.backends.llama.profile import (
    MAX_TOKENS_TOGETHER,
    Measurement,
    PassMeasurement,
    Profile,
    Tuning,
    built_in_profile,
    store_tuning,
)
from runed.backends.llama.quirks import Quirks
from runed.backends.measuring import LENGTHS
from runed.domain.device import CPU, Device
from runed.domain.model import ModelInfo
from runed.errors import BackendError, BackendUnavailableError
from runed.paths import Paths

MAX_BALANCED_RATIO = 3.0
"""Wanted time of a micro-batch of the profile "balanced", in multiples of a single text's time. An interactive text may have to
wait for one."""

_FEWEST_BALANCED = 0.9
"""Smallest share of the best rate for the profile "balanced", whatever the ratio. The scheduler makes bulk micro-batches
smaller while interactive texts come, so that a large one hardly delays them."""

_BALANCED_PASSES = 256
"""Most tokens of a pass of the profile "balanced". More cost memory."""

_BALANCED_PASS_RATE = 0.95
"""Share of the best speed of long texts from which on a smaller pass is preferred for the profile "balanced"."""

_WORTH_IT = 0.97
"""Share of the best rate from which on a smaller micro-batch is preferred. It needs less memory and waiting, and the
difference is noise."""

_USUAL_SIZE = (8, 128)
_OTHER_SIZES = ((1, 128), (4, 64), (16, 256), (32, 512))
_USUAL_SIZE_BOUNDED = (8, MAX_TOKENS_TOGETHER["last"])
_OTHER_SIZES_BOUNDED = ((1, _USUAL_SIZE_BOUNDED[1]), (8, 32), (8, 48), (32, _USUAL_SIZE_BOUNDED[1]))
"""Slots and tokens of the micro-batches to try on the processors, without and with a bound on the tokens."""

_DEVICE_SIZE = (32, 2048)
_OTHER_DEVICE_SIZES = ((1, 512), (8, 512), (16, 1024), (64, 4096))
"""The same for a device, which is fast only with many tokens. The threads of the processors hardly matter there."""

_ROUNDS = 2
"""Measurements of each profile. The fastest counts, since other work on the machine only slows them down."""

_CLEARLY_BETTER = 1.1
"""Gain from which on a number of threads below the number of cores is preferred. Noise favours it: other work on the machine
slows it down less."""

_QUIET = 0.1
"""Part of the machine that other programs may use without a remark."""

_T = TypeVar("_T")

Report = Callable[[int, int, str], None]
"""Called before each measurement with the number of those done, the number of all, and the next profile in words."""


def tune(
    *,
    executable: Path,
    model: Path,
    model_sha256: str,
    paths: Paths,
    ctx_size: int,
    texts: Sequence[str],
    seconds: float,
    limit: float,
    report: Report,
    force: bool = False,
    device: Device = CPU,
) -> Tuning:
    """Measure an engine and a model with several profiles, choose the best ones, and store them for the next start.

    It runs its own engines, one after another, in a temporary home. A daemon may run beside it. It blocks, and must be called
    on the main thread without an event loop.

    Args:
        executable: The `llama-server`.
        model: The GGUF.
        model_sha256: Its SHA-256, in hexadecimal.
        paths: The home that the result is kept in.
        ctx_size: The context in tokens, as for `LlamaBackend`.
        texts: Some hundred texts of at least 26 tokens, which are cut to several lengths.
        seconds: The time of one measurement.
        limit: The time in seconds after which the other measurements are left out.
        report: Called before each measurement.
        force: Whether to keep the result even if other programs used more than `MAX_DISTURBANCE` of the machine.
        device: The device that computes.

    Raises:
        BackendError: The engine cannot be run at all, or nothing could be measured within the limit.
        ModelFileError: The GGUF cannot be used.
    """
    with workshop(paths) as temporary:

        def make(profile: Profile | str) -> LlamaBackend:
            return LlamaBackend(
                executable=executable,
                model=model,
                model_sha256=model_sha256,
                paths=temporary,
                ctx_size=ctx_size,
                profile=profile,
                device=device,
            )

        info = make("balanced").model
        trials = _Trials(
            lambda way: measure(make(way), way, texts, seconds),
            lambda way: measure_passes(make(way), way, texts, seconds),
            _Ways.of(info, read_gguf(model).vocabulary, device),
            report,
        )
        asyncio.run(trials.run(limit))
    measurements, passes = tuple(trials.measured.values()), tuple(trials.passes.values())
    tuning = Tuning(
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        method=f"runed bench --tune: {len(texts)} texts of {min(LENGTHS)} to {max(LENGTHS)} tokens, {seconds:g} s each way",
        cores=usable_cores(),
        profiles=choose_profiles(measurements, passes),
        measurements=measurements,
        passes=passes,
        remarks=tuple(trials.remarks),
        disturbance=trials.disturbance,
    )
    if force or not tuning.is_chance:
        store_tuning(paths.tuning, Quirks(paths.engine_quirks, executable.absolute(), info, device).engine_and_model(), tuning)
    return tuning


def choose_profiles(measurements: Sequence[Measurement], passes: Sequence[PassMeasurement] = ()) -> tuple[Profile, ...]:
    """Choose the best of at least one measurement for each profile.

    "memory" has one slot. "throughput" has the most texts per second. "balanced" has at least 90 % of them, and a micro-batch
    that takes at most `MAX_BALANCED_RATIO` times the time of a single text. If that is too much to ask for, it has the smallest
    of these ratios.

    Args:
        measurements: The measurements of micro-batches. Without one of a single slot, "memory" is missing.
        passes: The measurements of passes. Without them, the built-in ones are kept.
    """
    enough = _FEWEST_BALANCED * _rate(max(measurements, key=_rate))
    fast = [each for each in measurements if _rate(each) >= enough]
    candidates = {
        "memory": [each for each in measurements if each.slots == 1],
        "balanced": [each for each in fast if _ratio(each) <= MAX_BALANCED_RATIO] or [min(fast, key=_ratio)],
        "throughput": list(measurements),
    }
    chosen = (_fastest(name, fit) for name, fit in candidates.items() if fit)
    return tuple(replace(profile, pass_tokens=_choose_pass(profile.name, passes)) for profile in chosen)


def fastest(tunings: Sequence[Tuning]) -> int:
    """Return the index of the tuning of the fastest device: the first one, unless another is at least 10 % faster.

    Args:
        tunings: The tunings of several devices for the same engine and model, that of the present device first.
    """
    rates = [max(map(_rate, tuning.measurements)) for tuning in tunings]
    best = max(range(len(rates)), key=lambda number: rates[number])
    return best if rates[best] >= FASTER * rates[0] else 0


def _choose_pass(name: str, passes: Sequence[PassMeasurement]) -> int:
    """Return the tokens of a pass for a profile; 0 without measurements."""
    if not passes or name == "memory":
        return SHORT_PASS if passes else 0
    balanced = name == "balanced"
    sizes = [each for each in passes if not balanced or each.pass_tokens <= _BALANCED_PASSES] or passes
    share = _BALANCED_PASS_RATE if balanced else _WORTH_IT
    medium = share * max(each.medium_tokens_per_second for each in sizes)
    long = share * max(each.long_tokens_per_second for each in sizes)
    good = [each for each in sizes if each.medium_tokens_per_second >= medium and each.long_tokens_per_second >= long]
    best = min(good, key=_pass_tokens) if good else max(sizes, key=lambda each: each.long_tokens_per_second)
    return best.pass_tokens


def _pass_tokens(measurement: PassMeasurement) -> int:
    return measurement.pass_tokens


def _passes_to_try(info: ModelInfo, vocabulary: int) -> list[int]:
    """Return the sizes of passes that the context and the free memory allow; none unless a text may take several passes."""
    if info.pooling not in MAX_TOKENS_TOGETHER:
        return []
    context = -(-info.max_tokens // CONTEXT_STEP) * CONTEXT_STEP
    most = affordable_pass(max(TILED_PASSES), vocabulary=vocabulary, free=free_memory())
    return [size for size in TILED_PASSES if size <= most and fitting_pass(size, context) == size]


def _fastest(name: str, measurements: Sequence[Measurement]) -> Profile:
    worth_it = _WORTH_IT * _rate(max(measurements, key=_rate))
    good = (each for each in measurements if each.texts_per_second >= worth_it)
    best = min(good, key=lambda each: (each.slots, each.batch_tokens, -each.texts_per_second))
    return Profile(name, best.slots, best.batch_tokens, best.threads)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ways:
    """The ways to try an engine.

    Attributes:
        usual: The slots and tokens of a micro-batch, with which the numbers of threads are tried.
        others: The other slots and tokens, which are tried with the best number of threads.
        threads: The numbers of threads, all cores first.
        usual_pass: The tokens of a pass, as in `Profile`.
        passes: The sizes of passes.
    """

    usual: tuple[int, int]
    others: Sequence[tuple[int, int]]
    threads: Sequence[int]
    usual_pass: int = 0
    passes: Sequence[int] = ()

    @classmethod
    def of(cls, info: ModelInfo, vocabulary: int, device: Device) -> _Ways:
        """Return the promising ways for a model on a device."""
        if not device.is_cpu:
            return cls(usual=_DEVICE_SIZE, others=_OTHER_DEVICE_SIZES, threads=[usable_cores()])
        bounded = info.pooling in MAX_TOKENS_TOGETHER
        return cls(
            usual=_USUAL_SIZE_BOUNDED if bounded else _USUAL_SIZE,
            others=_OTHER_SIZES_BOUNDED if bounded else _OTHER_SIZES,
            threads=_numbers_of_threads(usable_cores()),
            usual_pass=built_in_profile("balanced", pooling=info.pooling).pass_tokens,
            passes=_passes_to_try(info, vocabulary),
        )

    @property
    def number(self) -> int:
        """The number of measurements."""
        return _ROUNDS * (len(self.threads) + len(self.others) + len(self.passes))


class _Trials:
    """Measures an engine with every promising profile, several times each.

    Args:
        measure: Measures micro-batches with one profile.
        measure_passes: Measures single texts with one profile.
        ways: The ways to try.
        report: As for `tune`.

    Attributes:
        measured: The best measurement of each profile.
        passes: The best measurement of each size of passes.
        remarks: As in `Tuning`, and so is `disturbance`.
    """

    def __init__(
        self,
        measure: Callable[[Profile], Awaitable[Measurement]],
        measure_passes: Callable[[Profile], Awaitable[PassMeasurement]],
        ways: _Ways,
        report: Report,
    ) -> None:
        self._ways = ways
        self._measure = measure
        self._measure_passes = measure_passes
        self._report = report
        self._visits = 0
        self._failed: set[Profile] = set()
        self.measured: dict[Profile, Measurement] = {}
        self.passes: dict[Profile, PassMeasurement] = {}
        self.remarks: list[str] = []
        self.disturbance = 0.0

    async def run(self, limit: float) -> None:
        """Find the best number of threads for a micro-batch of the usual size, then try the other sizes and the passes with it.

        Raises:
            BackendUnavailableError: Nothing could be measured.
        """
        started, others = time.monotonic(), _work_of_others()
        try:
            async with asyncio.timeout(limit):
                await self._measure_each([(*self._ways.usual, threads) for threads in self._ways.threads])
                threads = self._best_threads()
                await self._measure_each([(*size, threads) for size in self._ways.others])
                for size in [*self._ways.passes] * _ROUNDS:
                    way = Profile("measured", *self._ways.usual, threads, size)
                    await self._try(way, f"long texts, {size} tokens at once", self._measure_passes, self.passes, _best_of)
        except TimeoutError:
            self.remarks.append(
                f"the time of {limit:g} s was over after {self._visits - 1} of {self._ways.number} measurements"
            )
        if not self.measured:
            raise BackendUnavailableError(f"the engine could not be measured in any way; {self.remarks[0]}")
        share = self.disturbance = (_work_of_others() - others) / (time.monotonic() - started) / (psutil.cpu_count() or 1)
        if share > _QUIET:
            self.remarks.append(
                f"other programs used {share:.0%} of the processors meanwhile, so the figures are too low; "
                "measure again when the machine is quiet"
            )

    async def _measure_each(self, ways: Sequence[tuple[int, int, int]]) -> None:
        for slots, batch_tokens, threads in [*ways] * _ROUNDS:
            way = Profile("measured", slots, batch_tokens, threads, self._ways.usual_pass)
            what = f"{slots} slots, {batch_tokens} tokens, {threads} threads"
            await self._try(way, what, self._measure, self.measured, _faster_of)

    async def _try(
        self,
        way: Profile,
        what: str,
        measure: Callable[[Profile], Awaitable[_T]],
        results: dict[Profile, _T],
        merge: Callable[[_T, _T], _T],
    ) -> None:
        """Measure one way, and merge the result with that of the last round."""
        self._report(self._visits, self._ways.number, what)
        self._visits += 1
        if way in self._failed:
            return
        try:
            measurement = await measure(way)
        except BackendError as error:
            # Other profiles may work: perhaps the memory is too small for this number of slots.
            self._failed.add(way)
            results.pop(way, None)
            self.remarks.append(f"{what}: {error}")
        else:
            results[way] = merge(results[way], measurement) if way in results else measurement

    def _best_threads(self) -> int:
        all_cores = self._ways.threads[0]
        return max(
            self.measured.values(),
            key=lambda each: _rate(each) * (_CLEARLY_BETTER if each.threads == all_cores else 1.0),
            default=Profile("none", 1, 1, all_cores),
        ).threads


def _rate(measurement: Measurement) -> float:
    return measurement.texts_per_second


def _ratio(measurement: Measurement) -> float:
    return measurement.batch_seconds / measurement.lone_seconds


def _faster_of(one: Measurement, other: Measurement) -> Measurement:
    return max(one, other, key=_rate)


def _best_of(one: PassMeasurement, other: PassMeasurement) -> PassMeasurement:
    return replace(
        one,
        medium_tokens_per_second=max(one.medium_tokens_per_second, other.medium_tokens_per_second),
        long_tokens_per_second=max(one.long_tokens_per_second, other.long_tokens_per_second),
    )


def _work_of_others() -> float:
    """Return the processor seconds of all programs, without this one and its engines that have ended."""
    machine = psutil.cpu_times()
    return float(machine.user + machine.nice + machine.system) - sum(os.times()[:4])


def _numbers_of_threads(cores: int) -> list[int]:
    """Return the numbers of threads to try: all cores, all but one (left to the clients), and one a physical core."""
    return sorted({cores, max(cores - 1, 1), max(cores // 2, 1)}, reverse=True)
