"""A small double of the daemon, for the tests of programs that embed: the real protocol without an engine or a model.

    import runed
    import runed.testing

    def test_search() -> None:
        with runed.testing.daemon() as daemon, runed.connect(home=daemon.home) as client:
            assert client.embed("tea").tolist() == daemon.vector("tea").tolist()

The vector of a text depends on the text alone: random values of L2 norm 1 that are the same in every run. The score of a
document is the share of the query's words that it has. The tokens of a text are its words and two special ones. Programs in
other processes and languages find the double by `RUNED_HOME`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import tempfile
import threading
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runed.api.app import build_app
from runed.client import EmbedOptions
from runed.domain.history import LastHour
from runed.domain.model_spec import ModelSpec
from runed.domain.model_status import ModelRoom, ModelStatus, Tokenized
from runed.domain.names import ModelNames, split_name
from runed.domain.ranking import Ranked, RerankAnswer, RerankOptions
from runed.domain.requests import (
    Centroid,
    CentroidHeader,
    EmbedAnswer,
    Embedding,
    Lane,
    Role,
    StreamAnswer,
    StreamItem,
    StreamResult,
    Truncate,
    VectorSpace,
)
from runed.domain.requests import EmbedOptions as Asked
from runed.domain.status import Health, Info, LoadingPhase, Status
from runed.errors import (
    BadDimensionsError,
    BootstrappingError,
    EmptyBatchError,
    EmptyTextError,
    InvalidTextError,
    NoCentroidSetError,
    RunedError,
    TextTooLongError,
    UnimplementedError,
)
from runed.lifecycle.listener import Listener
from runed.paths import Paths
from runed.server import Server
from runed.settings import Settings
from runed.version import __version__

__all__ = ["Call", "DaemonDouble", "daemon", "vector_of"]

_FINGERPRINT = "double"

_TURNS_OF_ACCEPT = 3
"""Turns of the event loop in which asyncio accepts a connection. One that is accepted after the last turn would stay open."""


@dataclass(frozen=True, slots=True)
class Call:
    """A call that reached the double.

    Attributes:
        method: The method of the service: "Embed" and "EmbedBatch" are "embed", the others "embed_stream", "count_tokens" and
            "rerank".
        texts: The texts; for a stream, those that have come so far; for "rerank", the query and the documents.
        options: The options that differ from their defaults, by their names in the client.
    """

    method: str
    texts: list[str]
    options: EmbedOptions


@contextmanager
def daemon(
    home: str | os.PathLike[str] | None = None,
    *,
    dimensions: int = 8,
    max_text_length: int = 512,
    models: Sequence[str] = ("double",),
) -> Iterator[DaemonDouble]:
    """Serve a double in a thread of this process.

    Args:
        home: The directory by which programs find it. None makes one, and removes it at the end. A `config.json` in it stays
            unchanged.
        dimensions: The number of values of a vector.
        max_text_length: The largest number of tokens of one text.
        models: The names of the models, the default one first. All of them give the same vectors.

    Yields:
        The double, which listens.

    Raises:
        AlreadyRunningError: A daemon serves this home.
    """
    place = Path(tempfile.mkdtemp(prefix="runed-")) if home is None else Path(home).absolute()
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    double = DaemonDouble(place, dimensions, max_text_length, models)
    try:
        with Listener.bind(double.socket) as listener, _serving(double, listener):
            _forbid_real_daemons(place)
            yield double
    finally:
        if home is None:
            shutil.rmtree(place)


@dataclass
class _Models:
    """The models of a double."""

    home: Path
    dimensions: int = 8
    max_text_length: int = 512
    models_served: Sequence[str] = ("double",)

    async def pull(self, model: str = "") -> None:
        """Check the name of the model; see `Host.pull`."""
        self._model(model)

    async def unload(self, model: str = "") -> None:
        """Check the name of the model; see `Host.unload`."""
        self._model(model)

    async def models(self) -> list[ModelStatus]:
        """Describe all models; see `Host.models`."""
        return [await self.model(name) for name in self.models_served]

    async def model(self, name: str = "") -> ModelStatus:
        """Describe a model; see `Host.model`."""
        spec = self._names.find(name)
        return ModelStatus(
            name=spec.name,
            family=spec.family,
            variants=tuple(self._names.variants_of(spec)),
            aliases=tuple(self._names.aliases_of(spec)),
            installed=True,
            loaded=True,
            vector_dim=self.dimensions,
            min_dimensions=1,
            max_text_length=self.max_text_length,
            pooling="mean",
            fingerprint=_FINGERPRINT,
            model_identity="sha256:double",
        )

    def room(self) -> ModelRoom:
        """Return no bounds; see `Host.room`."""
        return ModelRoom()

    def last_hour(self, since: int = 0) -> LastHour:
        """Remember nothing; see `Host.last_hour`."""
        return LastHour()

    async def settle(self, model: str = "") -> None:
        """Return at once, since the double looks for no files; see `Host.settle`."""
        self._model(model)

    @cached_property
    def _names(self) -> ModelNames:
        specs = [ModelSpec(family=family, variant=variant) for family, variant in map(split_name, self.models_served)]
        return ModelNames(specs, aliases=Settings(self.home).aliases)

    def _model(self, name: str) -> str:
        """Return the full name of a model."""
        return self._names.find(name).name


@dataclass
class DaemonDouble(_Models):
    """A daemon with random vectors; `daemon` makes and serves it.

    Attributes:
        home: The directory by which programs find it, as `RUNED_HOME`.
        dimensions: The number of values of a vector.
        max_text_length: The largest number of tokens of one text.
        models_served: The names of the models, the default one first.
        calls: The calls that came, in their order.
    """

    calls: list[Call] = field(default_factory=list)
    _faults: dict[str, RunedError] = field(default_factory=dict)
    _refusals: list[RunedError] = field(default_factory=list)
    _download: tuple[int, int] | None = None
    _centroids: NDArray[np.float32] | None = None
    _centroid_version: str = ""

    @property
    def socket(self) -> Path:
        """The path of the socket that it listens on."""
        return Paths(self.home).socket

    def vector(self, text: str, dimensions: int | None = None) -> NDArray[np.float32]:
        """Return the vector of a text.

        Args:
            text: The text.
            dimensions: The number of values; None means all.
        """
        return vector_of(text, dimensions or self.dimensions)

    def fail(self, text: str, error: RunedError) -> None:
        """Let a text fail from now on, alone and among others."""
        self._faults[text] = error

    def refuse(self, error: RunedError, *, times: int = 1) -> None:
        """Refuse the next calls.

        Args:
            error: The error, such as `QueueFullError("full", retry_after=0.1)`. With `retry_after`, clients try again.
            times: The number of tries to refuse.
        """
        self._refusals += [error] * times

    @contextmanager
    def bootstrapping(self, bytes_done: int = 0, bytes_total: int = 1_000_000) -> Iterator[None]:
        """Behave as a daemon that downloads its model: embeddings wait, and `info` raises `BootstrappingError`."""
        self._download = (bytes_done, bytes_total)
        try:
            yield
        finally:
            self._download = None

    async def embed(self, texts: Sequence[str], options: Asked, *, client: str, per_item_errors: bool = False) -> EmbedAnswer:
        """Embed the texts of one call; see `Host.embed`."""
        self.calls.append(Call("embed", list(texts), _as_given(options)))
        self._admit(options)
        if not texts:
            raise EmptyBatchError("the batch holds no text; send at least one")
        items = [self._outcome(text, options) for text in texts]
        for index, item in enumerate(items):
            if isinstance(item, RunedError) and not per_item_errors:
                raise _placed(item, index)
        return EmbedAnswer(items=items, space=self._space(options), centroid_set_version=self._centroid_version)

    async def embed_stream(
        self, chunks: AsyncIterator[Sequence[StreamItem]], options: Asked, *, client: str
    ) -> AsyncGenerator[StreamAnswer, None]:
        """Embed texts as they come; see `Host.embed_stream`."""
        call = Call("embed_stream", [], _as_given(options))
        self.calls.append(call)
        self._admit(options)
        async for chunk in chunks:
            call.texts.extend(item.text for item in chunk)
            yield StreamAnswer(
                [StreamResult(item.id, self._outcome(item.text, options)) for item in chunk], self._space(options)
            )

    async def count_tokens(self, texts: Sequence[str], options: Asked) -> list[int]:
        """Count words and two special tokens; see `Host.count_tokens`."""
        self.calls.append(Call("count_tokens", list(texts), _as_given(options)))
        self._admit(options)
        return [_count(text) for text in texts]

    async def rerank(self, query: str, documents: Sequence[str], options: RerankOptions, *, client: str) -> RerankAnswer:
        """Rank documents by the share of the query's words that they have; see `Host.rerank`."""
        asked = Asked(lane=options.lane, truncate=options.truncate)
        self.calls.append(Call("rerank", [query, *documents], _as_given(asked)))
        self._admit(asked)
        if not documents:
            raise EmptyBatchError("the batch holds no text; send at least one")
        results = []
        for index, document in enumerate(documents):
            outcome = self._outcome(document, asked)
            if isinstance(outcome, RunedError):
                raise _placed(outcome, index)
            words = set(query.lower().split())
            score = len(words & set(document.lower().split())) / max(len(words), 1)
            tokens, total = outcome.tokens, outcome.total_tokens
            results.append(Ranked(index=index, score=score, raw_score=score, tokens=tokens, total_tokens=total))
        results.sort(key=lambda result: -result.score)
        return RerankAnswer(
            results=results[: options.top_n or None],
            tokens=sum(result.tokens for result in results),
            fingerprint=_FINGERPRINT,
            model=options.model or "double",
        )

    async def tokenize(self, texts: Sequence[str], options: Asked, *, special: bool = True) -> Tokenized:
        """Return words and two special tokens; see `Host.tokenize`."""
        self._admit(options)
        words = {word: zlib.crc32(word.encode()) for text in texts for word in text.split()}
        ids = [[words[word] for word in text.split()] for text in texts]
        pieces = {number: word for word, number in words.items()} | {0: "<s>", 1: "</s>"}
        return Tokenized([[0, *tokens, 1] if special else tokens for tokens in ids], pieces, frozenset({0, 1}))

    async def warm_up(self, model: str = "") -> None:
        """Fail as an embedding would; see `Host.warm_up`."""
        self._admit(Asked(model=model))

    async def set_centroids(self, header: CentroidHeader, batches: AsyncIterator[Iterable[Centroid]]) -> str:
        """Replace the set of routing centroids; see `Host.set_centroids`."""
        rows = [np.frombuffer(centroid.values, dtype="<f4") async for batch in batches for centroid in batch]
        self._centroids = np.array(rows, dtype=np.float32)
        self._centroid_version = header.version or f"double-{header.nlist}"
        return self._centroid_version

    def info(self, model: str = "") -> Info:
        """Describe the double; see `Host.info`."""
        name = self._model(model)
        ready = self._download is None
        return Info(
            daemon_version=__version__,
            socket_path=str(self.socket),
            max_batch_size=2048,
            max_request_bytes=32 * 1024 * 1024,
            model_identity="sha256:double" if ready else "",
            vector_dim=self.dimensions if ready else 0,
            max_text_length=self.max_text_length if ready else 0,
            model_name="double" if ready else "",
            pooling="mean",
            fingerprint=_FINGERPRINT if ready else "",
            min_dimensions=1,
            profile="balanced",
            max_queued_texts=100_000,
            max_queued_bytes=64 * 1024 * 1024,
            centroid_set_version=self._centroid_version,
            model=name if ready else "",
        )

    def health(self, model: str = "", *, detailed: bool = False) -> Health:
        """Describe the present state; see `Host.health`."""
        name = self._model(model)
        done, total = self._download or (0, 0)
        loading = self._download is not None
        return Health(
            status=Status.LOADING if loading else Status.OK,
            phase=LoadingPhase.FETCHING_MODEL if loading else None,
            bytes_done=done,
            bytes_total=total,
            downloading=loading,
            message="downloading the model" if loading else "",
            uptime_seconds=1,
            total_requests=len(self.calls),
            in_flight_requests=0,
            pid=os.getpid(),
            engine_pid=0,
            engine_restarts=0,
            model="" if loading else name,
            loaded_models=0 if loading else len(self.models_served),
        )

    def metrics(self) -> bytes:
        """Return no metrics; see `Host.metrics`."""
        return b""

    def shut_down(self, grace: float | None) -> None:
        """Do nothing, since the block of `daemon` ends the double; see `Host.shut_down`."""

    def _admit(self, options: Asked) -> None:
        if self._download is not None:
            done, total = self._download
            raise BootstrappingError(f"the model is being downloaded, {done} of {total} bytes are done", retry_after=1.0)
        self._model(options.model)
        if self._refusals:
            raise self._refusals.pop(0)
        if options.dimensions > self.dimensions:
            raise BadDimensionsError(f"there are {self.dimensions} dimensions at most")
        if options.with_route and self._centroids is None:
            raise NoCentroidSetError("there is no centroid set to route by")

    def _outcome(self, text: str, options: Asked) -> Embedding | RunedError:
        if not text.strip():
            return EmptyTextError("the text is empty or only white space; leave it out")
        if error := self._faults.get(text):
            return error
        try:
            text.encode()
        except UnicodeEncodeError as broken:
            return InvalidTextError(f"the text has half of a surrogate pair at position {broken.start}; replace or remove that")
        total = _count(text)
        if total > self.max_text_length and options.truncate is Truncate.NONE:
            return TextTooLongError(
                f"the text has {total} tokens, but {self.max_text_length} are the most",
                metadata={"tokens": str(total), "limit": str(self.max_text_length)},
            )
        return Embedding(
            vector=self.vector(text, options.dimensions).astype("<f4").tobytes(),
            tokens=min(total, self.max_text_length),
            total_tokens=total,
            cluster_id=self._nearest(text) if options.with_route else 0,
        )

    def _space(self, options: Asked) -> VectorSpace:
        prompt = "" if options.role is Role.NONE else f"{options.role.value}: "
        return VectorSpace(fingerprint=_FINGERPRINT, prompt=prompt, model=self._model(options.model))

    def _nearest(self, text: str) -> int:
        assert self._centroids is not None
        if self._centroids.shape[1] != self.dimensions:
            raise UnimplementedError("the centroids have other dimensions than the vectors")
        return int(np.argmax(self._centroids @ self.vector(text)))


