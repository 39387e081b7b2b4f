"""How the engine is run: built in for any machine, or measured on this one by `runed bench --tune`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from runed.backends.llama.cores import usable_cores
from runed.files import write_atomically
from runed.paths import ensure_private_dir

MAX_SLOTS = 64
"""More would not help: a micro-batch that large is busy with its tokens, not with its texts."""

MAX_DISTURBANCE = 0.25
"""With more of the machine used by others, a result is chance rather than choice, and is not kept."""

MAX_TOKENS_TOGETHER = {"last": 63}
"""By pooling, the most tokens that several texts may have together; the others have no limit. From 64 query rows on, the flash
attention of llama.cpp computes in tiles on a CPU, and then a vector depends on its company (measured: cosine 0.9994 to the one
alone, and exactly 1 below that)."""

_MAX_SLOTS_TOGETHER = 8
"""By then the tokens are used up by the shortest of texts, and each slot is one more to be erased before a long text."""

# Measured on two cores. MiniLM: 84 texts/s alone, 250 in lists of 8 (32 ms each), 285 in lists of 16 with 32 slots. A Qwen3 of
# 0.6B: 5.7 texts/s alone, 10 in lists of 3; a text of 17 tokens takes 170 ms alone.
_BUILT_IN = {"memory": (1, 128), "balanced": (16, 256), "throughput": (32, 512)}
"""Slots and tokens of a micro-batch."""


@dataclass(frozen=True, slots=True)
class Profile:
    """How the engine is run.

    Attributes:
        name: One of `runed.settings.PROFILES`.
        slots: The most texts of one micro-batch, which is `--parallel` of the engine.
        batch_tokens: The most tokens of all texts of a micro-batch together, unless it is a single text.
        threads: The threads that the engine computes with.
    """

    name: str
    slots: int
    batch_tokens: int
    threads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What one way to run the engine gave.

    Attributes:
        slots: As `Profile.slots`.
        batch_tokens: As `Profile.batch_tokens`.
        threads: As `Profile.threads`.
        batch_texts: The texts of a micro-batch, on average.
        batch_seconds: The median time of a micro-batch.
        lone_seconds: The median time of a single text, with the same threads.
        texts_per_second: Texts embedded per second, one micro-batch after the other.
        tokens_per_second: Their tokens.
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
class Tuning:
    """The profiles that suit one engine and model on this machine.

    Attributes:
        measured_at: When it was measured, as an ISO 8601 time.
        method: How, in a sentence for people.
        cores: The processors that were usable; with another number, the measurement is void.
        profiles: The best of the measurements for each name.
        measurements: All that were made.
        remarks: What to know about them, for people: what failed and why, whether other work disturbed.
        disturbance: The part of the machine that other programs used meanwhile.
    """

    measured_at: str
    method: str
    cores: int
    profiles: tuple[Profile, ...]
    measurements: tuple[Measurement, ...]
    remarks: tuple[str, ...] = ()
    disturbance: float = 0.0

    @property
    def is_chance(self) -> bool:
        """Whether others used so much of the machine that nothing can be concluded."""
        return self.disturbance > MAX_DISTURBANCE


@dataclass(frozen=True, slots=True, kw_only=True)
class _Document:
    """The file: tunings by engine and model."""

    version: int = 1
    tunings: dict[str, Tuning] = field(default_factory=dict)


def built_in_profile(name: str, *, pooling: str) -> Profile:
    """Give a profile that nothing was measured for.

    Args:
        name: One of `runed.settings.PROFILES`.
        pooling: "last", "mean" or "cls".
    """
    slots, batch_tokens = _BUILT_IN[name]
    if pooling in MAX_TOKENS_TOGETHER:
        slots, batch_tokens = min(slots, _MAX_SLOTS_TOGETHER), min(batch_tokens, MAX_TOKENS_TOGETHER[pooling])
    return Profile(name, slots, batch_tokens, usable_cores())


def choose_profile(name: str, *, pooling: str, tuned: Path, key: str) -> Profile:
    """Give the profile that was measured for this engine and model on this machine, else the built-in one.

    Args:
        name: One of `runed.settings.PROFILES`.
        pooling: "last", "mean" or "cls".
        tuned: The file that `store_tuning` wrote; one that is missing or unreadable is as good as none.
        key: Names the engine, the model and the machine.
    """
    built_in = built_in_profile(name, pooling=pooling)
    tuning = _read(tuned).tunings.get(key)
    if tuning is None or tuning.cores != built_in.threads:
        return built_in
    measured = next((profile for profile in tuning.profiles if profile.name == name), built_in)
    return measured if _is_safe(measured, pooling) else built_in


def store_tuning(tuned: Path, key: str, tuning: Tuning) -> None:
    """Keep what was measured, in the place of an earlier measurement of the same; others stay.

    Args:
        tuned: The file; one that cannot be read is replaced.
        key: Names the engine, the model and the machine.
        tuning: What was measured.

    Raises:
        ForeignPathError: The directory of the file cannot be made.
        OSError: The file cannot be written.
    """
    document = _read(tuned)
    document.tunings[key] = tuning
    ensure_private_dir(tuned.parent)
    write_atomically(tuned, msgspec.json.format(msgspec.json.encode(document)))


def _read(path: Path) -> _Document:
    try:
        document = msgspec.json.decode(path.read_bytes(), type=_Document)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):  # msgspec lets a string that is not UTF-8 through as the last
        return _Document()
    return document if document.version == 1 else _Document()


def _is_safe(profile: Profile, pooling: str) -> bool:
    """Refuse what a hand or an accident wrote, if the engine would not start by it or its vectors would be wrong."""
    most_tokens = MAX_TOKENS_TOGETHER.get(pooling)
    return (
        1 <= profile.slots <= MAX_SLOTS
        and 1 <= profile.threads <= usable_cores()
        and profile.batch_tokens >= 1
        and (most_tokens is None or profile.batch_tokens <= most_tokens)
    )
