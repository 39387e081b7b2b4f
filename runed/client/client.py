"""The blocking client: the daemon's methods as Python methods."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable
from types import TracebackType
from typing import Self, TypeVar

from numpy.typing import ArrayLike

from runed.client.calls.drive import drive
from runed.client.calls.flows import Flows
from runed.client.calls.patience import Deadline
from runed.client.calls.steps import Flow
from runed.client.options import Lane, Options, Role, Truncate
from runed.client.progress import download_bar
from runed.client.target import Target
from runed.client.transport.blocking import Transport
from runed.client.types import CentroidSet, Embedding, Health, Info, Model, RerankResult, Vectors
from runed.errors import RunedError

K = TypeVar("K")
T = TypeVar("T")


def connect(
    *,
    home: str | os.PathLike[str] | None = None,
    socket_path: str | os.PathLike[str] | None = None,
    spawn: bool = True,
    timeout: float | None = None,
    on_progress: Callable[[Health], None] | None = None,
    progress: bool | None = None,
) -> Client:
    """Connect to the daemon. Start it if none runs.

    The call returns as soon as the daemon listens. Embeddings then wait while it fetches its engine and model. A running daemon
    that is older than this package finishes the calls in flight, and is replaced by one of this version.

    Args:
        home: The directory of the daemon, instead of `RUNED_HOME` or `~/.runed`.
        socket_path: The socket of a daemon that others look after; it is never started or replaced.
        spawn: Whether to start a daemon if none runs, now and at later calls.
        timeout: Seconds that the connect, and each call, may take in total, including waiting. None: no limit for a call, and
            60 for the connect.
        on_progress: Called with each change of Health while a call waits for engine and model, in the thread of that call.
        progress: Whether a call that waits for a download shows it on standard error, if that is a terminal, and in notebooks.
            None means yes, unless `on_progress` is given or the setting `RUNED_PROGRESS` says no.

    Returns:
        The client. Close it, or use it as a context manager.

    Raises:
        DaemonUnavailableError: No daemon runs, and `spawn` is False or `socket_path` is set.
        DaemonStartError: The daemon could not be started; the message ends with the tail of its log.
        SettingsError: A setting cannot be used.
    """
    target = Target.resolve(home=home, socket_path=socket_path, spawn=spawn)
    target.ensure(timeout)
    return Client(target, timeout=timeout, on_progress=on_progress, progress=progress)


class DaemonClient:
    """The methods of `Client` about the daemon itself."""

    def __init__(
        self,
        target: Target,
        *,
        timeout: float | None,
        on_progress: Callable[[Health], None] | None,
        progress: bool | None = None,
    ) -> None:
        self._target = target
        self._timeout = timeout
        bar = download_bar(wanted=progress if progress is not None else target.progress and on_progress is None)
        self._flows = Flows(spawn=target.settings is not None, on_progress=on_progress, bar=bar)
        self._transport = Transport(target)

    def info(self, *, model: str | None = None, timeout: float | None = None) -> Info:
        """Return the description of the daemon and its model.

        Wait while the daemon looks for its engine and model and starts them, but not for a download.

        Args:
            model: The model to describe, as for `Client.embed`.
            timeout: As for `Client.embed`.

        Raises:
            BootstrappingError: The daemon downloads its engine or model; `metadata` holds `bytes_done` and `bytes_total`.
                `wait_until_ready` waits for it.
            ModelNotInstalledError: The file of the model was not fetched.
            BackendError: The engine cannot be installed or started.
            DeadlineExceededError: The time was over first.
        """
        return self._run(self._flows.info(self._deadline(timeout), model))

    def wait_until_ready(self, *, model: str | None = None, timeout: float | None = None) -> Info:
        """Wait while the daemon fetches its engine and model, also for a download.

        Args:
            model: The model, as for `Client.embed`.
            timeout: As for `Client.embed`.

        Returns:
            The description of the daemon and its model.

        Raises:
            BackendError: The engine cannot be installed or started.
            DeadlineExceededError: The time was over first.
        """
        return self._run(self._flows.wait_until_ready(self._deadline(timeout), model))

    def warm_up(self, *, model: str | None = None, timeout: float | None = None) -> None:
        """Start the engine ahead of the first text, and wait until an embedding would be computed at once.

        Wait while the daemon fetches its engine and model, also for a download. The engine is suspended again after the idle
        time, as after an embedding.

        Args:
            model: The model, as for `Client.embed`. It may also be a reranker.
            timeout: As for `Client.embed`.

        Raises:
            ModelNotInstalledError: The file of the model was not fetched.
            BackendError: The engine cannot be installed or started.
            DeadlineExceededError: The time was over first.
            UnimplementedError: The daemon is too old. Embed a text instead.
        """
        self._run(self._flows.warm_up(self._deadline(timeout), model))

    def health(self, *, model: str | None = None, timeout: float | None = None) -> Health:
        """Return the present state of the daemon and of a model; `model` and `timeout` as for `Client.embed`."""
        return self._run(self._flows.health(self._deadline(timeout), model))

    def list_models(self, *, timeout: float | None = None) -> list[Model]:
        """Return the models that requests may name, the default one first.

        Args:
            timeout: As for `Client.embed`.

        Raises:
            UnimplementedError: The daemon is too old, and has one model.
        """
        return self._run(self._flows.list_models(self._deadline(timeout)))

    def set_centroids(
        self,
        vectors: ArrayLike,
        preset: str = "",
        version: str = "",
        *,
        model: str | None = None,
        timeout: float | None = None,
    ) -> CentroidSet:
        """Replace the daemon's centroid set, by which `with_route` tells the nearest centroid of a vector.

            installed = client.set_centroids(kmeans.cluster_centers_, preset="k1024")

        Each model has a set of its own. All clients share it, and the daemon keeps it over restarts. If a new set fails to
        arrive, the earlier one stays.

        Args:
            vectors: The centroids, shape (nlist, dim), with the dimensions of the model; taken as float32. The number of a row
                is its id.
            preset: The name of the parameters that the set was built with.
            version: The name of the set. With a preset, the daemon checks that it is the hash of the content (see
                docs/protocol.md); empty leaves it to the daemon, which takes that hash.
            model: The model whose vectors are routed, as for `Client.embed`.
            timeout: As for `Client.embed`.

        Returns:
            The set that the daemon has installed.

        Raises:
            BadCentroidsError: The vectors cannot be a set for this model; the message tells the reason.
            CentroidStoreError: The daemon cannot store the set, for example on a full disk.
            RunedError: As for `Client.embed`.
        """
        # As in `Client.embed_stream`.
        from runed.client.calls.centroids import set_centroids_flow  # noqa: PLC0415
        from runed.client.transport.blocking_stream import run_upload  # noqa: PLC0415

        self._transport.check_open()
        flow = set_centroids_flow(self._flows, vectors, preset, version, self._deadline(timeout), model=model)
        return run_upload(flow, self._transport)

    def shutdown(self, grace_seconds: int = 0, *, timeout: float | None = None) -> None:
        """Ask the daemon to finish the calls in flight and to exit. The call returns before the daemon has exited.

        Args:
            grace_seconds: Seconds that the calls in flight may take; 0 means the daemon's own 10, 300 is the most.
            timeout: As for `Client.embed`.

        Raises:
            DaemonUnavailableError: There is no daemon.
        """
        self._run(self._flows.shutdown(grace_seconds, self._deadline(timeout)))

    def close(self) -> None:
        """Close the connections; the daemon goes on for others."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return described(self, self._target, self._flows)

    def _deadline(self, timeout: float | None) -> Deadline:
        return Deadline(self._timeout if timeout is None else timeout)

    def _run(self, flow: Flow[T]) -> T:
        return drive(flow, self._transport.perform)


