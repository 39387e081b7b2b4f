"""Draw the rooms of `runed` and their imports into docs/architecture.md, as `make picture` does.

The floors are the layers of import-linter's contract in pyproject.toml. The arrows are the imports of the code.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "architecture.md"

BEGIN = "<!-- The picture begins here; `make picture` writes it. -->\n"
END = "<!-- The picture ends here. -->\n"

BASE_LAYERS = 2
"""Lowest layers of the contract. They are drawn as one floor without arrows, since every room may import them."""

Imports = Mapping[str, set[str]]
"""The rooms that each room imports."""


def main() -> int:
    """Write the picture into the page.

    Returns:
        The exit code, 0.
    """
    PAGE.write_text(replace_picture(PAGE.read_text(), draw(read_layers(), read_imports())))
    return 0


def read_layers() -> list[list[str]]:
    """Return the rooms of each layer, the highest layer first."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contracts = settings["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    return [sorted(layer.replace("|", " ").replace(":", " ").split()) for layer in layers]


def read_imports() -> dict[str, set[str]]:
    """Return the imports between rooms. The names of `runed` itself are those of the client."""
    graph = grimp.build_graph("runed", cache_dir=None)
    imports: dict[str, set[str]] = {}
    for module in graph.modules - {"runed.__main__"}:
        for imported in graph.find_modules_directly_imported_by(module):
            if _room(module) != _room(imported):
                imports.setdefault(_room(module), set()).add(_room(imported))
    return imports


def draw(layers: list[list[str]], imports: Imports) -> str:
    """Return the picture as a Mermaid diagram, and a table of all imports between rooms that have a box of their own.

    The diagram leaves out an arrow if a longer way of arrows leads to the same room.
    """
    drawn = layers[:-BASE_LAYERS]
    base = {room for layer in layers[-BASE_LAYERS:] for room in layer}
    shown = {room: imports.get(room, set()) - base for layer in drawn for room in layer}
    diagram = ["<!-- tested: tests/tools/test_picture.py -->", "", "```mermaid", "flowchart TB"]
    for floor, layer in zip(range(len(drawn) + 1, 1, -1), drawn, strict=True):
        diagram += [f"    subgraph floor{floor}[floor {floor}]", *(f"        {room}" for room in layer), "    end"]
    diagram += ["    subgraph floor1[floor 1: base]", *(f"        {room}" for room in sorted(base)), "    end"]
    diagram += [f"    {room} --> {other}" for room, others in shortest(shown).items() for other in sorted(others)]
    table = ["| room | imports |", "|---|---|"]
    table += [f"| `{room}` | {', '.join(f'`{other}`' for other in sorted(others)) or '-'} |" for room, others in shown.items()]
    return "\n".join([*diagram, "```", "", *table, ""])


def shortest(imports: Imports) -> dict[str, set[str]]:
    """Return the imports without those that a longer way of imports implies.

    Args:
        imports: All imports, without circles.
    """

    def reached(room: str) -> set[str]:
        return {room}.union(*(reached(other) for other in imports.get(room, ())))

    return {
        room: {other for other in others if not any(other in reached(third) for third in others - {other})}
        for room, others in imports.items()
    }


def replace_picture(page: str, picture: str) -> str:
    """Return the page with another picture between its two marks.

    Raises:
        ValueError: The page lacks a mark.
    """
    return f"{page[: page.index(BEGIN)]}{BEGIN}\n{picture}\n{page[page.index(END) :]}"


def _room(module: str) -> str:
    return module.split(".")[1] if "." in module else "client"


if __name__ == "__main__":
    sys.exit(main())
