"""Messages to domain and back: the options of a request, embeddings, and the description of the daemon."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from runed_proto.runed.v1 import runed_pb2 as pb

from runed.domain.model_spec import ModelKind
from runed.domain.model_status import ModelRoom, ModelStatus
from runed.domain.ranking import RerankAnswer, RerankOptions
from runed.domain.requests import (
    Centroid,
    CentroidHeader,
    EmbedAnswer,
    Embedding,
    EmbedOptions,
    Lane,
    Role,
    StreamAnswer,
    Truncate,
)
from runed.domain.status import Health, Info, LaneStats, Load, LoadingPhase, ModelHealth, Status
from runed.errors import BadCentroidsError, InvalidRequestError, RunedError
from runed.turns import breathe_before

T = TypeVar("T")

_LANE: Mapping[int, Lane | None] = {pb.LANE_UNSPECIFIED: None, pb.LANE_INTERACTIVE: Lane.INTERACTIVE, pb.LANE_BULK: Lane.BULK}
_ROLE: Mapping[int, Role] = {pb.ROLE_UNSPECIFIED: Role.NONE, pb.ROLE_QUERY: Role.QUERY, pb.ROLE_DOCUMENT: Role.DOCUMENT}
_TRUNCATE: Mapping[int, Truncate] = {
    pb.TRUNCATE_UNSPECIFIED: Truncate.NONE,
    pb.TRUNCATE_NONE: Truncate.NONE,
    pb.TRUNCATE_END: Truncate.END,
    pb.TRUNCATE_START: Truncate.START,
}
_STATUS = {
    Status.OK: pb.HealthResponse.STATUS_OK,
    Status.LOADING: pb.HealthResponse.STATUS_LOADING,
    Status.DEGRADED: pb.HealthResponse.STATUS_DEGRADED,
    Status.SHUTTING_DOWN: pb.HealthResponse.STATUS_SHUTTING_DOWN,
    Status.IDLE: pb.HealthResponse.STATUS_IDLE,
}
_PHASE = {
    None: pb.HealthResponse.PHASE_UNSPECIFIED,
    LoadingPhase.FETCHING_LLAMA_SERVER: pb.HealthResponse.PHASE_FETCHING_LLAMA_SERVER,
    LoadingPhase.FETCHING_MODEL: pb.HealthResponse.PHASE_FETCHING_MODEL,
    LoadingPhase.STARTING_LLAMA_SERVER: pb.HealthResponse.PHASE_STARTING_LLAMA_SERVER,
}
_KIND = {ModelKind.EMBEDDING: pb.Model.KIND_EMBEDDING, ModelKind.RERANK: pb.Model.KIND_RERANK}

STREAM_MESSAGE_BYTES = 1024 * 1024
"""Approximate limit of a message of stream results, in bytes. By default, gRPC clients refuse more than 4 MiB."""

_VECTOR_TAG = b"\x0a"
"""Field 1, wire type 2 (length-delimited): the tag of `EmbedResponse.vector` in the protobuf encoding."""
_VARINT_MORE = 0x80
"""The bit of a varint's byte that announces another byte."""


def embed_options(request: pb.EmbedRequest | pb.EmbedBatchRequest | pb.EmbedStreamRequest) -> EmbedOptions:
    """Read the options of a request that embeds.

    Raises:
        InvalidRequestError: An option has a value that the contract does not know.
    """
    return EmbedOptions(
        lane=_member(_LANE, pb.Lane, "lane", request.lane),
        role=_member(_ROLE, pb.Role, "role", request.role),
        instruction=request.instruction,
        dimensions=request.dimensions,
        truncate=_member(_TRUNCATE, pb.Truncate, "truncate", request.truncate),
        model=request.model,
        with_route=False if isinstance(request, pb.EmbedStreamRequest) else request.with_route,  # a stream has no routes
    )


def count_options(request: pb.CountTokensRequest) -> EmbedOptions:
    """Read the options of a request that counts.

    Raises:
        InvalidRequestError: An option has a value that the contract does not know.
    """
    role = _member(_ROLE, pb.Role, "role", request.role)
    return EmbedOptions(role=role, instruction=request.instruction, model=request.model)