class RankingClient(DaemonClient):
    """The method of `Client` that ranks."""

    def rerank(
        self,
        query: str,
        documents: Iterable[str],
        *,
        top_n: int | None = None,
        model: str | None = None,
        truncate: Truncate = "none",
        lane: Lane | None = None,
        timeout: float | None = None,
    ) -> list[RerankResult]:
        """Rank documents by their relevance to a query, by as many requests as the daemon's limits demand.

            best = client.rerank("how do I brew tea?", passages, top_n=3)[0].document

        Args:
            query: The question or search phrase; not blank.
            documents: The documents; none may be blank. An empty list is allowed and has no results.
            top_n: The most results; None means all documents.
            model: The name of a reranker; None means the daemon's only one.
            truncate: The treatment of a document that, together with the query, is longer than the model reads: "none", the
                default, refuses it, "end" and "start" cut off that side of it. The query is never cut.
            lane: As for `Client.embed`.
            timeout: As for `Client.embed`, for all documents together.

        Returns:
            The documents with their scores, the best one first. Documents of equal scores keep their order.

        Raises:
            InvalidRequestError: As for `Client.embed`; `metadata["index"]` tells the first document at fault.
            UnknownModelError: The daemon has no such model, or no reranker, or several.
            WrongModelKindError: The model makes embeddings.
            RunedError: As for `Client.embed`.
        """
        # As in `Client.embed_stream`.
        from runed.client.calls.ranking import RerankOptions, rerank_flow  # noqa: PLC0415

        options = RerankOptions(top_n=top_n, truncate=truncate, lane=lane, model=model)
        return self._run(rerank_flow(self._flows, query, documents, options, self._deadline(timeout)))


