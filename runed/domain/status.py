"""The state of the daemon: plain data between the daemon, which knows it, and the faces, which send it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from runed.domain.requests import Lane


class Status(Enum):
    """The readiness of the daemon; documented in runed.proto."""

    OK = "ok"
    LOADING = "loading"
    DEGRADED = "degraded"
    SHUTTING_DOWN = "shutting down"
    IDLE = "idle"


class LoadingPhase(Enum):
    """The part of the start, for `Status.LOADING`; documented in runed.proto."""

    FETCHING_LLAMA_SERVER = "fetching llama-server"
    FETCHING_MODEL = "fetching the model"
    STARTING_LLAMA_SERVER = "starting llama-server"


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneStats:
    """Counts of the texts of one lane; fields as in `LaneHealth` of runed.proto.

    Attributes:
        total_texts: Texts that were taken from its queue.
        wait_p50_seconds: The median wait of the last minute, in seconds; 0 if no text came.
        wait_p99_seconds: The 99th percentile of these waits, in seconds.
    """

    total_texts: int
    wait_p50_seconds: float
    wait_p99_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerStats:
    """Counts of the scheduler's work; fields as in `HealthResponse` of runed.proto.

    Attributes:
        total_texts: Texts that were answered with a vector, including those from the cache.
        total_tokens: Tokens that were computed.
        tokens_per_second: Tokens that were computed per second of the last minute, including idle time.
        total_batches: Micro-batches that were computed.
        mean_batch_texts: Mean number of texts of a micro-batch in the last minute; 0 if there was none.
        cache_hits: Texts whose vector was in the cache.
        shared_texts: Texts whose vector was already being computed for another caller.
        refused_requests: Calls that were refused because the queue was full.
        interactive: The lane of texts that a person waits for.
        bulk: The lane of long jobs.
    """

    total_texts: int
    total_tokens: int
    tokens_per_second: float
    total_batches: int
    mean_batch_texts: float
    cache_hits: int
    shared_texts: int
    refused_requests: int
    interactive: LaneStats
    bulk: LaneStats


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """The waiting and the finished work of the scheduler.

    Attributes:
        stats: The counts and measurements.
        queued: The texts that wait in each lane, and their bytes.
        cache_entries: Vectors in the memory cache.
        cache_bytes: The bytes that they take.
        disk_cache_bytes: The bytes of the cache on disk; 0 if there is none, or it was abandoned.
    """

    stats: SchedulerStats
    queued: Mapping[Lane, tuple[int, int]]
    cache_entries: int
    cache_bytes: int
    disk_cache_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelHealth:
    """The state of one model and its engine; fields and units as in `ModelHealth` of runed.proto."""

    name: str
    status: Status
    phase: LoadingPhase | None = None
    message: str = ""
    variant: str = ""
    file: str = ""
    engine_version: str = ""
    engine_path: str = ""
    engine_pid: int = 0
    accelerator: str = ""
    device: str = ""
    slots: int = 0
    context: int = 0
    tuned_at: str = ""
    device_tuned_at: str = ""
    memory_bytes: int = 0
    keep_alive_seconds: float = 0.0
    seconds_until_sleep: float = 0.0
    engine_reason: str = ""


@dataclass(frozen=True, slots=True)
class ConnectedClient:
    """A program that has connections to the socket; fields as in `ConnectedClient` of runed.proto."""

    pid: int
    name: str
    connections: int


@dataclass(frozen=True, slots=True)
class SettingInForce:
    """A setting that the daemon or an engine runs by; fields as in `SettingInForce` of runed.proto."""

    name: str
    variable: str
    value: str
    origin: str


@dataclass(frozen=True, slots=True)
class Health:
    """The present state of the daemon; units as in runed.proto."""

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
    downloading: bool = False
    """Whether `Status.LOADING` is a download. Calls do not wait for a download."""
    model: str = ""
    loaded_models: int = 0
    models: Sequence[ModelHealth] = ()
    clients: Sequence[ConnectedClient] = ()

    @property
    def serves(self) -> bool:
        """Whether an embedding that comes now will be answered. While the engine sleeps or starts, the call waits for it."""
        return self.status in {Status.OK, Status.IDLE} or (self.status is Status.LOADING and not self.downloading)


@dataclass(frozen=True, slots=True)
class Info:
    """The daemon and its model; units as in runed.proto. The fields of the model are empty until it is installed."""

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
    restrictions: Sequence[str] = ()
    accelerator: str = ""
    device: str = ""
    device_tuned_at: str = ""
    company_cosine: float = 0.0
    tuned_at: str = ""
    model: str = ""
    settings: Sequence[SettingInForce] = ()
    prompts_unknown: bool = False
