"""The messages of the daemon, turned into the plain data that callers get."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from runed_proto.runed.v1.runed_pb2 import (
    EmbedBatchResponse,
    EmbedResponse,
    EmbedStreamResponse,
    HealthResponse,
    InfoResponse,
)
from runed_proto.runed.v1.runed_pb2 import LaneHealth as LaneHealthMessage
from runed_proto.runed.v1.runed_pb2 import Model as ModelMessage

from runed.client.types import Embedding, Health, Info, LaneHealth, Model, ModelKind, Phase, Status, Vectors
from runed.errors import BackendFaultError, RunedError, error_of_reason

_FALLBACK_BATCH_SIZE = 32
"""Most texts of one request, if the daemon tells no limit."""

_FALLBACK_REQUEST_BYTES = 4 * 1024 * 1024
"""Most bytes of one request, if the daemon tells no limit."""


class SpaceGuard:
    """Checks that all vectors of one result lie in the same space, although they come in several answers."""

    def __init__(self) -> None:
        self._first: str | None = None

    def check(self, fingerprint: str) -> None:
        """Compare the space of an answer with that of the answers before.

        Raises:
            RunedError: The space differs. The daemon was restarted with another model or engine.
        """
        if self._first is None:
            self._first = fingerprint
        elif fingerprint != self._first:
            raise RunedError(
                f'the daemon changed its model or engine on the way: the fingerprint was "{self._first}", now it is '
                f'"{fingerprint}"; their vectors cannot be compared, so embed all of the texts again',
                metadata={"before": self._first, "now": fingerprint},
            )


def vector_of(values: Sequence[float]) -> Vectors:
    """Return the values of a vector as an array, float32, shape (dim,)."""
    return np.array(values, dtype=np.float32)


def unfilled(count: int, dim: int) -> Vectors:
    """Return an array for vectors that are still to come, float32, shape (count, dim)."""
    return np.empty((count, dim), dtype=np.float32)


def outcome(
    item: EmbedResponse, answer: EmbedBatchResponse | EmbedStreamResponse, index: int | None = None
) -> Embedding | RunedError:
    """Read the outcome of one text of several.

    Args:
        item: The message about the text.
        answer: The message that it is part of.
        index: The place of the text in the caller's batch; None if it has none.

    Returns:
        The embedding, or the error that the daemon raised for this text.

    Raises:
        BackendFaultError: The message has neither.
    """
    if item.HasField("error"):
        # The daemon tells the place of the text in its request. The caller does not know the requests.
        metadata = {name: value for name, value in item.error.metadata.items() if name != "index"}
        where = {} if index is None else {"index": str(index)}
        return error_of_reason(item.error.reason, item.error.message, metadata=metadata | where)
    if not item.vector:
        raise no_vector()
    return Embedding(
        vector=vector_of(item.vector),
        token_count=item.token_count,
        total_token_count=item.total_token_count,
        truncated=item.truncated,
        fingerprint=answer.fingerprint,
        prompt=answer.prompt,
        cached=item.cached,
        cluster_id=item.cluster_id if item.centroid_set_version else None,
        centroid_set_version=item.centroid_set_version,
        model=answer.model,
    )


def no_vector() -> BackendFaultError:
    """Return the error of an answer without the requested vectors."""
    return BackendFaultError("the daemon answered other vectors than were asked for; send the texts again")


def info(response: InfoResponse) -> Info:
    """Read the description of the daemon and its model."""
    return Info(
        daemon_version=response.daemon_version,
        socket_path=response.socket_path,
        max_batch_size=response.max_batch_size or _FALLBACK_BATCH_SIZE,
        max_request_bytes=response.max_request_bytes or _FALLBACK_REQUEST_BYTES,
        model_identity=response.model_identity,
        model_name=response.model_name,
        model_variant=response.model_variant,
        vector_dim=response.vector_dim,
        max_text_length=response.max_text_length,
        pooling=response.pooling,
        engine_version=response.engine_version,
        centroid_set_version=response.centroid_set_version,
        fingerprint=response.fingerprint,
        min_dimensions=response.min_dimensions,
        query_prompt=response.query_prompt,
        document_prompt=response.document_prompt,
        default_instruction=response.default_instruction,
        profile=response.profile,
        tuned_at=response.tuned_at,
        max_queued_texts=response.max_queued_texts,
        max_queued_bytes=response.max_queued_bytes,
        restrictions=tuple(response.restrictions),
        accelerator=response.accelerator,
        device=response.device,
        device_tuned_at=response.device_tuned_at,
        company_cosine=response.company_cosine,
        model=response.model,
        prompts_unknown=response.prompts_unknown,
    )


def model(message: ModelMessage) -> Model:
    """Read the description of a model."""
    return Model(
        name=message.name,
        family=message.family,
        variants=tuple(message.variants),
        aliases=tuple(message.aliases),
        kind=ModelKind(message.kind),
        licence=message.licence,
        size_bytes=message.size_bytes,
        installed=message.installed,
        loaded=message.loaded,
        memory_bytes=message.memory_bytes,
        last_used_at=message.last_used_at,
        keep_alive_seconds=message.keep_alive_seconds,
        vector_dim=message.vector_dim,
        min_dimensions=message.min_dimensions,
        max_text_length=message.max_text_length,
        context_length=message.context_length,
        pooling=message.pooling,
        query_prompt=message.query_prompt,
        document_prompt=message.document_prompt,
        default_instruction=message.default_instruction,
        fingerprint=message.fingerprint,
        model_identity=message.model_identity,
    )


def health(response: HealthResponse) -> Health:
    """Read the present state of the daemon."""
    status = Status(response.status)
    return Health(
        status=status,
        phase=Phase(response.phase) if status is Status.LOADING else None,
        bytes_done=response.bytes_done,
        bytes_total=response.bytes_total,
        message=response.message,
        uptime_seconds=response.uptime_seconds,
        total_requests=response.total_requests,
        in_flight_requests=response.in_flight_requests,
        pid=response.pid,
        engine_pid=response.engine_pid,
        engine_restarts=response.engine_restarts,
        interactive=_lane(response.interactive),
        bulk=_lane(response.bulk),
        total_texts=response.total_texts,
        total_tokens=response.total_tokens,
        tokens_per_second=response.tokens_per_second,
        total_batches=response.total_batches,
        mean_batch_texts=response.mean_batch_texts,
        cache_hits=response.cache_hits,
        shared_texts=response.shared_texts,
        cache_entries=response.cache_entries,
        cache_bytes=response.cache_bytes,
        refused_requests=response.refused_requests,
        disk_cache_bytes=response.disk_cache_bytes,
        model=response.model,
        loaded_models=response.loaded_models,
    )


def _lane(message: LaneHealthMessage) -> LaneHealth:
    return LaneHealth(
        queued_texts=message.queued_texts,
        queued_bytes=message.queued_bytes,
        total_texts=message.total_texts,
        wait_p50_seconds=message.wait_p50_seconds,
        wait_p99_seconds=message.wait_p99_seconds,
    )
