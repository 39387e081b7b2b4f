"""One line in the log for each embedding call, for all faces. Calls that fail share a line, since anybody can make many."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from connectrpc.code import Code

from runed.api.error_codes import code_of
from runed.domain.ranking import RerankAnswer
from runed.domain.requests import Embedding, Lane
from runed.errors import RunedError
from runed.log import CALLS, get_logger, log_refusal

_EVENT = "embedding call"

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
    """

    lane: Lane | None = None
    texts: int = 0
    tokens: int = 0
    hits: int = 0
    truncated: int = 0
    refused: int = 0
    started: float = field(default_factory=time.monotonic)

    def count(self, outcomes: Iterable[Embedding | RunedError]) -> None:
        """Count the outcomes of texts."""
        for outcome in outcomes:
            if isinstance(outcome, RunedError):
                self.refused += 1
            else:
                self.tokens += outcome.tokens
                self.hits += outcome.cached
                self.truncated += outcome.truncated

    def count_ranked(self, answer: RerankAnswer) -> None:
        """Count the documents of an answer. Those that are no results count by their tokens alone."""
        self.tokens += answer.tokens
        self.hits += sum(result.cached for result in answer.results)
        self.truncated += sum(result.truncated for result in answer.results)

    def log(self, method: str, code: str) -> None:
        """Write the line.

        Args:
            method: The name of the method.
            code: "ok", or the code of the error that the call ended with, such as "invalid_argument".
        """
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
def logged_call(method: str) -> Iterator[Call]:
    """Serve a call, and write its line at the end, with the code of the error that leaves the block.

    Args:
        method: The name of the method in the log.
    """
    call = Call()
    code = "ok"
    try:
        yield call
    except RunedError as error:
        code = code_of(error).value
        raise
    except Exception:
        code = Code.INTERNAL.value
        raise
    except BaseException:  # a cancellation
        code = Code.CANCELED.value
        raise
    finally:
        call.log(method, code)