def rerank_options(request: pb.RerankRequest) -> RerankOptions:
    """Read the options of a request that ranks.

    Raises:
        InvalidRequestError: An option has a value that the contract does not know.
    """
    return RerankOptions(
        lane=_member(_LANE, pb.Lane, "lane", request.lane),
        truncate=_member(_TRUNCATE, pb.Truncate, "truncate", request.truncate),
        top_n=request.top_n,
        model=request.model,
    )


def rerank_response(answer: RerankAnswer, documents: Sequence[str]) -> pb.RerankResponse:
    """Return the response to a call that ranks.

    Args:
        answer: The answer.
        documents: The documents of the call, if each result shall repeat its own; else none.
    """
    results = [
        pb.RerankResult(
            index=result.index,
            score=result.score,
            document=documents[result.index] if documents else "",
            token_count=result.tokens,
            total_token_count=result.total_tokens,
            truncated=result.truncated,
            cached=result.cached,
        )
        for result in answer.results
    ]
    return pb.RerankResponse(results=results, token_count=answer.tokens, fingerprint=answer.fingerprint, model=answer.model)


def check_same_options(first: pb.EmbedStreamRequest, later: pb.EmbedStreamRequest) -> None:
    """Check that a later message of a stream changes no option.

    Args:
        first: The first message, whose options hold for the whole stream.
        later: Another message; it may repeat these options or leave them out.

    Raises:
        InvalidRequestError: The later message has another option.
    """
    for field in ("lane", "role", "instruction", "dimensions", "truncate", "model"):
        if (value := getattr(later, field)) and value != getattr(first, field):
            raise InvalidRequestError(
                f"a later message of the stream has another {field} than the first one, whose options hold for the whole "
                "stream; open a stream for each set of options",
                metadata={"field": field},
            )


def grace_of(request: pb.ShutdownRequest) -> float | None:
    """Read the seconds that calls in flight may take; None for the daemon's own grace.

    Raises:
        InvalidRequestError: There are fewer than 0.
    """
    if request.grace_seconds < 0:
        raise InvalidRequestError(
            f"grace_seconds is {request.grace_seconds}; accepted is a whole number of seconds from 0, which means the daemon's "
            "own 10, to 300, as which any larger one counts",
            metadata={"field": "grace_seconds"},
        )
    return request.grace_seconds or None


def embed_response(answer: EmbedAnswer) -> pb.EmbedResponse:
    """Return the response to a call with one text.

    Raises:
        RunedError: The text has no vector.
    """
    [item] = answer.items
    if isinstance(item, RunedError):
        raise item
    response = _embedding(item, answer.centroid_set_version)
    response.fingerprint = answer.space.fingerprint
    response.prompt = answer.space.prompt
    response.model = answer.space.model
    return response


async def embed_batch_response(answer: EmbedAnswer) -> pb.EmbedBatchResponse:
    """Return the response to a call with several texts."""
    space = answer.space
    response = pb.EmbedBatchResponse(fingerprint=space.fingerprint, prompt=space.prompt, model=space.model)
    for index, item in enumerate(answer.items):
        await breathe_before(index)
        response.embeddings.append(_outcome(item, answer.centroid_set_version))
    return response


def embed_stream_responses(answer: StreamAnswer) -> Iterator[pb.EmbedStreamResponse]:
    """Yield the ready results of a stream, in messages of at most about `STREAM_MESSAGE_BYTES`."""
    results: list[pb.EmbedStreamResult] = []
    size = 0
    for result in answer.results:
        results.append(pb.EmbedStreamResult(id=result.id, embedding=_outcome(result.outcome)))
        size += results[-1].ByteSize()
        if size >= STREAM_MESSAGE_BYTES:
            yield _stream_response(results, answer)
            results, size = [], 0
    if results:
        yield _stream_response(results, answer)


