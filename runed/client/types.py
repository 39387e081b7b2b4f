"""The answers of a daemon as plain data; units and meanings are those of `runed.proto`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Vectors: TypeAlias = NDArray[np.float32]


class Status(Enum):
    """The state of the daemon for a caller."""

    UNSPECIFIED = 0
    """A state that only a newer daemon knows."""
    OK = 1
    """The engine runs; embeddings are answered at once."""
    LOADING = 2
    """The engine or the model is being fetched or started; `Health.phase` says which."""
    DEGRADED = 3
    """Embeddings fail for now; `Health.message` says why and what to do."""
    SHUTTING_DOWN = 4
    """The daemon finishes what is in flight and takes nothing new."""
    IDLE = 5
    """The engine is suspended; the next embedding starts it and takes longer."""

    @classmethod
    def _missing_(cls, _value: object) -> Status:
        return cls.UNSPECIFIED


class Phase(Enum):
    """The part of the start that `Status.LOADING` is in."""

    UNSPECIFIED = 0
    """A part that only a newer daemon knows."""
    FETCHING_LLAMA_SERVER = 1
    """The engine's archive is being downloaded, verified or extracted."""
    FETCHING_MODEL = 2
    """The model is being downloaded, verified or quantized."""
    STARTING_LLAMA_SERVER = 3
    """The engine loads the model."""

    @classmethod
    def _missing_(cls, _value: object) -> Phase:
        return cls.UNSPECIFIED


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Embedding:
    """The vector of one text, and facts about it.

    Attributes:
        vector: Float32 values of L2 norm 1, shape (dim,).
        token_count: The number of tokens that the model read: those of the text, of its prompt and special ones.
        total_token_count: The number of tokens before anything was cut off.
        truncated: Whether tokens were cut off, as `truncate` allowed.
        fingerprint: Names the space that the vector lies in; see `Info.fingerprint`.
        prompt: The text that was put in front, such as the model's instruction for queries; may be empty.
        cached: Whether the vector was there already: from the cache, or from the same text in flight.
        cluster_id: The nearest centroid of the daemon's set; None unless `with_route` asked for it.
        centroid_set_version: The set that `cluster_id` belongs to; empty without one.
    """

    vector: Vectors
    token_count: int
    total_token_count: int
    truncated: bool
    fingerprint: str
    prompt: str
    cached: bool
    cluster_id: int | None = None
    centroid_set_version: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CentroidSet:
    """The centroid set that the daemon has installed.

    Attributes:
        version: Its name: unless its sender said otherwise, "sha256:" and 64 hexadecimal digits of its content.
        nlist: The number of its centroids.
    """

    version: str
    nlist: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneHealth:
    """One queue of the daemon.

    Attributes:
        queued_texts: Texts that wait at this moment.
        queued_bytes: Their bytes.
        total_texts: Texts that went to the engine since the daemon started.
        wait_p50_seconds: Seconds that half of the texts of the last minute waited at most; 0 if there was none.
        wait_p99_seconds: Seconds that 99 of 100 of them waited at most.
    """

    queued_texts: int
    queued_bytes: int
    total_texts: int
    wait_p50_seconds: float
    wait_p99_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """The present state of the daemon.

    Attributes:
        status: Its state for a caller.
        phase: The part of the start it is in; None unless `status` is `LOADING`.
        bytes_done: Bytes of the current phase that are done; 0 where a phase has no bytes to count.
        bytes_total: Bytes of the current phase in all; 0 where unknown.
        message: One sentence for people that tells the present step, or the fault and its remedy. May be empty.
        uptime_seconds: Seconds since the daemon started.
        total_requests: Embed, EmbedBatch and EmbedStream calls that could be read since the daemon started, failed ones
            included.
        in_flight_requests: Embed, EmbedBatch and EmbedStream calls being served at this moment.
        pid: The process id of the daemon.
        engine_pid: The process id of `llama-server`, or 0 while none runs.
        engine_restarts: The number of times that `llama-server` died and was started again, without those of waking from idle.
        interactive: The queue of texts that somebody waits for.
        bulk: The queue of jobs that take their time.
        total_texts: Texts that were embedded since the daemon started, those from the cache included.
        total_tokens: Tokens that the engine computed since the daemon started.
        tokens_per_second: Tokens that it computed per second of the last minute, idle time included.
        total_batches: Micro-batches that went to the engine since the daemon started.
        mean_batch_texts: Texts of a micro-batch, on average of the last minute; 0 if there was none.
        cache_hits: Texts whose vector was in the cache.
        shared_texts: Texts whose vector was being computed for another caller already.
        cache_entries: Vectors in the cache of the memory.
        cache_bytes: The bytes that they take.
        refused_requests: Calls that were refused since the daemon started because the queue was full.
        disk_cache_bytes: The bytes of the cache on disk; 0 if there is none, or if it cannot be used.
    """

    status: Status
    phase: Phase | None
    bytes_done: int
    bytes_total: int
    message: str
    uptime_seconds: int
    total_requests: int
    in_flight_requests: int
    pid: int
    engine_pid: int
    engine_restarts: int
    interactive: LaneHealth
    bulk: LaneHealth
    total_texts: int
    total_tokens: int
    tokens_per_second: float
    total_batches: int
    mean_batch_texts: float
    cache_hits: int
    shared_texts: int
    cache_entries: int
    cache_bytes: int
    refused_requests: int
    disk_cache_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Info:
    """The description of the daemon and its model.

    Attributes:
        daemon_version: The version of the daemon, as in "0.1.0".
        socket_path: The path that the daemon listens on.
        max_batch_size: The largest number of texts of one request; `embed_batch` splits longer batches itself.
        max_request_bytes: The largest request message, in bytes; `embed_batch` splits larger batches itself.
        model_identity: "sha256:" and the first 16 hexadecimal digits of the SHA-256 of the model file.
        model_name: The name of the model as its file gives it, for people.
        model_variant: The manifest's name of the variant; empty if the model was given as a file.
        vector_dim: The number of values of a vector.
        max_text_length: The largest number of tokens of one text, special tokens included.
        pooling: How token vectors become one: "last", "mean" or "cls".
        engine_version: The version that `llama-server` tells of itself.
        centroid_set_version: The version of the installed centroid set; empty if there is none.
        fingerprint: Names the space that vectors of all dimensions lie in: the same string means that vectors can be compared,
            another one that they cannot. Keep it beside stored vectors.
        min_dimensions: The smallest `dimensions` that can be asked for; `vector_dim` where the model gives only all.
        query_prompt: The text that role "query" puts in front; "{instruction}" stands for the instruction. May be empty.
        document_prompt: The text that role "document" puts in front. May be empty.
        default_instruction: The instruction of a query that names none. Empty if there are no instructions.
        profile: The profile that the engine runs by: "memory", "balanced" or "throughput".
        max_queued_texts: The number of texts that may wait at most; more is refused with `QueueFullError`.
        max_queued_bytes: The bytes of text that may wait at most.
    """

    daemon_version: str
    socket_path: str
    max_batch_size: int
    max_request_bytes: int
    model_identity: str
    model_name: str
    model_variant: str
    vector_dim: int
    max_text_length: int
    pooling: str
    engine_version: str
    centroid_set_version: str
    fingerprint: str
    min_dimensions: int
    query_prompt: str
    document_prompt: str
    default_instruction: str
    profile: str
    max_queued_texts: int
    max_queued_bytes: int
