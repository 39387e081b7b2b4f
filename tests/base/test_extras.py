"""The command that installs an extra, by how runed itself was installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("distribution", "record", "command"),
    [
        ("runed", None, "pip install 'runed[onnx]'"),
        ("runed_client", None, "pip install 'runed-client[onnx]'"),
        ("runed", {"url": "file://{tmp_path}/a%20clone", "dir_info": {}}, "pip install '{tmp_path}/a clone[onnx]'"),
        ("runed", {"url": "file://{tmp_path}/gone.whl", "archive_info": {}}, "pip install 'runed[onnx]'"),
        ("runed", {"url": "https://example.com/runed-1.whl", "archive_info": {}}, "pip install 'runed[onnx]'"),
        ("another", None, "pip install 'runed[onnx]'"),
    ],
)
def test_the_command_names_what_this_runed_was_installed_from(
    tmp_path: Path, distribution: str, record: dict[str, object] | None, command: str
) -> None:
    (tmp_path / "a clone").mkdir()
    folder = tmp_path / f"{distribution}-1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1\n")
    if record is not None:
        (folder / "direct_url.json").write_text(json.dumps(record).replace("{tmp_path}", str(tmp_path)))
    program = f"import sys; sys.path = [{str(tmp_path)!r}, {str(ROOT)!r}, *sys.path]; from runed.extras import install_command"
    # -S: without the installed runed
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"{program}; print(install_command('onnx'))"], capture_output=True, text=True, check=True
    )
    assert done.stdout == command.replace("{tmp_path}", str(tmp_path)) + "\n"
