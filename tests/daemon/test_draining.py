"""The end of a stream whose request breaks off."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Sequence
from typing import Any

from runed.daemon.draining import DrainableStream, Draining
from runed.domain.requests import StreamItem


async def breaks_off_when_cancelled() -> AsyncIterator[Sequence[StreamItem]]:
    """Like the reader of a request that ends in the middle of a message."""
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        raise ConnectionError("the request ended in the middle of a message") from None
    yield []


async def test_error_of_an_abandoned_request_is_not_logged() -> None:
    loop, logged = asyncio.get_running_loop(), list[dict[str, Any]]()
    loop.set_exception_handler(lambda _, context: logged.append(context))
    reading = asyncio.ensure_future(anext(DrainableStream(breaks_off_when_cancelled(), Draining(lambda: None)).chunks()))
    await asyncio.sleep(0.01)
    reading.cancel()
    await asyncio.wait({reading})
    del reading
    gc.collect()
    await asyncio.sleep(0)
    assert not logged
