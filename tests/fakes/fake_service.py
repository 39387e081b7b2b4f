"""A `runed serve` with the real contract. The test arranges its answers.

    fake_service.py OPTIONS serve --log-file FILE --ready-fd N
    fake_service.py forks SOCKET

The second form starts services for `hand_over.py`, each in a fork of itself, since the imports take 0.3 s of a processor.

OPTIONS is a JSON object, see `Options`. The vector of a text is `[length, pid, number of the request, texts in the request]`,
cut or filled up to the dimensions asked for. Once a centroid set was pushed, its cluster is its length. Texts, and presets of
such a set, with effects: "fail:REASON", "undetailed:CODE", "die", "slow", "drain", "busy-once", "hold", which waits for a file
`release` in the home. Each event is appended to `events` of the home.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import hashlib
import json
import os
import select
import signal
import socket
import struct
import sys
import traceback
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import hypercorn.asyncio
import msgspec
from connectrpc.code import Code
from connectrpc.errors import ConnectError
from connectrpc.request import RequestContext
from hypercorn.config import Config
from runed_proto.runed.v1.runed_connect import RunedService, RunedServiceASGIApplication
from runed_proto.runed.v1.runed_pb2 import (
    LANE_BULK,
    ROLE_QUERY,
    ROLE_UNSPECIFIED,
    TRUNCATE_UNSPECIFIED,
    CountTokensRequest,
    CountTokensResponse,
    EmbedBatchRequest,
    EmbedBatchResponse,
    EmbedRequest,
    EmbedResponse,
    EmbedStreamRequest,
    EmbedStreamResponse,
    EmbedStreamResult,
    HealthRequest,
    HealthResponse,
    InfoRequest,
    InfoResponse,
    ItemError,
    LaneHealth,
    SetCentroidsRequest,
    SetCentroidsResponse,
    ShutdownRequest,
    ShutdownResponse,
    WarmUpRequest,
    WarmUpResponse,
)

from runed.api.rpc.errors import to_connect
from runed.errors import (
    BackendUnavailableError,
    BatchTooLargeError,
    BootstrappingError,
    NoCentroidSetError,
    QueueFullError,
    RequestTooLargeError,
    ShuttingDownError,
    error_for_reason,
)
from runed.lifecycle.listener import Listener
from runed.lifecycle.record import DaemonRecord
from runed.locking import LockFile
from runed.paths import Paths
from runed.server.serving import Server

DRAIN = 0.5


class Options(msgspec.Struct):
    """The behaviour of the service.

    Attributes:
        loading: The number of calls of Health that find it loading.
        downloading: Whether it downloads while it loads. Otherwise it looks for installed files.
        refuses_info: Whether it refuses Info while it loads, instead of answering the part that it knows.
        degraded: The message with which it is degraded after loading; "" if it is not degraded.
        max_batch_size: As in Info.
        max_request_bytes: As in Info.
        keep_alive: Seconds after which an idle connection is closed; 0 means never.
        old: Whether its version has no options, details and streams.
        busy: The number of embeddings that it refuses for `retry_after` seconds before it accepts one.
        retry_after: See `busy`.
        busy_reason: The reason of these refusals. The error has the class of that reason.
        new_model: Whether each start has another model.
        die_after: The number of results of a stream after which it dies; 0 means never.
        drain_after: The number of results of a stream after which it begins to drain; 0 means never.
    """

    loading: int = 0
    downloading: bool = True
    refuses_info: bool = False
    degraded: str = ""
    max_batch_size: int = 2048
    max_request_bytes: int = 32 * 1024 * 1024
    keep_alive: float = 0.0
    old: bool = False
    busy: int = 0
    retry_after: float = 0.02
    busy_reason: str = QueueFullError.reason
    new_model: bool = False
    die_after: int = 0
    drain_after: int = 0


AnyEmbedRequest = EmbedRequest | EmbedBatchRequest | EmbedStreamRequest


class Service(RunedService):
    """Answers as arranged."""

    def __init__(self, options: Options, paths: Paths) -> None:
        self._options = options
        self._paths = paths
        self._loading = options.loading
        self._requests = 0
        self._draining = False
        self._streamed = 0
        self._noted: set[str] = set()
        self._centroid_set = ""
        self._starts = len((paths.home / "pids").read_text().split())
        self.end = asyncio.Event()

    async def embed(self, request: EmbedRequest, ctx: RequestContext[EmbedRequest, EmbedResponse], /) -> EmbedResponse:
        (vector,) = await self._embed([request.text], request)
        return self._response(vector, request, EmbedResponse(fingerprint=self._fingerprint, prompt=self._prompt(request)))

    async def embed_batch(
        self, request: EmbedBatchRequest, ctx: RequestContext[EmbedBatchRequest, EmbedBatchResponse], /
    ) -> EmbedBatchResponse:
        if request.ByteSize() > self._options.max_request_bytes:
            raise to_connect(RequestTooLargeError("the client sent more bytes than the limits allow"))
        if len(request.texts) > self._options.max_batch_size:
            raise to_connect(BatchTooLargeError("the client sent more texts than the limits allow"))
        if request.per_item_errors and not self._options.old:
            self._admit()
            if request.with_route and not self._centroid_set:
                raise to_connect(NoCentroidSetError("fake: no set"))
            embeddings = [await self._embed_item(text, request, len(request.texts)) for text in request.texts]
        else:
            embeddings = [self._response(vector, request) for vector in await self._embed(request.texts, request)]
        return EmbedBatchResponse(embeddings=embeddings, fingerprint=self._fingerprint, prompt=self._prompt(request))

    async def embed_stream(
        self, request: AsyncIterator[EmbedStreamRequest], ctx: RequestContext[EmbedStreamRequest, EmbedStreamResponse], /
    ) -> AsyncIterator[EmbedStreamResponse]:
        if self._options.old:
            raise ConnectError(Code.UNIMPLEMENTED, "fake: no such method")
        self._note("stream began")
        options: EmbedStreamRequest | None = None
        ended = False
        try:
            async for message in request:
                options = options or message
                if options is message:
                    self._note(f"stream lane {message.lane}")
                    self._admit()
                results = []
                for item in reversed(message.items):
                    embedding = await self._embed_item(item.text, options, len(message.items))
                    results.append(EmbedStreamResult(id=item.id, embedding=embedding))
                if results:
                    yield EmbedStreamResponse(results=results, fingerprint=self._fingerprint, prompt=self._prompt(options))
                    await self._count(len(results))
            ended = True
        finally:
            self._note("stream ended" if ended else "stream broken off")

    async def count_tokens(
        self, request: CountTokensRequest, ctx: RequestContext[CountTokensRequest, CountTokensResponse], /
    ) -> CountTokensResponse:
        self._note("count")
        prompt = len(self._prompt(request).split())
        return CountTokensResponse(token_counts=[len(text.split()) + prompt for text in request.texts], max_text_length=512)

    async def warm_up(self, request: WarmUpRequest, ctx: RequestContext[WarmUpRequest, WarmUpResponse], /) -> WarmUpResponse:
        self._note("warm up")
        self._admit()
        return WarmUpResponse()

    async def set_centroids(
        self, request: AsyncIterator[SetCentroidsRequest], ctx: RequestContext[SetCentroidsRequest, SetCentroidsResponse], /
    ) -> SetCentroidsResponse:
        if self._options.old:
            raise ConnectError(Code.UNIMPLEMENTED, "fake: no centroids")
        header = (await anext(request)).header
        self._admit()
        await self._obey(header.preset, 0)
        largest, digest = 0, hashlib.sha256()
        async for message in request:
            largest = max(largest, message.ByteSize())
            for centroid in message.batch.centroids:
                digest.update(struct.pack(f"<I{header.dim}f", centroid.id, *centroid.vec))
        await self._obey(header.preset.removeprefix("late "), 0)
        self._note(f"centroids {header.dim} {header.nlist} {header.preset} {header.version} {digest.hexdigest()} {largest}")
        self._centroid_set = f"set {header.nlist}"
        return SetCentroidsResponse(version=self._centroid_set, nlist=header.nlist)

    async def info(self, request: InfoRequest, ctx: RequestContext[InfoRequest, InfoResponse], /) -> InfoResponse:
        self._note("info")
        if self._loading and self._options.refuses_info:
            raise to_connect(BootstrappingError("fake: no model yet"))
        return InfoResponse(
            daemon_version="0.1.0",
            vector_dim=0 if self._loading else 4,
            model_name="" if self._loading else "fake",
            max_batch_size=self._options.max_batch_size,
            max_request_bytes=self._options.max_request_bytes,
            fingerprint=self._fingerprint,
            min_dimensions=2,
            query_prompt="Instruct: {instruction}\nQuery:",
            document_prompt="passage: ",
            default_instruction="find it",
            profile="balanced",
            max_queued_texts=1000,
            max_queued_bytes=2000,
            restrictions=["nice 3", "1 of 8 processors"],
            accelerator="vulkan",
            device="fake device",
            device_tuned_at="2026-11-27T12:00:00+00:00",
            company_cosine=0.75,
            tuned_at="2026-11-28T12:00:00+00:00",
        )

    async def health(self, request: HealthRequest, ctx: RequestContext[HealthRequest, HealthResponse], /) -> HealthResponse:
        if self._loading:
            self._loading -= 1
            if not self._options.downloading:
                return HealthResponse(
                    status=HealthResponse.STATUS_LOADING,
                    phase=HealthResponse.PHASE_FETCHING_LLAMA_SERVER,
                    message="looking for engine and model",
                )
            done = 100 - self._loading
            return HealthResponse(
                status=HealthResponse.STATUS_LOADING,
                phase=HealthResponse.PHASE_FETCHING_MODEL,
                bytes_done=done,
                bytes_total=100,
                message=f"{done} of 100",
            )
        if self._options.degraded:
            return HealthResponse(status=HealthResponse.STATUS_DEGRADED, message=self._options.degraded)
        return HealthResponse(
            status=HealthResponse.STATUS_OK,
            pid=os.getpid(),
            total_requests=self._requests,
            interactive=LaneHealth(queued_texts=1, queued_bytes=2, total_texts=3, wait_p50_seconds=0.25, wait_p99_seconds=0.5),
            bulk=LaneHealth(queued_texts=6),
            total_texts=7,
            total_tokens=8,
            tokens_per_second=9.5,
            total_batches=10,
            mean_batch_texts=11.5,
            cache_hits=12,
            shared_texts=13,
            cache_entries=14,
            cache_bytes=15,
            refused_requests=16,
            disk_cache_bytes=17,
        )

    async def shutdown(
        self, request: ShutdownRequest, ctx: RequestContext[ShutdownRequest, ShutdownResponse], /
    ) -> ShutdownResponse:
        self._note(f"shutdown {request.grace_seconds}")
        self.end.set()
        return ShutdownResponse(accepted=True)

    @property
    def _fingerprint(self) -> str:
        if self._options.old:
            return ""
        return f"space-{self._starts if self._options.new_model else 0}"

    def _prompt(self, request: AnyEmbedRequest | CountTokensRequest) -> str:
        if self._options.old or request.role == ROLE_UNSPECIFIED:
            return ""
        return f"Instruct: {request.instruction or 'find it'}\nQuery:" if request.role == ROLE_QUERY else "passage: "

    def _response(self, vector: list[float], request: AnyEmbedRequest, response: EmbedResponse | None = None) -> EmbedResponse:
        response = response or EmbedResponse()
        if request.dimensions and not self._options.old:
            vector = (vector + [0.0] * request.dimensions)[: request.dimensions]
        response.vector.extend(vector)
        if not self._options.old:
            response.token_count, response.total_token_count = 4, int(vector[0])
            response.truncated = request.truncate != TRUNCATE_UNSPECIFIED
            response.cached = request.lane == LANE_BULK
            if not isinstance(request, EmbedStreamRequest) and request.with_route:
                response.cluster_id, response.centroid_set_version = int(vector[0]), self._centroid_set
        return response

    def _admit(self) -> None:
        """Refuse or accept a request that embeds."""
        if self._draining:
            raise to_connect(ShuttingDownError("fake: shutting down"))
        if self._loading:
            raise to_connect(BootstrappingError("fake: no engine yet"))
        if self._options.degraded:
            raise to_connect(BackendUnavailableError("fake: degraded"))
        if self._options.busy:
            self._options.busy -= 1
            self._note("busy")
            cls = error_for_reason(self._options.busy_reason)
            raise to_connect(cls("fake: busy", metadata={"limit": "7"}, retry_after=self._options.retry_after))
        self._requests += 1

    async def _embed(self, texts: Sequence[str], request: AnyEmbedRequest) -> list[list[float]]:
        self._admit()
        for index, text in enumerate(texts):
            await self._obey(text, index)
        return [[len(text), os.getpid(), self._requests, len(texts)] for text in texts]

    async def _embed_item(self, text: str, request: AnyEmbedRequest, count: int) -> EmbedResponse:
        kind, _, detail = text.partition(":")
        if kind == "fail":
            return EmbedResponse(
                error=ItemError(reason=detail, message=f"fake: {detail}", metadata={"index": "0", "limit": "7"})
            )
        await self._obey(text, 0)
        return self._response([len(text), os.getpid(), self._requests, count], request)

    async def _count(self, results: int) -> None:
        """Die or drain when the arranged number of stream results is reached."""
        self._streamed += results
        if 0 < self._options.die_after <= self._streamed:
            await asyncio.sleep(0.01)  # the results are written by another task
            os._exit(9)
        if 0 < self._options.drain_after <= self._streamed:
            self.end.set()

    async def _obey(self, text: str, index: int) -> None:
        kind, _, detail = text.partition(":")
        match kind:
            case "fail":
                metadata = {"index": str(index), "limit": "7"}
                raise to_connect(error_for_reason(detail)(f"fake: {detail}", metadata=metadata, retry_after=1.5))
            case "undetailed":
                raise ConnectError(Code(detail), "fake: no details")
            case "die":
                os._exit(9)
            case "busy-once" if "busy once" not in self._noted:
                self._note("busy once")
                raise to_connect(QueueFullError("fake: busy", retry_after=self._options.retry_after))
            case "slow":
                await self._dawdle()
            case "hold":
                self._note("held")
                while not (self._paths.home / "release").exists():  # noqa: ASYNC110 # another process makes it
                    await asyncio.sleep(0.01)
            case "drain":
                self._draining = True
                asyncio.get_running_loop().call_later(DRAIN, self.end.set)

    async def _dawdle(self) -> None:
        self._note("slow began")
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self._note("slow cancelled")
            raise

    def _note(self, event: str) -> None:
        self._noted.add(event)
        with (self._paths.home / "events").open("a") as file:
            file.write(f"{event}\n")


async def serve(options: Options, paths: Paths, listener: Listener, ready_fd: int) -> None:
    service = Service(options, paths)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, service.end.set)
    app = RunedServiceASGIApplication(service, read_max_bytes=None)
    os.write(ready_fd, b"ready\n")
    os.close(ready_fd)
    if options.keep_alive:
        config = Config()
        config.bind = [f"fd://{os.dup(listener.sock.fileno())}"]
        config.keep_alive_timeout = options.keep_alive
        config.graceful_timeout = 0.1
        await hypercorn.asyncio.serve(app, config, shutdown_trigger=service.end.wait)
        return
    server = Server(app, listener.sock)
    await server.start()
    await service.end.wait()
    await server.stop(DRAIN)


def main(command_line: list[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("options")
    parser.add_argument("command")
    parser.add_argument("--log-file", type=Path)
    parser.add_argument("--ready-fd", type=int)
    arguments = parser.parse_args(command_line)
    options = msgspec.json.decode(arguments.options, type=Options)
    paths = Paths(Path(os.environ["RUNED_HOME"]))
    with LockFile(paths.daemon_lock) as lock:
        if not lock.try_acquire():
            return
        record = DaemonRecord.of_this_process(paths.socket)
        record.write(paths.daemon_record)
        with (paths.home / "pids").open("a") as file:
            file.write(f"{os.getpid()}\n")
        try:
            with Listener.bind(paths.socket) as listener:
                asyncio.run(serve(options, paths, listener, arguments.ready_fd))
        finally:
            record.remove(paths.daemon_record)


def forks(path: str) -> None:
    """Start a service for each program that connects, until standard input ends, as it does with the process of the tests."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the services
    gc.freeze()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        listener.listen()
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while sys.stdin not in select.select([sys.stdin, listener], [], [])[0]:
            connection, _ = listener.accept()
            with connection:
                message, descriptors, _, _ = socket.recv_fds(connection, 1024 * 1024, 4)
                if os.fork() == 0:
                    listener.close()
                    connection.close()
                    become(json.loads(message), descriptors)
            for descriptor in descriptors:
                os.close(descriptor)


def become(program: dict[str, Any], descriptors: Sequence[int]) -> NoReturn:
    """Take the place of the program that connected: its standard streams and pipe, its environment and its arguments."""
    try:
        os.setsid()
        os.chdir("/")
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        *streams, ready_fd = descriptors
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        os.environ.clear()
        os.environ.update(program["environment"])
        main([*program["arguments"], "--ready-fd", str(ready_fd)])
    except Exception:  # noqa: BLE001 # as a process of its own would
        traceback.print_exc()
    finally:
        os._exit(0)


if sys.argv[1] == "forks":
    forks(sys.argv[2])
else:
    main(sys.argv[1:])
