"""Takes the pictures of docs/page.md in a real browser, and makes them small.

The numbers of the pictures are made up: `busy_hour` in tests/fakes/page_port.py has them.

    python -m tools.page_pictures
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent

FOLDER = ROOT / "tests" / "interop" / "page-node"
"""The package of Node.js with the tests of the page."""

BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
"""Browsers that Playwright can drive, by their programs."""

_COLORS = 128
"""Colors of a picture. The page has few, besides those between letters and what is behind them."""


def find_browser() -> str | None:
    """Return the browser of this machine, or None. Playwright's own is not downloaded."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def environment(browser: str) -> dict[str, str]:
    """Return the environment of a program of `FOLDER`.

    Args:
        browser: The program of the browser.
    """
    return os.environ | {"BROWSER_PATH": browser, "PYTHON": sys.executable, "ROOT": str(ROOT)}


def main() -> int:
    """Take the pictures, and return the exit code."""
    if (browser := find_browser()) is None:
        print(f"there is none of {', '.join(BROWSERS)}; on Debian: apt install chromium-headless-shell", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["node", "shots.mjs", folder], cwd=FOLDER, env=environment(browser), check=True)
        for shot in sorted(Path(folder).iterdir()):
            picture = ROOT / "docs" / shot.name
            with Image.open(shot) as taken:
                taken.convert("RGB").quantize(_COLORS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(
                    picture, optimize=True
                )
            print(f"{picture}: {picture.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