def centroid_header(request: pb.SetCentroidsRequest | None) -> CentroidHeader:
    """Read the first message of a centroid set.

    Raises:
        BadCentroidsError: The message is not a header, or there is no message.
    """
    if request is None or request.WhichOneof("payload") != "header":
        raise BadCentroidsError("the first message of a centroid set is its header, with dim and nlist; send that first")
    header = request.header
    return CentroidHeader(version=header.version, dim=header.dim, nlist=header.nlist, preset=header.preset, model=header.model)


def centroids(request: pb.SetCentroidsRequest) -> Iterator[Centroid]:
    """Read a later message of a centroid set. This destroys the message.

    Raises:
        BadCentroidsError: The message is no batch.
    """
    if request.WhichOneof("payload") != "batch":
        raise BadCentroidsError("every message of a centroid set but the first is a batch of centroids; send no second header")
    request.DiscardUnknownFields()  # these fields could follow the values in the encoding
    for centroid in request.batch.centroids:
        number, size = centroid.id, 4 * len(centroid.vec)
        centroid.ClearField("id")
        # Only a tag, a length and the packed values are left. Reading them is 20 times faster than by Python floats.
        encoded = centroid.SerializeToString()
        yield Centroid(number, encoded[len(encoded) - size :])


def info_response(info: Info) -> pb.InfoResponse:
    """Describe the daemon and its model."""
    return pb.InfoResponse(
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
        fingerprint=info.fingerprint,
        min_dimensions=info.min_dimensions,
        query_prompt=info.query_prompt,
        document_prompt=info.document_prompt,
        default_instruction=info.default_instruction,
        profile=info.profile,
        tuned_at=info.tuned_at,
        max_queued_texts=info.max_queued_texts,
        max_queued_bytes=info.max_queued_bytes,
        centroid_set_version=info.centroid_set_version,
        restrictions=info.restrictions,
        accelerator=info.accelerator,
        device_tuned_at=info.device_tuned_at,
        device=info.device,
        company_cosine=info.company_cosine,
        model=info.model,
        prompts_unknown=info.prompts_unknown,
        settings=[
            pb.SettingInForce(name=setting.name, variable=setting.variable, value=setting.value, origin=setting.origin)
            for setting in info.settings
        ],
    )


def model_message(status: ModelStatus) -> pb.Model:
    """Describe a model that requests may name."""
    return pb.Model(
        name=status.name,
        family=status.family,
        variants=status.variants,
        aliases=status.aliases,
        kind=_KIND[status.kind],
        licence=status.licence,
        size_bytes=status.size_bytes,
        installed=status.installed,
        loaded=status.loaded,
        memory_bytes=status.memory_bytes,
        last_used_at=status.last_used_at,
        keep_alive_seconds=status.keep_alive_seconds,
        vector_dim=status.vector_dim,
        min_dimensions=status.min_dimensions,
        max_text_length=status.max_text_length,
        context_length=status.context_length,
        pooling=status.pooling,
        query_prompt=status.query_prompt,
        document_prompt=status.document_prompt,
        default_instruction=status.default_instruction,
        fingerprint=status.fingerprint,
        model_identity=status.model_identity,
    )


def list_models_response(models: Sequence[ModelStatus], room: ModelRoom) -> pb.ListModelsResponse:
    """Describe all models that requests may name.

    Args:
        models: The models, the default one first.
        room: The bounds of all engines.
    """
    rerankers = [model.name for model in models if model.kind is ModelKind.RERANK and model.installed]
    return pb.ListModelsResponse(
        models=map(model_message, models),
        default_model=models[0].name,
        default_rerank_model=rerankers[0] if len(rerankers) == 1 else "",
        memory_limit=room.memory_limit,
        memory_bytes=room.memory_bytes,
        max_loaded_models=room.max_loaded_models,
    )


def health_response(health: Health) -> pb.HealthResponse:
    """Describe the present state. The numbers of the engine are 0 until there is an engine."""
    response = pb.HealthResponse(
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
        model=health.model,
        loaded_models=health.loaded_models,
        models=map(_model_health, health.models),
        clients=[
            pb.ConnectedClient(pid=client.pid, name=client.name, connections=client.connections) for client in health.clients
        ],
    )
    if health.load is not None:
        response.MergeFrom(_load(health.load))
    return response


