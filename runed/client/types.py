"""The answers of a daemon as plain data. Units and meanings are those of `runed.proto`."""

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
    """Embeddings fail for now. `Health.message` tells the reason and the remedy."""
    SHUTTING_DOWN = 4
    """The daemon finishes the calls in flight and takes no new ones."""
    IDLE = 5
    """The engine is suspended; the next embedding starts it and takes longer."""

    @classmethod
    def _missing_(cls, _value: object) -> Status:
        return cls.UNSPECIFIED


class Phase(Enum):
    """The part of the start, for `Status.LOADING`."""

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
        token_count: The number of tokens that the model read: those of the text, those of its prompt, and special tokens.
        total_token_count: The number of tokens before anything was cut off.
        truncated: Whether tokens were cut off, as `truncate` allowed.
        fingerprint: Names the space that the vector lies in; see `Info.fingerprint`.
        prompt: The text in front of the text, such as the model's instruction for queries; may be empty.
        cached: Whether the vector was not computed for this text: it came from the cache, or from the same text in flight.
        cluster_id: The nearest centroid of the daemon's set; None unless `with_route` asked for it.
        centroid_set_version: The set that `cluster_id` belongs to; empty without one.
        model: The name of the model; empty if the daemon is of a version with one model.
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
    model: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RerankResult:
    """One document in its place, and facts about it.

    Attributes:
        index: Its index among the documents of the call.
        score: Its relevance to the query, from 0 to 1. Scores of different queries can be compared only roughly, and scores of
            different models not at all.
        document: The document.
        token_count: The number of tokens that the model read: those of the query, of the document, and special tokens.
        total_token_count: The number of tokens before anything was cut off.
        truncated: Whether tokens were cut off, as `truncate` allowed.
        cached: Whether the score was not computed for this call: it came from the cache, or from the same pair in flight.
    """

    index: int
    score: float
    document: str
    token_count: int
    total_token_count: int
    truncated: bool
    cached: bool


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
        wait_p50_seconds: The median of the waiting times of the last minute, in seconds; 0 if no text came.
        wait_p99_seconds: The 99th percentile of these times, in seconds.
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
        phase: The part of the start; None unless `status` is `LOADING`.
        bytes_done: Bytes of the current phase that are done; 0 where a phase has no bytes to count.
        bytes_total: All bytes of the current phase; 0 where unknown.
        message: One sentence for people that tells the present step, or the fault and its remedy. May be empty.
        uptime_seconds: Seconds since the daemon started.
        total_requests: Embed, EmbedBatch and EmbedStream calls that could be read since the daemon started, including failed
            ones.
        in_flight_requests: Embed, EmbedBatch and EmbedStream calls being served at this moment.
        pid: The process id of the daemon.
        engine_pid: The process id of `llama-server`, or 0 while none runs.
        engine_restarts: The number of times that `llama-server` died and was started again. Starts after idleness do not count.
        interactive: The queue of texts that a person waits for.
        bulk: The queue of long jobs.
        total_texts: Texts that were embedded since the daemon started, including those from the cache.
        total_tokens: Tokens that the engine computed since the daemon started.
        tokens_per_second: Tokens that it computed per second of the last minute, including idle time.
        total_batches: Micro-batches that went to the engine since the daemon started.
        mean_batch_texts: Mean number of texts of a micro-batch in the last minute; 0 if there was none.
        cache_hits: Texts whose vector was in the cache.
        shared_texts: Texts whose vector was already being computed for another caller.
        cache_entries: Vectors in the memory cache.
        cache_bytes: The bytes that they take.
        refused_requests: Calls that were refused since the daemon started because the queue was full.
        disk_cache_bytes: The bytes of the cache on disk; 0 if there is none, or if it cannot be used.
        model: The name of the model whose state this is. Empty until it is known, and if the daemon knows no names.
        loaded_models: The number of models whose engines run.
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
    model: str
    loaded_models: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Info:
    """The description of the daemon and its model.

    Attributes:
        daemon_version: The version of the daemon, as in "0.1.0".
        socket_path: The path that the daemon listens on.
        max_batch_size: The largest number of texts of one request; `embed_batch` splits longer batches itself.
        max_request_bytes: The largest request message, in bytes; `embed_batch` splits larger batches itself.
        model_identity: "sha256:" and the first 16 hexadecimal digits of the SHA-256 of the model file.
        model_name: The name of the model in its file, for people.
        model_variant: The manifest's name of the variant; empty if the model was given as a file.
        vector_dim: The number of values of a vector.
        max_text_length: The largest number of tokens of one text, including special tokens.
        pooling: The way from token vectors to one vector: "last", "mean" or "cls".
        engine_version: The version that `llama-server` tells; or that of ONNX Runtime, as in "onnxruntime-1.32.0 (graph 1)".
        centroid_set_version: The version of the installed centroid set; empty if there is none.
        fingerprint: The name of the space that vectors of all dimensions lie in. Vectors with the same string can be compared,
            vectors with different strings cannot. Keep it beside stored vectors.
        min_dimensions: The smallest `dimensions` of a request; `vector_dim` if the model has only whole vectors.
        query_prompt: The text that role "query" puts in front of a text; "{instruction}" stands for the instruction. May be
            empty.
        document_prompt: The text that role "document" puts in front of a text. May be empty.
        default_instruction: The instruction of a query that names none. Empty if there are no instructions.
        profile: The profile of the engine: "memory", "balanced" or "throughput".
        max_queued_texts: The largest number of texts that may wait. More are refused with `QueueFullError`.
        max_queued_bytes: The most bytes of text that may wait.
        restrictions: What makes the daemon slower or smaller than the machine allows, in words for people.
        accelerator: What the engine computes with: "cpu", "cuda", "rocm", "vulkan", "metal", "coreml" or "dml"; "" until the
            model is installed.
        device: The name of the device for people; "" for the processors.
        device_tuned_at: The time at which `runed bench --tune` found this device to be the fastest one, in ISO 8601. Empty if
            no comparison of devices decides.
        company_cosine: The smallest cosine between the vectors of a text alone and beside others that the engine's last
            self-test found; 0 before the first one.
        tuned_at: The time at which `runed bench --tune` measured the settings that the engine runs by, in ISO 8601. Empty
            if they are built-in ones.
        model: The name of the model in requests; empty if the daemon is of a version with one model.
        prompts_unknown: Whether nothing tells the prompts of the model, so that a role adds nothing.
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
    restrictions: tuple[str, ...] = ()
    accelerator: str = ""
    device: str = ""
    device_tuned_at: str = ""
    company_cosine: float = 0.0
    tuned_at: str = ""
    model: str = ""
    prompts_unknown: bool = False


class ModelKind(Enum):
    """The purpose of a model."""

    UNSPECIFIED = 0
    EMBEDDING = 1
    RERANK = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model that requests may name. What is not known before a model was loaded or installed is 0 or empty.

    Attributes:
        name: The name, such as "qwen3-embedding-0.6b.q6_K".
        family: The name without the variant. It means the default variant of the family.
        variants: The names of all variants of the family, the default one first.
        aliases: Further names.
        kind: The purpose.
        licence: The licence, as an SPDX identifier or as words.
        size_bytes: The bytes of its file.
        installed: Whether its file is there.
        loaded: Whether its engine runs, or starts.
        memory_bytes: The bytes of memory that its engine takes, or took when it last ran.
        last_used_at: The time of its last text, in seconds since 1970, UTC.
        keep_alive_seconds: Seconds without a text after which its engine is stopped; 0 means never.
        vector_dim: The number of values of a vector.
        min_dimensions: The smallest `dimensions` of a request.
        max_text_length: The largest number of tokens of one text.
        context_length: The most tokens that the model was trained to read.
        pooling: The way from token vectors to one vector.
        query_prompt: As `Info.query_prompt`.
        document_prompt: As `Info.document_prompt`.
        default_instruction: As `Info.default_instruction`.
        fingerprint: As `Info.fingerprint`.
        model_identity: As `Info.model_identity`.
    """

    name: str
    family: str
    variants: tuple[str, ...]
    aliases: tuple[str, ...]
    kind: ModelKind
    licence: str
    size_bytes: int
    installed: bool
    loaded: bool
    memory_bytes: int
    last_used_at: int
    keep_alive_seconds: float
    vector_dim: int
    min_dimensions: int
    max_text_length: int
    context_length: int
    pooling: str
    query_prompt: str
    document_prompt: str
    default_instruction: str
    fingerprint: str
    model_identity: str
