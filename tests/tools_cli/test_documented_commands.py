"""Runs the commands for tools in docs/clients.md, unchanged."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import RunningDaemon

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "clients.md"

EXPECTED = {
    "curl": ['"vector"', '"embeddings"', '"STATUS_OK"', "runed_engine_up 1.0"],
    "grpcurl": ["grpc.health.v1.Health", "service RunedService", "message EmbedRequest", '"vector"', '"id": "b"'],
    "buf curl": ["runed.v1.RunedService/Embed", '"vector"', '"id": "b"'],
    "grpc_health_probe": ["SERVING"],
}
"""Parts of the commands' expected output, by heading."""


def commands(heading: str) -> str:
    """Return the commands of a section."""
    section = re.split(r"^## ", DOCUMENT.read_text(), flags=re.MULTILINE)
    [body] = [text for text in section if text.startswith(f"{heading}\n")]
    return "\n".join(re.findall(r"^```sh\n(.*?)^```", body, flags=re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize("heading", EXPECTED)
def test_commands_work(heading: str, qwen_daemon: RunningDaemon) -> None:
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "S": str(qwen_daemon.socket),
    }
    result = subprocess.run(
        ["bash", "-e", "-c", commands(heading)], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    shown = result.stdout + result.stderr
    assert result.returncode == 0, shown
    assert [words for words in EXPECTED[heading] if words not in shown] == []
    assert '"code":' not in shown, "an error in JSON, which curl takes for success"
