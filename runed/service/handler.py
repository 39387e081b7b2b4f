"""The handlers of `RunedService`: messages to domain and back, and nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from connectrpc.request import RequestContext
from runed_proto.runed.v1.runed_pb2 import (
    EmbedBatchRequest,
    EmbedBatchResponse,
    EmbedRequest,
    EmbedResponse,
    HealthRequest,
    HealthResponse,
    InfoRequest,
    InfoResponse,
    SetCentroidsRequest,
    SetCentroidsResponse,
    ShutdownRequest,
    ShutdownResponse,
)

from runed.backend.base import EmbeddingBatch
from runed.engine.status import Health, Info, LoadingPhase, Status
from runed.errors import UnimplementedError
from runed.service.observe import current_call

_STATUS = {
    Status.OK: HealthResponse.STATUS_OK,
    Status.LOADING: HealthResponse.STATUS_LOADING,
    Status.DEGRADED: HealthResponse.STATUS_DEGRADED,
    Status.SHUTTING_DOWN: HealthResponse.STATUS_SHUTTING_DOWN,
    Status.IDLE: HealthResponse.STATUS_IDLE,
}
_PHASE = {
    None: HealthResponse.PHASE_UNSPECIFIED,
    LoadingPhase.FETCHING_LLAMA_SERVER: HealthResponse.PHASE_FETCHING_LLAMA_SERVER,
    LoadingPhase.FETCHING_MODEL: HealthResponse.PHASE_FETCHING_MODEL,
    LoadingPhase.STARTING_LLAMA_SERVER: HealthResponse.PHASE_STARTING_LLAMA_SERVER,
}

_VECTOR_TAG = b"\x0a"
"""Field 1, wire type 2 (length-delimited): the tag of `EmbedResponse.vector` in the protobuf encoding."""
_VARINT_MORE = 0x80
"""The bit of a varint's byte that says that another one follows."""


class Host(Protocol):
    """What the service asks of the daemon."""

    async def embed(self, texts: Sequence[str]) -> EmbeddingBatch:
        """Embed the texts of one call; raises `RunedError`."""
        ...

    def info(self) -> Info:
        """Tell what the daemon and its model are."""
        ...

    def health(self) -> Health:
        """Tell what the daemon is doing right now."""
        ...

    def shut_down(self, grace: float | None) -> None:
        """Begin to drain; `grace` in seconds, None for the default."""
        ...


class RunedServicer:
    """Implements the generated `RunedService`.

    Args:
        host: The daemon.
    """

    def __init__(self, host: Host) -> None:
        self._host = host

    async def embed(self, request: EmbedRequest, ctx: RequestContext[EmbedRequest, EmbedResponse], /) -> EmbedResponse:
        """Embed one text."""
        vectors = await self._embed([request.text], with_route=request.with_route)
        response = EmbedResponse()
        response.MergeFromString(_encode_vector(vectors[0]))
        return response

    async def embed_batch(
        self, request: EmbedBatchRequest, ctx: RequestContext[EmbedBatchRequest, EmbedBatchResponse], /
    ) -> EmbedBatchResponse:
        """Embed many texts."""
        vectors = await self._embed(list(request.texts), with_route=request.with_route)
        response = EmbedBatchResponse()
        for vector in vectors:
            response.embeddings.add().MergeFromString(_encode_vector(vector))
        return response

    async def info(self, request: InfoRequest, ctx: RequestContext[InfoRequest, InfoResponse], /) -> InfoResponse:
        """Describe daemon and model."""
        info = self._host.info()
        return InfoResponse(
            daemon_version=info.daemon_version,
            model_identity=info.model_identity,
            vector_dim=info.vector_dim,
            max_text_length=info.max_text_length,
            max_batch_size=info.max_batch_size,
            model_name=info.model_name,
            model_variant=info.model_variant,
            pooling=info.pooling,
            engine_version=info.engine_version,
            max_request_bytes=info.max_request_bytes,
            socket_path=info.socket_path,
        )

    async def health(self, request: HealthRequest, ctx: RequestContext[HealthRequest, HealthResponse], /) -> HealthResponse:
        """Tell what the daemon is doing."""
        health = self._host.health()
        return HealthResponse(
            status=_STATUS[health.status],
            uptime_seconds=health.uptime_seconds,
            total_requests=health.total_requests,
            phase=_PHASE[health.phase],
            bytes_done=health.bytes_done,
            bytes_total=health.bytes_total,
            message=health.message,
            pid=health.pid,
            engine_pid=health.engine_pid,
            engine_restarts=health.engine_restarts,
            in_flight_requests=health.in_flight_requests,
        )

    async def shutdown(
        self, request: ShutdownRequest, ctx: RequestContext[ShutdownRequest, ShutdownResponse], /
    ) -> ShutdownResponse:
        """Begin to drain."""
        self._host.shut_down(request.grace_seconds if request.grace_seconds > 0 else None)
        return ShutdownResponse(accepted=True)

    async def set_centroids(
        self, request: AsyncIterator[SetCentroidsRequest], ctx: RequestContext[SetCentroidsRequest, SetCentroidsResponse], /
    ) -> SetCentroidsResponse:
        """Refuse: routing is not there yet."""
        raise UnimplementedError("this version of runed cannot route by centroids; embed without a centroid set")

    async def _embed(self, texts: Sequence[str], *, with_route: bool) -> list[bytes]:
        if with_route:
            raise UnimplementedError("this version of runed cannot route by centroids; send the request without with_route")
        call = current_call()
        call.texts = len(texts)
        batch = await self._host.embed(texts)
        call.tokens = batch.tokens
        return batch.vectors


def _encode_vector(vector: bytes) -> bytes:
    """Encode an `EmbedResponse`: its packed field is the float32 bytes as they are, 30 times faster than by Python floats."""
    length = len(vector)
    varint = bytearray()
    while length >= _VARINT_MORE:
        varint.append(length % _VARINT_MORE | _VARINT_MORE)
        length //= _VARINT_MORE
    varint.append(length)
    return _VECTOR_TAG + varint + vector
