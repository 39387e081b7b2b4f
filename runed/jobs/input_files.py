"""Opens an input file any number of times as UTF-8: pipes are kept, compressed files decompressed, UTF-16 is converted."""

from __future__ import annotations

import codecs
import contextlib
import gzip
import io
import os
import re
import shutil
import stat
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO, TYPE_CHECKING, Any, TypeVar, cast

from runed.errors import InvalidRequestError, SettingsError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

STANDARD_STREAM = "-"
"""The name of standard input, or of standard output, in the place of a file's path."""

_SPOOLED_BYTES = 1024 * 1024
"""Bytes of a pipe that are kept in memory. A longer one is copied to a temporary file."""

_SNIFFED_BYTES = 4096
"""Bytes at the start of a file that tell its form."""

_DECOMPRESSORS: dict[bytes, Callable[[IO[bytes]], Any]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file, mode="rb"),
    b"\x28\xb5\x2f\xfd": zstd.ZstdFile,
}
"""The decompressor of each form, by the first bytes. All of them read several members one after the other."""

_ENCODINGS = {
    codecs.BOM_UTF32_LE: "utf-32",  # before the next one, which is its beginning
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""The encoding that each byte order mark tells."""

_FOREIGN = {
    rb"PK\x03\x04": "a ZIP archive, or a document of an office program; unpack or export it first",
    rb"\xfd7zXZ\0": "compressed by xz; decompress it first, with `xz -d`",
    rb"BZh[1-9]1AY&SY": "compressed by bzip2; decompress it first, with `bzip2 -d`",
    rb"\x04\x22\x4d\x18": "compressed by lz4; decompress it first, with `lz4 -d`",
    rb"SQLite format 3\0": "an SQLite database; export its texts first, for example as CSV",
    rb"ARROW1\0\0": "an Arrow file; write it as Parquet first",
    rb"Obj\x01": "an Avro file; write it as Parquet first",
    rb"%PDF-": "a PDF; extract its text first",
}
"""Files that are often taken for texts, and the remedy, by a pattern of their first bytes."""

_DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error, zstd.ZstdError, UnicodeDecodeError)
"""Errors of a file that is cut short or damaged."""


T = TypeVar("T")


class InputFile:
    """A file, a pipe or standard input that can be read any number of times.

    Args:
        path: The path, or "-" for standard input.
        name: The name for error messages; None means the path.

    Attributes:
        path: The path.
        name: The name for error messages.
        head: The first bytes of the content, while it is open.
    """

    def __init__(self, path: str, name: str | None = None) -> None:
        self.path = path
        self.name = name or ("standard input" if path == STANDARD_STREAM else path)
        self._spool: IO[bytes] | None = None
        self._offset: int | None = None
        self.head = b""

    @contextlib.contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """Open the content at its start. A pipe is first copied to a temporary file, since it can be read only once.

        A compressed file is decompressed, and UTF-16 or UTF-32 with a byte order mark becomes UTF-8. Reading may then raise an
        InvalidRequestError.

        Raises:
            SettingsError: The file cannot be read.
            InvalidRequestError: The file has another form than text or Parquet.
        """
        with self._named_errors(), self._raw() as raw, contextlib.ExitStack() as stack:
            self.head = _peek(raw)
            file: IO[bytes] = raw
            if decompress := _of_head(_DECOMPRESSORS, self.head):
                layer = _Layer(self.name, stack.enter_context(decompress(raw)).read).buffered()
                file, self.head = layer, layer.peek(_SNIFFED_BYTES)
            if encoding := _of_head(_ENCODINGS, self.head):
                text = io.TextIOWrapper(cast("io.BufferedReader", file), encoding, "surrogatepass", newline="")
                stack.callback(text.detach)  # otherwise the wrapper closes the file
                # A lone surrogate becomes bytes that are no UTF-8, so that its line is refused.
                layer = _Layer(self.name, lambda size: text.read(size).encode("utf-8", "surrogatepass")).buffered()
                file, self.head = layer, layer.peek(_SNIFFED_BYTES)
            else:
                _check_form(self.name, self.head)
            yield file

    def close(self) -> None:
        """Remove the temporary file, if there is one."""
        if self._spool is not None:
            self._spool.close()

    @contextlib.contextmanager
    def _raw(self) -> Iterator[IO[bytes]]:
        """Open the bytes of the file, seekable, at their start."""
        if self._spool is None:
            with self._open() as file:
                if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    yield file
                    return
                spool = cast("IO[bytes]", tempfile.SpooledTemporaryFile(_SPOOLED_BYTES))  # noqa: SIM115 # closed by `close`
                self._copy(file, spool)
                self._spool = spool
        self._spool.seek(0)
        yield self._spool

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise SettingsError(f"{self.name} cannot be read: {error.strerror}") from None

    def _copy(self, file: IO[bytes], spool: IO[bytes]) -> None:
        try:
            shutil.copyfileobj(file, spool)
        except OSError as error:
            raise SettingsError(
                f"{self.name} cannot be copied to {tempfile.gettempdir()}: {error.strerror}; "
                "set TMPDIR to a directory with more room, or name a file instead of a pipe"
            ) from None

    def _open(self) -> IO[bytes]:
        if self.path != STANDARD_STREAM:
            return open(self.path, "rb")  # noqa: PTH123 # also reads /dev/fd/63, which a shell passes for <(command)
        if sys.stdin is None:
            return open(os.devnull, "rb")  # noqa: PTH123 # as above
        file = open(os.dup(sys.stdin.fileno()), "rb")  # noqa: PTH123, SIM115 # a descriptor has no path; `_raw` closes it
        if file.seekable():
            # The shell may have read a part of the file. So the start is the position at the first opening.
            self._offset = file.tell() if self._offset is None else file.seek(self._offset)
        return file


@contextlib.contextmanager
def seekable(file: IO[bytes]) -> Iterator[IO[bytes]]:
    """Return an open file, or a temporary copy of its content if reading it at any place would be slow."""
    if not isinstance(getattr(file, "raw", None), _Layer):
        yield file
        return
    with tempfile.TemporaryFile() as copy:
        shutil.copyfileobj(file, copy)
        copy.seek(0)
        yield copy


class _Layer(io.RawIOBase):
    """Bytes that come from the bytes of another file.

    Args:
        name: The name of the file in error messages.
        read: Returns the next bytes, about as many as it is told, and none at the end.
    """

    def __init__(self, name: str, read: Callable[[int], bytes]) -> None:
        super().__init__()
        self._name = name
        self._read = read
        self._rest = b""
        self._lines = 0

    def buffered(self) -> io.BufferedReader:
        return io.BufferedReader(self, 64 * 1024)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer).cast("B")
        try:
            data = self._rest or self._read(len(view))
        except _DAMAGED as error:
            what = "ends too early" if _is_cut(error) else "is damaged"
            if isinstance(error, zstd.ZstdError):
                what += f" or needs too much memory ({error})"
            raise InvalidRequestError(
                f"{self._name}, after line {self._lines}: the file {what}; copy it again, or repair it with its own program"
            ) from None
        size = min(len(data), len(view))
        view[:size] = data[:size]
        self._rest = data[size:]
        self._lines += data.count(b"\n", 0, size)
        return size


def _of_head(table: dict[bytes, T], head: bytes) -> T | None:
    return next((value for magic, value in table.items() if head.startswith(magic)), None)


def _is_cut(error: Exception) -> bool:
    return isinstance(error, EOFError) or (isinstance(error, UnicodeDecodeError) and "truncated" in error.reason)


def _peek(file: IO[bytes]) -> bytes:
    start = file.tell()
    head = file.read(_SNIFFED_BYTES)
    file.seek(start)
    return head


def _check_form(name: str, head: bytes) -> None:
    """Refuse a file that is plainly of another form."""
    if what := next((what for pattern, what in _FOREIGN.items() if re.match(pattern, head)), None):
        raise InvalidRequestError(f"{name} is {what}")
    # Of UTF-16, every second byte is 0 where a text is English or its separators are plain.
    for first, encoding in ((1, "UTF-16LE"), (0, "UTF-16BE")):
        zeros, others = head[first::2].count(0), head[1 - first :: 2].count(0)
        if zeros > len(head) // 5 and not others:
            raise InvalidRequestError(
                f"{name} seems to be {encoding} without a byte order mark; convert it: `iconv -f {encoding} -t UTF-8`"
            )
