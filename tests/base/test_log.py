"""Logs are JSON lines that hold no text of a user, and they stay bounded."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from runed import log
from runed.log import configure_logging, describe_exception, get_logger, tail


@pytest.fixture(autouse=True)
def restore_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers = []
    yield
    for handler in root.handlers:
        handler.close()
    root.handlers, root.level = handlers, level


def test_each_line_is_an_object_with_level_time_and_origin(home: Path) -> None:
    configure_logging(home / "daemon.log")
    get_logger("runed.test").info("hello", texts=3)
    logging.getLogger("some.library").warning("careful %s", "now")
    logging.getLogger("some.library").info("chatter")
    first, second = [json.loads(line) for line in (home / "daemon.log").read_text().splitlines()]
    assert (first["message"], first["level"], first["logger"], first["texts"]) == ("hello", "info", "runed.test", 3)
    assert first["timestamp"].endswith("Z")
    assert (second["message"], second["level"]) == ("careful now", "warning")


def test_file_is_rotated_by_size(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "MAX_LOG_BYTES", 2000)
    configure_logging(home / "daemon.log")
    for number in range(200):
        get_logger("runed.test").info("line", number=number)
    files = sorted(path.name for path in home.iterdir())
    assert files == ["daemon.log", "daemon.log.1", "daemon.log.2", "daemon.log.3"]
    assert all(path.stat().st_size <= 2000 for path in home.iterdir())
    assert json.loads((home / "daemon.log").read_text().splitlines()[-1])["number"] == 199


def test_unexpected_exception_is_described_without_its_message() -> None:
    def fail() -> None:
        raise ValueError("cannot parse 'a secret text'")

    with pytest.raises(ValueError, match="secret") as caught:
        fail()
    described = describe_exception(caught.value)
    assert described["error_type"] == "builtins.ValueError"
    assert "fail" in described["where"]
    assert "secret" not in json.dumps(described)


def test_tail_of_a_long_and_of_a_missing_log(home: Path) -> None:
    (home / "log").write_text("\n".join(str(number) for number in range(100_000)))
    assert tail(home / "log", lines=2) == "99998\n99999"
    assert tail(home / "none") == ""
