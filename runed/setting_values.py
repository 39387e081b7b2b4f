"""Turns the text of a setting into its value.

The arguments of each function are the text, and its origin for the error. A bad value is a `SettingsError` of one line.
"""

from __future__ import annotations

import re
from contextlib import suppress
from ipaddress import ip_address

import durationpy

from runed.errors import SettingsError, quoted

_SIZE = re.compile(r"([0-9]{1,15}) ?(?:([KMGT]?)i?B?)", re.IGNORECASE)
_SIZE_UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
"""Powers of 1024 of the units. "MB" means the same as "MiB", since sizes of caches are usual in powers of 1024."""

_MAX_SIZE = 1024**6
"""Bytes of the largest size, 1 EiB. Sums of a few such numbers still fit into 64 bits, as the contract has them."""

_ADDRESS = re.compile(r"(?:([0-9.]+)|\[([0-9a-fA-F:.]+)\]):([0-9]{1,5})")
"""An address of IPv4, or one of IPv6 in brackets, and a port."""

_LOOPBACK = ("127.0.0.1", "::1")
"""The addresses that only this machine can connect to."""

_MAX_PORT = 65_535

_MAX_DURATION = 290 * 366 * 86_400.0
"""The most seconds of a duration. The system counts no more than 292 years in nanoseconds."""

_NONZERO = re.compile(r"[1-9]")

_BOOLEANS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


def as_written(value: str, origin: str) -> str:
    """Return a value as it was written: "VARIABLE='value'", or "key = 'value' in FILE".

    Args:
        value: The text, without secrets.
        origin: The variable; or "key in FILE".
    """
    key, of_file, place = origin.partition(" in ")
    return f"{key} = {quoted(value)} in {place}" if of_file else f"{origin}={quoted(value)}"


def whole_number(value: str, origin: str, *, least: int, most: int, what: str) -> int:
    """Read a whole number."""
    # The digits are counted first, since int() refuses thousands of digits with another error.
    if value.isascii() and value.isdigit() and len(value) <= len(str(most)) and least <= int(value) <= most:
        return int(value)
    raise SettingsError(f"{as_written(value, origin)}: accepted is a whole number of {what} from {least} to {most}")


def duration(value: str, origin: str) -> float:
    """Read a duration, in seconds.

    Args:
        value: The text, such as "10m".
        origin: The place where it stands, for the error.

    Raises:
        SettingsError: It is no duration, or one of less than a microsecond, which would be taken for 0.
    """
    try:
        seconds = durationpy.from_str(value).total_seconds() if value.isascii() else -1.0  # digits of other scripts
    except (durationpy.DurationError, ValueError, OverflowError):
        seconds = -1.0
    if not 0 <= seconds <= _MAX_DURATION or (not seconds and _NONZERO.search(value)):
        raise SettingsError(
            f'{as_written(value, origin)}: accepted is a duration such as "90s", "10m" or "1h30m", at most 290 years, or "0" '
            "for never"
        )
    return seconds


def boolean(value: str, origin: str) -> bool:
    """Read a yes or no."""
    if (result := _BOOLEANS.get(value.lower())) is None:
        raise SettingsError(f"{as_written(value, origin)}: accepted is 1, true, yes, on or 0, false, no, off")
    return result


def flag(value: str, _origin: str) -> bool:
    """Read a yes or no; anything else is a no."""
    return _BOOLEANS.get(value.lower(), False)


def one_of(value: str, origin: str, *, accepted: tuple[str, ...]) -> str:
    """Read one of some words, in any case."""
    if value.lower() not in accepted:
        raise SettingsError(f"{as_written(value, origin)}: accepted is {', '.join(accepted)}")
    return value.lower()


def size(value: str, origin: str, *, least: int, none: bool = False) -> int:
    """Read a number of bytes."""
    match = _SIZE.fullmatch(value)
    count = int(match[1]) * 1024 ** _SIZE_UNITS[match[2].upper()] if match else -1
    if not least <= count <= _MAX_SIZE and not (none and count == 0):
        bound = f", at least {least}" if least > 1 else ""
        bound = ", at most 1 EiB" if count > _MAX_SIZE else bound
        alternative = ", or 0 for none" if none else ""
        raise SettingsError(
            f"{as_written(value, origin)}: accepted is a number of bytes, such as "
            f'1000000, "64MiB" or "1GiB"{bound}{alternative}'
        )
    return count


def port(value: str, origin: str) -> tuple[str, int]:
    """Read an address of this machine and a port."""
    if (match := _ADDRESS.fullmatch(value)) and int(match[3]) <= _MAX_PORT:
        with suppress(ValueError):
            return str(ip_address(match[1] or match[2])), int(match[3])
    raise SettingsError(
        f"{as_written(value, origin)}: accepted is 127.0.0.1:PORT or [::1]:PORT, since only this machine may connect; port 0 "
        "lets the system choose one, which `runed status` tells. With RUNED_HTTP_EXPOSE=yes, 0.0.0.0:PORT is accepted, too"
    )


def is_exposed(host: str) -> bool:
    """Return whether other machines may reach an address that `port` has read."""
    return host not in _LOOPBACK


def check_port(address: tuple[str, int] | None, *, has_token: bool, exposed: bool) -> None:
    """Refuse a port that other machines reach, unless that is wanted, and guarded by the token.

    Args:
        address: The host and the port; None for no port.
        has_token: Whether requests need the token.
        exposed: Whether other machines may connect.

    Raises:
        SettingsError: The port is open to more than it should be.
    """
    if address is None or not is_exposed(address[0]):
        return
    host, number = address
    value = f"RUNED_HTTP='{f'[{host}]' if ':' in host else host}:{number}'"
    if not exposed:
        raise SettingsError(
            f"{value}: accepted is 127.0.0.1:PORT or [::1]:PORT, since only this machine may connect. If others are meant "
            "to, such as those outside of a container, set RUNED_HTTP_EXPOSE=yes, too"
        )
    if not has_token:
        raise SettingsError(
            f"{value}: with RUNED_HTTP_TOKEN=off, accepted is 127.0.0.1:PORT or [::1]:PORT, since every machine that reaches "
            "another address would be let in; unset RUNED_HTTP_TOKEN"
        )


def on_disk(value: str, origin: str) -> bool:
    """Read the place of the cache: whether it is "disk"."""
    return one_of(value, origin, accepted=("memory", "disk")) == "disk"
