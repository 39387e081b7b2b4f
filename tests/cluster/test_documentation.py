"""Runs the Python examples of docs/scale.md."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import RunningDaemon, clean_environment

DOCUMENT = Path(__file__).resolve().parent.parent.parent / "docs" / "scale.md"


@pytest.mark.parametrize("title", ["Spark", "Daft and Dask"])
def test_examples_print_what_stands_beside_them(title: str, minilm_daemon: RunningDaemon, tmp_path: Path) -> None:
    run_examples(title, tmp_path, RUNED_HOME=str(minilm_daemon.home), SPARK_LOCAL_IP="127.0.0.1", PYSPARK_PYTHON=sys.executable)


def run_examples(title: str, folder: Path, **environment: str) -> None:
    """Run the examples of a section in a folder, and compare what they print with what the section says."""
    section = DOCUMENT.read_text().partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    found = re.findall(r"^(?:<!-- ([^\n]*) -->\n\n)?```python\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    examples = [example for note, example in found if not note.startswith("not run")]
    assert examples
    for example in examples:
        promised = re.findall(r"^ *print\(.*\)  # (.*)$", example, re.MULTILINE)
        assert promised
        result = subprocess.run(
            [sys.executable, "-c", example],
            env=clean_environment(**environment),
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=400,
        )
        assert (result.returncode, result.stdout.splitlines()) == (0, promised), result.stderr
