"""Large messages: their limits, and a thread that reads them beside the event loop."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from runed.errors import RequestTooLargeError
from runed.files import run_in_thread

INLINE_BYTES = 32 * 1024
"""Largest message that is read in the event loop, in bytes. A thread costs 0.1 ms, and the worst message of this size a few."""

MOST_PARTS = 512 * 1024
"""Most parts of a message: its fields, and in JSON all values and names. Without a limit, a message of 32 MiB would have 16
million parts, each of which takes 20 times its bytes in memory."""

MANY_BYTES = 2 * MOST_PARTS
"""Bytes from which on the parts of a message are counted. A part has two bytes or more, such as `1,` in JSON."""

_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="runed-messages")

_T = TypeVar("_T")


async def beside_the_loop(function: Callable[[], _T], size: int) -> _T:
    """Run a function that reads `size` bytes of a client: in the thread if these are many, otherwise here.

    There is one thread, so that the event loop contends with one only, and so that the memory of one message is used at a time.
    """
    return function() if size <= INLINE_BYTES else await run_in_thread(function, _thread)


def let_go(error: BaseException) -> None:
    """Free what an error holds besides its message: the frames that it went through, and the error before it.

    They may hold megabytes of a request. They also hold each other in a circle, so that these would stay for a long time.
    """
    error.__traceback__ = error.__context__ = error.__cause__ = None


def too_many_parts() -> RequestTooLargeError:
    """Return the error of a message with more parts than `MOST_PARTS`."""
    return RequestTooLargeError(
        f"the request has more than {MOST_PARTS:,} texts, values and other parts, which is the limit; send several requests",
        metadata={"parts_limit": str(MOST_PARTS)},
    )
