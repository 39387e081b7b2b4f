"""URLs: their kind, the path of a `file:` URL, and the text that may be shown; and the time to wait that a web server tells."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlsplit, urlunsplit

from runed.errors import quoted

_SCHEME = re.compile(r"file(?=:)|[a-z][a-z0-9+.-]*(?=://)", re.IGNORECASE)
_FILE = re.compile(r"file:(?://(?:localhost|127\.0\.0\.1)?)?(/(?!/).*)", re.IGNORECASE | re.DOTALL)
_BLANK = re.compile(r"[\x00-\x20\x7f]")
_PLACE = re.compile(r"(?:\[[0-9a-f:.]+\]|[^][:\\<>^`{|}]+)(?::[0-9]*)?", re.IGNORECASE)
"""A host and perhaps a port."""

_LONGEST_WAIT = 366 * 86400.0
"""The most seconds to wait. Thousands of digits would be infinity, which no answer to a client can have."""


def scheme_of(location: str) -> str:
    """Return the scheme of a URL in small letters; "" if the text is a path."""
    found = _SCHEME.match(location)
    return found[0].lower() if found else ""


def beneath(folder: Path, location: str) -> str:
    """Return a location whose relative path begins at a folder. URLs, full paths and those of a user (`~`) stay as they are."""
    return location if scheme_of(location) or location.startswith("~") else str(folder / location)


def path_of_file_url(url: str) -> str:
    """Return the path of a `file:` URL.

    Raises:
        ValueError: It names another machine, or no full path.
    """
    found = _FILE.fullmatch(url)
    if found is None:
        raise ValueError(f"{quoted(url)} names no file of this machine; such a URL is written file:///full/path")
    return os.fsdecode(unquote_to_bytes(os.fsencode(found[1])))


def is_web_url(url: str) -> bool:
    """Return whether a text is an http or https URL with a host and a port that can be."""
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 # raises for a port that is no port
    except ValueError:
        return False
    place = parts.netloc.rpartition("@")[2]
    return parts.scheme in {"http", "https"} and _PLACE.fullmatch(place) is not None and not _BLANK.search(url)


def printable_url(url: str) -> str:
    """Return a URL without user, password and query, which may hold secrets, for messages, logs and the audit."""
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 # raises if the text before a "/" in a password was taken for host and port
    except ValueError:
        return "a malformed URL"
    if not parts.netloc and "@" in url:  # the scheme was forgotten, so a password may stand in any part
        return url.rpartition("@")[2].partition("?")[0]
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds to wait before another try, by the headers of an answer; None if they do not tell.

    Retry-After is a number of seconds or a date (RFC 9110, section 10.2.3). retry-after-ms is that of OpenAI.
    """
    value = headers.get("retry-after", "").strip()
    if (exact := headers.get("retry-after-ms", "").strip()).isdecimal():
        return min(float(exact) / 1000, _LONGEST_WAIT)
    if value.isdecimal():
        return min(float(value), _LONGEST_WAIT)
    if (until := _timestamp(value)) is None:
        return None
    # By the server's own clock, since that of this machine may be wrong by years.
    since = _timestamp(headers.get("date", ""))
    return max(0.0, until - (time.time() if since is None else since))


def _timestamp(date: str) -> float | None:
    import email.utils  # noqa: PLC0415 # 5 ms that a command which downloads nothing does not spend

    try:
        import email.utils  # noqa: PLC0415 # 8 ms, for a date that hardly any server tells

        return email.utils.parsedate_to_datetime(date).timestamp()
    except (ValueError, OverflowError):
        return None
