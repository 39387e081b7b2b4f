"""Takes texts to tickets in one pass: each claim is checked, keyed, looked up, prepared, and joined with its twin or queued."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from runed import tracing
from runed.backends.base import Counting
from runed.caching.cache import VectorCache
from runed.caching.entry import CachedVector, cache_key
from runed.domain.requests import Embedding, Lane, Truncate, VectorSpace
from runed.domain.vectors import shorten
from runed.errors import BackendFaultError, InvalidRequestError, QueueFullError, RunedError
from runed.metrics import Metrics
from runed.scheduling.batcher import Batcher
from runed.scheduling.blanks import BlankFinder, empty_text
from runed.scheduling.line import Line
from runed.scheduling.packing import pack
from runed.scheduling.preparing import STREAMED, Name, Prepared, Preparer, check_text, located, named
from runed.scheduling.queue import Computed, QueueEntry
from runed.scheduling.tickets import Ticket
from runed.turns import breathe_before

_OF_THE_TEXT = (InvalidRequestError, BackendFaultError)
"""Errors that a text causes. Other texts of the same call may have vectors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """The terms that all claims of one call or stream have in common.

    Attributes:
        lane: The queue to wait in.
        client: The caller's name; texts of different clients take turns.
        prompt: The text in front of each text.
        truncate: The treatment of a text that is too long.
        dimensions: The number of values of each vector.
        space: The space of all vectors, for the answer.
        strict: Whether a text that cannot be embedded fails the whole call.
        streamed: Whether the texts wait for room in the queue instead of being refused.
    """

    lane: Lane
    client: str
    prompt: str
    truncate: Truncate
    dimensions: int
    space: VectorSpace
    strict: bool = False
    streamed: bool = False

    def tolerate(self, error: RunedError) -> RunedError:
        """Return an error that concerns one text. Raise an error that fails the whole call.

        An error with another cause than a text (no engine, a daemon that shuts down, a bug) always fails the call. The caller
        may send the same texts again, and the error tells when.
        """
        if self.fails(error):
            raise error
        return error.with_traceback(None)  # its frames hold all texts of the call, and the texts would hold the error

    def fails(self, error: BaseException) -> bool:
        """Return whether an error fails the whole call; see `tolerate`."""
        return self.strict or not isinstance(error, _OF_THE_TEXT)

    def finish(self, item: Embedding | RunedError, claim: Claim) -> Embedding | RunedError:
        """Shorten the vector of an embedding to the requested dimensions. Return an error unchanged.

        Args:
            item: The outcome of a text.
            claim: The claim to it.

        Raises:
            BackendFaultError: With `strict`: the values to keep are all 0.
        """
        if isinstance(item, RunedError):
            return item
        try:
            vector = shorten(item.vector, self.dimensions)
        except BackendFaultError as error:
            return self.tolerate(located(error, claim.name))
        return item if vector is item.vector else replace(item, vector=vector)


@dataclass(eq=False, slots=True)
class Claim:
    """The claim of one caller to the vector of one text.

    Attributes:
        text: The text, without its prompt.
        index: Its index in the call; None in a stream.
        count: The number of texts of the call.
        key: The key of its vector in the cache, once the text is checked.
        state: None at first. Then its error, its vector from the cache, its prepared text, or its ticket.
        shared: Whether another claim to the same ticket came first.
        doubtful: Whether the engine must judge the text before it is embedded; see `BlankFinder.is_doubtful`.
    """

    text: str
    index: int | None = None
    count: int = 0
    key: bytes = b""
    state: RunedError | CachedVector | Prepared | Ticket | None = None
    shared: bool = False
    doubtful: bool = False

    @property
    def name(self) -> Name:
        """The name of the text in errors. It is made when it is needed, since it takes twice the memory of the claim."""
        return STREAMED if self.index is None else named(self.index, self.count)

    @property
    def future(self) -> asyncio.Future[Computed] | None:
        """The future to wait for, or None if the outcome is known. Do not cancel it: others may wait for it, too."""
        return self.state.future if isinstance(self.state, Ticket) else None

    @property
    def ready(self) -> bool:
        """Whether the outcome is known."""
        return not isinstance(self.state, Ticket) or self.state.future.done()

    def outcome(self, terms: Terms) -> Embedding | RunedError:
        """Return the embedding with all dimensions of the model, or the error instead of it; `ready` must be true.

        Raises:
            RunedError: The error fails the whole call by its terms.
        """
        state = self.state
        if isinstance(state, CachedVector):
            return Embedding(vector=state.vector, tokens=state.tokens, total_tokens=state.total_tokens, cached=True)
        if isinstance(state, RunedError):
            return state
        assert isinstance(state, Ticket)
        try:
            return state.redeem(shared=self.shared)
        except _OF_THE_TEXT as error:
            return terms.tolerate(located(error, self.name))

    def join(self, ticket: Ticket, *, shared: bool) -> None:
        """Hold a ticket."""
        ticket.holders += 1
        self.state, self.shared = ticket, shared

    def release(self) -> None:
        """Release the ticket, if this claim holds one. There is no outcome afterwards."""
        if isinstance(self.state, Ticket):
            self.state.release()
            self.state = None


