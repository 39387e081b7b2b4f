"""The end of every command: an exit code, and at most one line on standard error."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import warnings
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from types import FrameType
from typing import TextIO

from runed.errors import WINDOWS_UNSUPPORTED, RunedError, RunedWarning, SettingsError, printable, sentence


class ExitCode(IntEnum):
    """The exit codes of all commands; `EXIT_CODES_HELP` has their meaning."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_RUNNING = 3
    DEGRADED = 4
    INTERRUPTED = 130


EXIT_CODES_HELP = """\
exit codes:
  0    done
  1    refused or failed; the line on standard error says why
  2    wrong usage, or a setting that cannot be used
  3    no daemon runs, and the command does not start one
  4    a daemon runs, and embeddings fail (`runed status`, `runed top`)
  130  interrupted by Ctrl-C; 128 + N: ended by signal N
"""


def guarded(command: Callable[[], int]) -> int:
    """Run a command; show no stack trace if it fails, unless `RUNED_DEBUG=1`.

    Windows is refused before the command imports anything, since many modules need `fcntl` and UNIX sockets.

    Args:
        command: The command, which returns an exit code.

    Returns:
        The exit code for the process.
    """
    if os.name == "nt":
        complain(WINDOWS_UNSUPPORTED)
        return ExitCode.FAILED
    try:
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # as `runed.__main__` leaves it
            signal.signal(signal.SIGINT, signal.default_int_handler)
        _forbid_core_dumps()
        _prepare_output()
        warnings.showwarning = _show_warning
        _clean_up_on_signals()
        code = _run(command)
        sys.stdout.flush()  # flushed here, since a failure can still become an exit code
    except BrokenPipeError:
        # The reader, such as `head`, has read enough. That is not an error.
        code = ExitCode.FAILED
    except KeyboardInterrupt:
        # A second Ctrl-C ends the process at once, instead of showing a trace of the interpreter's shutdown.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        code = ExitCode.INTERRUPTED
    except RunedError as error:
        _show_trace()
        complain(error.message + _hint(error))
        code = ExitCode.USAGE if isinstance(error, SettingsError) else ExitCode.FAILED
    except OSError as error:
        _show_trace()
        from runed.os_errors import explain  # noqa: PLC0415 # as `_show_trace` does

        complain(explain(error))
        code = ExitCode.FAILED
    except Exception as error:  # noqa: BLE001 # the last line of defence between a bug and a user
        _show_trace()
        complain(f"unexpected {_describe(error)}; this is a bug. RUNED_DEBUG=1 shows more, `runed logs` what the daemon did")
        code = ExitCode.FAILED
    if code != ExitCode.OK:
        _discard_output()
    return code


def tell(text: str) -> None:
    """Print lines for the user on standard output. Names in them cannot steer the terminal."""
    print(printable(text, keep="\n\t"))


def tell_json(document: object) -> None:
    """Print a document for programs on standard output."""
    import json  # noqa: PLC0415 # 5 ms that a command which prints words does not spend

    print(json.dumps(document, indent=2, ensure_ascii=False))


def complain(message: str) -> None:
    """Print one line for the user on standard error. Names in it cannot steer the terminal."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            sys.stderr.write(f"runed: {sentence(message)}\n")
            sys.stderr.flush()


def _show_warning(  # noqa: PLR0917 # the arguments of `warnings.showwarning`
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning for the user as one line. Those of libraries are shown as Python does."""
    if issubclass(category, RunedWarning):
        complain(str(message))
    elif sys.stderr is not None:
        (file or sys.stderr).write(warnings.formatwarning(message, category, filename, lineno, line))


def _run(command: Callable[[], int]) -> int:
    try:
        return command()
    except SystemExit as end:  # argparse ends in this way, after `--help` or a wrong usage, and so does a signal
        return end.code if isinstance(end.code, int) else ExitCode.OK


def _forbid_core_dumps() -> None:
    """Keep the texts in the memory of this process and its children, such as the daemon, out of core dumps."""
    import resource  # noqa: PLC0415 # Windows, which is refused, has no such module

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # The limit does not hold where the kernel pipes a core dump to a program. An empty filter leaves no memory in it.
    with contextlib.suppress(OSError):
        Path("/proc/self/coredump_filter").write_text("0")


def _prepare_output() -> None:
    """Prepare standard output, so that a command does not fail if it is closed or cannot show a character of a path."""
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 # stays open as long as the process
    elif isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _clean_up_on_signals() -> None:
    """Let SIGTERM and SIGHUP unwind the command like Ctrl-C, so that no temporary file is left.

    A signal that the parent process ignored stays ignored, since `nohup` works in that way.
    """

    def leave(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, leave)


def _discard_output() -> None:
    """Prevent the interpreter from flushing, at its exit, to a pipe or disk that has failed."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _hint(error: RunedError) -> str:
    """Return the way to more about an error, for a person at a terminal. A setting says all by itself, and so does a log."""
    if isinstance(error, SettingsError) or "\n" in error.message or sys.stderr is None or not sys.stderr.isatty():
        return ""
    if type(error) is not RunedError and error.reason == RunedError.reason:
        return ""  # an error of this command, which is no bug, as the reason of the daemon's own would tell
    from runed.reasons import find  # noqa: PLC0415 # as `_show_trace` does

    return f" (see `runed explain {error.reason}`)" if find(error.reason) else ""


def _show_trace() -> None:
    from runed.settings import debug_enabled  # noqa: PLC0415 # 50 ms that a command without an error does not spend

    if debug_enabled():
        import traceback  # noqa: PLC0415 # as above

        traceback.print_exc()


def _describe(error: Exception) -> str:
    """Return the type and place of a bug, but not its message, since a library may quote a user's text there."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    where = "" if place is None else f" at {Path(place.tb_frame.f_code.co_filename).name}:{place.tb_lineno}"
    return f"{type(error).__name__}{where}"
