"""The page of the daemon in a real browser. `tests/interop/page-node` has the tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent / "page-node"
ROOT = FOLDER.parents[2]

BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")

pytestmark = [pytest.mark.foreign, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="session")
def browser() -> str:
    """The browser of this machine. Playwright's own is not downloaded."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"there is none of {', '.join(BROWSERS)}; on Debian: apt install chromium-headless-shell")
    return found


def test_page_in_a_browser(browser: str) -> None:
    assert (FOLDER / "node_modules").is_dir(), f"{FOLDER}/node_modules is missing: run `make setup`"
    done = subprocess.run(
        ["node", "--test", "--test-reporter=tap"],
        env=os.environ | {"BROWSER_PATH": browser, "PYTHON": sys.executable, "ROOT": str(ROOT)},
        cwd=FOLDER,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "# skipped 0" in done.stdout.splitlines()