async def redeem(claims: Sequence[Claim], terms: Terms) -> list[Embedding | RunedError]:
    """Wait for the outcomes of all claims, or for the first error that fails the call.

    Raises:
        RunedError: An error fails the call by its terms.
    """
    if pending := {claim.future for claim in claims if claim.future is not None and not claim.future.done()}:
        await _decided(pending, terms)
    outcomes = []
    for index, claim in enumerate(claims):
        await breathe_before(index)
        if claim.ready:  # unless an error fails the call, which is raised here then
            outcomes.append(claim.outcome(terms))
    return outcomes


async def _decided(pending: set[asyncio.Future[Computed]], terms: Terms) -> None:
    """Wait for all futures, or for the first error that fails the call.

    `asyncio.wait` from error to error would look at all futures each time, and each of 2,048 texts may fail alone.
    """
    decided: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def note(future: asyncio.Future[Computed]) -> None:
        pending.discard(future)
        error = None if future.cancelled() else future.exception()
        if not decided.done() and (not pending or (error is not None and terms.fails(error))):
            decided.set_result(None)

    for future in pending:
        future.add_done_callback(note)
    try:
        await decided
    finally:
        for future in pending:
            future.remove_done_callback(note)


class ClaimDesk:
    """Takes the claims to one model to their tickets. All methods must be called in one event loop.

    Args:
        line: The line of the model.
        batcher: Computes the texts whose vectors are in no cache.
        space: The name of the space of the model's whole vectors in the cache.
        cache: The vectors that were computed before.
        busy: Keeps the engine awake for the length of a block. Its argument is the lane of the call.
        metrics: Counts hits, twins and refusals.
        preparer: Counts and cuts texts.
    """

    def __init__(
        self,
        line: Line,
        batcher: Batcher,
        *,
        space: str,
        cache: VectorCache,
        busy: Callable[[Lane], contextlib.AbstractContextManager[None]],
        metrics: Metrics,
        preparer: Preparer,
    ) -> None:
        self._backend = backend = line.backend
        self._line = line
        self._batcher = batcher
        self._space = space
        self._cache = cache
        self._busy = busy
        self._metrics = metrics
        self._preparer = preparer
        self._blanks = BlankFinder(backend)
        self._tickets: dict[bytes, Ticket] = {}

    @contextlib.asynccontextmanager
    async def claimed(self, claims: Sequence[Claim], terms: Terms) -> AsyncIterator[None]:
        """Take claims through all steps.

        Inside the block, each has its outcome or a ticket. The end of the block releases tickets.

        Raises:
            InvalidRequestError: If `terms.strict`: a text cannot be embedded.
            QueueFullError: Too much waits already, unless `terms.streamed`.
            BackendError: The backend cannot count tokens.
        """
        with contextlib.ExitStack() as awake:
            try:
                await self._check(claims, terms)
                await self._look_up(claims)
                if missing := [claim for claim in claims if claim.state is None]:
                    awake.enter_context(
                        self._busy(terms.lane)
                    )  # only here, since a text from the cache needs no engine and starts none
                    missing = await self._refuse_blank(missing, terms)
                    await self._prepare(missing, terms)
                    await self._queue(missing, terms)
                    self._metrics.shared(sum(claim.shared for claim in missing))
                self._metrics.hit(sum(isinstance(claim.state, CachedVector) for claim in claims))
                yield
            finally:
                for claim in claims:
                    claim.release()

    async def _check(self, claims: Sequence[Claim], terms: Terms) -> None:
        """Check each text, and set the key of its vector."""
        for index, claim in enumerate(claims):
            await breathe_before(index)
            try:
                check_text(claim.text, *claim.name)
            except InvalidRequestError as error:
                claim.state = terms.tolerate(error)
            else:
                claim.doubtful = self._blanks.is_doubtful(claim.text)
                claim.key = self._key(claim, terms)

    def _key(self, claim: Claim, terms: Terms) -> bytes:
        # A text that is short enough has one vector for every way of cutting. The place of a cut depends on the context, which
        # may differ when the disk cache is read again.
        too_long = self._preparer.may_be_too_long(terms.prompt + claim.text)
        cut = f"{terms.truncate.value} {self._backend.model.max_tokens}" if too_long else ""
        # A doubtful text has a key of its own, since a cache on disk may have its vector from a version that did not doubt.
        return cache_key(self._space, terms.prompt, f"{cut} judged" if claim.doubtful else cut, claim.text)

    async def _look_up(self, claims: Sequence[Claim]) -> None:
        cached = await self._cache.get([claim.key for claim in claims if claim.state is None])
        for claim in claims:
            if claim.state is None:
                claim.state = cached.get(claim.key)

    async def _refuse_blank(self, missing: Sequence[Claim], terms: Terms) -> list[Claim]:
        """Refuse the doubtful texts of which the model reads nothing. Return the other claims."""
        if doubtful := [claim for claim in missing if claim.doubtful]:
            blank = await self._blanks.judge([claim.text for claim in doubtful])
            for claim, is_blank in zip(doubtful, blank, strict=True):
                if is_blank:
                    claim.state = terms.tolerate(empty_text(*claim.name))
        return [claim for claim in missing if claim.state is None]

    async def _prepare(self, missing: Sequence[Claim], terms: Terms) -> None:
        prepared = await self._preparer.prepare(
            [claim.text for claim in missing],
            prompt=terms.prompt,
            truncate=terms.truncate,
            name=lambda index: missing[index].name,
            exact=self._packs(terms) and len(missing) > 1,
        )
        for claim, item in zip(missing, prepared, strict=True):
            claim.state = terms.tolerate(item) if isinstance(item, RunedError) else item

    def _packs(self, terms: Terms) -> bool:
        """Return whether the texts of a call are packed, for which they are counted."""
        return terms.lane is Lane.BULK and self._backend.limits.counting is Counting.EACH

    async def _queue(self, missing: Sequence[Claim], terms: Terms) -> None:
        """Take prepared claims to their tickets. Wait for room first if the terms ask for it."""
        sizes = [claim.state.size for claim in missing if isinstance(claim.state, Prepared)]
        if terms.streamed and sizes:
            await self._batcher.room(self._line, texts=len(sizes), size=sum(sizes))
        # There is no await from here on, so that no twin is missed and the room is not lost.
        new = self._join(missing, terms)
        try:
            self._batcher.submit(self._line, pack(new, self._backend.limits) if self._packs(terms) else new)
        except QueueFullError:
            self._metrics.refused()
            raise

    def _join(self, missing: Sequence[Claim], terms: Terms) -> list[QueueEntry]:
        """Join each prepared claim with its twin in flight, or make an entry to submit."""
        new: list[QueueEntry] = []
        callers = tracing.callers()
        for claim in missing:
            if not isinstance(prepared := claim.state, Prepared):
                continue
            # A twin may have become ready while this text was counted, or while it waited for room.
            if (value := self._cache.peek(claim.key)) is not None:
                claim.state = value
            elif (twin := self._tickets.get(claim.key)) is not None and twin.alive:
                if terms.lane is Lane.INTERACTIVE:
                    self._batcher.promote(twin.entry)
                if len(twin.entry.callers) < tracing.MOST_CALLERS:
                    twin.entry.callers += callers
                claim.join(twin, shared=True)
            else:
                ticket = self._issue(claim.key, prepared, terms)
                ticket.entry.callers = callers
                new.append(ticket.entry)
                claim.join(ticket, shared=False)
        return new

    def _issue(self, key: bytes, prepared: Prepared, terms: Terms) -> Ticket:
        entry = QueueEntry(
            input=prepared.input,
            tokens=prepared.tokens,
            exact=prepared.exact,
            size=prepared.size,
            lane=terms.lane,
            client=terms.client,
            future=asyncio.get_running_loop().create_future(),
            model=self._line.name,
        )
        ticket = self._tickets[key] = Ticket(entry, prepared.total_tokens)
        entry.future.add_done_callback(partial(self._end, key, ticket))
        return ticket

    def _end(self, key: bytes, ticket: Ticket, future: asyncio.Future[Computed]) -> None:
        if self._tickets.get(key) is ticket:
            del self._tickets[key]
        # Reading the exception also marks it as seen for asyncio, in case all callers have gone.
        if not future.cancelled() and future.exception() is None:
            done = future.result()
            self._cache.put(key, CachedVector(done.vector, done.tokens, ticket.total_tokens or done.tokens))
