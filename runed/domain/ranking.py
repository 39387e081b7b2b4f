"""Requests to rank documents by their relevance to a query, and the answers to them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from runed.domain.requests import Lane, Truncate


@dataclass(frozen=True, slots=True, kw_only=True)
class RerankOptions:
    """The options of one call.

    Attributes:
        lane: The queue to wait in; None lets the scheduler choose by the number of documents.
        truncate: The treatment of a document that is too long beside the query. The query is never cut.
        top_n: The most results; 0 means one for each document.
        model: The name of the model; empty means the only reranker.
    """

    lane: Lane | None = None
    truncate: Truncate = Truncate.NONE
    top_n: int = 0
    model: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """One document in its place.

    Attributes:
        index: Its index in the call.
        score: Its relevance, from 0 to 1.
        raw_score: The number that the model gives. It may be any, and orders documents as `score` does.
        tokens: The number of tokens that the model read, including those of the query and special tokens.
        total_tokens: The number of tokens before anything was cut off.
        cached: Whether the score was in the cache, or in flight for another caller.
    """

    index: int
    score: float
    raw_score: float
    tokens: int
    total_tokens: int
    cached: bool = False

    @property
    def truncated(self) -> bool:
        """Whether something was cut off."""
        return self.tokens < self.total_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class RerankAnswer:
    """The answer to one call.

    Attributes:
        results: The best documents, the best one first. Documents of equal scores keep the order of the call.
        tokens: The number of tokens that the model read for all documents, also for those that are no results.
        fingerprint: The name of the model, its file and its engine. Scores of one fingerprint can be compared.
        model: The full name of the model.
    """

    results: Sequence[Ranked]
    tokens: int
    fingerprint: str
    model: str = ""


def relevance(raw_score: float) -> float:
    """Return the logistic function of a score, which is what cross-encoders are trained with."""
    if raw_score >= 0:
        return 1 / (1 + math.exp(-raw_score))
    power = math.exp(max(raw_score, -700.0))  # a smaller one is no float
    return power / (1 + power)
