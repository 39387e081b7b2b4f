"""Parts for the tests of queue and batcher: virtual time that passes when all tasks wait, and a backend that misbehaves."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import selectors
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, ParamSpec

from runed.backends.base import (
    BackendState,
    BackendStatus,
    BatchLimits,
    CountingEmbedder,
    EmbeddingBatch,
    TextInput,
    Tokens,
    pack,
)
from runed.domain.model import ModelInfo
from runed.domain.requests import Lane
from runed.errors import BackendFaultError, BackendUnavailableError, InvalidTextError, TextTooLongError
from runed.scheduling.batcher import Batcher
from runed.scheduling.line import BatchObserver
from runed.scheduling.queue import Computed, QueueEntry, QueueLimits

_P = ParamSpec("_P")


class _Clockwork(selectors.SelectSelector):
    """A selector that moves the clock instead of waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("everybody waits for ever")
        self.now += max(0.0, timeout)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop in which a sleep takes no time. It raises an error if all tasks wait for ever."""

    def __init__(self) -> None:
        self._clockwork = _Clockwork()
        super().__init__(self._clockwork)

    def time(self) -> float:
        return self._clockwork.now


def virtual_time(test: Callable[_P, Coroutine[Any, Any, None]]) -> Callable[_P, None]:
    """Run a coroutine function as a test in virtual time. Every error that is reported to the loop fails the test."""

    @functools.wraps(test)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> None:
        failures: list[dict[str, Any]] = []
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.get_loop().set_exception_handler(lambda _, context: failures.append(context))
            runner.run(test(*args, **kwargs))
        assert not failures

    return run


async def settle() -> None:
    """Let all events of this moment happen."""
    await asyncio.sleep(1e-9)


Outcome = Literal["answer", "unavailable", "fault", "invalid", "too long", "stray", "interrupted", "miscount", "one too few"]


@dataclass(frozen=True, slots=True)
class Step:
    """The outcome of one call of the backend, and its time in seconds. With less than 0, it does not even yield to the loop."""

    outcome: Outcome = "answer"
    seconds: float = 0.01


@dataclass(slots=True)
class Call:
    """One call of `embed`, and its result."""

    inputs: list[TextInput]
    began: float
    outcome: Outcome | Literal["poisoned", "broken off"] = "broken off"


class ScriptedBackend:
    """An Embedder of 32-byte vectors that depend on the text alone. It notes its calls, and fails as the test asks.

    A text that begins with "poison" makes each of its batches fail. A text has two more tokens than words, which each answer
    tells with `counted`.
    """

    def __init__(
        self,
        *,
        texts: int = 4,
        tokens: int = 100,
        script: Iterable[Step] = (),
        counts: Iterable[Step] = (),
        status: BackendStatus = BackendStatus.READY,
        by_estimate: bool = False,
        counted: bool = False,
    ) -> None:
        self._limits = BatchLimits(texts, tokens, by_estimate, counted)
        self._script = iter(script)
        self._counts = iter(counts)
        self.state = BackendState(status)
        self.calls: list[Call] = []
        self.counted: list[list[str]] = []
        self.uncounted: set[str] = set()
        self.active = 0
        self.on_embed: Callable[[Sequence[TextInput]], None] = lambda _: None
        self.on_tokenize: Callable[[Sequence[str]], None] = lambda _: None

    @property
    def model(self) -> ModelInfo:
        return ModelInfo("sha256:0", "scripted", "bert", 8, 512, "mean", "F32", "0")

    @property
    def limits(self) -> BatchLimits:
        return self._limits

    async def start(self) -> None:
        raise AssertionError("the batcher never starts the backend itself")

    async def stop(self) -> None:
        raise AssertionError("the batcher never stops the backend")

    async def tokenize(self, texts: Sequence[str]) -> list[Tokens]:
        self.on_tokenize(texts)
        self.counted.append(list(texts))
        step = next(self._counts, Step(seconds=0.001))
        if step.outcome != "answer":
            self.uncounted.update(texts)
        await self._wait(step)
        self._fail(step.outcome)
        tokens = [pack(range(tokens_of(text))) for text in texts]
        if step.outcome == "one too few":
            tokens.pop()
        if step.outcome == "miscount":
            tokens[0].append(0)
        return tokens

    async def embed(self, texts: Sequence[TextInput]) -> EmbeddingBatch:
        tokens = sum(map(tokens_of, texts))
        call = Call(list(texts), asyncio.get_running_loop().time())
        self.calls.append(call)
        self.on_embed(texts)
        step = next(self._script, Step())
        self.active += 1
        try:
            await self._wait(step)
        finally:
            self.active -= 1
        call.outcome = step.outcome
        self._fail(step.outcome)
        if any(isinstance(text, str) and text.startswith("poison") for text in texts):
            call.outcome = "poisoned"
            self._fail("fault")
        vectors = [vector_of(text) for text in texts]
        if step.outcome == "one too few":
            vectors.pop()
        counts = [tokens_of(text) for text in texts] if self._limits.counted else []
        return EmbeddingBatch(vectors, tokens + (step.outcome == "miscount"), counts)

    @property
    def batches(self) -> list[list[TextInput]]:
        """Return the texts of each call."""
        return [call.inputs for call in self.calls]

    @staticmethod
    async def _wait(step: Step) -> None:
        if step.seconds >= 0:
            await asyncio.sleep(step.seconds)

    @staticmethod
    def _fail(outcome: Outcome) -> None:
        match outcome:
            case "unavailable":
                raise BackendUnavailableError("it died", retry_after=1.0)
            case "fault":
                raise BackendFaultError("it answered nonsense")
            case "invalid":
                raise InvalidTextError("it is not text")
            case "too long":
                raise TextTooLongError("it is too long", metadata={"tokens": "600", "limit": "512"})
            case "stray":
                raise RuntimeError("a bug")
            case "interrupted":
                raise asyncio.CancelledError
            case _:
                pass


def tokens_of(text: TextInput) -> int:
    """The true number of tokens."""
    return len(text.split()) + 2 if isinstance(text, str) else len(text)


def vector_of(text: TextInput) -> bytes:
    """Return the vector, which depends on the text alone."""
    return hashlib.sha256(repr(text).encode()).digest()


def make_entry(
    text: TextInput, *, lane: Lane = Lane.INTERACTIVE, client: str = "unix:1", exact: bool = False, tokens: int | None = None
) -> QueueEntry:
    """Return an entry as the scheduler makes it: with the exact number of its tokens, or with the bound that follows from
    its bytes."""
    exact = exact or not isinstance(text, str)
    size = len(text.encode()) if isinstance(text, str) else 4 * len(text)
    if tokens is None:
        tokens = tokens_of(text) if exact else 2 * size + 2
    future: asyncio.Future[Computed] = asyncio.get_running_loop().create_future()
    return QueueEntry(input=text, tokens=tokens, exact=exact, size=size, lane=lane, client=client, future=future)


class OneLine:
    """A batcher that has one model."""

    def __init__(self, backend: CountingEmbedder, *, limits: QueueLimits, metrics: BatchObserver) -> None:
        self.batcher = Batcher(limits=limits, metrics=metrics)
        self.line = self.batcher.open(backend)
        self.submit = functools.partial(self.batcher.submit, self.line)
        self.room = functools.partial(self.batcher.room, self.line)
        self.close = functools.partial(self.batcher.close, self.line)
        self.promote = self.batcher.promote
        self.depth = self.batcher.depth


class Notes:
    """Metrics that note every call of the batcher."""

    def __init__(self) -> None:
        self.waits: list[tuple[Lane, float]] = []
        self.batches: list[tuple[Lane, int, int, float]] = []

    def waited(self, lane: Lane, seconds: float) -> None:
        self.waits.append((lane, seconds))

    def computed(self, lane: Lane, *, texts: int, tokens: int, seconds: float) -> None:
        self.batches.append((lane, texts, tokens, seconds))
