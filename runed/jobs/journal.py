"""The journal of a long job: how far it is, so that an interrupted one can go on where it ended.

Beside `FILE.part`, the output as far as it is complete, lies `FILE.part.journal`: lines of JSON, first what the job is, then a
mark for each piece that was appended to the part, with the checksum of all bytes up to there. Neither Ctrl-C, `kill -9` nor a
power failure can make a mark true of bytes that are not on the disk, since the checksum is compared: what does not agree is cut
off, in the part and in the journal, and done again.
"""

from __future__ import annotations

import fcntl
import os
import time
import zlib
from pathlib import Path
from typing import BinaryIO, TypeVar

import msgspec

from runed.errors import RunedError, SettingsError
from runed.jobs.formats import Space

SYNC_SECONDS = 10.0
"""How much work a power failure may cost; everything else costs only what is not written yet."""

VERSION = 1
"""The version of the journal's format; another one is not read."""

_PIECE = 1024 * 1024

T = TypeVar("T")


class JobRecord(msgspec.Struct, frozen=True):
    """What a job is.

    Attributes:
        version: The version of the journal's format.
        options: What the user chose that the output depends on; the same choice gives the same output.
        space: What holds for all vectors.
        head: The bytes before the first row, which no checksum covers.
    """

    version: int
    options: dict[str, str]
    space: Space
    head: int


class Mark(msgspec.Struct, frozen=True):
    """How far a job is.

    Attributes:
        done: The number of rows that are complete.
        failed: How many of them hold an error instead of a vector.
        inputs: Stands for the texts and ids of these rows, see `runed.jobs.ordering.link`.
        size: The bytes of the part that they end at.
        checksum: The CRC-32 of these bytes, from the first row on.
        complete: Whether this was all, so that the part was to be made the output next.
    """

    done: int = 0
    failed: int = 0
    inputs: str = ""
    size: int = 0
    checksum: int = 0
    complete: bool = False


class Journal:
    """The journal of one job, held by a lock for as long as the object lives.

    Args:
        part: The file with the output as far as it is complete.
        resume: Whether to go on where an earlier run ended.
        overwrite: Whether to throw away what an earlier run left.

    Attributes:
        record: What the earlier run was; None if there is nothing to go on with.
        mark: How far it came.
        complete: Whether nothing is left to do, as the part has become the output already.

    Raises:
        SettingsError: An earlier run left something, and neither was asked for; or it cannot be resumed.
        RunedError: Another process is at work on this part.
        OSError: The journal cannot be written.
    """

    def __init__(self, part: Path, *, resume: bool, overwrite: bool) -> None:
        self.path = part.with_name(f"{part.name}.journal")
        self.record: JobRecord | None = None
        self.mark = Mark()
        self.complete = False
        self._part = part
        self._synced = time.monotonic()
        self._file = self._lock()
        try:
            if not overwrite:
                self._load(resume=resume)
        except BaseException:
            if not self._size():
                self.remove()
            self.close()
            raise

    def begin(self, record: JobRecord) -> None:
        """Note what the job is, before the part is made: a part without a journal is somebody else's file.

        Args:
            record: What it is.
        """
        self._file.seek(0)
        self._file.truncate()
        self._append(record)
        self._sync(self._file)
        sync_directory(self.path.parent)
        self.mark = Mark(size=record.head)

    def add(self, data: bytes, *, done: int, failed: int, inputs: str) -> None:
        """Note what has been appended to the part.

        Args:
            data: The bytes.
            done: The number of rows that are complete now.
            failed: As in `Mark`.
            inputs: As in `Mark`.
        """
        size, checksum = self.mark.size + len(data), zlib.crc32(data, self.mark.checksum)
        self._note(Mark(done, failed, inputs, size, checksum))

    def sync(self, part: BinaryIO, *, now: bool = False) -> None:
        """Bring part and journal to the disk, if that was long ago."""
        if now or time.monotonic() - self._synced >= SYNC_SECONDS:
            self._sync(part)
            self._sync(self._file)
            self._synced = time.monotonic()

    def finish(self) -> None:
        """Note that the part is about to become the output, so that nobody does the work again if that was the last we did."""
        self._note(msgspec.structs.replace(self.mark, complete=True))
        self._sync(self._file)

    def remove(self) -> None:
        """Remove the journal."""
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Give the lock back."""
        self._file.close()

    def _size(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    def _lock(self) -> BinaryIO:
        while True:
            file = os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Its last holder may have removed it between our open and our lock.
                if os.path.samestat(os.fstat(file.fileno()), self.path.stat()):
                    return file
            except BlockingIOError:
                file.close()
                raise RunedError(f"another `runed embed` is writing {self._part}; wait for its end, or end it first") from None
            except FileNotFoundError:
                pass
            file.close()

    def _load(self, *, resume: bool) -> None:
        record = _decode(self._file.readline(), JobRecord)
        if not self._part.exists():
            self.complete = resume and record is not None and self._last_mark().complete
            return
        if record is None or record.version != VERSION:
            raise SettingsError(f"{self._part} exists, and not from an interrupted job; remove it, or add --overwrite")
        mark, end = self._verify(record, self._file.tell(), read_part=resume)
        if not mark.done:
            return
        if not resume:
            raise SettingsError(
                f"{self._part} holds the first {mark.done:,} vectors of an interrupted job; "
                "add --resume to go on with it, or --overwrite to start anew"
            )
        self.record, self.mark = record, mark
        # What follows the last good mark would stand between it and the next.
        self._file.truncate(end)
        self._file.seek(end)

    def _last_mark(self) -> Mark:
        mark = Mark()
        while following := _decode(self._file.readline(), Mark):
            mark = following
        return mark

    def _verify(self, record: JobRecord, end: int, *, read_part: bool) -> tuple[Mark, int]:
        """Find the last mark that is true of the part, and where its line ends in the journal."""
        good = Mark(size=record.head)
        with self._part.open("rb") as part:
            available = os.fstat(part.fileno()).st_size
            part.seek(record.head)
            while mark := _decode(self._file.readline(), Mark):
                if not good.size <= mark.size <= available:
                    break
                if read_part and _checksum(part, mark.size - good.size, good.checksum) != mark.checksum:
                    break
                good, end = mark, self._file.tell()
        return good, end

    def _note(self, mark: Mark) -> None:
        self._append(mark)
        self.mark = mark

    def _append(self, entry: msgspec.Struct) -> None:
        self._file.write(msgspec.json.encode(entry) + b"\n")
        self._file.flush()

    @staticmethod
    def _sync(file: BinaryIO) -> None:
        file.flush()
        os.fsync(file.fileno())


def sync_directory(directory: Path) -> None:
    """Bring the names in a directory to the disk, which syncing a file need not do."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _checksum(file: BinaryIO, length: int, checksum: int) -> int:
    while length:
        data = file.read(min(length, _PIECE))
        if not data:
            break
        checksum = zlib.crc32(data, checksum)
        length -= len(data)
    return checksum


def _decode(line: bytes, type_: type[T]) -> T | None:
    """Give a line of the journal; None if it is none, or was never written to its end."""
    if not line.endswith(b"\n"):
        return None
    try:
        return msgspec.json.decode(line, type=type_)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
