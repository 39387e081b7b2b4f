"""Measures the speed of an engine with short texts, alone and together."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import TypeVar

from runed.backends.base import BatchLimits, LocalBackend, Tokens
from runed.backends.engine.self_test import MIN_COSINE, CompanyError
from runed.backends.likeness import cosine

LENGTHS = (6, 12, 16, 20, 26)
"""Tokens of the texts to embed, in turn: queries and sentences, which are faster in a batch. A long text is not."""

_LONE_SHARE = 0.25
"""Part of a measurement's time for texts alone."""

_FEWEST = 3
"""Fewest texts and micro-batches of a measurement, however long they take."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """The speed of an engine.

    Attributes:
        lone_seconds: The median time of a single text.
        batch_texts: The mean number of texts of a micro-batch.
        batch_seconds: The median time of a micro-batch.
        texts_per_second: The texts embedded per second, one micro-batch after the other.
        tokens_per_second: The tokens of these texts per second.
    """

    lone_seconds: float
    batch_texts: float
    batch_seconds: float
    texts_per_second: float
    tokens_per_second: float


async def measure_speed(backend: LocalBackend, samples: Sequence[str], seconds: float, *, engine: str) -> Speed:
    """Measure the speed of a backend whose engine runs.

    Args:
        backend: The backend.
        samples: Texts of at least 26 tokens, which are cut to several lengths.
        seconds: The time of the measurement. At least `_FEWEST` texts and micro-batches are computed, however long they take.
        engine: The name of the engine, for an error.

    Raises:
        BackendError: The engine fails, or its vectors are wrong.
    """
    texts = [_cut(tokens, length) for tokens, length in zip(await backend.tokenize(samples), cycle(LENGTHS))]
    lone_times: list[float] = []
    lone_vectors: list[bytes] = []
    for text in while_time_is_left(texts, seconds * _LONE_SHARE):
        started = time.perf_counter()
        answer = await backend.embed([text])
        lone_times.append(time.perf_counter() - started)
        lone_vectors += answer.vectors
    times: list[float] = []
    sizes: list[int] = []
    tokens = 0
    batches = cycle(_micro_batches([len(text) for text in texts], backend.limits))
    for batch in while_time_is_left(batches, seconds * (1.0 - _LONE_SHARE)):
        started = time.perf_counter()
        answer = await backend.embed(texts[batch.start : batch.stop])
        times.append(time.perf_counter() - started)
        _check_company(lone_vectors[batch.start : batch.stop], answer.vectors, engine)
        sizes.append(len(batch))
        tokens += answer.tokens
    return Speed(
        lone_seconds=statistics.median(lone_times),
        batch_texts=statistics.mean(sizes),
        batch_seconds=statistics.median(times),
        texts_per_second=sum(sizes) / sum(times),
        tokens_per_second=tokens / sum(times),
    )


def while_time_is_left(items: Iterable[_T], seconds: float) -> Iterator[_T]:
    """Yield items until the time is over, but at least `_FEWEST`."""
    end = time.monotonic() + seconds
    for number, item in enumerate(items):
        if number >= _FEWEST and time.monotonic() > end:
            return
        yield item


def _cut(tokens: Tokens, length: int) -> Tokens:
    """Cut a text to a number of tokens. Its last token, which is a special one, stays."""
    return tokens if len(tokens) <= length else tokens[: length - 1] + tokens[-1:]


def _micro_batches(lengths: Sequence[int], limits: BatchLimits) -> Iterator[range]:
    """Split texts into micro-batches, in their order. `lengths` are their numbers of tokens."""
    start = tokens = 0
    for end, length in enumerate(lengths):
        if end > start and (end - start == limits.texts or tokens + length > limits.tokens):
            yield range(start, end)
            start, tokens = end, 0
        tokens += length
    yield range(start, len(lengths))


def _check_company(alone: Sequence[bytes], together: Sequence[bytes], engine: str) -> None:
    """Compare some vectors of a micro-batch with the vectors of the same texts alone."""
    for one, other in zip(alone, together, strict=False):
        if not (similarity := cosine(one, other)) >= MIN_COSINE:
            raise CompanyError(similarity, engine=engine)
