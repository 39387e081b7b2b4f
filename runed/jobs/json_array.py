"""Splits a JSON array into its elements, so that a file of any size is read element by element."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from typing import IO

from runed.errors import InvalidRequestError

_MARK = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?P<end>"?)|[\[\]{},]', re.DOTALL)
"""What separates elements: a bracket or a comma; and a string, which may hold such characters, and may be cut off."""

_OPEN, _CLOSE = (b"[", b"{"), (b"]", b"}")

_PIECE = 1024 * 1024
"""Bytes that are read at once."""


def is_array(head: bytes) -> bool:
    """Return whether the first bytes of a file are those of a JSON array."""
    return head.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")


def elements(file: IO[bytes], most: int) -> Iterator[bytes]:
    """Yield the elements of a JSON array as they stand in a file. They are not checked.

    Args:
        file: The file, at its start.
        most: The most bytes of an element.

    Raises:
        InvalidRequestError: The array has no end or a gap, an element is too long, or something follows the array. The message
            does not name the file.
    """
    text = _Text(file, most)
    mark = text.next_mark()
    text.cut()
    depth, count = 1, 0
    while depth:
        mark = text.next_mark()
        depth += (mark in _OPEN) - (mark in _CLOSE)
        if depth > 1 or (depth == 1 and mark != b","):
            continue
        if element := text.cut():
            yield element
            count += 1
        elif count or mark == b",":
            raise InvalidRequestError("there is nothing between two commas, or after the last one; remove one of them")
    if mark != b"]" or text.rest():
        raise InvalidRequestError("the array must be all of the file; split the file, or make it JSON lines by `jq -c '.[]'`")


class _Text:
    """The text of an array, of which only the element that is looked at is in memory."""

    def __init__(self, file: IO[bytes], most: int) -> None:
        self._file = file
        self._most = most
        self._buffer = b""
        self._start = self._mark = self._position = 0

    def next_mark(self) -> bytes:
        """Return the next bracket or comma, or the quote of a whole string."""
        while True:
            found = _MARK.search(self._buffer, self._position)
            if found is not None and found["end"] != b"":
                self._mark, self._position = found.span()
                return found[0][:1]
            # The rest of a string, or the next mark, is not read yet.
            position = len(self._buffer) if found is None else found.start()
            self._buffer, self._position, self._start = self._buffer[self._start :], position - self._start, 0
            if len(self._buffer) > self._most:
                raise InvalidRequestError(f"it does not end within {self._most // 2**20} MiB; is it an array of texts?")
            # A long string is searched anew after each piece, so that the pieces grow with it.
            if not (more := self._file.read(max(_PIECE, len(self._buffer)))):
                raise InvalidRequestError("the array does not end; is the file complete?")
            self._buffer += more

    def cut(self) -> bytes:
        """Return the text since the last cut, without the present mark. The next text begins after that."""
        element = self._buffer[self._start : self._mark].strip()
        self._start = self._position
        return element

    def rest(self) -> bytes:
        """Return what follows the present mark, without white space, or some of it."""
        rest = self._buffer[self._position :].strip()
        while not rest and (more := self._file.read(_PIECE)):
            rest = more.strip()
        return rest
