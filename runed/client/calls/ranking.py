"""The flow of a rerank: the documents of one call, by as many requests as the daemon's limits demand."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from runed_proto.runed.v1.runed_pb2 import RerankRequest, RerankResponse

from runed.client.calls.answers import SpaceGuard
from runed.client.calls.flows import Flows
from runed.client.calls.patience import Deadline
from runed.client.calls.steps import Flow
from runed.client.calls.texts import check_length, encoded_length, listed, measure, relocated, split
from runed.client.options import Lane, Options, Truncate
from runed.client.types import Info, RerankResult
from runed.errors import InvalidRequestError, RunedError

_MAX_TOP_N = 2**32 - 1
"""The largest number that the field of the request holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RerankOptions:
    """The options of a rerank, checked.

    Raises:
        InvalidRequestError: A value is not one of the accepted ones; the message names them.
    """

    top_n: int | None = None
    truncate: Truncate = "none"
    lane: Lane | None = None
    model: str | None = None

    def __post_init__(self) -> None:
        if self.top_n is not None and (isinstance(self.top_n, bool) or not isinstance(self.top_n, int)):
            raise TypeError(f"top_n is a {type(self.top_n).__name__}, but must be an int or None")
        if self.top_n is not None and not 1 <= self.top_n <= _MAX_TOP_N:
            raise InvalidRequestError(f"top_n is {self.top_n}; give a number from 1 to {_MAX_TOP_N}, or None for all documents")
        Options(truncate=self.truncate, lane=self.lane, model=self.model)


def rerank_flow(
    flows: Flows, query: str, documents: Iterable[str], options: RerankOptions, deadline: Deadline
) -> Flow[list[RerankResult]]:
    """Rank documents by their relevance to a query."""
    texts = listed(documents)
    length = encoded_length(query, "query")
    if not texts:
        return []
    if not options.model:
        flows.ignore_default()
    common = RerankRequest(query=query, model=options.model or "")
    Options(truncate=options.truncate, lane=options.lane).set_queue_on(common)

    def rank(limits: Info) -> Flow[list[RerankResult]]:
        check_length(length, limits.max_request_bytes // 2, "query")
        return _rank(flows, texts, common, top_n=options.top_n, limits=limits, deadline=deadline)

    return (yield from flows.within_limits(rank, deadline, options.model))


def _rank(
    flows: Flows, texts: list[str], common: RerankRequest, *, top_n: int | None, limits: Info, deadline: Deadline
) -> Flow[list[RerankResult]]:
    max_bytes = limits.max_request_bytes - common.ByteSize()
    results: list[RerankResult] = []
    space = SpaceGuard()
    lengths = [measure(text, index, max_bytes) for index, text in enumerate(texts)]
    for start, end in split(lengths, limits.max_batch_size, max_bytes):
        request = RerankRequest(documents=texts[start:end], top_n=top_n or 0)
        request.MergeFrom(common)
        try:
            response = yield from flows.send_when_ready("Rerank", request, RerankResponse, deadline)
        except RunedError as error:
            raise relocated(error, start, end - start) from None
        space.check(response.fingerprint)
        wanted = min(top_n or end - start, end - start)
        if len(response.results) != wanted or any(item.index >= end - start for item in response.results):
            raise RunedError("the daemon ranked other documents than were asked for; send them again")
        results += [
            RerankResult(
                index=start + item.index,
                score=item.score,
                document=texts[start + item.index],
                token_count=item.token_count,
                total_token_count=item.total_token_count,
                truncated=item.truncated,
                cached=item.cached,
            )
            for item in response.results
        ]
    results.sort(key=lambda result: -result.score)  # for several requests; a stable sort keeps the order of equal ones
    return results[:top_n]