def vector_of(text: str, dimensions: int) -> NDArray[np.float32]:
    """Return the random vector of a text, float32, of L2 norm 1. A shorter vector is a scaled beginning of a longer one."""
    digest = hashlib.shake_256(text.encode()).digest(4 * dimensions)
    values = np.frombuffer(digest, dtype="<u4") / 2**31 - 1
    unit: NDArray[np.float32] = (values / np.linalg.norm(values)).astype(np.float32)
    return unit


def _placed(error: RunedError, index: int) -> RunedError:
    """Add the place of the text in its batch to an error."""
    placed = type(error)(error.message, metadata=error.metadata | {"index": str(index)}, retry_after=error.retry_after)
    placed.reason = error.reason
    return placed


def _count(text: str) -> int:
    return len(text.split()) + 2


def _as_given(options: Asked) -> EmbedOptions:
    """Translate the options of a request into those of its caller."""
    given: EmbedOptions = {}
    if options.role is not Role.NONE:
        given["role"] = "query" if options.role is Role.QUERY else "document"
    if options.instruction:
        given["instruction"] = options.instruction
    if options.dimensions:
        given["dimensions"] = options.dimensions
    if options.truncate is not Truncate.NONE:
        given["truncate"] = "end" if options.truncate is Truncate.END else "start"
    if options.lane is not None:
        given["lane"] = "bulk" if options.lane is Lane.BULK else "interactive"
    if options.model:
        given["model"] = options.model
    return given


def _forbid_real_daemons(home: Path) -> None:
    """Let clients that outlive the double find no program to start, since a real daemon would download a model."""
    with suppress(FileExistsError), (home / "config.json").open("x") as file:
        json.dump({"version": 1, "runed_binary": str(home / "no-daemon-in-tests")}, file)


@contextmanager
def _serving(double: DaemonDouble, listener: Listener) -> Iterator[None]:
    """Serve a double on an event loop in a thread."""
    started: Future[Callable[[], object]] = Future()

    async def serve() -> None:
        over = asyncio.Event()
        server = Server(build_app(double), listener.sock)
        await server.start()
        started.set_result(partial(asyncio.get_running_loop().call_soon_threadsafe, over.set))
        await over.wait()
        for _ in range(_TURNS_OF_ACCEPT):
            await asyncio.sleep(0)
        await server.stop(0)

    thread = threading.Thread(target=asyncio.run, args=(serve(),), name="runed.testing", daemon=True)
    thread.start()
    stop = started.result()
    try:
        yield
    finally:
        stop()
        thread.join()
