"""One line in the log, and a span if calls are recorded, for each embedding call, for all faces.

Calls that fail share a line, since anybody can make many.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from connectrpc.code import Code

from runed.api.error_codes import code_of
from runed.domain.ranking import RerankAnswer
from runed.domain.requests import Embedding, Lane, VectorSpace
from runed.errors import RunedError
from runed.log import CALLS, get_logger, log_refusal
from runed.tracing import MODEL, TOKENS, Facts, Span, begin, is_on, reason_of

if TYPE_CHECKING:  # the calls of RPC do without it
    from starlette.requests import Request

EMBED, RERANK = "embeddings", "rerank"
"""Names of what a call does, in its span."""

_EVENT = "embedding call"

_FLOAT_BYTES = 4

_UNIX = "unix"
"""The host of a client of the socket."""

_log = get_logger(CALLS)


@dataclass(slots=True)
class Call:
    """The facts about one call that its line in the log tells.

    Attributes:
        lane: The requested lane; None if the daemon chooses.
        texts: The number of texts, or of documents to rank, that were read.
        tokens: The number of tokens of the texts that were embedded.
        hits: The number of texts whose vector was in the cache, or in flight for another caller.
        truncated: The number of texts of which something was cut off.
        refused: The number of texts that have an error of their own in the answer.
        started: The start of the call, in seconds of the monotonic clock.
        asked: The name of the model in the request; "" for the default one.
        model: The full name of the model that answered, or "".
        dimensions: The number of values of a vector of the answer.
        encoding: The form of the vectors that the request names, or "".
        reasons: The number of texts with an error of their own, by reason.
        operation: What the call does.
        span: The span of the call, if it is recorded.
    """

    lane: Lane | None = None
    texts: int = 0
    tokens: int = 0
    hits: int = 0
    truncated: int = 0
    refused: int = 0
    started: float = field(default_factory=time.monotonic)
    asked: str = ""
    model: str = ""
    dimensions: int = 0
    encoding: str = ""
    reasons: Counter[str] = field(default_factory=Counter)
    operation: str = EMBED
    span: Span | None = None

    def begin(self, operation: str, facts: Facts) -> None:
        """Begin the span of the call, if calls are recorded.

        Args:
            operation: What the call does.
            facts: The attributes of its protocol.
        """
        self.operation = operation
        self.span = begin(operation, {"gen_ai.operation.name": operation, "gen_ai.provider.name": "runed", **facts})

    def count(self, outcomes: Iterable[Embedding | RunedError], space: VectorSpace) -> None:
        """Count the outcomes of texts, whose vectors lie in a space."""
        self.model = space.model
        for outcome in outcomes:
            if isinstance(outcome, RunedError):
                self.refused += 1
                self.reasons[outcome.reason] += 1
            else:
                self.dimensions = len(outcome.vector) // _FLOAT_BYTES
                self.tokens += outcome.tokens
                self.hits += outcome.cached
                self.truncated += outcome.truncated

    def count_ranked(self, answer: RerankAnswer) -> None:
        """Count the documents of an answer. Those that are no results count by their tokens alone."""
        self.model = answer.model
        self.tokens += answer.tokens
        self.hits += sum(result.cached for result in answer.results)
        self.truncated += sum(result.truncated for result in answer.results)

    def end(self, method: str, code: str, reason: str = "") -> None:
        """Write the line, and end the span.

        Args:
            method: The name of the method.
            code: "ok", or the code of the error that the call ended with, such as "invalid_argument".
            reason: The reason of that error, or "".
        """
        self._log(method, code)
        if self.span is not None:
            self.span.end(self._attributes(), name=f"{self.operation} {self.model}".rstrip(), error=reason)

    def _attributes(self) -> Facts:
        """Return what is known at the end. A name of a model is told only if there is such a model: it could be anything."""
        facts: dict[str, Any] = {"runed.texts": self.texts, "runed.texts.cached": self.hits, TOKENS: self.tokens}
        if self.refused:
            facts["runed.texts.refused"] = self.refused
        if self.lane is not None:
            facts["runed.lane"] = self.lane.value
        if self.model:
            facts |= {MODEL: self.asked or self.model, "gen_ai.response.model": self.model}
        if self.dimensions:
            facts["gen_ai.embeddings.dimension.count"] = self.dimensions
        if self.encoding:
            facts["gen_ai.request.encoding_formats"] = (self.encoding,)
        return facts

    def _log(self, method: str, code: str) -> None:
        facts: dict[str, Any] = {
            "method": method,
            "lane": "auto" if self.lane is None else self.lane.value,
            "texts": self.texts,
            "tokens": self.tokens,
            "hits": self.hits,
            "truncated": self.truncated,
            "refused": self.refused,
            "duration_ms": round((time.monotonic() - self.started) * 1000, 1),
            "code": code,
        }
        if code == "ok":
            _log.info_soon(_EVENT, **facts)
        else:
            log_refusal(_log, _EVENT, level=logging.INFO, kind=f"{method} {code}", **facts)


@contextmanager
def logged_call(method: str, request: Request, *, socket: str, operation: str = EMBED) -> Iterator[Call]:
    """Serve a call of a JSON API, and write its line at the end, with the code of the error that leaves the block.

    Args:
        method: The name of the method in the log.
        request: The request.
        socket: The path of the daemon's socket.
        operation: What the call does.
    """
    call = Call()
    if is_on():
        on_socket = request.client is None or request.client.host == _UNIX
        address = socket if on_socket else request.url.hostname or ""
        facts = {"server.address": address, "http.request.method": request.method, "http.route": request.scope["path"]}
        call.begin(operation, facts)
    code = "ok"
    reason = ""
    try:
        yield call
    except RunedError as error:
        code, reason = code_of(error).value, error.reason
        raise
    except Exception as error:
        code, reason = Code.INTERNAL.value, reason_of(error)
        raise
    except BaseException as error:  # a cancellation
        code, reason = Code.CANCELED.value, reason_of(error)
        raise
    finally:
        call.end(method, code, reason)
