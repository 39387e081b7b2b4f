"""The check finds classes and modules that are too long, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tools.sizes import MAX_CLASS_LINES, MAX_MODULE_LINES

ROOT = Path(__file__).resolve().parents[2]


def sizes(folder: Path) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "tools.sizes", str(folder)]
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)


def lines(count: int) -> str:
    return "    x = 1\n" * count


def test_what_fits_is_not_told(tmp_path: Path) -> None:
    whole = f"@decorated\nclass A:\n{lines(MAX_CLASS_LINES - 2)}"
    (tmp_path / "fits.py").write_text(whole + "# comment\n" * (MAX_MODULE_LINES - MAX_CLASS_LINES))
    checked = sizes(tmp_path)
    assert (checked.returncode, checked.stdout) == (0, "")


def test_one_line_more_is_told(tmp_path: Path) -> None:
    module = tmp_path / "package" / "long.py"
    module.parent.mkdir()
    module.write_text(f"x = 1\n@decorated\nclass A:\n{lines(MAX_CLASS_LINES - 1)}" + "# comment\n" * MAX_MODULE_LINES)
    checked = sizes(tmp_path)
    assert checked.returncode == 1
    assert checked.stdout.splitlines() == [
        f"{module}:1: the module has {MAX_MODULE_LINES + MAX_CLASS_LINES + 2} lines, more than {MAX_MODULE_LINES}",
        f"{module}:2: the class A has {MAX_CLASS_LINES + 1} lines, more than {MAX_CLASS_LINES}",
    ]


def test_classes_in_functions_and_classes_count(tmp_path: Path) -> None:
    inner = "class Outer:\n    class Inner:\n" + "        x = 1\n" * MAX_CLASS_LINES
    (tmp_path / "nested.py").write_text(inner)
    assert [line.split(": ")[1] for line in sizes(tmp_path).stdout.splitlines()] == [
        f"the class Outer has {MAX_CLASS_LINES + 2} lines, more than {MAX_CLASS_LINES}",
        f"the class Inner has {MAX_CLASS_LINES + 1} lines, more than {MAX_CLASS_LINES}",
    ]
