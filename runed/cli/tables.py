"""Tables for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

WORDS = ("", "best for", "device", "engine", "variant")
"""Names of columns of words."""


def table(*columns: str) -> Table:
    """Make a table without rows. The columns that `WORDS` names are aligned to the left, all others to the right."""
    from rich.table import Table  # noqa: PLC0415 # 60 ms that a command which is asked for help does not spend

    result = Table(box=None, pad_edge=False)
    for column in columns:
        # Nothing is cut off: variants differ in the ends of their names.
        result.add_column(column, justify="left" if column in WORDS else "right", overflow="fold")
    return result


def print_table(table: Table) -> None:
    """Print a table on standard output."""
    from rich.console import Console  # noqa: PLC0415 # as above

    Console(highlight=False).print(table)


def milliseconds(value: float | None) -> str:
    """Return a time in seconds as milliseconds, for people."""
    return "-" if value is None else f"{value * 1000:,.1f} ms"
