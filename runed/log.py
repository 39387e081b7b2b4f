"""Structured logs: one JSON object a line, in a file that is rotated by size or on standard error, which may also be readable.

A log never holds a user's text. `describe_exception` logs an unexpected exception without its message, in which a library may
quote its input.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import logging
import logging.handlers
import sys
import time
import traceback
from collections import deque
from contextvars import Context
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import msgspec

from runed.errors import MOST_TOLD, bounded, printable

MAX_LOG_BYTES = 5 * 1024 * 1024
"""Bytes at which a log file is rotated."""

LOG_BACKUPS = 3
"""Older log files that are kept."""

REFUSALS_PAUSE = 1.0
"""Seconds between two lines about refusals of one kind."""

_LONGEST_LINE = 4 * MOST_TOLD
"""Characters of a line beyond which its texts are bounded."""

SOON = 0.1
"""Most seconds that a line of `Logger.info_soon` waits to be written."""

CALLS = "runed.api.call_log"
"""The logger of the lines about single calls."""

_quiet: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[object, tuple[int, dict[str, Any]]]] = WeakKeyDictionary()
"""The kinds of refusals that were logged a moment ago: how many came since then, and the facts of the last one."""


_waiting: deque[tuple[logging.Logger, float, str, dict[str, object]]] = deque()
"""The lines of `Logger.info_soon` that are not written yet: the logger, the time, the event and its facts."""


class Logger:
    """Logs events, each with facts, by the logger of the same name of `logging`.

    Args:
        name: The name.
    """

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def info(self, event: str, /, **facts: object) -> None:
        """Log an event that is as it should be."""
        self.log(logging.INFO, event, **facts)

    def info_soon(self, event: str, /, **facts: object) -> None:
        """Log an event that is as it should be, within `SOON` seconds, or before the next other line.

        Many such lines are written at once. The engine fills the processor's caches between two calls, so one alone costs more.
        """
        if not self._logger.isEnabledFor(logging.INFO):
            return
        now = time.time()
        _waiting.append((self._logger, now, event, facts))
        try:
            oldest = _waiting[0][1]
        except IndexError:  # another thread has just written it
            return
        if now - oldest > 2 * SOON:  # the event loop that was to write them is late, or has ended
            write_waiting()
        elif len(_waiting) == 1:
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:
                write_waiting()
            else:
                # An empty context: that of the current task may hold a request.
                loop.call_later(SOON, write_waiting, context=Context())

    def warning(self, event: str, /, **facts: object) -> None:
        """Log an event after which the daemon does less than it should."""
        self.log(logging.WARNING, event, **facts)

    def error(self, event: str, /, **facts: object) -> None:
        """Log a failure."""
        self.log(logging.ERROR, event, **facts)

    def log(self, level: int, event: str, /, **facts: object) -> None:
        """Log an event at a level of `logging`. Its record has the facts as its attribute `facts`."""
        if self._logger.isEnabledFor(level):
            write_waiting()
            self._logger.log(level, event, extra={"facts": facts})


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record. It is rendered once for all handlers."""
        line: str | None = getattr(record, "line", None)
        if line is None:
            line = record.line = _render(record)
        return line


class _ReadableFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """Return a record as a line for people: the time of day, the level unless it is as usual, the event and its facts."""
        level = "" if record.levelno == logging.INFO else f"{record.levelname}: "
        told = getattr(record, "facts", {})
        if record.exc_info and record.exc_info[1] is not None:  # of a library, which may quote its input
            told = told | describe_exception(record.exc_info[1])
        facts = "".join(f"  {name}={_shown(value)}" for name, value in told.items() if value is not None)
        line = f"{datetime.fromtimestamp(record.created).astimezone():%H:%M:%S}  {level}{record.getMessage()}{facts}"
        return printable(bounded(line, _LONGEST_LINE))


