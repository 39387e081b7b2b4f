"""A small real service with the project's contract. Its calls wait, fail, grow or do not read, as a test asks."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

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
    SetCentroidsRequest,
    SetCentroidsResponse,
    ShutdownRequest,
    ShutdownResponse,
)

WAIT = "wait"
FAIL = "fail"
IGNORE = "ignore"
SECRET = "the text of a user"
MAX_REQUEST_BYTES = 33 * 1024 * 1024

Context = Any


class Servicer(RunedService):
    """A servicer that embeds nothing; see each method."""

    def __init__(self) -> None:
        self.release = asyncio.Event()
        self.cancelled = 0
        self.waiting = 0
        self.clients: deque[str | None] = deque(maxlen=16)

    async def embed(self, request: EmbedRequest, ctx: Context) -> EmbedResponse:
        """Answer, wait for a `shutdown`, or fail, as the text says."""
        self.clients.append(ctx.client_address)
        if request.text == WAIT:
            await self._wait()
        if request.text == FAIL:
            raise RuntimeError(SECRET)
        return EmbedResponse(vector=[1.0] * 4)

    async def embed_batch(self, request: EmbedBatchRequest, ctx: Context) -> EmbedBatchResponse:
        """Answer with 4 KiB a text."""
        return EmbedBatchResponse(embeddings=[EmbedResponse(vector=[1.0] * 1024)] * len(request.texts))

    async def info(self, request: InfoRequest, ctx: Context) -> InfoResponse:
        """Answer at once."""
        return InfoResponse(vector_dim=4)

    async def health(self, request: HealthRequest, ctx: Context) -> HealthResponse:
        """Return the numbers of running tasks and of waiting calls."""
        return HealthResponse(message=json.dumps({"tasks": len(asyncio.all_tasks()), "waiting": self.waiting}))

    async def shutdown(self, request: ShutdownRequest, ctx: Context) -> ShutdownResponse:
        """Let the calls that wait go on."""
        self.let_go()
        return ShutdownResponse(accepted=True)

    async def set_centroids(self, request: AsyncIterator[SetCentroidsRequest], ctx: Context) -> SetCentroidsResponse:
        """Count the messages, or read only the first one if it asks for that."""
        count = 0
        async for message in request:
            count += 1
            if message.header.preset == IGNORE:
                await self._wait()
        return SetCentroidsResponse(nlist=count)

    def let_go(self) -> None:
        """Let the waiting calls go on. Later calls wait for the next time."""
        self.release.set()
        self.release = asyncio.Event()

    async def _wait(self) -> None:
        self.waiting += 1
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.waiting -= 1


def build_app(servicer: Servicer) -> RunedServiceASGIApplication:
    """Return the ASGI application of a servicer."""
    return RunedServiceASGIApplication(servicer, read_max_bytes=MAX_REQUEST_BYTES, compressions=())
