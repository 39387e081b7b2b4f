"""An engine in a process of its own as a backend, with all capabilities of a `LocalBackend`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from runed.backends.base import BackendState, BatchLimits, EmbeddingBatch, TextInput, Tokens
from runed.backends.engine.guard import EngineDiedError, Guard
from runed.backends.engine.interface import ConnectionLostError, EngineCommand, EngineInterface
from runed.backends.engine.launcher import Launcher
from runed.backends.engine.supervisor import Supervisor
from runed.backends.engine.timings import Timings
from runed.domain.model import ModelInfo
from runed.errors import BackendFaultError, BackendUnavailableError

_C = TypeVar("_C", bound=EngineCommand)
_T = TypeVar("_T")


class EngineBackend:
    """Embeds with a child process. The child is started when it is needed, and replaced when it dies.

    Args:
        launcher: Starts the engine.
        timings: Time limits for the engine.
    """

    def __init__(self, launcher: Launcher[_C], timings: Timings) -> None:
        self._launcher: Launcher[_C] = launcher
        self._supervisor = Supervisor(launcher.launch, timings, engine=launcher.command.name)
        self._guard = Guard()

    @property
    def model(self) -> ModelInfo:
        """See `Embedder.model`."""
        return self._launcher.command.info

    @property
    def state(self) -> BackendState:
        """See `Embedder.state`."""
        return BackendState(
            status=self._supervisor.status,
            reason=self._supervisor.reason or self._launcher.command.remark,
            pid=self._supervisor.pid,
            restarts=self._supervisor.restarts,
            wakeups=self._supervisor.wakeups,
            waking_seconds=self._supervisor.waking_seconds,
            company_cosine=self._launcher.company_cosine,
            tuned_at=self._launcher.command.tuned_at,
            program=self._launcher.command.executable,
            context=self._launcher.command.context,
        )

    @property
    def limits(self) -> BatchLimits:
        """See `Embedder.limits`."""
        return self._launcher.command.limits

    async def start(self) -> None:
        """See `Managed.start`."""
        await self._supervisor.ready()

    async def stop(self) -> None:
        """See `Managed.stop`."""
        await self._supervisor.stop()

    async def tokenize(self, texts: Sequence[str]) -> list[Tokens]:
        """See `Tokenizer.tokenize`."""
        answers = await self._guard.ask(texts, lambda some: self._ask(lambda http: http.tokenize(some)))
        return [tokens for answer in answers for tokens in answer]

    async def spell(self, tokens: Sequence[int]) -> list[str]:
        """See `Speller.spell`."""
        return await self._ask(lambda http: http.spell(tokens))

    async def embed(self, texts: Sequence[TextInput]) -> EmbeddingBatch:
        """See `Embedder.embed`."""
        answers = await self._guard.ask(texts, lambda some: self._ask(lambda http: http.embed(some)))
        self._supervisor.answered()
        vectors = [vector for answer in answers for vector in answer.vectors]
        counts = [count for answer in answers for count in answer.counts]
        return EmbeddingBatch(vectors, sum(answer.tokens for answer in answers), counts)

    async def _ask(self, question: Callable[[EngineInterface], Awaitable[_T]]) -> _T:
        """Send a request to the server. Check and replace the server before a text is blamed for a wrong answer."""
        try:
            server = await self._supervisor.ready()
        except BackendFaultError as error:  # it failed its self-test, for which no text is to blame
            raise BackendUnavailableError(error.message, retry_after=error.retry_after) from None
        try:
            with server.question():
                return await question(server.http)
        except BackendFaultError:
            if await self._supervisor.is_sound(server):
                raise
        except ConnectionLostError as error:
            lost = server.closing or await self._supervisor.lost(server, error)
            if not lost and await self._supervisor.is_sound(server):
                raise BackendFaultError(f"{server.http.name} broke off its answer, twice in a row") from None
        if server.closing:
            raise BackendUnavailableError("the engine was stopped; try again", retry_after=1.0)
        raise EngineDiedError(server.end, crashed=server.crashed)
