"""The proxy of a URL, by the variables that curl and other programs read.

httpx reads these variables, too. But it fails at usual values, such as an IPv6 network in `NO_PROXY`, and it sends requests to
this machine through a proxy.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from runed.errors import quoted
from runed.log import get_logger
from runed.settings import proxy_settings

_SCHEMES = ("http", "https", "socks5", "socks5h")
_PLACE = re.compile(r"(?:\[(?P<address>[0-9A-Fa-f:.]+)\]|(?P<host>[A-Za-z0-9_.-]+))(?::(?P<port>[0-9]{1,5}))?")
_NAME = re.compile(r"(?:\*?\.)?(?P<name>[\w-]+(?:\.[\w-]+)*)\.?")
_MAX_PORT = 65_535

_LOOPBACK_NAMES = {
    *("localhost.localdomain", "localhost4", "localhost4.localdomain4", "localhost6", "localhost6.localdomain6"),
    *("ip6-localhost", "ip6-loopback"),
}
"""Usual names of loopback in /etc/hosts, beside `localhost` and all names below it, which RFC 6761 reserves."""

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy.

    Attributes:
        url: The URL without user and password.
        auth: User and password, or None.
        variable: The variable that names it.
    """

    url: str
    auth: tuple[str, str] | None
    variable: str

    def __str__(self) -> str:
        return f"the proxy {self.url} of {self.variable}"


@dataclass(frozen=True, slots=True)
class _Exemption:
    """An entry of `NO_PROXY`: a network, or a name that includes all names below it; perhaps one port."""

    network: _Network | None
    name: str
    port: int | None

    def covers(self, host: str, address: _Address | None, port: int | None) -> bool:
        if self.port is not None and self.port != port:
            return False
        if self.network is not None:
            return address is not None and address in self.network
        return self.name == "*" or f".{host}".endswith(f".{self.name}")


class Proxies:
    """The proxies of the environment, read at the first look.

    Attributes:
        warnings: Sentences about entries that are skipped, since they cannot be used.
    """

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self._proxies: dict[str, Proxy] | None = None
        self._exemptions: list[_Exemption] = []

    def choose(self, url: str) -> Proxy | None:
        """Return the proxy for a web URL; None for a direct connection, which every URL of this machine gets."""
        if self._proxies is None:
            self._proxies = self._read()
        parts = urlsplit(url)
        host = (parts.hostname or "").rstrip(".")
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
        address = _address(host)
        if is_this_machine(host) or any(exempt.covers(host, address, port) for exempt in self._exemptions):
            return None
        return self._proxies.get(parts.scheme) or self._proxies.get("all")

    def way(self, url: str) -> str:
        """Return a clause that tells the proxy for a URL, and proxies that could not be used; "" if there are none."""
        proxy = self.choose(url)
        notes = ([f"through {proxy}"] if proxy else []) + self.warnings
        return f" ({'; '.join(notes)})" if notes else ""

    def _read(self) -> dict[str, Proxy]:
        settings = proxy_settings()
        proxies: dict[str, Proxy] = {}
        for kind in ("http", "https", "all"):
            value, variable = settings.get(kind, ("", ""))
            if value:
                try:
                    proxies[kind] = _parse_proxy(value, variable)
                except ValueError as error:
                    self._skip(f"{variable} is not used: {error}")
        hosts, variable = settings.get("no", ("", ""))
        for entry in re.split(r"[,\s]+", hosts):
            if entry:
                try:
                    self._exemptions.append(_parse_exemption(entry.lower()))
                except ValueError:
                    self._skip(
                        f"the entry {quoted(entry.rpartition('@')[2])} of {variable} is not used: it is no host, address or "
                        "network"
                    )
        return proxies

    def _skip(self, warning: str) -> None:
        _log.warning("proxy setting skipped", problem=warning)
        self.warnings.append(warning)


def _parse_proxy(value: str, variable: str) -> Proxy:
    """Parse the URL of a proxy. A password may hold any character, also those that belong escaped.

    Raises:
        ValueError: It cannot be used. The text does not quote it.
    """
    text = value.strip()
    scheme, rest = text.split("://", 1) if "://" in text else ("http", text)
    scheme = {"socks": "socks5"}.get(scheme.lower(), scheme.lower())  # as the settings of desktops such as GNOME write it
    if scheme not in _SCHEMES:
        raise ValueError(f"its kind is none of {', '.join(_SCHEMES)}")
    login, at, place = rest.rpartition("@")
    match = _PLACE.fullmatch(re.split(r"[/?#]", place)[0])
    if match is None or int(match["port"] or 0) > _MAX_PORT:
        raise ValueError("its host or port cannot be read; such a value is written http://host:port")
    if match["address"]:
        ipaddress.IPv6Address(match["address"])
    elif re.fullmatch(r"[0-9.]+", match["host"]):
        ipaddress.IPv4Address(match["host"])
    user, _, password = login.partition(":")
    return Proxy(f"{scheme}://{match[0]}", (unquote(user), unquote(password)) if at else None, variable)


def _parse_exemption(entry: str) -> _Exemption:
    """Parse a lower-case entry of `NO_PROXY`: `*`, a host, an address or a network, each with a port or without.

    Raises:
        ValueError: It is something else.
    """
    entry = entry.partition("://")[2] or entry
    if entry == "*":
        return _Exemption(None, "*", None)
    for text, port in _readings(entry):
        try:
            return _Exemption(ipaddress.ip_network(text, strict=False), "", port)
        except ValueError:
            if found := _NAME.fullmatch(text):
                return _Exemption(None, found["name"], port)
    raise ValueError(entry)


def _readings(entry: str) -> Iterator[tuple[str, int | None]]:
    """Yield an entry without brackets, and, if it ends with a port, without this port."""
    yield re.sub(r"[][]|%[^]/]*", "", entry) if re.fullmatch(r"\[[^]]*\](/[0-9]+)?|[^][]*", entry) else "", None
    if found := re.fullmatch(r"(?:\[(?P<address>[^]]*)\]|(?P<host>[^][:]*)):(?P<port>[0-9]{1,5})", entry):
        yield found["address"] or found["host"], int(found["port"])


def _address(host: str) -> _Address | None:
    """Return the address that a host is written as, also in the short forms of the C library, such as 127.1."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        try:
            return ipaddress.IPv4Address(socket.inet_aton(host))
        except (OSError, ValueError):
            return None
    return address.ipv4_mapped or address if isinstance(address, ipaddress.IPv6Address) else address


def is_this_machine(host: str) -> bool:
    """Return whether a host of a URL is this machine."""
    if (address := _address(host)) is not None:
        return address.is_loopback or address.is_unspecified
    return is_loopback_name(host)


def is_loopback_name(host: str) -> bool:
    """Return whether a name means this machine, whatever the name servers say."""
    name = host.lower().rstrip(".")
    return f".{name}".endswith(".localhost") or name in _LOOPBACK_NAMES