class _RotatingFile(logging.handlers.RotatingFileHandler):
    def shouldRollover(self, record: logging.LogRecord) -> bool:  # noqa: N802 # the base class calls it so
        """Return whether a line does not fit any more. The base class asks the file system each time."""
        return self.stream is not None and self.stream.tell() + len(self.format(record)) + 1 > self.maxBytes

    def doRollover(self) -> None:  # noqa: N802 # as above
        """Rotate the file. Empty it if that fails, such as for a directory in the way: its size is bounded in any case."""
        try:
            super().doRollover()
        except OSError:
            self.stream = self._open()
            self.stream.truncate(0)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 # as above
        """Drop a line that cannot be written, as on a full disk.

        The base class would tell it by ten lines on standard error. In a daemon, that is the same file, without a bound.
        """


def configure_logging(
    file: Path | None = None,
    *,
    events: Path | None = None,
    readable: bool = False,
    level: str = "info",
    max_bytes: int = MAX_LOG_BYTES,
) -> None:
    """Send the logs of this process to one place: those of runed from a level on, those of libraries from WARNING on.

    Args:
        file: The log file; None means standard error.
        events: A second log file, without the lines about single calls. However many calls there are, they do not push what
            happened out of it.
        readable: Whether the lines on standard error are for people. Those of a file are JSON.
        level: The level of the least important lines: "info", "warning" or "error".
        max_bytes: Bytes at which a file is rotated.
    """
    handlers: list[logging.Handler] = [
        _RotatingFile(each, maxBytes=max_bytes, backupCount=LOG_BACKUPS, encoding="utf-8") for each in (file, events) if each
    ] or [logging.StreamHandler(sys.stderr)]
    if events is not None:
        handlers[-1].addFilter(lambda record: record.name != CALLS)
    formatter = _ReadableFormatter() if file is None and readable else _Formatter()
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    for handler in handlers:
        handler.setFormatter(formatter)
        root.addHandler(handler)
    lowest = logging.getLevelNamesMapping()[level.upper()]
    root.setLevel(max(lowest, logging.WARNING))
    logging.getLogger("runed").setLevel(lowest)
    # No line tells these. Python's documentation names these ways to save their time.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None  # noqa: SLF001 # as above


def is_for_people(form: str) -> bool:
    """Return whether the log on standard error has lines for people, by the setting `log`."""
    return form == "text" or (form == "auto" and sys.stderr is not None and sys.stderr.isatty())


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


def write_waiting() -> None:
    """Write the lines of `Logger.info_soon` that wait."""
    while True:
        try:
            logger, created, event, facts = _waiting.popleft()
        except IndexError:  # another thread may have taken the last one
            return
        record = logger.makeRecord(logger.name, logging.INFO, "", 0, event, (), None, extra={"facts": facts})
        record.created = created
        logger.handle(record)


atexit.register(write_waiting)


def _shown(value: object) -> str:
    """Return the value of a fact for people: a text of several words in quotes."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if not text or any(mark in text for mark in ' "=') else text


def _render(record: logging.LogRecord) -> str:
    """Write a line. It begins with the keys that every line has, so that people can read a log, too."""
    document = {
        "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "level": record.levelname.lower(),
        "message": record.getMessage(),
        **getattr(record, "facts", {}),
        "logger": record.name,
    }
    if record.exc_info and record.exc_info[1] is not None:  # of a library, which may quote its input
        document |= describe_exception(record.exc_info[1])
    try:
        line = msgspec.json.encode(document, enc_hook=repr).decode()
    except (UnicodeEncodeError, OverflowError):  # half of a surrogate pair, as in a file name that is not UTF-8; a huge number
        line = ""
    if not line or len(line) > _LONGEST_LINE:
        document = {name: bounded(value) if isinstance(value, str) else value for name, value in document.items()}
        line = ""
    if line and line.isascii() and "\x7f" not in line:
        return line
    # A terminal obeys control characters. msgspec leaves some as they are, and json one.
    return json.dumps(document, default=repr).replace("\x7f", "\\u007f")


def get_logger(name: str) -> Logger:
    """Return the logger of a module; `name` is its `__name__`."""
    return Logger(name)


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
