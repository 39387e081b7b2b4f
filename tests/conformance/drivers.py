"""The conformance drivers: one small program for each language, over that language's public client."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CLIENTS = Path(__file__).resolve().parents[2] / "clients"

PROTOCOLS = {
    "python": ("connect",),
    "go": ("connect", "grpc", "grpcweb"),
    "typescript": ("connect", "grpc", "grpcweb"),
}
"""Protocols of each language's client."""

DRIVERS = [(language, protocol) for language, protocols in PROTOCOLS.items() for protocol in protocols]


class Drivers:
    """The drivers of all languages.

    Args:
        folder: The folder of the compiled drivers.
    """

    def __init__(self, folder: Path) -> None:
        self._go = folder / "go-driver"
        self._programs = {
            "python": [sys.executable, str(Path(__file__).with_name("driver.py"))],
            "go": [str(self._go)],
            "typescript": ["node", str(CLIENTS / "ts" / "build" / "test" / "conformance.js")],
        }

    def build(self) -> None:
        """Build the drivers that must be compiled."""
        self.build_go()
        subprocess.run(["npm", "run", "--silent", "build:test"], cwd=CLIENTS / "ts", check=True)

    def build_go(self) -> None:
        """Build the driver of Go alone."""
        subprocess.run(["go", "build", "-o", str(self._go), "./internal/conformance"], cwd=CLIENTS / "go", check=True)

    def command(self, language: str, protocol: str, socket: Path | None) -> list[str]:
        """Return the command of a driver. It calls the given socket; without one, it finds or starts the daemon."""
        place = ["--connect"] if socket is None else ["--socket", str(socket)]
        return [*self._programs[language], *place, "--protocol", protocol]

    def run(self, language: str, protocol: str, socket: Path, lines: Sequence[str]) -> dict[str, Any]:
        """Run a driver over calls, and return its answers by id, in the order of the calls."""
        driver = subprocess.run(
            self.command(language, protocol, socket),
            input="".join(f"{line}\n" for line in lines),
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert driver.returncode == 0, f"{language} over {protocol}: {driver.stderr[-4000:]}"
        answers = [json.loads(line) for line in driver.stdout.splitlines()]
        return {answer["id"]: answer for answer in answers}
