"""`runed open`: a link to the page that works once, which no list of processes and no log shows."""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.cli.support import Cli

BROWSER = {"accept": "text/html"}
HINT = "runed: open this link within 60 seconds; it works once"


PAGE = Path(__file__).parents[2] / "docs" / "page.md"


@pytest.fixture
def with_port(cli: Cli) -> Cli:
    """A home whose daemon has the port of the example of docs/page.md, but one that is free, and no display."""
    [example] = re.findall(r"```json\n(.*?)\n```", PAGE.read_text(), re.DOTALL)
    (cli.home / "config.json").write_text(example.replace(":8321", ":0"))
    return cli.with_environment(DISPLAY="", WAYLAND_DISPLAY="", BROWSER="")


def test_without_a_port_it_says_how_to_set_one(served: Cli) -> None:
    done = served.run("open")
    assert (done.returncode, done.stdout) == (1, "")
    assert "there is no page, since the daemon has no port" in done.stderr
    assert f'add "http": "127.0.0.1:8321" to {served.home}/config.json' in done.stderr
    done = served.with_environment(RUNED_HTTP="127.0.0.1:0").run("open")
    assert done.returncode == 1
    assert "run `runed stop`, then `runed open`" in done.stderr


def test_link_works_once_and_is_in_no_log(with_port: Cli) -> None:
    done = with_port.run("open")  # which starts the daemon
    assert done.returncode == 0, done.stderr
    link = urlsplit(done.stdout.strip())
    assert done.stderr.splitlines()[-1] == HINT  # on a busy machine, others tell of the start of the daemon
    told = json.loads(with_port.run("open", "--json").stdout)
    assert (set(told), told["expires_in"]) == ({"url", "expires_in"}, 60)
    assert urlsplit(told["url"])[:3] == link[:3]
    with httpx.Client(base_url=f"{link.scheme}://{link.netloc}", headers=BROWSER) as http:
        page = http.get(f"/?{link.query}")
        assert page.status_code == 200
        state = http.get("/page/state", headers={"x-runed-page": link.fragment})  # with the cookie
        assert state.json()["daemon"]["status"] in {"OK", "LOADING"}
        compared = http.post("/page/similarity", json={"texts": ["tea", "tea"]}, headers={"x-runed-page": link.fragment})
        assert compared.json()["cosine"] == pytest.approx(1, abs=1e-5)
        state = http.get("/page/state", headers={"x-runed-page": link.fragment})
        assert state.json()["daemon"]["requests"] == 1
        cookie = next(iter(http.cookies.values()))
        http.cookies.clear()
        assert http.get(f"/?{link.query}").status_code == 401
    log = with_port.paths.daemon_log.read_text() + with_port.paths.events_log.read_text()
    for secret in (link.query.partition("=")[2], link.fragment, cookie, (with_port.home / "http.token").read_text().strip()):
        assert secret not in log


def test_browser_is_led_there_by_a_private_file(with_port: Cli, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    program = tmp_path / "browser"
    program.write_text(f'#!/bin/sh\nprintf %s "$*" > {seen}\n')
    program.chmod(0o700)
    done = with_port.with_environment(BROWSER=f"{program} %s").run("open")
    assert (done.returncode, HINT in done.stderr) == (0, False)
    link = done.stdout.strip()
    argument = seen.read_text()
    assert argument == with_port.paths.page_link.as_uri()
    assert stat.S_IMODE(with_port.paths.page_link.stat().st_mode) == 0o600
    [target] = re.findall(r'content="0; url=([^"]+)"', with_port.paths.page_link.read_text())
    assert target.replace("&amp;", "&") == link
    assert with_port.with_environment(BROWSER=f"{program} %s").run("open", "--print").stdout.strip() != link
    assert seen.read_text() == argument


def test_port_without_a_token_needs_no_link(with_port: Cli) -> None:
    open_port = with_port.with_environment(RUNED_HTTP_TOKEN="off")
    done = open_port.run("open")
    assert (done.returncode, HINT in done.stderr) == (0, False)
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\n", done.stdout)
    assert json.loads(open_port.run("open", "--json").stdout) == {"url": done.stdout.strip(), "expires_in": None}
    assert "Compare two texts" in httpx.get(done.stdout.strip(), headers=BROWSER).text
