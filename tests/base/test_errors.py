"""Errors that arrive over the wire."""

from __future__ import annotations

from runed.client.calls.texts import relocated
from runed.errors import (
    BackendUnavailableError,
    EmptyTextError,
    InvalidRequestError,
    RunedError,
    RunedWarning,
    apology,
    bounded,
    error_of_reason,
    printable,
    quoted,
)


def test_known_reason_gives_its_class_whatever_else_is_told() -> None:
    error = error_of_reason("EMPTY_TEXT", "told", metadata={"index": "0"}, otherwise=BackendUnavailableError)
    assert type(error) is EmptyTextError
    assert (error.reason, error.message, error.metadata) == ("EMPTY_TEXT", "told", {"index": "0"})


def test_reason_of_a_newer_daemon_is_kept() -> None:
    error = error_of_reason("OF_TOMORROW", "told", metadata={"index": "1"}, otherwise=InvalidRequestError)
    assert isinstance(error, InvalidRequestError)
    assert error.reason == "OF_TOMORROW"
    moved = relocated(error, 10, 5)
    assert (moved.reason, moved.metadata) == ("OF_TOMORROW", {"index": "11"})
    assert InvalidRequestError.reason == "INVALID_REQUEST"


def test_error_without_a_reason_has_that_of_its_class() -> None:
    assert error_of_reason("", "told").reason == RunedError.reason == "INTERNAL"
    assert error_of_reason("", "told", otherwise=BackendUnavailableError).reason == "BACKEND_UNAVAILABLE"


def test_a_text_of_a_file_or_server_cannot_steer_the_terminal_through_an_error() -> None:
    error = RunedError("a \x1b]0;title\x07 b\x9b2J\r\x7f\u202e\udcff é\tlast\nline")
    assert error.message == r"a \x1b]0;title\x07 b\x9b2J\r\x7f\u202e\udcff é" + "\tlast\nline"


def test_a_name_stays_on_its_line() -> None:
    assert printable("a\nb\tc é 名") == r"a\nb\tc é 名"


def test_a_long_text_loses_its_middle_and_keeps_what_to_do() -> None:
    error = RunedError(f"the name {'x' * 1_000_000} is bad; choose another one")
    assert error.message.startswith("the name xxx")
    assert error.message.endswith("xxx is bad; choose another one")
    assert "x[... 996,036 characters ...]x" in error.message
    assert len(error.message) < 4100
    assert len(error.retold("y" * 100_000).message) < 4100
    assert len(str(RunedWarning("y" * 100_000))) < 4100
    assert bounded("abcdef", 4) == "ab[... 2 characters ...]ef"
    assert bounded("abcd", 4) == "abcd"


def test_a_value_is_repeated_on_one_line_and_in_part() -> None:
    assert quoted("a\n\x1b[2J\u202e") == r"'a\n\x1b[2J\u202e'"
    assert len(quoted("\x1b" * 1_000_000)) < 600
    assert quoted(7) == "7"
    assert len(quoted(["x" * 1000])) < 200


def test_refused_memory_is_no_bug_to_report_and_nothing_is_quoted() -> None:
    refused = apology(MemoryError("my text"))
    assert refused.reason == "INTERNAL"
    assert "refused memory" in refused.message
    assert "report" not in refused.message
    assert "please report it" in apology(ValueError("my text")).message
    assert "my text" not in refused.message + apology(ValueError("my text")).message
