"""Measures the speed of an engine with one profile."""

from __future__ import annotations

import contextlib
import shutil
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, count, cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from runed.backends.base import BatchLimits, Tokens, pack
from runed.backends.engine.self_test import MIN_COSINE, CompanyError
from runed.backends.likeness import cosine
from runed.backends.llama.backend import LlamaBackend
from runed.backends.llama.profile import Measurement, PassMeasurement, Profile
from runed.errors import BackendUnavailableError
from runed.paths import Paths, ensure_private_dir

LENGTHS = (6, 12, 16, 20, 26)
"""Tokens of the texts to embed, in turn: queries and sentences, which are faster in a batch. A long text is not."""

_MEDIUM, _LONG = 120, 500
"""Tokens of the texts to measure passes with."""

_LONE_SHARE = 0.25
"""Part of a measurement's time for texts alone."""

_FEWEST = 3
"""Fewest texts and micro-batches of a measurement, however long they take."""

_T = TypeVar("_T")


@contextlib.contextmanager
def workshop(paths: Paths) -> Iterator[Paths]:
    """Make a temporary home for engines that are measured. A daemon may run beside it.

    It must be used outside of an event loop, whose end waits for threads, which may still make files after Ctrl-C.

    Args:
        paths: The home that the known quirks of the engine are taken from. Otherwise a crash would have to show again that an
            engine needs `--no-repack`.
    """
    with TemporaryDirectory(prefix="runed-bench-") as directory:
        temporary = Paths(Path(directory))
        ensure_private_dir(temporary.cache)
        if paths.engine_quirks.exists():
            shutil.copy(paths.engine_quirks, temporary.engine_quirks)
        yield temporary


async def measure(backend: LlamaBackend, profile: Profile, texts: Sequence[str], seconds: float) -> Measurement:
    """Start a backend with a profile, measure its speed, and stop it.

    Raises:
        BackendError: The engine does not run, or its vectors are wrong.
    """
    try:
        await backend.start()
        if backend.limits.texts < profile.slots:
            raise BackendUnavailableError(backend.state.reason)
        return await measure_running(backend, profile, texts, seconds)
    finally:
        await backend.stop()


async def measure_running(backend: LlamaBackend, profile: Profile, samples: Sequence[str], seconds: float) -> Measurement:
    """Measure the speed of a backend that runs with a profile.

    Args:
        backend: The backend.
        profile: Its profile.
        samples: Texts of at least 26 tokens, which are cut to several lengths.
        seconds: The time of the measurement. At least `_FEWEST` texts and micro-batches are computed, however long they take.

    Raises:
        BackendError: The engine fails, or its vectors are wrong.
    """
    texts = [_cut(tokens, length) for tokens, length in zip(await backend.tokenize(samples), cycle(LENGTHS))]
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


async def measure_passes(backend: LlamaBackend, profile: Profile, texts: Sequence[str], seconds: float) -> PassMeasurement:
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


async def _speed_of(backend: LlamaBackend, tokens: Sequence[Tokens], length: int, seconds: float) -> float:
    """Return the tokens per second of single texts of `length` tokens, or of the longest ones."""
    length = min(length, backend.model.max_tokens)
    source = cycle(chain.from_iterable(tokens))
    times = []
    for text in _while_time_is_left((pack(islice(source, length)) for _ in count()), seconds):
        started = time.perf_counter()
        await backend.embed([text])
        times.append(time.perf_counter() - started)
    return length / min(times)


def _cut(tokens: Tokens, length: int) -> Tokens:
    """Cut a text to a number of tokens. Its last token, which is a special one, stays."""
    return tokens if len(tokens) <= length else tokens[: length - 1] + tokens[-1:]


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
            raise CompanyError(similarity, engine="llama-server")
