"""An engine on another machine as an Embedder. Its space is proven by a probe, and a breaker spares it while it is away."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from runed.backends.base import BackendState, BackendStatus, BatchLimits, Counting, EmbeddingBatch, TextInput, Tokens
from runed.backends.remote.answers import WrongAnswerError
from runed.backends.remote.fallback import Fallback
from runed.backends.remote.http import KeyRefusedError, MakeTransport, PassingError, RefusedError
from runed.backends.remote.link import Link
from runed.backends.remote.space import TEXTS, Space, keep_space, load_space, space_of
from runed.domain.model import ModelInfo
from runed.errors import BackendFaultError, BackendUnavailableError, SpaceChangedError, UnimplementedError
from runed.log import get_logger
from runed.own_models import RemoteModel

_MEETING_SECONDS = 15.0
"""Most seconds of the first look at an engine. Calls wait for it."""

_PROBE_AGE = 600.0
"""Seconds of use after which the space is proven again."""

_NEW_PROBE_AGE = 30.0
"""Seconds after a probe from which on a new connection is a reason for the next one: another engine may answer there."""

_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0
"""Seconds between two looks at an engine that is away: at first, and at most."""

_BUSY_PAUSE = 1.0
"""Seconds after which a text may be sent again to an engine that is busy and does not say for how long."""

_ASSUMED_TOKENS = 8192
"""The most tokens of a text where neither the engine nor the configuration tells them."""

_log = get_logger(__name__)

_T = TypeVar("_T")


async def meet(
    remote: RemoteModel, *, name: str, record: Path, make_transport: MakeTransport, fallback: Fallback | None = None
) -> RemoteBackend:
    """Look at an engine, and return it as a backend. If it is away, its space of earlier is enough.

    Args:
        remote: The engine.
        name: The name of the model here.
        record: The file of the home that keeps its space.
        make_transport: Makes what sends requests.
        fallback: Computes while the engine is away.

    Raises:
        BackendUnavailableError: It cannot be had, or is no engine of the configured kind.
    """
    link, kept = Link(remote, make_transport), load_space(record)
    try:
        async with asyncio.timeout(_MEETING_SECONDS):
            space = await _probe(link, remote, kept)
    except (PassingError, TimeoutError, KeyRefusedError) as error:
        await link.http.close()
        problem = unavailable(remote, error)
        if kept is None or not _is_of(kept, remote):
            raise problem from None
        _log.warning("remote engine is away, its space of earlier is used", model=name, problem=problem.message)
        return RemoteBackend(remote, link, kept, name=name, fallback=fallback, problem=problem)
    except BaseException as error:
        await link.http.close()
        if isinstance(error, WrongAnswerError | RefusedError | BackendFaultError):
            problem = unavailable(remote, error)
            problem.retry_after = None  # an engine that never gave a vector is another one, or wrongly configured
            raise problem from None
        raise
    if space != kept:
        keep_space(record, space)
    return RemoteBackend(remote, link, space, name=name, fallback=fallback)


def _is_of(kept: Space, remote: RemoteModel) -> bool:
    """Return whether a space of earlier is that of a model as it is configured now."""
    same_model = remote.model in {"", kept.model} and remote.dimensions in {0, kept.dim}
    return kept.url == remote.url and same_model


async def _probe(link: Link, remote: RemoteModel, kept: Space | None) -> Space:
    """Find out what answers, and return the space of its vectors."""
    found = await link.discover()
    vectors = (await link.embed(TEXTS, remote.dimensions)).vectors
    link.note_probe()
    return space_of(
        vectors,
        url=remote.url,
        model=found.model,
        digest=found.digest,
        max_tokens=link.max_tokens,
        kept=kept,
    )


def unavailable(remote: RemoteModel, error: Exception) -> BackendUnavailableError:
    """Return the error of a caller for a failure of an engine."""
    pause: float | None = _FIRST_PAUSE
    match error:
        case TimeoutError():
            problem = "gave no answer in time; check the url, and whether the engine runs and can be reached"
        case PassingError():
            problem, pause = f"cannot be had now ({error})", error.retry_after or _FIRST_PAUSE
        case WrongAnswerError():
            problem = f"gave an answer that cannot be used: {error}; check url, model and dimensions"
        case RefusedError():
            problem, pause = f"refuses what is asked ({error}); check url and model, and what it logs", None
        case BackendUnavailableError():
            return error
        case _:
            problem = f"gives no usable vectors: {error}"
    return BackendUnavailableError(f"the engine at {remote.url} {problem}", retry_after=pause)


class RemoteBackend:
    """Embeds with an engine on another machine. It never starts or stops it: `stop` closes the connections.

    Args:
        remote: The engine.
        link: Asks it.
        space: The space of its vectors.
        name: The name of the model here.
        fallback: Computes while the engine is away.
        problem: Why the engine cannot be had now; None if it can.
    """

    def __init__(
        self,
        remote: RemoteModel,
        link: Link,
        space: Space,
        *,
        name: str,
        fallback: Fallback | None = None,
        problem: BackendUnavailableError | None = None,
    ) -> None:
        self._remote = remote
        self._link = link
        self._space = space
        self._name = name
        self._fallback = fallback
        self._problem: BackendUnavailableError | SpaceChangedError | None = None
        self._is_open = problem is None
        self._probed_at = asyncio.get_running_loop().time() if problem is None else None
        self._retry_at = 0.0
        self._probing = asyncio.Lock()
        self._watching: asyncio.Task[None] | None = None
        self._info = _info_of(space)
        if problem is not None:
            self._give_up(problem)

    @property
    def model(self) -> ModelInfo:
        """See `Embedder.model`. Its hash is that of the vectors of the probe."""
        return self._info

    @property
    def limits(self) -> BatchLimits:
        """See `Embedder.limits`."""
        found = self._link.found
        return BatchLimits(
            texts=self._link.most,
            tokens=self._link.most * self._info.max_tokens,
            by_estimate=True,
            flights=self._remote.concurrency,
            counting=Counting.ASKED if found is not None and found.tokenizes else Counting.SUM,
        )

    @property
    def state(self) -> BackendState:
        """See `Embedder.state`."""
        if isinstance(self._problem, SpaceChangedError):
            return BackendState(BackendStatus.SPACE_CHANGED, self._problem.message)
        if self._problem is not None:
            if self._fallback is not None and self._fallback.is_proven:
                return BackendState(BackendStatus.READY, f"{self._problem.message}; {self._fallback.name} computes meanwhile")
            return BackendState(BackendStatus.FAILED, self._problem.message)
        if self._probing.locked() and self._probed_at is None:
            return BackendState(BackendStatus.STARTING, f"asking the engine at {self._remote.url}")
        status = BackendStatus.READY if self._is_open else BackendStatus.STOPPED
        return BackendState(status, _remarks(self._remote, self._link, self._space))

    async def start(self) -> None:
        """See `Managed.start`."""
        await self._in_time(self._prove)

    async def stop(self) -> None:
        """See `Managed.stop`. The next call makes connections again, and proves the space."""
        watching, self._watching = self._watching, None
        if watching is not None:
            watching.cancel()
            await asyncio.wait([watching])
        self._is_open, self._probed_at = False, None
        if not isinstance(self._problem, SpaceChangedError):
            self._problem = None
        await self._link.http.close()

    async def embed(self, texts: Sequence[TextInput]) -> EmbeddingBatch:
        """See `Embedder.embed`.

        Raises:
            SpaceChangedError: The vectors of the engine lie in another space than before.
            BackendUnavailableError, BackendFaultError: As `Embedder.embed`.
            TextTooLongError: A text is longer than the engine reads.
        """
        plain = [text for text in texts if isinstance(text, str)]
        assert len(plain) == len(texts)  # its tokens are not ours, so `Counting` asks for texts
        try:
            return await self._in_time(lambda: self._embed(plain))
        except BackendUnavailableError as error:
            if self._fallback is None:
                raise
            answer = await self._fallback.embed(plain, self._space, error)
            return EmbeddingBatch(answer.vectors, answer.tokens)

    async def tokenize(self, texts: Sequence[str]) -> list[Tokens]:
        """See `Tokenizer.tokenize`.

        Raises:
            UnimplementedError: The engine tells no tokens.
        """
        if self.limits.counting is Counting.SUM:
            raise UnimplementedError(
                f"the engine of {self._name}, at {self._remote.url}, tells no tokens; count them elsewhere"
            )
        try:
            return await self._in_time(lambda: self._tokenize(texts))
        except BackendUnavailableError as error:
            if self._fallback is None:
                raise
            return await self._fallback.tokenize(texts, self._space, error)

    async def spell(self, tokens: Sequence[int]) -> list[str]:  # noqa: ARG002 # the signature of `Speller`
        """See `Speller.spell`.

        Raises:
            UnimplementedError: No engine on another machine spells its tokens.
        """
        raise UnimplementedError(
            f"the engine of {self._name} is on another machine and does not spell tokens; count them instead"
        )

    async def _tokenize(self, texts: Sequence[str]) -> list[Tokens]:
        await self._prove()
        return await self._link.tokenize(texts)

    async def _embed(self, texts: Sequence[str]) -> EmbeddingBatch:
        """Embed texts between two proofs of the space. The second one is for an engine that a new connection may have met."""
        await self._prove()
        try:
            answer = await self._link.embed(texts, self._space.dim)
        except RefusedError as error:
            # Either the texts are to blame, or everything is refused. Then the probe is, too.
            self._probed_at = None
            await self._prove()
            raise BackendFaultError(f"the engine at {self._remote.url} refuses the text ({error})") from None
        await self._prove()
        return answer

    async def _in_time(self, work: Callable[[], Awaitable[_T]]) -> _T:
        """Do some work within the time for all tries. A failure of the engine opens the breaker."""
        if self._problem is not None:
            self._give_up(self._problem)
            raise self._refusal(self._problem)
        try:
            async with asyncio.timeout(self._remote.timeout):
                return await work()
        except (PassingError, TimeoutError, WrongAnswerError, RefusedError) as error:
            problem = unavailable(self._remote, error)
            if isinstance(error, PassingError) and error.is_busy:
                problem.retry_after = error.retry_after or _BUSY_PAUSE
                raise problem from None
            self._give_up(problem)
            raise problem from None
        except BackendUnavailableError as error:
            self._give_up(error)
            raise

    async def _prove(self) -> None:
        """Prove the space, if that is due.

        Raises:
            SpaceChangedError: It is another one.
        """
        self._check_space()
        if not self._is_due():
            return
        async with self._probing:
            self._check_space()
            if self._is_due():
                await self._probe()

    def _check_space(self) -> None:
        """Refuse an answer that came while another call found that the space has changed."""
        if isinstance(self._problem, SpaceChangedError):
            raise self._refusal(self._problem)

    def _is_due(self) -> bool:
        if self._probed_at is None or not self._is_open:
            return True
        age = asyncio.get_running_loop().time() - self._probed_at
        return self._link.http.was_lost or age >= (_NEW_PROBE_AGE if self._link.is_new else _PROBE_AGE)

    async def _probe(self) -> None:
        if not self._is_open or self._link.found is None or isinstance(self._problem, SpaceChangedError):
            found = await _probe(self._link, self._remote, self._space)
            same = found.name == self._space.name
        else:
            try:
                same = self._space.agrees((await self._link.embed(TEXTS)).vectors)
            except BackendFaultError:
                same = False
            self._link.note_probe()
        if not same:
            self._change()
        if self._problem is not None:
            _log.info("remote engine answers again", model=self._name)
        self._problem = None
        self._is_open, self._probed_at = True, asyncio.get_running_loop().time()

    def _change(self) -> None:
        """Refuse everything until the engine gives vectors of the known space again. A new daemon begins with the new one."""
        problem = SpaceChangedError(
            f"the engine at {self._remote.url} gives vectors of another space than before, so another model answers there, and "
            "its vectors must not be mixed with those of earlier; undo that, or run `runed stop`, since the next daemon takes "
            "the new space, and embed everything again",
            metadata={"model": self._name},
        )
        if not isinstance(self._problem, SpaceChangedError):
            _log.error("space of the remote engine changed", model=self._name, url=self._remote.url)
        self._give_up(problem)
        raise problem

    def _give_up(self, problem: BackendUnavailableError | SpaceChangedError) -> None:
        """Open the breaker: refuse calls, and look at the engine now and then."""
        self._problem = problem
        if self._watching is None or self._watching.done():
            if isinstance(problem, BackendUnavailableError):
                _log.warning("remote engine is away", model=self._name, problem=problem.message)
            self._watching = asyncio.create_task(self._watch())

    def _refusal(self, problem: BackendUnavailableError | SpaceChangedError) -> BackendUnavailableError | SpaceChangedError:
        """Return the error of a call that comes while the breaker is open."""
        error = problem.retold()
        if problem.retry_after is not None:
            error.retry_after = max(self._retry_at - asyncio.get_running_loop().time(), 0.1)
        return error

    async def _watch(self) -> None:
        """Look at an engine that is away until it answers again."""
        pause = _FIRST_PAUSE
        while self._problem is not None:
            told = self._problem.retry_after or 0.0
            wait = min(max(pause, told), _LONGEST_PAUSE)
            self._retry_at = asyncio.get_running_loop().time() + wait
            await asyncio.sleep(wait)
            pause = min(2 * pause, _LONGEST_PAUSE)
            try:
                async with asyncio.timeout(self._remote.timeout), self._probing:
                    await self._probe()
            except (PassingError, TimeoutError, WrongAnswerError, RefusedError, BackendFaultError) as error:
                self._problem = unavailable(self._remote, error)
            except (BackendUnavailableError, SpaceChangedError) as error:
                self._problem = error


def _info_of(space: Space) -> ModelInfo:
    return ModelInfo(
        identity=f"sha256:{space.name[:16]}",
        name=space.model,
        architecture="",
        dim=space.dim,
        max_tokens=space.max_tokens or _ASSUMED_TOKENS,
        pooling="",
        file_type="",
        sha256=space.name,
    )


def _remarks(remote: RemoteModel, link: Link, space: Space) -> str:
    """Return what works, but not as one may expect."""
    remarks = [link.http.key.warning]
    if link.scales:
        remarks.append("its vectors are not of norm 1, and are scaled here")
    if not space.max_tokens:
        remarks.append(f"nobody tells its longest text, so {_ASSUMED_TOKENS:,} tokens are assumed; set max_tokens")
    url = urlsplit(remote.url)
    if remote.key_place and url.scheme == "http" and not _is_loopback(url.hostname or ""):
        remarks.append("the key is sent without encryption; use https")
    return "; ".join(filter(None, remarks))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return f".{host}".endswith(".localhost")
