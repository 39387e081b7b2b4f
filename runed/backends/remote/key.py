"""The key of an engine on another machine. No message, log or representation holds it."""

from __future__ import annotations

import stat

from runed.errors import BackendUnavailableError
from runed.files import read_regular
from runed.own_models import RemoteModel
from runed.settings import secret_variable

_MAX_BYTES = 16 * 1024
"""Most bytes of a file of a key."""


class Key:
    """Reads the key, and reads it again when the engine refuses it, since keys expire and files are replaced.

    Args:
        remote: Tells where it stands.
    """

    def __init__(self, remote: RemoteModel) -> None:
        self._remote = remote
        self._value: str | None = None

    def headers(self) -> dict[str, str]:
        """Return the headers of a request with the key; none if there is no key.

        Raises:
            BackendUnavailableError: It cannot be read.
        """
        if self._value is None:
            self._value = self._read()
        return {"authorization": f"Bearer {self._value}"} if self._value else {}

    def renew(self) -> bool:
        """Read the key again. Return whether it is another one.

        Raises:
            BackendUnavailableError: It cannot be read.
        """
        before, self._value = self._value, self._read()
        return self._value != before

    @property
    def warning(self) -> str:
        """What a user must know of the place of the key; "" if all is well."""
        path = self._remote.key_file
        try:
            if path is not None and path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
                return f"others can read the key in {path}; run `chmod go-r {path}`"
        except OSError:  # the reader tells it
            pass
        return ""

    def _read(self) -> str:
        place = self._remote.key_place
        if self._remote.key_file is not None:
            try:
                value = read_regular(self._remote.key_file, limit=_MAX_BYTES).decode("ascii").strip()
            except OSError as error:
                raise BackendUnavailableError(f"the key in {place} cannot be read: {error.strerror}; correct that") from None
            except UnicodeDecodeError:  # its message quotes the key
                value = "\0"
        elif self._remote.key_variable:
            value = secret_variable(self._remote.key_variable)
        else:
            return ""
        if not value:
            raise BackendUnavailableError(
                f"{place} holds no key; put it there{'' if self._remote.key_file else ', and run `runed stop`'}"
            )
        if not value.isascii() or not value.isprintable() or " " in value:
            raise BackendUnavailableError(
                f"{place} holds something that is no key: it has spaces, control characters or characters that are not ASCII; "
                "put the key alone there"
            )
        return value

    def __repr__(self) -> str:
        return f"Key({self._remote.key_place})"
