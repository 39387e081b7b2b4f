"""Structured logs: one JSON object a line, on standard error or in a file that is rotated by size.

A log never holds a user's text. `describe_exception` logs an unexpected exception without its message, in which a library may
quote its input.
"""

from __future__ import annotations

import asyncio
import json
import logging
import logging.handlers
import sys
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import msgspec
import structlog

MAX_LOG_BYTES = 5 * 1024 * 1024
"""Bytes at which a log file is rotated."""

LOG_BACKUPS = 3
"""Older log files that are kept."""

REFUSALS_PAUSE = 1.0
"""Seconds between two lines about refusals of one kind."""

CALLS = "runed.api.call_log"
"""The logger of the lines about single calls."""

Logger = structlog.stdlib.BoundLogger

_quiet: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[object, tuple[int, dict[str, Any]]]] = WeakKeyDictionary()
"""The kinds of refusals that were logged a moment ago: how many came since then, and the facts of the last one."""


class _Line(str):
    """A line that is complete. It is rendered once for all handlers."""

    __slots__ = ()


class _Output:
    """Hands lines that are complete to the handlers of a logger of `logging`.

    That logger's own methods would look for the caller and for arguments of each line, at twice the cost.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._logger = logging.getLogger(name)

    @staticmethod
    def _at(level: int) -> Callable[[_Output, str], None]:
        def write(self: _Output, line: str) -> None:
            self._logger.handle(logging.LogRecord(self.name, level, "", 0, line, None, None))

        return write

    debug, info, warning = _at(logging.DEBUG), _at(logging.INFO), _at(logging.WARNING)
    error, critical = _at(logging.ERROR), _at(logging.CRITICAL)


class _Formatter(structlog.stdlib.ProcessorFormatter):
    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record. Only those of libraries are not lines yet."""
        return record.msg if isinstance(record.msg, _Line) else super().format(record)


class _RotatingFile(logging.handlers.RotatingFileHandler):
    def shouldRollover(self, record: logging.LogRecord) -> bool:  # noqa: N802 # the base class calls it so
        """Return whether a line does not fit any more. The base class asks the file system each time."""
        return self.stream is not None and self.stream.tell() + len(self.format(record)) + 1 > self.maxBytes


def configure_logging(file: Path | None = None, *, events: Path | None = None, max_bytes: int = MAX_LOG_BYTES) -> None:
    """Send the logs of this process to one place: those of runed from INFO on, those of libraries from WARNING on.

    Args:
        file: The log file; None means standard error.
        events: A second log file, without the lines about single calls. However many calls there are, they do not push what
            happened out of it.
        max_bytes: Bytes at which a file is rotated.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    handlers: list[logging.Handler] = [
        _RotatingFile(each, maxBytes=max_bytes, backupCount=LOG_BACKUPS, encoding="utf-8") for each in (file, events) if each
    ] or [logging.StreamHandler(sys.stderr)]
    if events is not None:
        handlers[-1].addFilter(lambda record: record.name != CALLS)
    formatter = _Formatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _describe_exc_info, _render],
    )
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    for handler in handlers:
        handler.setFormatter(formatter)
        root.addHandler(handler)
    root.setLevel(logging.WARNING)
    # No line tells these. Python's documentation names these ways to save their time.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None  # noqa: SLF001 # as above
    structlog.configure(
        processors=[_complete],
        logger_factory=_Output,
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        cache_logger_on_first_use=True,
    )


def log_refusal(logger: Logger, event: str, *, level: int = logging.WARNING, kind: str = "", **facts: object) -> None:
    """Log something that any client can provoke as often as it likes: at most once in `REFUSALS_PAUSE` seconds for each kind.

    A line that stands for several refusals tells their number as `times`, and the facts of the last one.

    Args:
        logger: The logger.
        event: The event.
        level: The level of the line.
        kind: What distinguishes refusals of one event, such as a code. There are few of them.
        facts: The other keys of the line.
    """
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:  # no server runs, so no client comes
        logger.log(level, event, **facts)
        return
    quiet = _quiet.setdefault(loop, {})
    key = (event, kind)

    def tell() -> None:
        times, last = quiet.pop(key)
        if times:
            write(last | {"times": times} if times > 1 else last)

    def write(facts: dict[str, Any]) -> None:
        logger.log(level, event, **facts)
        quiet[key] = 0, {}
        loop.call_later(REFUSALS_PAUSE, tell)

    if key in quiet:
        quiet[key] = quiet[key][0] + 1, facts
    else:
        write(facts)


def log_unobserved_exception(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:  # noqa: ARG001 # asyncio calls it so
    """Log a failure that no caller waited for. For `loop.set_exception_handler`: asyncio's own handler quotes exceptions.

    Args:
        loop: The event loop.
        context: asyncio's description of the failure.
    """
    error = context.get("exception")
    # With an exception, asyncio's message may quote the arguments of a callback.
    details = {"problem": str(context["message"])} if error is None else describe_exception(error)
    # A client may be able to provoke it.
    log_refusal(get_logger(__name__), "failure in the event loop", level=logging.ERROR, kind=str(details), **details)


def _describe_exc_info(logger: object, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:  # noqa: ARG001 # structlog calls it so
    """Replace an exception that a library logs by a description without its message."""
    exc_info = event.pop("exc_info", None)
    if isinstance(exc_info, tuple) and exc_info[1] is not None:
        event.update(describe_exception(exc_info[1]))
    return event


def _complete(logger: _Output, method: str, event: structlog.typing.EventDict) -> str:
    """Make a line of our own."""
    time = datetime.now(UTC).isoformat()[: -len("+00:00")]
    return _line({"timestamp": f"{time}Z", "level": method, "message": event.pop("event"), **event, "logger": logger.name})


def _render(logger: object, method: str, event: structlog.typing.EventDict) -> str:  # noqa: ARG001 # structlog calls it so
    """Make a line of a library's."""
    return _line({"timestamp": event.pop("timestamp"), "level": event.pop("level"), "message": event.pop("event"), **event})


def _line(document: dict[str, Any]) -> str:
    """Write a line. It begins with the keys that every line has, so that people can read a log, too."""
    try:
        line = msgspec.json.encode(document, enc_hook=repr).decode()
    except (UnicodeEncodeError, OverflowError):  # half of a surrogate pair, as in a file name that is not UTF-8; a huge number
        line = ""
    if line and line.isascii() and "\x7f" not in line:
        return _Line(line)
    # A terminal obeys control characters. msgspec leaves some as they are, and json one.
    return _Line(json.dumps(document, default=repr).replace("\x7f", "\\u007f"))


def get_logger(name: str) -> Logger:
    """Return the logger of a module; `name` is its `__name__`."""
    logger: Logger = structlog.stdlib.get_logger(name)
    return logger


def describe_exception(error: BaseException) -> dict[str, str]:
    """Describe an unexpected exception for a log: its type and its place, without its message.

    Args:
        error: The exception.

    Returns:
        The keys `error_type` and `where`: the last frames, the innermost first.
    """
    frames = traceback.extract_tb(error.__traceback__)[-6:]
    where = " < ".join(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in reversed(frames))
    return {"error_type": f"{type(error).__module__}.{type(error).__qualname__}", "where": where}
