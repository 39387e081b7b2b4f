"""`llama-server` as an Embedder."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import ClassVar, TypeVar

from runed.backends.base import BackendState, BatchLimits, EmbeddingBatch, TextInput, Tokens
from runed.backends.llama.command import CONTEXT_STEP, EngineCommand
from runed.backends.llama.gguf import read_model
from runed.backends.llama.guard import EngineDiedError, Guard
from runed.backends.llama.http import ConnectionLostError, LlamaHTTP
from runed.backends.llama.launcher import Launcher
from runed.backends.llama.model_info import model_info
from runed.backends.llama.profile import Profile, choose_profile
from runed.backends.llama.quirks import Quirks
from runed.backends.llama.supervisor import Supervisor
from runed.backends.llama.timings import Timings
from runed.domain.device import CPU, Device
from runed.domain.model import ModelInfo
from runed.domain.model_spec import ModelKind
from runed.errors import BackendFaultError, BackendUnavailableError
from runed.paths import Paths

_T = TypeVar("_T")


class LlamaBackend:
    """Embeds with a `llama-server` child. The child is started when it is needed, and replaced when it dies.

    Constructing it reads the model's metadata, which takes 0.1 s for a large vocabulary, and starts nothing.

    Args:
        executable: The `llama-server`.
        model: The GGUF.
        model_sha256: The SHA-256 of the GGUF, in hexadecimal.
        paths: The home. Only one backend at a time may use it, as its daemon's lock ensures.
        ctx_size: The context in tokens; clamped to the model's, and rounded up to a multiple of 256 as the engine would do.
        pooling: The pooling instead of that of the GGUF, or "".
        profile: The number of texts at once and of threads, or the name of a profile.
        device: The device that computes.
        holds_home: Returns whether the home is still this process's. Otherwise no engine is started, and no file removed.
        timings: Time limits for the engine.

    Raises:
        ModelFileError: The GGUF cannot be used.
    """

    _kind: ClassVar[ModelKind] = ModelKind.EMBEDDING

    def __init__(
        self,
        *,
        executable: Path,
        model: Path,
        model_sha256: str,
        paths: Paths,
        ctx_size: int,
        pooling: str = "",
        profile: str | Profile = "balanced",
        device: Device = CPU,
        holds_home: Callable[[], bool] = lambda: True,
        timings: Timings = Timings(),  # noqa: B008 # immutable
    ) -> None:
        self._metadata = metadata = read_model(model, self._kind, pooling=pooling)
        context = -(-min(ctx_size, metadata.context_length) // CONTEXT_STEP) * CONTEXT_STEP
        self._model = model_info(model, metadata, sha256=model_sha256, context=context)
        executable = executable.absolute()  # the child works in another directory
        quirks = Quirks(paths.engine_quirks, executable, self._model, device)
        if isinstance(profile, str):
            key = quirks.engine_and_model()
            profile = choose_profile(profile, pooling=metadata.pooling, tuned=paths.tuning, key=key, device=device)
        command = EngineCommand(
            executable=executable,
            model=model.absolute(),
            socket=paths.engine_socket,
            info=self._model,
            context=context,
            profile=profile,
            device=device,
            vocabulary=metadata.vocabulary,
        )
        eos_id = metadata.eos_id if metadata.pooling == "last" else None
        self._launcher = Launcher(
            command,
            connect=self._connect,
            eos_id=eos_id,
            quirks=quirks,
            paths=paths,
            holds_home=holds_home,
            timings=timings,
        )
        self._supervisor = Supervisor(self._launcher.launch, timings)
        self._guard = Guard()

    @property
    def model(self) -> ModelInfo:
        """See `Embedder.model`."""
        return self._model

    @property
    def state(self) -> BackendState:
        """See `Embedder.state`."""
        return BackendState(
            status=self._supervisor.status,
            reason=self._supervisor.reason or self._launcher.command.remark,
            pid=self._supervisor.pid,
            restarts=self._supervisor.restarts,
            company_cosine=self._launcher.company_cosine,
            tuned_at=self._launcher.command.profile.tuned_at,
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
        return EmbeddingBatch(vectors, sum(answer.tokens for answer in answers))

    def _connect(self, command: EngineCommand) -> LlamaHTTP:
        """Make the interface of a server."""
        return LlamaHTTP(command.socket, dim=command.info.dim, max_tokens=command.info.max_tokens, isolation=command.isolation)

    async def _ask(self, question: Callable[[LlamaHTTP], Awaitable[_T]]) -> _T:
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
                raise BackendFaultError("llama-server broke off its answer, twice in a row") from None
        if server.closing:
            raise BackendUnavailableError("the engine was stopped; try again", retry_after=1.0)
        raise EngineDiedError(server.end, crashed=server.crashed)
