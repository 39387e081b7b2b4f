"""The handlers of `RunedService`: messages to domain and back, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import aclosing, suppress
from typing import Any

from connectrpc.request import RequestContext
from runed_proto.runed.v1.runed_pb2 import (
    CountTokensRequest,
    CountTokensResponse,
    EmbedBatchRequest,
    EmbedBatchResponse,
    EmbedRequest,
    EmbedResponse,
    EmbedStreamRequest,
    EmbedStreamResponse,
    HealthRequest,
    HealthResponse,
    InfoRequest,
    InfoResponse,
    ListModelsRequest,
    ListModelsResponse,
    LoadModelRequest,
    LoadModelResponse,
    RerankRequest,
    RerankResponse,
    SetCentroidsRequest,
    SetCentroidsResponse,
    ShutdownRequest,
    ShutdownResponse,
    UnloadModelRequest,
    UnloadModelResponse,
    WarmUpRequest,
    WarmUpResponse,
)

from runed.api.answer_size import reserve_answer
from runed.api.call_log import Call
from runed.api.host import Host
from runed.api.rpc import messages
from runed.api.rpc.batch_turns import BatchTurns
from runed.api.rpc.decoding import whole
from runed.api.rpc.observation import current_call
from runed.domain.requests import Centroid, EmbedAnswer, StreamItem
from runed.scheduling.scheduler import INTERACTIVE_BATCH
from runed.server import forget_message, owe

_SHARE_OF_DEADLINE = 0.8
"""Largest share of the deadline that `Info` waits for the model. So its answer comes in time even without a model."""

_PIECE = 4096
"""Texts of a stream's message that are taken out of it at a time. A message may have many, and may wait for a long time."""


