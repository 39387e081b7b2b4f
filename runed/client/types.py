"""What a daemon tells of itself, as plain data; units and meanings are those of `runed.proto`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Status(Enum):
    """What the daemon can do for a caller."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """What the daemon is doing right now.

    Attributes:
        status: What it can do for a caller.
        phase: The part of the start it is in; None unless `status` is `LOADING`.
        bytes_done: Bytes of the current phase that are done; 0 where a phase has no bytes to count.
        bytes_total: Bytes of the current phase in all; 0 where unknown.
        message: One sentence for people: what goes on, or what is wrong and what to do. May be empty.
        uptime_seconds: Seconds since the daemon started.
        total_requests: Embed and EmbedBatch calls that could be read since the daemon started, failed ones included.
        in_flight_requests: Embed and EmbedBatch calls being served at this moment.
        pid: The process id of the daemon.
        engine_pid: The process id of `llama-server`, or 0 while none runs.
        engine_restarts: How often `llama-server` died and was started again; waking from idle does not count.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Info:
    """What the daemon and its model are; what is not known until the model is installed is empty or 0 before.

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
