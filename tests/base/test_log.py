"""Logs are JSON lines without any text of a user, and their size is bounded."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import re
import resource
import signal
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from runed.log import (
    CALLS,
    REFUSALS_PAUSE,
    SOON,
    configure_logging,
    describe_exception,
    get_logger,
    log_refusal,
    log_unobserved_exception,
    write_waiting,
)
from tests.scheduling.virtual import virtual_time


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


def test_file_is_rotated_by_size(home: Path) -> None:
    configure_logging(home / "daemon.log", max_bytes=2000)
    for number in range(200):
        get_logger("runed.test").info("line", number=number)
    files = sorted(path.name for path in home.iterdir())
    assert files == ["daemon.log", "daemon.log.1", "daemon.log.2", "daemon.log.3"]
    assert all(path.stat().st_size <= 2000 for path in home.iterdir())
    assert json.loads((home / "daemon.log").read_text().splitlines()[-1])["number"] == 199


def test_file_that_cannot_be_rotated_is_bounded_and_goes_on(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = home / "runed.log"
    (home / "runed.log.1").mkdir()
    configure_logging(file, max_bytes=2_000)
    for number in range(200):
        get_logger("runed.test").info("event", number=number)
        assert file.stat().st_size <= 2_000
        assert msgspec.json.decode(file.read_bytes().splitlines()[-1])["number"] == number
    assert capfd.readouterr() == ("", "")


def test_line_that_cannot_be_written_is_dropped_and_later_ones_are_written(
    home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = home / "runed.log"
    configure_logging(file)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    usual = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, limits[1]))  # the kernel refuses what goes beyond, as on a full disk
        for number in range(100):
            get_logger("runed.test").info("event", number=number)
        assert file.stat().st_size == 1_000
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, usual)
    get_logger("runed.test").info("event", number=100)
    lines = [msgspec.json.decode(line)["number"] for line in file.read_bytes().splitlines()]
    assert lines[-1] == 100
    assert len(lines) < 20
    assert capfd.readouterr() == ("", "")


def test_calls_do_not_push_events_out(home: Path) -> None:
    configure_logging(home / "daemon.log", events=home / "events.log", max_bytes=2000)
    get_logger("runed.test").warning("the engine was replaced")
    for number in range(200):
        get_logger(CALLS).info("embedding call", number=number)
    assert all("replaced" not in path.read_text() for path in home.glob("daemon.log*"))
    assert [json.loads(line)["message"] for line in (home / "events.log").read_text().splitlines()] == [
        "the engine was replaced"
    ]


async def test_line_that_may_wait_is_written_soon_with_its_own_time(home: Path) -> None:
    configure_logging(home / "daemon.log")
    get_logger(CALLS).info_soon("embedding call", texts=1)
    before = datetime.now(UTC)
    assert (home / "daemon.log").read_text() == ""
    await asyncio.sleep(SOON + 0.1)
    line = json.loads((home / "daemon.log").read_text())
    assert (line["message"], line["level"], line["logger"], line["texts"]) == ("embedding call", "info", CALLS, 1)
    assert datetime.fromisoformat(line["timestamp"]) <= before


async def test_lines_that_wait_come_before_any_later_one(home: Path) -> None:
    configure_logging(home / "daemon.log")
    for number in range(3):
        get_logger(CALLS).info_soon("embedding call", number=number)
    get_logger("runed.test").warning("the engine was replaced")
    lines = [json.loads(line) for line in (home / "daemon.log").read_text().splitlines()]
    assert [line.get("number") for line in lines] == [0, 1, 2, None]
    write_waiting()
    assert len((home / "daemon.log").read_text().splitlines()) == 4


def test_line_of_an_event_loop_that_has_ended_is_written_with_the_next_one(home: Path) -> None:
    async def log() -> None:
        get_logger(CALLS).info_soon("embedding call", number=0)

    async def log_again() -> None:
        await asyncio.sleep(2 * SOON + 0.05)
        get_logger(CALLS).info_soon("embedding call", number=1)

    configure_logging(home / "daemon.log")
    asyncio.run(log())
    asyncio.run(log_again())
    lines = (home / "daemon.log").read_text().splitlines()
    assert [json.loads(line)["number"] for line in lines] == [0, 1]


def test_line_without_an_event_loop_does_not_wait(home: Path) -> None:
    configure_logging(home / "daemon.log")
    get_logger(CALLS).info_soon("embedding call")
    assert json.loads((home / "daemon.log").read_text())["message"] == "embedding call"


@virtual_time
async def test_refusals_of_a_kind_share_a_line_a_second(home: Path) -> None:
    configure_logging(home / "daemon.log")
    logger = get_logger("runed.test")
    for number in range(1000):
        log_refusal(logger, "refused", kind="A", number=number)
        log_refusal(logger, "refused", kind="B", number=number)
    await asyncio.sleep(REFUSALS_PAUSE + 0.2)
    log_refusal(logger, "refused", kind="A", number=1000)
    lines = [json.loads(line) for line in (home / "daemon.log").read_text().splitlines()]
    assert [(line["number"], line.get("times")) for line in lines] == [(0, None), (0, None), (999, 999), (999, 999)]
    await asyncio.sleep(REFUSALS_PAUSE + 0.2)
    lines = [json.loads(line) for line in (home / "daemon.log").read_text().splitlines()]
    assert [(line["number"], line.get("times")) for line in lines[4:]] == [(1000, None)]


def test_unexpected_exception_is_described_without_its_message() -> None:
    def fail() -> None:
        raise ValueError("cannot parse 'a secret text'")

    with pytest.raises(ValueError, match="secret") as caught:
        fail()
    described = describe_exception(caught.value)
    assert described["error_type"] == "builtins.ValueError"
    assert "fail" in described["where"]
    assert "secret" not in json.dumps(described)


def test_exception_that_a_library_logs_is_described_without_its_message(home: Path) -> None:
    configure_logging(home / "daemon.log")
    try:
        int("a secret text")
    except ValueError:
        logging.getLogger("some.library").exception("it failed")
    line = json.loads((home / "daemon.log").read_text())
    assert (line["message"], line["error_type"]) == ("it failed", "builtins.ValueError")
    assert "secret" not in json.dumps(line)


async def test_exception_that_nobody_awaits_is_logged_without_its_message(home: Path) -> None:
    configure_logging(home / "daemon.log")

    async def fail() -> None:
        raise ValueError("a secret text")

    loop = asyncio.get_running_loop()
    loop.set_exception_handler(log_unobserved_exception)
    task = asyncio.create_task(fail())
    await asyncio.wait({task})
    del task
    gc.collect()
    line = json.loads((home / "daemon.log").read_text())
    assert (line["message"], line["error_type"]) == ("failure in the event loop", "builtins.ValueError")
    assert "secret" not in json.dumps(line)


def test_no_control_character_reaches_a_log_as_it_is(home: Path) -> None:
    configure_logging(home / "log")
    get_logger("runed.test").warning("\x1b[2J\x7f\x9b", name="\x1b]0;x\x07\x7f\u202e\n")
    configure_logging()
    content = (home / "log").read_bytes()
    assert not re.search(rb"[\x00-\x09\x0b-\x1f\x7f-\xff]", content)
    assert json.loads(content)["name"] == "\x1b]0;x\x07\x7f\u202e\n"


@pytest.mark.parametrize("name", ["x" * 1_000_000, "\udcff" * 10_000, "\x1b" * 10_000])
def test_a_long_text_is_logged_without_its_middle(name: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(home / "daemon.log")
    get_logger("runed.test").warning("named", name=name, number=7)
    (line,) = (home / "daemon.log").read_text().splitlines()
    assert len(line) < 30_000
    assert (json.loads(line)["message"], json.loads(line)["number"]) == ("named", 7)
    assert "characters ...]" in json.loads(line)["name"]
    configure_logging(readable=True)
    get_logger("runed.test").warning("named", name=name)
    assert 0 < len(capsys.readouterr().err) < 120_000


def test_name_that_is_no_unicode_and_a_huge_number_are_logged(home: Path) -> None:
    configure_logging(home / "log")
    get_logger("runed.test").warning("odd", file="a\udcff", number=10**30, path=home)
    line = json.loads((home / "log").read_text())
    assert (line["file"], line["number"]) == ("a\udcff", 10**30)
    assert str(home) in line["path"]


def test_line_is_rendered_once_for_all_files(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rendered = []
    encode = msgspec.json.encode

    def note(document: object, **options: Any) -> bytes:  # noqa: ANN401 # those of msgspec
        rendered.append(document)
        return encode(document, **options)

    monkeypatch.setattr(msgspec.json, "encode", note)
    configure_logging(home / "daemon.log", events=home / "events.log")
    get_logger("runed.test").info("hello")
    assert len(rendered) == 1
    assert (home / "daemon.log").read_text() == (home / "events.log").read_text() != ""