class RunedServicer:
    """Implements the generated `RunedService`.

    Args:
        host: The daemon.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._batches = BatchTurns()

    async def embed(self, request: EmbedRequest, ctx: RequestContext[EmbedRequest, EmbedResponse], /) -> EmbedResponse:
        """Embed one text."""
        return messages.embed_response(await self._embed(whole([request.text]), request, ctx))

    async def embed_batch(
        self, request: EmbedBatchRequest, ctx: RequestContext[EmbedBatchRequest, EmbedBatchResponse], /
    ) -> EmbedBatchResponse:
        """Embed many texts. A batch of `INTERACTIVE_BATCH` texts or fewer does not wait for its turn."""
        if len(request.texts) <= INTERACTIVE_BATCH:
            return await self._embed_batch(request, ctx)
        async with self._batches.turn(_client(ctx), messages.embed_options(request).lane, len(request.texts)):
            return await self._embed_batch(request, ctx)

    async def _embed_batch(
        self, request: EmbedBatchRequest, ctx: RequestContext[EmbedBatchRequest, EmbedBatchResponse]
    ) -> EmbedBatchResponse:
        answer = await self._embed(whole(list(request.texts)), request, ctx, per_item_errors=request.per_item_errors)
        return await messages.embed_batch_response(answer)

    async def embed_stream(
        self, request: AsyncIterator[EmbedStreamRequest], ctx: RequestContext[EmbedStreamRequest, EmbedStreamResponse], /
    ) -> AsyncIterator[EmbedStreamResponse]:
        """Embed texts as they come."""
        first = await anext(request, None)
        if first is None:
            return
        call = current_call()
        options = messages.embed_options(first)
        call.lane, call.asked = options.lane, options.model
        answers = self._host.embed_stream(_chunks(first, request, call), options, client=_client(ctx))
        async with aclosing(answers):
            async for answer in answers:
                call.count((result.outcome for result in answer.results), answer.space)
                owe(-len(answer.results))
                for response in messages.embed_stream_responses(answer):
                    yield response

    async def count_tokens(
        self, request: CountTokensRequest, ctx: RequestContext[CountTokensRequest, CountTokensResponse], /
    ) -> CountTokensResponse:
        """Count the tokens of many texts."""
        counts = await self._host.count_tokens(whole(list(request.texts)), messages.count_options(request))
        info = self._host.info(request.model)
        return CountTokensResponse(token_counts=counts, max_text_length=info.max_text_length, model=info.model)

    async def info(self, request: InfoRequest, ctx: RequestContext[InfoRequest, InfoResponse], /) -> InfoResponse:
        """Describe the daemon and its model. Wait until the model is known, unless it is being downloaded."""
        limit = None if ctx.timeout_ms is None else ctx.timeout_ms / 1000 * _SHARE_OF_DEADLINE
        with suppress(TimeoutError):
            async with asyncio.timeout(limit):
                await self._host.settle(request.model)
        return messages.info_response(self._host.info(request.model))

    async def health(self, request: HealthRequest, ctx: RequestContext[HealthRequest, HealthResponse], /) -> HealthResponse:
        """Describe the present state. If the request names a model, the answer does, too: a client looks for that."""
        # Without the names of the models, which this gets, any name would mean the default one.
        name = (await self._host.model(request.model)).name if request.model else ""
        response = messages.health_response(self._host.health(request.model, detailed=request.detailed))
        response.model = response.model or name
        return response

    async def warm_up(self, request: WarmUpRequest, ctx: RequestContext[WarmUpRequest, WarmUpResponse], /) -> WarmUpResponse:
        """Start the engine ahead of the first text."""
        await self._host.warm_up(request.model)
        return WarmUpResponse()

    async def rerank(self, request: RerankRequest, ctx: RequestContext[RerankRequest, RerankResponse], /) -> RerankResponse:
        """Rank documents by their relevance to a query. Many documents wait for their turn, as the texts of a batch do."""
        if len(request.documents) <= INTERACTIVE_BATCH:
            return await self._rerank(request, ctx)
        async with self._batches.turn(_client(ctx), messages.rerank_options(request).lane, len(request.documents)):
            return await self._rerank(request, ctx)

    async def _rerank(self, request: RerankRequest, ctx: RequestContext[RerankRequest, RerankResponse]) -> RerankResponse:
        call = current_call()
        options = messages.rerank_options(request)
        documents = whole(list(request.documents))
        call.texts, call.lane, call.asked = len(documents), options.lane, options.model
        answer = await self._host.rerank(request.query, documents, options, client=_client(ctx))
        call.count_ranked(answer)
        return messages.rerank_response(answer, documents if request.return_documents else ())

    async def list_models(
        self, request: ListModelsRequest, ctx: RequestContext[ListModelsRequest, ListModelsResponse], /
    ) -> ListModelsResponse:
        """List the models that requests may name."""
        return messages.list_models_response(await self._host.models(), self._host.room())

    async def load_model(
        self, request: LoadModelRequest, ctx: RequestContext[LoadModelRequest, LoadModelResponse], /
    ) -> LoadModelResponse:
        """Start the engine of a model."""
        await self._host.warm_up(request.model)
        return LoadModelResponse(model=messages.model_message(await self._host.model(request.model)))

    async def unload_model(
        self, request: UnloadModelRequest, ctx: RequestContext[UnloadModelRequest, UnloadModelResponse], /
    ) -> UnloadModelResponse:
        """Stop the engine of a model."""
        await self._host.unload(request.model)
        return UnloadModelResponse(model=messages.model_message(await self._host.model(request.model)))

    async def shutdown(
        self, request: ShutdownRequest, ctx: RequestContext[ShutdownRequest, ShutdownResponse], /
    ) -> ShutdownResponse:
        """Begin to drain."""
        self._host.shut_down(messages.grace_of(request))
        return ShutdownResponse(accepted=True)

    async def set_centroids(
        self, request: AsyncIterator[SetCentroidsRequest], ctx: RequestContext[SetCentroidsRequest, SetCentroidsResponse], /
    ) -> SetCentroidsResponse:
        """Replace the set of routing centroids."""
        header = messages.centroid_header(await anext(request, None))
        version = await self._host.set_centroids(header, _batches(request))
        return SetCentroidsResponse(version=version, nlist=header.nlist, model=self._host.info(header.model).model)

    async def _embed(
        self,
        texts: Sequence[str],
        request: EmbedRequest | EmbedBatchRequest,
        ctx: RequestContext[Any, Any],
        *,
        per_item_errors: bool = False,
    ) -> EmbedAnswer:
        call = current_call()
        call.texts = len(texts)
        options = messages.embed_options(request)
        call.lane, call.asked = options.lane, options.model
        reserve_answer(self._host, len(texts), options, as_text="json" in ctx.request_headers.get("content-type", ""))
        answer = await self._host.embed(texts, options, client=_client(ctx), per_item_errors=per_item_errors)
        call.count(answer.items, answer.space)
        return answer


def _client(ctx: RequestContext[Any, Any]) -> str:
    """Return the name of a caller, which is that of its connection."""
    return ctx.client_address or ""


async def _chunks(
    first: EmbedStreamRequest, later: AsyncIterator[EmbedStreamRequest], call: Call
) -> AsyncIterator[list[StreamItem]]:
    """Yield the texts of a stream, in pieces of its messages."""
    for piece in _pieces(first, call):
        yield piece
    async for message in later:
        messages.check_same_options(first, message)
        for piece in _pieces(message, call):
            yield piece
        forget_message()


def _pieces(message: EmbedStreamRequest, call: Call) -> Iterator[list[StreamItem]]:
    call.texts += len(message.items)
    owe(len(message.items))
    for start in range(0, len(message.items), _PIECE):
        items = message.items[start : start + _PIECE]
        texts = whole([item.text for item in items], start)
        yield [StreamItem(item.id, text) for item, text in zip(items, texts, strict=True)]


async def _batches(request: AsyncIterator[SetCentroidsRequest]) -> AsyncIterator[Iterable[Centroid]]:
    """Yield the centroids of a set, message by message."""
    async for message in request:
        forget_message()
        yield messages.centroids(message)
        del message  # frees its megabytes now and not when the next message comes
