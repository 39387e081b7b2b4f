"""Profiles of the engine: built-in ones for any machine, and those that `runed bench --tune` measured on this one."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from runed.backends.cores import usable_cores
from runed.backends.llama.passes import SHORT_PASS, TILE, TILED_PASSES
from runed.domain.device import CPU, Device
from runed.files import read_record, write_atomically
from runed.paths import ensure_private_dir

MAX_SLOTS = 64
"""Most slots that a tuning file may ask for. More slots do not help, since the time of 64 texts depends on their tokens."""

MAX_DISTURBANCE = 0.25
"""Share of the machine that other programs may use during a measurement. With a larger share, the result is not kept."""

MAX_TOKENS_TOGETHER = {"last": TILE - 1}
"""Most tokens that several texts may have together, by pooling; other poolings have no limit. In tiles, a vector depends on the
other texts of its batch. Measured: its cosine to the vector of the text alone is 0.9994, and 1 without tiles."""

_MAX_SLOTS_TOGETHER = 8
"""Most slots if the tokens are limited: 8 of the shortest texts use them up, and every slot is erased before a long text."""

# Measured on two cores, processor time of the engine for a text of MiniLM: 13.2 ms alone, 6.4 in lists of 4, 5.6 in lists of 8,
# 5.2 of 16, 5.0 of 32. A Qwen3 of 0.6B: 5.7 texts/s alone, 10 in lists of 3; a text of 17 tokens takes 170 ms alone.
_BUILT_IN = {"memory": (1, 128), "balanced": (32, 512), "throughput": (32, 512)}
"""Slots and tokens of a micro-batch."""

_PASSES = {"memory": SHORT_PASS, "balanced": 192, "throughput": 512}
"""Tokens of a pass with last-token pooling."""

_ON_DEVICE = {"memory": (1, 512), "balanced": (32, 2048), "throughput": (64, 4096)}
"""The same for a device, which is fast only with many tokens. Its memory may admit fewer."""


@dataclass(frozen=True, slots=True)
class Profile:
    """The size of micro-batches and the number of threads.

    Attributes:
        name: One of `runed.settings.PROFILES`.
        slots: The most texts of one micro-batch, which is `--parallel` of the engine.
        batch_tokens: The most tokens of all texts of a micro-batch together, unless it is a single text.
        threads: The threads that the engine computes with.
        pass_tokens: The tokens that the engine computes at once with last-token pooling, which is `--ubatch-size`. A longer
            text takes several passes. 0 with other poolings, which need a whole text at once.
        tuned_at: The time at which it was measured on this machine, in ISO 8601; "" for a built-in profile.
    """

    name: str
    slots: int
    batch_tokens: int
    threads: int
    pass_tokens: int = 0
    tuned_at: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """The speed of the engine with one profile.

    Attributes:
        slots: As `Profile.slots`.
        batch_tokens: As `Profile.batch_tokens`.
        threads: As `Profile.threads`.
        batch_texts: The mean number of texts of a micro-batch.
        batch_seconds: The median time of a micro-batch.
        lone_seconds: The median time of a single text, with the same threads.
        texts_per_second: The texts embedded per second, one micro-batch after the other.
        tokens_per_second: The tokens of these texts per second.
    """

    slots: int
    batch_tokens: int
    threads: int
    batch_texts: float
    batch_seconds: float
    lone_seconds: float
    texts_per_second: float
    tokens_per_second: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PassMeasurement:
    """The speed of the engine with one size of passes, for single texts.

    Attributes:
        pass_tokens: As `Profile.pass_tokens`.
        medium_tokens_per_second: The speed with texts of 120 tokens.
        long_tokens_per_second: The speed with texts of 500 tokens.
    """

    pass_tokens: int
    medium_tokens_per_second: float
    long_tokens_per_second: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """The profiles that suit one engine and model on this machine.

    Attributes:
        measured_at: The time of the measurement, in ISO 8601.
        method: A sentence for people on how it was measured.
        cores: The number of usable processors. With another number, the measurement is void.
        profiles: The best profile for each name.
        measurements: All measurements of micro-batches.
        passes: All measurements of passes; empty unless pooling is "last".
        remarks: Sentences for people on failures and disturbances.
        disturbance: The share of the machine that other programs used meanwhile.
    """

    measured_at: str
    method: str
    cores: int
    profiles: tuple[Profile, ...]
    measurements: tuple[Measurement, ...]
    passes: tuple[PassMeasurement, ...] = ()
    remarks: tuple[str, ...] = ()
    disturbance: float = 0.0

    @property
    def is_chance(self) -> bool:
        """Whether other programs used too much of the machine for a conclusion."""
        return self.disturbance > MAX_DISTURBANCE


@dataclass(frozen=True, slots=True, kw_only=True)
class _Document:
    """The file: tunings by engine and model."""

    version: int = 1
    tunings: dict[str, Tuning] = field(default_factory=dict)


def built_in_profile(name: str, *, pooling: str, device: Device = CPU) -> Profile:
    """Return a profile for any machine. For the arguments see `choose_profile`."""
    if not device.is_cpu:
        return Profile(name, *_ON_DEVICE[name], usable_cores())
    slots, batch_tokens = _BUILT_IN[name]
    if pooling in MAX_TOKENS_TOGETHER:
        slots, batch_tokens = min(slots, _MAX_SLOTS_TOGETHER), min(batch_tokens, MAX_TOKENS_TOGETHER[pooling])
    return Profile(name, slots, batch_tokens, usable_cores(), _PASSES[name] if pooling == "last" else 0)


def choose_profile(name: str, *, pooling: str, tuned: Path, key: str, device: Device = CPU) -> Profile:
    """Return the profile that was measured for this engine and model on this machine, else the built-in one.

    Args:
        name: One of `runed.settings.PROFILES`.
        pooling: "last", "mean" or "cls".
        tuned: The file that `store_tuning` writes. A missing or unreadable file counts as empty.
        key: The key for the engine, the model and the machine.
        device: The device that computes.
    """
    built_in = built_in_profile(name, pooling=pooling, device=device)
    tuning = _read(tuned).tunings.get(key)
    if tuning is None or tuning.cores != built_in.threads:
        return built_in
    measured = next((profile for profile in tuning.profiles if profile.name == name), None)
    if measured is None:
        return built_in
    # Earlier releases measured no passes.
    measured = replace(measured, pass_tokens=measured.pass_tokens or built_in.pass_tokens, tuned_at=tuning.measured_at)
    return measured if _is_safe(measured, pooling if device.is_cpu else "") else built_in


def store_tuning(tuned: Path, key: str, tuning: Tuning) -> None:
    """Store a tuning. It replaces an earlier one for the same key.

    Args:
        tuned: The file. An unreadable file is replaced.
        key: The key for the engine, the model and the machine.
        tuning: The tuning.

    Raises:
        ForeignPathError: The directory of the file cannot be made.
        OSError: The file cannot be written.
    """
    document = _read(tuned)
    document.tunings[key] = tuning
    ensure_private_dir(tuned.parent)
    write_atomically(tuned, msgspec.json.format(msgspec.json.encode(document)))


def _read(path: Path) -> _Document:
    document = read_record(path, _Document)
    return document if document is not None and document.version == 1 else _Document()


def _is_safe(profile: Profile, pooling: str) -> bool:
    """Return whether the engine starts with a profile and computes right vectors. The file of the profile may be damaged."""
    most_tokens = MAX_TOKENS_TOGETHER.get(pooling)
    return (
        1 <= profile.slots <= MAX_SLOTS
        and 1 <= profile.threads <= usable_cores()
        and profile.batch_tokens >= 1
        and profile.pass_tokens in ({SHORT_PASS, *TILED_PASSES} if pooling == "last" else {0})
        and (most_tokens is None or profile.batch_tokens <= most_tokens)
    )
