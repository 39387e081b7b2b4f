"""The model hub, Hugging Face: its mirror (`HF_ENDPOINT`), its token (`HF_TOKEN`), and the addresses of its files."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from runed.bootstrap.proxies import is_this_machine
from runed.errors import SettingsError, quoted
from runed.settings import HUB, Settings, secret_variable

_SCHEME = "hf:"

_REPOSITORY_FILE = re.compile(
    r"hf:(?P<repository>[\w.-]+/[\w.-]+)/(?P<file>[^@?#\\\x00-\x20\x7f]+?)(?:@(?P<revision>[\w./-]+))?", re.ASCII
)


@dataclass(frozen=True, slots=True)
class Hub:
    """The hub that files are fetched from.

    Attributes:
        endpoint: Its URL, without a slash at the end.
        token: The token for files that not everybody may read, or "".
    """

    endpoint: str = HUB
    token: str = ""

    @classmethod
    def of(cls, settings: Settings) -> Hub:
        """Return the hub of the settings, with the token of the environment."""
        return cls(settings.hf_endpoint, secret_variable("HF_TOKEN"))

    def address(self, url: str) -> str:
        """Return the URL to fetch instead of a URL of the hub. Other URLs stay."""
        return self.endpoint + url.removeprefix(HUB) if url.startswith(f"{HUB}/") else url

    def owns(self, url: str) -> bool:
        """Return whether a URL is one of the hub, as `address` returns it."""
        return _origin(url) == _origin(self.endpoint)

    def headers(self, url: str) -> dict[str, str]:
        """Return the headers for a request: the token if the URL is one of the hub, and nobody on the way can read it."""
        parts = urlsplit(url)
        safe = parts.scheme == "https" or is_this_machine(parts.hostname or "")
        return {"Authorization": f"Bearer {self.token}"} if self.token and safe and self.owns(url) else {}


def is_hub_file(source: str) -> bool:
    """Return whether a text names a file of the hub, as in "hf:owner/repository/file.gguf@revision"."""
    return source.startswith(_SCHEME)


def hub_file(source: str, origin: str) -> tuple[str, str]:
    """Read the name of a file of the hub.

    Args:
        source: The name, such as "hf:owner/repository/folder/file.gguf@revision". Without a revision, it is "main".
        origin: The place where it stands, for the error.

    Returns:
        Its URL at the hub, and the file's own name.

    Raises:
        SettingsError: It is not such a name.
    """
    found = _REPOSITORY_FILE.fullmatch(source)
    parts = found["file"].split("/") if found else []
    if found is None or {"", ".", ".."} & {*parts, *found["repository"].split("/"), *(found["revision"] or "main").split("/")}:
        raise SettingsError(
            f'{origin}: {quoted(source)} names no file of the hub; accepted is "hf:owner/repository/file.gguf@revision"'
        )
    revision = quote(found["revision"] or "main", safe="")
    return f"{HUB}/{found['repository']}/resolve/{revision}/{quote(found['file'])}", parts[-1]


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)
