"""The table of reasons agrees with the errors, with their codes, with docs/protocol.md and with the commands that it names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import runed.api.error_codes
from runed import errors
from runed.api.error_codes import code_of
from runed.cli.main import COMMANDS
from runed.reasons import REASONS, Reason, find

ROOT = Path(__file__).parents[2]

PAGE = (ROOT / "docs" / "protocol.md").read_text()

ROW = re.compile(r"^\| ([A-Z_]+) \| `([A-Z_]+)` \| (.*?) \| (.*?) ?\|$", re.MULTILINE)


def classes(of: type[errors.RunedError] = errors.RunedError) -> Iterator[type[errors.RunedError]]:
    for each in of.__subclasses__():
        if each.__module__ in {"runed.errors", "runed.api.error_codes"}:
            yield each
            yield from classes(each)


def test_the_table_of_the_page_is_that_of_the_code() -> None:
    shown = [
        (code, name, re.sub(r"\[(.*?)\]\(.*?\)", r"\1", when), metadata.strip())
        for code, name, when, metadata in ROW.findall(PAGE)
    ]
    sent = [reason for reason in REASONS if reason.code]
    assert shown == [(reason.code, reason.name, reason.when, reason.metadata) for reason in sent]


def test_every_error_has_a_row_and_every_row_an_error() -> None:
    raised = {each.reason for each in classes()} | {errors.RunedError.reason}
    assert {reason.name for reason in REASONS} == raised


@pytest.mark.parametrize("kind", [*classes(), errors.RunedError], ids=lambda kind: kind.__name__)
def test_the_codes_are_those_that_the_daemon_sends(kind: type[errors.RunedError]) -> None:
    rows = find(kind.reason)
    if rows[0].code:
        assert code_of(kind.__new__(kind)).name == rows[0].code


@pytest.mark.parametrize("reason", REASONS, ids=lambda reason: f"{reason.name}-{reason.code}")
def test_what_a_row_names_exists(reason: Reason) -> None:
    assert reason.remedy.endswith(".")
    assert len(reason.remedy) > 30
    for command, rest in re.findall(r"`runed ([a-z]+)([^`]*)`", f"{reason.when} {reason.remedy}"):
        assert command in COMMANDS
        source = (ROOT / "runed" / "cli" / f"{command}.py").read_text()
        assert all(f'"{option}"' in source for option in re.findall(r"--[a-z-]+", rest)), rest
    if reason.section:
        headings = re.findall(r"^#+ (.+)$", PAGE, re.MULTILINE)
        assert reason.section in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_a_reason_is_found_in_any_spelling() -> None:
    assert [reason.name for reason in find("queue-full")] == ["QUEUE_FULL"]
    assert len(find("malformed_request")) == 2
    assert find("NO_SUCH") == []
    assert runed.api.error_codes.MalformedRequestError.reason == "MALFORMED_REQUEST"
