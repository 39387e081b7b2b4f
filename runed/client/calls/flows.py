"""The flows of the calls that are answered by one message; `Client` and `AsyncClient` share them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TypeVar

from google.protobuf.message import Message
from runed_proto.runed.v1.runed_pb2 import (
    CountTokensRequest,
    CountTokensResponse,
    EmbedBatchRequest,
    EmbedBatchResponse,
    EmbedRequest,
    EmbedResponse,
)

from runed.client.calls import answers
from runed.client.calls.daemon_flows import DaemonFlows
from runed.client.calls.patience import Deadline
from runed.client.calls.steps import Flow
from runed.client.calls.texts import LARGE_TEXT, TEXT_OVERHEAD, check_length, encoded_length, listed, measure, relocated, split
from runed.client.options import Options, check_named, too_old
from runed.client.types import Embedding, Info, Vectors
from runed.errors import (
    BatchTooLargeError,
    InvalidTextError,
    RequestTooLargeError,
    RunedError,
)

T = TypeVar("T")


class Flows(DaemonFlows):
    """The flows of one client."""

    def embed(self, text: str, options: Options, deadline: Deadline) -> Flow[Vectors]:
        """Embed one text. The vector has shape (dim,)."""
        length = encoded_length(text)
        request = EmbedRequest()
        options.set_on(request)
        common = request.ByteSize()
        request.text = text

        def send(limits: Info | None = None) -> Flow[EmbedResponse]:
            if limits is not None:
                check_length(length + TEXT_OVERHEAD, limits.max_request_bytes - common)
            return self.send_when_ready("Embed", request, EmbedResponse, deadline)

        response = yield from (send() if length <= LARGE_TEXT else self.within_limits(send, deadline, options.model))
        options.check_known(response)
        if not response.vector:
            raise answers.no_vector()
        yield from self.note_role(options, response, deadline)
        return answers.vector_of(response.vector)

    def embed_batch(self, texts: Iterable[str], options: Options, deadline: Deadline) -> Flow[Vectors]:
        """Embed many texts by as many requests as the daemon's limits demand. The vectors have shape (n, dim)."""
        texts = listed(texts)
        if not texts:
            dim = options.dimensions or (yield from self.wait_until_ready(deadline, options.model)).vector_dim
            return answers.unfilled(0, dim)
        return (yield from self.within_limits(partial(self._embed_batch, texts, options, deadline), deadline, options.model))

    def embed_items(
        self, texts: Iterable[str], options: Options, deadline: Deadline, *, with_route: bool
    ) -> Flow[list[Embedding | RunedError]]:
        """Embed many texts, and return one outcome a text. A text that cannot be embedded does not affect the others."""
        texts = listed(texts)
        if not texts:
            return []
        common = EmbedBatchRequest(per_item_errors=True, with_route=with_route)
        options.set_on(common)
        call = partial(self._embed_items, texts, options, common, deadline)
        return (yield from self.within_limits(call, deadline, options.model))

    def count_tokens(self, texts: Iterable[str], options: Options, deadline: Deadline) -> Flow[list[int]]:
        """Count the tokens of texts by as many requests as the daemon's limits demand. Return one number a text."""
        texts = listed(texts)
        if not texts:
            return []
        return (yield from self.within_limits(partial(self._count_tokens, texts, options, deadline), deadline, options.model))

    def within_limits(self, call: Callable[[Info], Flow[T]], deadline: Deadline, model: str | None) -> Flow[T]:
        """Make a call within the daemon's limits, which are requested once.

        Another daemon with smaller limits may have replaced the one that told them. If a request is too large and the limits
        are from before the call, they are requested again.
        """
        known = self._limits
        limits = known or (yield from self.present_info(deadline, model))
        try:
            return (yield from call(limits))
        except (BatchTooLargeError, RequestTooLargeError):
            if known is None:
                raise
            limits = yield from self.present_info(deadline, model)
            if (limits.max_batch_size, limits.max_request_bytes) == (known.max_batch_size, known.max_request_bytes):
                raise
        return (yield from call(limits))

    def _embed_batch(self, texts: list[str], options: Options, deadline: Deadline, limits: Info) -> Flow[Vectors]:
        common = EmbedBatchRequest()
        options.set_on(common)
        vectors: Vectors | None = None
        space = answers.SpaceGuard()
        for start, end in _cut(texts, common, limits):
            try:
                response = yield from self._embed_part(texts[start:end], common, deadline)
            except RunedError as error:
                raise relocated(error, start, end - start) from None
            options.check_known(response)
            space.check(response.fingerprint)
            if vectors is None:
                yield from self.note_role(options, response, deadline)
                vectors = answers.unfilled(len(texts), len(response.embeddings[0].vector))
            for row, embedding in enumerate(response.embeddings, start):
                if not embedding.vector or len(embedding.vector) != vectors.shape[1]:
                    raise answers.no_vector()
                vectors[row] = embedding.vector
        assert vectors is not None
        return vectors

    def _embed_items(  # bound in the order of a call
        self, texts: list[str], options: Options, common: EmbedBatchRequest, deadline: Deadline, limits: Info
    ) -> Flow[list[Embedding | RunedError]]:
        max_bytes = limits.max_request_bytes - common.ByteSize()
        outcomes: dict[int, Embedding | RunedError] = {}
        lengths: dict[int, int] = {}
        for index, text in enumerate(texts):
            try:
                lengths[index] = measure(text, index, max_bytes)
            except (InvalidTextError, RequestTooLargeError) as error:
                outcomes[index] = error
        sendable = list(lengths)
        space = answers.SpaceGuard()
        for start, end in split(list(lengths.values()), limits.max_batch_size, max_bytes):
            part = sendable[start:end]
            response = yield from self._embed_part([texts[index] for index in part], common, deadline)
            if not response.fingerprint:
                raise too_old("gives no details of an embedding")
            check_named(common.model, response.model)
            space.check(response.fingerprint)
            yield from self.note_role(options, response, deadline)
            for index, item in zip(part, response.embeddings, strict=True):
                outcomes[index] = answers.outcome(item, response, index)
        return [outcomes[index] for index in range(len(texts))]

    def _embed_part(self, texts: list[str], common: EmbedBatchRequest, deadline: Deadline) -> Flow[EmbedBatchResponse]:
        request = EmbedBatchRequest(texts=texts)
        request.MergeFrom(common)
        response = yield from self.send_when_ready("EmbedBatch", request, EmbedBatchResponse, deadline)
        if len(response.embeddings) != len(texts):
            raise answers.no_vector()
        return response

    def _count_tokens(self, texts: list[str], options: Options, deadline: Deadline, limits: Info) -> Flow[list[int]]:
        common = CountTokensRequest()
        options.set_prompt_on(common)
        counts: list[int] = []
        for start, end in _cut(texts, common, limits):
            request = CountTokensRequest(texts=texts[start:end])
            request.MergeFrom(common)
            try:
                response = yield from self.send_when_ready("CountTokens", request, CountTokensResponse, deadline)
            except RunedError as error:
                raise relocated(error, start, end - start) from None
            if len(response.token_counts) != end - start:
                raise RunedError("the daemon counted the tokens of other texts than were asked for; send them again")
            check_named(options.model, response.model)
            counts += response.token_counts
        return counts


def _cut(texts: list[str], common: Message, limits: Info) -> Iterator[tuple[int, int]]:
    """Cut a batch into requests that keep to the daemon's limits.

    Args:
        texts: The texts of the batch.
        common: The fields that all its requests share.
        limits: The limits.

    Returns:
        The start and the end of each request, as for a slice.
    """
    max_bytes = limits.max_request_bytes - common.ByteSize()
    return split([measure(text, index, max_bytes) for index, text in enumerate(texts)], limits.max_batch_size, max_bytes)
