"""Makes attacks, and describes their results as rows of a table."""

from __future__ import annotations

from tests.hostile import load, odd, safety, waits
from tests.hostile.arena import Arena, Attack, Measured

MODULES = (safety, load, waits, odd)
"""The modules whose import adds their attacks to the table."""


def tried(attack: Attack) -> Measured:
    """Make an attack, in an arena of its own. An error of the attack itself misses the bar."""
    with Arena() as arena:
        try:
            return attack.run(arena)
        except Exception as error:  # noqa: BLE001 # an attack that cannot be made must not end the others
            return Measured(f"{type(error).__name__}: {error}"[:300], ok=False)


HEAD = "| item | attack | measured | bar | ok | seconds |\n|---|---|---|---|---|---|"
"""The head of the table."""


def row(attack: Attack, measured: Measured, seconds: float) -> str:
    """Return a row of the table."""
    verdict = {True: "ok", False: "MISSED", None: "not tried"}[measured.ok]
    text = measured.text.replace("|", "/").replace("\n", " ")
    return f"| {attack.item} | {attack.name} | {text} | {attack.bar} | {verdict} | {seconds:.1f} |"
