"""Record a session with the daemon as docs/session.svg, the picture of README; `make session` does so.

The commands are run as they are shown, on a terminal, with the real engine and the model of the tests.
"""

from __future__ import annotations

import io
import os
import pty
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

from tools.engine import programs_folder

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "session.svg"
MODEL = ROOT / "build" / "all-minilm-l6-v2.f16.gguf"

COLUMNS = 100

JOB = """for i in $(seq 2000); do echo "text number $i"; done > texts.txt"""
"""Makes the texts of a job, before the session begins."""

JOB_SECONDS = 3.0
"""Seconds that a job goes on before the next command."""

COMMANDS = (
    'runed embed "hello" | cut -c -96',
    "runed embed -f texts.txt -o vectors.npy &",
    "runed top --once",
)
"""What is shown. A command that ends with & goes on while the next ones run."""


def main() -> int:
    """Record the session.

    Returns:
        The exit code, 0.
    """
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    with tempfile.TemporaryDirectory(prefix="rd-", dir="/tmp") as folder:
        home = Path(folder)
        own = {
            "HOME": folder,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "RUNED_LLAMA_SERVER": str(programs_folder() / "llama-server"),
            "RUNED_MODEL": str(MODEL),
            "TERM": "xterm-256color",
            "COLUMNS": str(COLUMNS),
        }
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RUNED_")} | own
        subprocess.run(["bash", "-c", f"{JOB}; runed ensure --wait"], cwd=home, env=environment, check=True, timeout=60)
        background: list[subprocess.Popen[bytes]] = []
        try:
            for command in COMMANDS:
                console.print(Text(f"$ {command}", "bold green"), highlight=False)
                if command.endswith("&"):
                    background.append(
                        subprocess.Popen(command.rstrip("& ").split(), cwd=home, env=environment, stderr=subprocess.DEVNULL)
                    )
                    time.sleep(JOB_SECONDS)
                else:
                    console.print(Text.from_ansi(_on_terminal(command, home, environment)), highlight=False)
        finally:
            for job in background:
                job.terminate()
                job.wait()
            subprocess.run(["runed", "stop"], env=environment, check=True, timeout=60)
    # rich's own format asks another host for its font.
    form = re.sub(r"@font-face \{\{.*?\}\}\n", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    PICTURE.write_text(console.export_svg(title="runed", code_format=form, unique_id="session"))
    return 0


def _on_terminal(command: str, folder: Path, environment: dict[str, str]) -> str:
    """Return what a command leaves on a terminal, without the lines that it has drawn over."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        ["bash", "-c", command], cwd=folder, env=environment, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    ) as process:
        os.close(theirs)
        shown = b""
        try:
            while part := os.read(ours, 65_536):
                shown += part
        except OSError:  # the end of a terminal on Linux
            pass
        os.close(ours)
    if process.returncode:
        raise SystemExit(f"{command!r} ended with {process.returncode}: {shown.decode()}")
    text = shown.decode().replace("\r\n", "\n").replace(folder.as_posix(), "~")
    return re.sub(r"^.*(\r|\x1b\[[0-9]*A)(?=.)", "", text, flags=re.MULTILINE).rstrip("\n")


if __name__ == "__main__":
    if shutil.which("bash") is None:
        sys.exit("tools.session needs bash")
    sys.exit(main())
