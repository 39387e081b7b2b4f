"""Tables of the pages have what the code has."""

from __future__ import annotations

import json
import re

import pytest

from runed.cli.main import COMMANDS
from tests.docs.blocks import ROOT

SOURCES = "\n".join(path.read_text() for path in sorted((ROOT / "runed").rglob("*.py")))


def rows(page: str, header: str) -> list[list[str]]:
    """Return the cells of a table."""
    lines = (ROOT / "docs" / page).read_text().partition(f"{header}\n")[2].splitlines()[1:]
    table = lines[: next((number for number, line in enumerate(lines) if not line.startswith("|")), None)]
    assert table, header
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))] for line in table]


def test_each_command_has_a_row() -> None:
    shown = [
        word.removeprefix("runed ") for row in rows("cli.md", "| command | does |") for word in re.findall(r"`(.+?)`", row[0])
    ]
    assert sorted(shown) == sorted([*COMMANDS, "rundemo"])


def test_each_model_has_a_row() -> None:
    manifest = json.loads((ROOT / "runed" / "bootstrap" / "default_manifest.json").read_text())
    table = rows("models.md", "| model | vectors | shorter, down to | context | licence | file |")
    shown = [name for row in table for name in re.findall(r"`(.+?)`", row[0])]
    assert sorted(shown) == sorted({name.rpartition(".")[0] for name in manifest["models"]})
    for row in table:
        contexts = {
            facts["context"]
            for name, facts in manifest["models"].items()
            if f"`{name.rpartition('.')[0]}`" in row[0] and "context" in facts
        }
        assert contexts == {int(number.replace(",", "")) for number in row[3].split(";")}, row[0]


@pytest.mark.parametrize("message", [row[0] for row in rows("troubleshooting.md", "| message or reason | means | do this |")])
def test_a_message_of_troubleshooting_is_one_of_runed(message: str) -> None:
    words = re.fullmatch(r"(`+) ?(.+?) ?\1", message)
    # A long message is written as several strings.
    assert words is None or words[2] in SOURCES or words[2] in re.sub(r'"\s+f?"', "", SOURCES)
