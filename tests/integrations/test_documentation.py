"""Runs the Python examples of docs/clients.md that need no API but ours, and those of docs/rerank.md."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import RunningDaemon, clean_environment

DOCUMENT = Path(__file__).resolve().parent.parent.parent / "docs" / "clients.md"


@pytest.mark.parametrize("title", ["Python", "LangChain", "LlamaIndex", "Chroma", "Like sentence-transformers"])
def test_an_example_prints_what_stands_beside_it(title: str, minilm_daemon: RunningDaemon, tmp_path: Path) -> None:
    section = DOCUMENT.read_text().partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    examples = re.findall(r"^```python\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    assert examples
    for example in examples:
        promised = re.findall(r"^ *print\(.*\)  # (.*)$", example, re.MULTILINE)
        assert promised
        result = subprocess.run(
            [sys.executable, "-c", example],
            # Earlier versions of Chroma sent telemetry, and later ones may do so again.
            env=clean_environment(RUNED_HOME=str(minilm_daemon.home), ANONYMIZED_TELEMETRY="false"),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert (result.returncode, result.stdout.splitlines()) == (0, promised), result.stderr


@pytest.mark.parametrize("title", ["Python", "LangChain", "LlamaIndex"])
def test_an_example_of_reranking_runs(title: str, reranker_daemon: RunningDaemon, tmp_path: Path) -> None:
    section = DOCUMENT.with_name("rerank.md").read_text().partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    [example] = re.findall(r"^```python\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    result = subprocess.run(
        [sys.executable, "-c", example],
        env=clean_environment(RUNED_HOME=str(reranker_daemon.home)),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    assert any(0 < float(number) < 1 for number in re.findall(r"0\.\d+", result.stdout)), result.stdout
