"""The two drivers of flows: one blocks a thread, the other suspends a task.

An error of a step is thrown into the flow. It may handle a `RunedError`. Anything else, such as Ctrl-C, ends flow and drive.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from typing import Any, TypeVar

from runed.client.calls.steps import Give
from runed.errors import RunedError

T = TypeVar("T")


def drive(flow: Generator[Any, Any, T], perform: Callable[[Any], Any]) -> T:
    """Perform the steps of a flow up to its end, or up to a `Give`.

    Args:
        flow: The flow, fresh or stopped at a `Give`.
        perform: Performs a step and returns its result.

    Returns:
        The result of the flow, or the results of the `Give`. The flow of a stream returns an empty list at its end.
    """
    result: Any = None
    error: RunedError | None = None
    while True:
        try:
            step = flow.throw(error) if error else flow.send(result)
        except StopIteration as stop:
            value: T = stop.value
            return value
        if isinstance(step, Give):
            return step.results  # type: ignore[return-value] # a flow that gives results returns a list of them, too
        result = error = None
        try:
            result = perform(step)
        except RunedError as raised:
            error = raised
        except BaseException as raised:
            flow.throw(raised)  # what the flow has begun to show ends now, and not when somebody has handled the error
            raise


async def drive_async(flow: Generator[Any, Any, T], perform: Callable[[Any], Awaitable[Any]]) -> T:
    """Perform the steps of a flow as `drive`, by awaiting them."""
    result: Any = None
    error: RunedError | None = None
    while True:
        try:
            step = flow.throw(error) if error else flow.send(result)
        except StopIteration as stop:
            value: T = stop.value
            return value
        if isinstance(step, Give):
            return step.results  # type: ignore[return-value] # as in `drive`
        result = error = None
        try:
            result = await perform(step)
        except RunedError as raised:
            error = raised
        except BaseException as raised:
            flow.throw(raised)  # what the flow has begun to show ends now, and not when somebody has handled the error
            raise