def _model_health(model: ModelHealth) -> pb.ModelHealth:
    return pb.ModelHealth(
        name=model.name,
        status=_STATUS[model.status],
        phase=_PHASE[model.phase],
        message=model.message,
        variant=model.variant,
        file=model.file,
        engine_version=model.engine_version,
        engine_path=model.engine_path,
        engine_pid=model.engine_pid,
        accelerator=model.accelerator,
        device=model.device,
        slots=model.slots,
        context=model.context,
        tuned_at=model.tuned_at,
        device_tuned_at=model.device_tuned_at,
        memory_bytes=model.memory_bytes,
        keep_alive_seconds=model.keep_alive_seconds,
        seconds_until_sleep=model.seconds_until_sleep,
        engine_reason=model.engine_reason,
    )


def _load(load: Load) -> pb.HealthResponse:
    stats = load.stats
    return pb.HealthResponse(
        interactive=_lane_health(stats.interactive, load.queued[Lane.INTERACTIVE]),
        bulk=_lane_health(stats.bulk, load.queued[Lane.BULK]),
        total_texts=stats.total_texts,
        total_tokens=stats.total_tokens,
        tokens_per_second=stats.tokens_per_second,
        total_batches=stats.total_batches,
        mean_batch_texts=stats.mean_batch_texts,
        cache_hits=stats.cache_hits,
        shared_texts=stats.shared_texts,
        cache_entries=load.cache_entries,
        cache_bytes=load.cache_bytes,
        disk_cache_bytes=load.disk_cache_bytes,
        refused_requests=stats.refused_requests,
    )


def _lane_health(stats: LaneStats, queued: tuple[int, int]) -> pb.LaneHealth:
    texts, size = queued
    return pb.LaneHealth(
        queued_texts=texts,
        queued_bytes=size,
        total_texts=stats.total_texts,
        wait_p50_seconds=stats.wait_p50_seconds,
        wait_p99_seconds=stats.wait_p99_seconds,
    )


def _stream_response(results: list[pb.EmbedStreamResult], answer: StreamAnswer) -> pb.EmbedStreamResponse:
    space = answer.space
    return pb.EmbedStreamResponse(results=results, fingerprint=space.fingerprint, prompt=space.prompt, model=space.model)


def _outcome(item: Embedding | RunedError, centroid_set_version: str = "") -> pb.EmbedResponse:
    if isinstance(item, RunedError):
        return pb.EmbedResponse(error=pb.ItemError(reason=item.reason, message=item.message, metadata=item.metadata))
    return _embedding(item, centroid_set_version)


def _embedding(item: Embedding, centroid_set_version: str) -> pb.EmbedResponse:
    """Encode a vector by copying its float32 bytes into the packed field, 30 times faster than by Python floats."""
    response = pb.EmbedResponse.FromString(_VECTOR_TAG + _varint(len(item.vector)) + item.vector)
    response.token_count = item.tokens
    response.total_token_count = item.total_tokens
    if item.truncated:
        response.truncated = True
    if item.cached:
        response.cached = True
    if centroid_set_version:
        response.cluster_id = item.cluster_id
        response.centroid_set_version = centroid_set_version
    return response


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number >= _VARINT_MORE:
        encoded.append(number % _VARINT_MORE | _VARINT_MORE)
        number //= _VARINT_MORE
    encoded.append(number)
    return bytes(encoded)


def _member(table: Mapping[int, T], enum: EnumTypeWrapper, field: str, value: int) -> T:
    """Read an enum's number, which proto3 does not check."""
    try:
        return table[value]
    except KeyError:
        known = ", ".join(f"{name} ({number})" for name, number in enum.items())
        raise InvalidRequestError(
            f"{field} {value} is unknown to this version of runed; use one of {known}",
            metadata={"field": field, "value": str(value)},
        ) from None
