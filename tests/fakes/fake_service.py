"""A `runed serve` with the real contract, whose answers are arranged by the test.

    fake_service.py OPTIONS serve --log-file FILE --ready-fd N

OPTIONS is a JSON object, see `Options`. The vector of a text is `[length, pid, number of the request, texts in the request]`.
Texts that do more: "fail:REASON", "undetailed:CODE", "die", "slow", "drain". What happens is appended to `events` of the home.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import hypercorn.asyncio
import msgspec
from connectrpc.code import Code
from connectrpc.errors import ConnectError
from connectrpc.request import RequestContext
from hypercorn.config import Config
from runed_proto.runed.v1.runed_connect import RunedService, RunedServiceASGIApplication
from runed_proto.runed.v1.runed_pb2 import (
    EmbedBatchRequest,
    EmbedBatchResponse,
    EmbedRequest,
    EmbedResponse,
    HealthRequest,
    HealthResponse,
    InfoRequest,
    InfoResponse,
    ShutdownRequest,
    ShutdownResponse,
)

from runed.errors import BackendUnavailableError, BootstrappingError, RunedError, ShuttingDownError, error_for_reason
from runed.lifecycle.listener import Listener
from runed.lifecycle.record import DaemonRecord
from runed.locking import LockFile
from runed.paths import Paths
from runed.service.wire import to_connect

DRAIN = 0.5


class Options(msgspec.Struct):
    """How it behaves.

    Attributes:
        loading: How many calls of Health find it loading.
        degraded: The message that it is degraded with after that; "" if it is not.
        max_batch_size: As in Info.
        max_request_bytes: As in Info.
        keep_alive: Seconds after which an idle connection is closed.
    """

    loading: int = 0
    degraded: str = ""
    max_batch_size: int = 2048
    max_request_bytes: int = 32 * 1024 * 1024
    keep_alive: float = 5.0


class Service(RunedService):
    """Answers as arranged."""

    def __init__(self, options: Options, paths: Paths) -> None:
        self._options = options
        self._paths = paths
        self._loading = options.loading
        self._requests = 0
        self._draining = False
        self.end = asyncio.Event()

    async def embed(self, request: EmbedRequest, ctx: RequestContext[EmbedRequest, EmbedResponse], /) -> EmbedResponse:
        (vector,) = await self._embed([request.text])
        return EmbedResponse(vector=vector)

    async def embed_batch(
        self, request: EmbedBatchRequest, ctx: RequestContext[EmbedBatchRequest, EmbedBatchResponse], /
    ) -> EmbedBatchResponse:
        if request.ByteSize() > self._options.max_request_bytes or len(request.texts) > self._options.max_batch_size:
            raise to_connect(RunedError("the client sent more than the limits allow"))
        vectors = await self._embed(request.texts)
        return EmbedBatchResponse(embeddings=[EmbedResponse(vector=vector) for vector in vectors])

    async def info(self, request: InfoRequest, ctx: RequestContext[InfoRequest, InfoResponse], /) -> InfoResponse:
        self._note("info")
        return InfoResponse(
            daemon_version="0.1.0",
            vector_dim=0 if self._loading else 4,
            model_name="" if self._loading else "fake",
            max_batch_size=self._options.max_batch_size,
            max_request_bytes=self._options.max_request_bytes,
        )

    async def health(self, request: HealthRequest, ctx: RequestContext[HealthRequest, HealthResponse], /) -> HealthResponse:
        if self._loading:
            self._loading -= 1
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
        return HealthResponse(status=HealthResponse.STATUS_OK, pid=os.getpid(), total_requests=self._requests)

    async def shutdown(
        self, request: ShutdownRequest, ctx: RequestContext[ShutdownRequest, ShutdownResponse], /
    ) -> ShutdownResponse:
        self._note(f"shutdown {request.grace_seconds}")
        self.end.set()
        return ShutdownResponse(accepted=True)

    async def _embed(self, texts: Sequence[str]) -> list[list[float]]:
        if self._draining:
            raise to_connect(ShuttingDownError("fake: shutting down"))
        if self._loading:
            raise to_connect(BootstrappingError("fake: no engine yet"))
        if self._options.degraded:
            raise to_connect(BackendUnavailableError("fake: degraded"))
        self._requests += 1
        for index, text in enumerate(texts):
            await self._obey(text, index)
        return [[len(text), os.getpid(), self._requests, len(texts)] for text in texts]

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
            case "slow":
                await self._dawdle()
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
        with (self._paths.home / "events").open("a") as file:
            file.write(f"{event}\n")


async def serve(options: Options, paths: Paths, listener: Listener, ready_fd: int) -> None:
    service = Service(options, paths)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, service.end.set)
    config = Config()
    config.bind = [f"fd://{os.dup(listener.sock.fileno())}"]
    config.keep_alive_timeout = options.keep_alive
    config.graceful_timeout = 0.1
    os.write(ready_fd, b"ready\n")
    os.close(ready_fd)
    app = RunedServiceASGIApplication(service, read_max_bytes=None)
    await hypercorn.asyncio.serve(app, config, shutdown_trigger=service.end.wait)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("options")
    parser.add_argument("command")
    parser.add_argument("--log-file", type=Path)
    parser.add_argument("--ready-fd", type=int)
    arguments = parser.parse_args()
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


main()
