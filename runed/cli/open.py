"""`runed open`: show in a browser what the daemon does."""

from __future__ import annotations

import argparse
import contextlib
import html
import http.client
import json
import os
import sys
import webbrowser
from dataclasses import dataclass
from pathlib import Path

from runed.cli.boundary import ExitCode, complain, tell
from runed.cli.watching import watched
from runed.errors import DaemonUnavailableError
from runed.files import write_atomically
from runed.lifecycle.listener import dial
from runed.lifecycle.spawn import ensure_daemon
from runed.paths import Paths, ensure_private_dir
from runed.settings import Settings, load_settings
from runed.version import __version__

DESCRIPTION = """\
Show in a browser what the daemon does: models, queue, throughput and latency of
the last hour, memory, jobs, last errors, and a comparison of two texts. Starts
the daemon if none runs. The page is served on the port of RUNED_HTTP.

Prints a link that works once, within a minute, and opens it where there is a
display. A browser that has used it has access for 12 hours, or until the daemon
ends.
"""

EPILOG = """\
with --json, standard output is one JSON object:
  {"url": "...", "expires_in": 60}
expires_in is null if the port needs no token, and so the page needs no link.

examples:
  runed open
  runed open --print     for a browser that this terminal cannot open
"""

_START_SECONDS = 60.0
"""Seconds that the start of a daemon may take."""

_ANSWER_SECONDS = 10.0
"""Seconds that the daemon may take to answer."""

_LEADER = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="referrer" content="no-referrer">
<meta http-equiv="refresh" content="0; url={url}">
<title>runed</title>
<p>This leads to the page of runed, once. Otherwise run <code>runed open</code> again.</p>
</html>
"""


@dataclass(frozen=True, slots=True)
class _Link:
    """A link to the page.

    Attributes:
        url: The link; "" if the daemon has no port.
        expires_in: Seconds within which it has to be opened; None if it is the address of the page, which needs no link.
    """

    url: str
    expires_in: int | None


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = DESCRIPTION
    parser.epilog = EPILOG
    parser.add_argument("--print", action="store_true", dest="only_print", help="print the link, and open no browser")
    parser.add_argument("--json", action="store_true", help="for programs: one JSON object on standard output, and no browser")


def run(arguments: argparse.Namespace) -> int:
    """Get a link, print it and open it."""
    settings = load_settings()
    paths = Paths(settings.home)
    with watched(paths, patience=None):
        handle = ensure_daemon(settings, timeout=_START_SECONDS, minimum_version=__version__)
    if handle.complaint:
        complain(handle.complaint)
    link = _ask(handle.socket)
    if not link.url:
        complain(_how_to_set_a_port(settings, paths))
        return ExitCode.FAILED
    if arguments.json:
        print(json.dumps({"url": link.url, "expires_in": link.expires_in}))
        return ExitCode.OK
    tell(link.url)
    opened = not arguments.only_print and _has_display() and _open(link.url, paths)
    if link.expires_in is not None:
        # A browser in a sandbox, such as that of a snap, may not read the file in the home that leads to the link.
        where = "if the browser shows nothing, open the link above in it" if opened else "open this link"
        complain(f"{where} within {link.expires_in} seconds; it works once")
    return ExitCode.OK


def _ask(socket: Path) -> _Link:
    """Let the daemon make a link."""
    connection = http.client.HTTPConnection("localhost", timeout=_ANSWER_SECONDS)
    with contextlib.closing(connection):
        connection.sock = dial(socket, timeout=_ANSWER_SECONDS)
        try:
            connection.request("POST", "/page/link", headers={"content-length": "0"})
            response = connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException):
            raise DaemonUnavailableError(
                f"the daemon on {socket} gave no link; try again, and see `runed status` if that does not help"
            ) from None
    if response.status != http.client.OK:
        raise DaemonUnavailableError(
            "the daemon has no page yet; run `runed stop`, so that the next command starts a newer one"
        )
    answer = json.loads(body)
    return _Link(answer["url"], answer["expires_in"])


def _how_to_set_a_port(settings: Settings, paths: Paths) -> str:
    if settings.http is not None:
        return "the daemon was started without its port, which the settings name now; run `runed stop`, then `runed open`"
    config = Path(os.environ.get("RUNED_CONFIG") or paths.config)
    example = "" if config.exists() else ', as in {"version": 1, "http": "127.0.0.1:8321"}'
    return (
        f'there is no page, since the daemon has no port; add "http": "127.0.0.1:8321" to {config}{example}, '
        "run `runed stop`, then `runed open`"
    )


def _has_display() -> bool:
    """Return whether a browser can show something. A browser of the terminal would take its place."""
    return sys.platform == "darwin" or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"))


def _open(url: str, paths: Paths) -> bool:
    """Open a link by a private file that leads to it. All users may see the arguments of the browser."""
    ensure_private_dir(paths.page_link.parent)
    write_atomically(paths.page_link, _LEADER.format(url=html.escape(url)).encode())
    return webbrowser.open(paths.page_link.as_uri())
