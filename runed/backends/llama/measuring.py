"""Measures the speed of a `llama-server` with one profile."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import chain, count, cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory

from runed.backends.base import Tokens, pack
from runed.backends.llama.backend import LlamaBackend
from runed.backends.llama.profile import Measurement, PassMeasurement, Profile
from runed.backends.measuring import measure_speed, while_time_is_left
from runed.errors import BackendUnavailableError
from runed.paths import Paths, ensure_private_dir

_MEDIUM, _LONG = 120, 500
"""Tokens of the texts to measure passes with."""


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
    """Measure the speed of a backend that runs with a profile; see `measure_speed`.

    Raises:
        BackendError: The engine fails, or its vectors are wrong.
    """
    speed = await measure_speed(backend, samples, seconds, engine="llama-server")
    return Measurement(slots=profile.slots, batch_tokens=profile.batch_tokens, threads=profile.threads, **asdict(speed))


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
    for text in while_time_is_left((pack(islice(source, length)) for _ in count()), seconds):
        started = time.perf_counter()
        await backend.embed([text])
        times.append(time.perf_counter() - started)
    return length / min(times)
