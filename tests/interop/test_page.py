"""The page of the daemon in a real browser. `tests/interop/page-node` has the tests."""

from __future__ import annotations

import subprocess

import pytest

from tools.page_pictures import BROWSERS, FOLDER, environment, find_browser

pytestmark = [pytest.mark.foreign, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="session")
def browser() -> str:
    """The browser of this machine."""
    if (found := find_browser()) is None:
        pytest.skip(f"there is none of {', '.join(BROWSERS)}; on Debian: apt install chromium-headless-shell")
    return found


def test_page_in_a_browser(browser: str) -> None:
    assert (FOLDER / "node_modules").is_dir(), f"{FOLDER}/node_modules is missing: run `make setup`"
    done = subprocess.run(
        ["node", "--test", "--test-reporter=tap"],
        env=environment(browser),
        cwd=FOLDER,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "# skipped 0" in done.stdout.splitlines()
