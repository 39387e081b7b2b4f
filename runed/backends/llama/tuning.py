"""Measures the engine with several profiles and chooses the best ones, for `runed bench --tune`."""

from __future__ import annotations

import asyncio
import os
import shutil
import statistics
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import chain, count, cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import psutil

from runed.backends.base import BatchLimits
from runed.backends.llama.backend import LlamaBackend
from runed.backends.llama.command import CONTEXT_STEP
from runed.backends.llama.cores import usable_cores
from runed.backends.llama.gguf import read_gguf
from runed.backends.llama.likeness import cosine
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
from runed.backends.llama.self_test import MIN_COSINE, CompanyError
from runed.domain.device import CPU, Device
from runed.domain.model import ModelInfo
from runed.errors import BackendError, BackendUnavailableError
from runed.paths import Paths, ensure_private_dir

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

_MEDIUM, _LONG = 120, 500
"""Tokens of the texts to measure passes with."""

_WORTH_IT = 0.97
"""Share of the best rate from which on a smaller micro-batch is preferred. It needs less memory and waiting, and the
difference is noise."""

_USUAL_SIZE = (8, 128)
_OTHER_SIZES = ((1, 128), (4, 64), (16, 256), (32, 512))
_USUAL_SIZE_BOUNDED = (8, MAX_TOKENS_TOGETHER["last"])
_OTHER_SIZES_BOUNDED = ((1, _USUAL_SIZE_BOUNDED[1]), (8, 32), (8, 48), (32, _USUAL_SIZE_BOUNDED[1]))
"""Slots and tokens of the micro-batches to try, without and with a bound on the tokens."""

_LENGTHS = (6, 12, 16, 20, 26)
"""Tokens of the texts to embed, in turn: queries and sentences, which are faster in a batch. A long text is not."""

_ROUNDS = 2
"""Measurements of each profile. The fastest counts, since other work on the machine only slows them down."""

_CLEARLY_BETTER = 1.1
"""Gain from which on a number of threads below the number of cores is preferred. Noise favours it: other work on the machine
slows it down less."""

_QUIET = 0.1
"""Part of the machine that other programs may use without a remark."""

_LONE_SHARE = 0.25
"""Part of a measurement's time for texts alone."""