class Client(RankingClient):
    """A connection to the daemon, for any number of threads; `runed.connect` makes it.

    Every method raises a subclass of `runed.RunedError`, whose message says what to do. If the daemon went away since the last
    call, it is started again, unless the client was told not to, and the call is repeated, three times at most. If the daemon
    or its engine is too busy for the moment, the call is repeated in growing pauses until its time is over, or for 60 seconds
    without a `timeout`. It then raises the daemon's own error.

    Args:
        target: The daemon to talk to.
        timeout: As for `connect`.
        on_progress: As for `connect`.
        progress: As for `connect`.
    """

    def embed(
        self,
        text: str,
        *,
        role: Role | None = None,
        instruction: str = "",
        dimensions: int | None = None,
        truncate: Truncate = "none",
        lane: Lane | None = None,
        model: str | None = None,
        timeout: float | None = None,
    ) -> Vectors:
        """Embed one text.

        The first call waits while the daemon fetches its engine and model, which takes minutes.

            vector = client.embed("how do I brew tea?", role="query")

        Args:
            text: The text; not empty, and at most `Info.max_text_length` tokens long unless `truncate` allows more.
            role: The use of the text: "query", "document", or None for the text as it is. The daemon puts the model's own
                prompt in front; never write one yourself.
            instruction: The task of a query, in one English sentence; only with role "query". Empty: the model's default.
            dimensions: The number of values of a vector, from `Info.min_dimensions` on; None means all, `Info.vector_dim`.
            truncate: The treatment of a text that is longer than the model reads: "none" refuses it, "end" and "start" cut off
                that side of it.
            lane: The queue to wait in: "interactive" is served first, "bulk" is for long jobs. None lets the daemon choose by
                the size of the request.
            model: The model: its name or an alias, in letters of any case. None means the daemon's default model.
            timeout: Seconds that the call may take, including waiting; None means the client's own limit.

        Returns:
            A vector of L2 norm 1, float32, shape (dim,).

        Raises:
            InvalidRequestError: The text is empty, too long or not valid Unicode, or an option cannot be used; the subclass
                says which.
            BackendError: The engine cannot be installed or started, or failed.
            QueueFullError: The daemon was too busy for the whole time.
            DeadlineExceededError: The time was over first.
            UnknownModelError: The daemon has no such model; the message tells those that it has.
            UnimplementedError: The daemon is too old for the options.
        """
        options = Options(role=role, instruction=instruction, dimensions=dimensions, truncate=truncate, lane=lane, model=model)
        return self._run(self._flows.embed(text, options, self._deadline(timeout)))

    def embed_batch(
        self,
        texts: Iterable[str],
        *,
        role: Role | None = None,
        instruction: str = "",
        dimensions: int | None = None,
        truncate: Truncate = "none",
        lane: Lane | None = None,
        model: str | None = None,
        timeout: float | None = None,
    ) -> Vectors:
        """Embed many texts, by as many requests as the daemon's limits demand.

            vectors = client.embed_batch(["green tea", "black tea"], role="document")

        Args:
            texts: The texts, each as for `embed`. An empty list is allowed and has shape (0, dim).
            role: As for `embed`.
            instruction: As for `embed`.
            dimensions: As for `embed`.
            truncate: As for `embed`.
            lane: As for `embed`.
            model: As for `embed`.
            timeout: As for `embed`, for all texts together.

        Returns:
            Vectors of L2 norm 1 in the order of the texts, float32, shape (n, dim).

        Raises:
            InvalidRequestError: As for `embed`; `metadata["index"]` tells the first text at fault.
            RunedError: As for `embed`; also if the daemon was restarted with another model on the way.
        """
        options = Options(role=role, instruction=instruction, dimensions=dimensions, truncate=truncate, lane=lane, model=model)
        return self._run(self._flows.embed_batch(texts, options, self._deadline(timeout)))

    def embed_items(
        self,
        texts: Iterable[str],
        *,
        with_route: bool = False,
        role: Role | None = None,
        instruction: str = "",
        dimensions: int | None = None,
        truncate: Truncate = "none",
        lane: Lane | None = None,
        model: str | None = None,
        timeout: float | None = None,
    ) -> list[Embedding | RunedError]:
        """Embed many texts, and return details of each. A text that cannot be embedded does not affect the others.

            for outcome in client.embed_items(texts, truncate="end"):
                if isinstance(outcome, runed.Embedding):
                    print(outcome.token_count, outcome.truncated)

        Args:
            texts: As for `embed_batch`.
            with_route: Whether to find the nearest centroid of each vector, too, as `Embedding.cluster_id`. It is that of the
                whole vector, for any `dimensions`.
            role: As for `embed`.
            instruction: As for `embed`.
            dimensions: As for `embed`.
            truncate: As for `embed`.
            lane: As for `embed`.
            model: As for `embed`.
            timeout: As for `embed_batch`.

        Returns:
            One outcome a text, in the order of the texts: the embedding, or the error instead of it.

        Raises:
            NoCentroidSetError: `with_route` was asked for, and the daemon has no centroid set; see `set_centroids`.
            RunedError: As for `embed_batch`, where it does not belong to a single text.
        """
        options = Options(role=role, instruction=instruction, dimensions=dimensions, truncate=truncate, lane=lane, model=model)
        return self._run(self._flows.embed_items(texts, options, self._deadline(timeout), with_route=with_route))

    def embed_stream(
        self,
        items: Iterable[tuple[K, str]],
        *,
        role: Role | None = None,
        instruction: str = "",
        dimensions: int | None = None,
        truncate: Truncate = "none",
        lane: Lane | None = None,
        model: str | None = None,
        timeout: float | None = None,
    ) -> Generator[tuple[K, Embedding | RunedError], None, None]:
        """Embed any number of texts in constant memory, and yield each as it is ready.

            for key, outcome in client.embed_stream((row.key, row.text) for row in table):
                store(key, outcome)

        Texts are taken from `items` while the daemon has room for them, in the thread of the caller. So `items` must not wait
        for a result before it yields the next text. If the daemon goes away, it is started again and gets the unanswered texts.
        Each text has exactly one outcome. To stop early, close the generator.

        Args:
            items: Pairs of an id, which may be anything and need not be unique, and a text.
            role: As for `embed`.
            instruction: As for `embed`.
            dimensions: As for `embed`.
            truncate: As for `embed`.
            lane: As for `embed`.
            model: As for `embed`.
            timeout: Seconds that may pass without a result while texts wait for one. The caller's own time for texts and
                results does not count. None means the client's own limit.

        Yields:
            The id of a text with its embedding, or with the error instead of it; in no particular order.

        Raises:
            DeadlineExceededError: No result came in time.
            RunedError: As for `embed_items`. An error of `items` reaches the caller as it is.
        """
        # Imported here: HTTP/2 takes 70 ms to import, and only streams need it.
        from runed.client.calls.stream import stream_flow  # noqa: PLC0415
        from runed.client.transport.blocking_stream import run_stream  # noqa: PLC0415

        self._transport.check_open()
        options = Options(role=role, instruction=instruction, dimensions=dimensions, truncate=truncate, lane=lane, model=model)
        pending, flow = stream_flow(self._flows, options, self._timeout if timeout is None else timeout)
        return run_stream(flow, pending, iter(items), self._transport)

    def count_tokens(
        self,
        texts: Iterable[str],
        *,
        role: Role | None = None,
        instruction: str = "",
        model: str | None = None,
        timeout: float | None = None,
    ) -> list[int]:
        """Count the tokens of texts as an embedding would, without embedding them.

            fitting = [count <= client.info().max_text_length for count in client.count_tokens(texts)]

        Args:
            texts: The texts; each may be longer than the model reads.
            role: As for `embed`; the prompt counts.
            instruction: As for `embed`.
            model: As for `embed`.
            timeout: As for `embed_batch`.

        Returns:
            One number a text, in the order of the texts: its tokens, those of its prompt, and special tokens.

        Raises:
            RunedError: As for `embed_batch`.
        """
        options = Options(role=role, instruction=instruction, model=model)
        return self._run(self._flows.count_tokens(texts, options, self._deadline(timeout)))


def described(client: object, target: Target, flows: Flows) -> str:
    """Return the text that shows a client to people. It contains the model once the daemon has told it."""
    model = f", model {flows.known_model}" if flows.known_model else ""
    return f"<runed.{type(client).__name__} on {target.socket}{model}>"
