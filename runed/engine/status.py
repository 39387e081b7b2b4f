"""What the daemon tells of itself: plain data between the daemon, which knows it, and the service, which sends it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from runed.engine.metrics import EngineStats
from runed.engine.types import Lane


class Status(Enum):
    """What the daemon can do for a caller; documented in runed.proto."""

    OK = "ok"
    LOADING = "loading"
    DEGRADED = "degraded"
    SHUTTING_DOWN = "shutting down"
    IDLE = "idle"


class LoadingPhase(Enum):
    """The part of the start that `Status.LOADING` is in; documented in runed.proto."""

    FETCHING_LLAMA_SERVER = "fetching llama-server"
    FETCHING_MODEL = "fetching the model"
    STARTING_LLAMA_SERVER = "starting llama-server"


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How much the engine has to do and has done.

    Attributes:
        stats: What was counted and measured.
        queued: The texts that wait in each lane, and their bytes.
        cache_entries: Vectors in the cache of the memory.
        cache_bytes: The bytes that they take.
        disk_cache_bytes: The bytes of the cache on disk; 0 if there is none, or it was given up.
    """

    stats: EngineStats
    queued: Mapping[Lane, tuple[int, int]]
    cache_entries: int
    cache_bytes: int
    disk_cache_bytes: int


@dataclass(frozen=True, slots=True)
class Health:
    """What the daemon is doing right now; units as in runed.proto."""

    status: Status
    phase: LoadingPhase | None
    bytes_done: int
    bytes_total: int
    message: str
    uptime_seconds: int
    total_requests: int
    in_flight_requests: int
    pid: int
    engine_pid: int
    engine_restarts: int
    load: Load | None = None


@dataclass(frozen=True, slots=True)
class Info:
    """What the daemon and its model are; units as in runed.proto, and as empty there until the model is installed."""

    daemon_version: str
    socket_path: str
    max_batch_size: int
    max_request_bytes: int
    model_identity: str = ""
    vector_dim: int = 0
    max_text_length: int = 0
    model_name: str = ""
    model_variant: str = ""
    pooling: str = ""
    engine_version: str = ""
    fingerprint: str = ""
    min_dimensions: int = 0
    query_prompt: str = ""
    document_prompt: str = ""
    default_instruction: str = ""
    profile: str = ""
    max_queued_texts: int = 0
    max_queued_bytes: int = 0
    centroid_set_version: str = ""
