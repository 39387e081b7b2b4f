"""Finds classes and modules that are too long to be read in one go.

    python -m tools.sizes runed tools

It prints one line for each of them, and exits with 1 if there is any.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

MAX_CLASS_LINES = 250
"""Lines that a class may have, from its first decorator to its end."""

MAX_MODULE_LINES = 500
"""Lines that a module may have."""


def too_long(path: Path) -> Iterator[str]:
    """Yield one line for each class that is too long, and for the module if it is, in the form of a compiler's message."""
    source = path.read_text()
    lines = len(source.splitlines())
    if lines > MAX_MODULE_LINES:
        yield f"{path}:1: the module has {lines} lines, more than {MAX_MODULE_LINES}"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            assert node.end_lineno is not None  # the parser always sets it
            lines = node.end_lineno - first + 1
            if lines > MAX_CLASS_LINES:
                yield f"{path}:{first}: the class {node.name} has {lines} lines, more than {MAX_CLASS_LINES}"


def main(folders: list[str]) -> int:
    """Check all modules in some folders.

    Returns:
        The exit code: 0 if nothing is too long.
    """
    problems = [problem for folder in folders for path in sorted(Path(folder).rglob("*.py")) for problem in too_long(path)]
    print(*problems, sep="\n", end="\n" if problems else "")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