_FEWEST = 3
"""Fewest texts and micro-batches of a measurement, however long they take."""

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
    # Outside of the event loop: the loop's end waits for threads, which may still make files after Ctrl-C.
    with TemporaryDirectory(prefix="runed-bench-") as directory:
        workshop = Paths(Path(directory))
        _copy_quirks(paths, workshop)

        def make(profile: Profile | str) -> LlamaBackend:
            return LlamaBackend(
                executable=executable,
                model=model,
                model_sha256=model_sha256,
                paths=workshop,
                ctx_size=ctx_size,
                profile=profile,
                device=device,
            )

        info = make("balanced").model
        trials = _Trials(
            lambda way: _measure(make(way), way, texts, seconds),
            lambda way: _measure_passes(make(way), way, texts, seconds),
            # A device has neither the bound of the processors nor their passes.
            info.pooling if device.is_cpu else "",
            _passes_to_try(info, read_gguf(model).vocabulary) if device.is_cpu else [],
            report,
        )
        asyncio.run(trials.run(limit))
    measurements, passes = tuple(trials.measured.values()), tuple(trials.passes.values())
    tuning = Tuning(
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        method=f"runed bench --tune: {len(texts)} texts of {min(_LENGTHS)} to {max(_LENGTHS)} tokens, {seconds:g} s each way",
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


def _copy_quirks(paths: Paths, workshop: Paths) -> None:
    """Copy the known quirks of the engine. Otherwise a crash would have to show again that it needs `--no-repack`."""
    ensure_private_dir(workshop.cache)
    if paths.engine_quirks.exists():
        shutil.copy(paths.engine_quirks, workshop.engine_quirks)


class _Trials:
    """Measures an engine with every promising profile, several times each.

    Args:
        measure: Measures micro-batches with one profile.
        measure_passes: Measures single texts with one profile.
        pooling: The pooling of the model, which decides on the sizes to try.
        passes: The sizes of passes to try.
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
        pooling: str,
        passes: Sequence[int],
        report: Report,
    ) -> None:
        bounded = pooling in MAX_TOKENS_TOGETHER
        self._usual_size = _USUAL_SIZE_BOUNDED if bounded else _USUAL_SIZE
        self._other_sizes = _OTHER_SIZES_BOUNDED if bounded else _OTHER_SIZES
        self._threads = _numbers_of_threads(usable_cores())
        self._passes = passes
        self._usual_pass = built_in_profile("balanced", pooling=pooling).pass_tokens
        self._total = _ROUNDS * (len(self._threads) + len(self._other_sizes) + len(passes))
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
                await self._measure_each([(*self._usual_size, threads) for threads in self._threads])
                threads = self._best_threads()
                await self._measure_each([(*size, threads) for size in self._other_sizes])
                for size in [*self._passes] * _ROUNDS:
                    way = Profile("measured", *self._usual_size, threads, size)
                    await self._try(way, f"long texts, {size} tokens at once", self._measure_passes, self.passes, _best_of)
        except TimeoutError:
            self.remarks.append(f"the time of {limit:g} s was over after {self._visits - 1} of {self._total} measurements")
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
            way = Profile("measured", slots, batch_tokens, threads, self._usual_pass)
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
        self._report(self._visits, self._total, what)
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
        all_cores = self._threads[0]
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


async def _measure(backend: LlamaBackend, profile: Profile, texts: Sequence[str], seconds: float) -> Measurement:
    """Start a backend with a profile, measure its speed, and stop it.

    Raises:
        BackendError: The engine does not run, or its vectors are wrong.
    """
    try:
        await backend.start()
        if backend.limits.texts < profile.slots:
            raise BackendUnavailableError(backend.state.reason)
        return await _measure_running(backend, profile, texts, seconds)
    finally:
        await backend.stop()


async def _measure_running(backend: LlamaBackend, profile: Profile, samples: Sequence[str], seconds: float) -> Measurement:
    texts = [_cut(tokens, length) for tokens, length in zip(await backend.tokenize(samples), cycle(_LENGTHS))]
    lone_times: list[float] = []
    lone_vectors: list[bytes] = []
    for text in _while_time_is_left(texts, seconds * _LONE_SHARE):
        started = time.perf_counter()
        answer = await backend.embed([text])
        lone_times.append(time.perf_counter() - started)
        lone_vectors += answer.vectors
    times: list[float] = []
    sizes: list[int] = []
    tokens = 0
    batches = cycle(_micro_batches([len(text) for text in texts], backend.limits))
    for batch in _while_time_is_left(batches, seconds * (1.0 - _LONE_SHARE)):
        started = time.perf_counter()
        answer = await backend.embed(texts[batch.start : batch.stop])
        times.append(time.perf_counter() - started)
        _check_company(lone_vectors[batch.start : batch.stop], answer.vectors)
        sizes.append(len(batch))
        tokens += answer.tokens
    return Measurement(
        slots=profile.slots,
        batch_tokens=profile.batch_tokens,
        threads=profile.threads,
        batch_texts=statistics.mean(sizes),
        batch_seconds=statistics.median(times),
        lone_seconds=statistics.median(lone_times),
        texts_per_second=sum(sizes) / sum(times),
        tokens_per_second=tokens / sum(times),
    )


async def _measure_passes(backend: LlamaBackend, profile: Profile, texts: Sequence[str], seconds: float) -> PassMeasurement:
    """Start a backend with a profile, measure its speed with long texts, and stop it.

    Raises:
        BackendError: The engine does not run, or its vectors are wrong.
    """
    try:
        await backend.start()
        tokens = await backend.tokenize(texts)
        medium, long = [await _speed_of(backend, tokens, length, seconds / 2) for length in (_MEDIUM, _LONG)]
    finally:
        await backend.stop()
    return PassMeasurement(pass_tokens=profile.pass_tokens, medium_tokens_per_second=medium, long_tokens_per_second=long)


async def _speed_of(backend: LlamaBackend, tokens: Sequence[Sequence[int]], length: int, seconds: float) -> float:
    """Return the tokens per second of single texts of `length` tokens, or of the longest ones."""
    length = min(length, backend.model.max_tokens)
    source = cycle(chain.from_iterable(tokens))
    times = []
    for text in _while_time_is_left((list(islice(source, length)) for _ in count()), seconds):
        started = time.perf_counter()
        await backend.embed([text])
        times.append(time.perf_counter() - started)
    return length / min(times)


def _cut(tokens: Sequence[int], length: int) -> Sequence[int]:
    """Cut a text to a number of tokens. Its last token, which is a special one, stays."""
    return tokens if len(tokens) <= length else [*tokens[: length - 1], tokens[-1]]


def _while_time_is_left(items: Iterable[_T], seconds: float) -> Iterator[_T]:
    """Yield items until the time is over, but at least `_FEWEST`."""
    end = time.monotonic() + seconds
    for number, item in enumerate(items):
        if number >= _FEWEST and time.monotonic() > end:
            return
        yield item


def _micro_batches(lengths: Sequence[int], limits: BatchLimits) -> Iterator[range]:
    """Split texts into micro-batches, in their order. `lengths` are their numbers of tokens."""
    start = tokens = 0
    for end, length in enumerate(lengths):
        if end > start and (end - start == limits.texts or tokens + length > limits.tokens):
            yield range(start, end)
            start, tokens = end, 0
        tokens += length
    yield range(start, len(lengths))


def _check_company(alone: Sequence[bytes], together: Sequence[bytes]) -> None:
    """Compare some vectors of a micro-batch with the vectors of the same texts alone."""
    for one, other in zip(alone, together, strict=False):
        if not (similarity := cosine(one, other)) >= MIN_COSINE:
            raise CompanyError(similarity)
