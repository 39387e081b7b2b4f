"""The journal of a long job. With it, an interrupted job can resume.

`FILE.part` holds the rows of the incomplete output. `FILE.part.journal` lies beside it and has lines of JSON. The first line is
the record of the job. Each further line is a mark: the position of the job after a piece was appended to the part, and the
checksum of all bytes up to there.

A resumed job compares the checksums with the part. It cuts off both files after the last mark that agrees, and goes on there.
So bytes that Ctrl-C, `kill -9` or a power failure has lost are never taken for done.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time
import zlib
from pathlib import Path
from typing import Annotated, BinaryIO, TypeVar

import msgspec

from runed.errors import RunedError, SettingsError
from runed.files import decode_record, open_regular, sync_file, sync_path
from runed.jobs.row import JobSpace

SYNC_SECONDS = 10.0
"""Most seconds of work that a power failure costs. Any other interruption costs only the rows that are not written yet."""

VERSION = 1
"""The version of the journal's format. A journal of another version is refused."""

_PIECE = 1024 * 1024
"""Bytes of the part that are read at once."""

_MAX_LINE_BYTES = 1024 * 1024
"""Most bytes of a line of the journal."""

Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
"""A number of rows or bytes. Files have no more."""

T = TypeVar("T")


class PartBusyError(RunedError):
    """Another process writes the same part."""


class JobRecord(msgspec.Struct, frozen=True):
    """The record of a job. It shows whether a resumed job is the same.

    Attributes:
        version: The version of the journal's format.
        options: The options that change the output.
        space: The space of all vectors.
        head: The number of bytes before the first row. No checksum covers them.
    """

    version: int
    options: dict[str, str]
    space: JobSpace
    head: Count


class Mark(msgspec.Struct, frozen=True):
    """A position of a job.

    Attributes:
        done: The number of rows that are complete.
        failed: The number of these rows that hold an error instead of a vector.
        inputs: The hash of the texts and ids of these rows, see `runed.jobs.ordering.link`.
        size: The number of bytes of the part up to the end of these rows.
        checksum: The CRC-32 of these bytes, from the first row on.
        complete: Whether these are all rows. The part then becomes the output.
    """

    done: Count = 0
    failed: Count = 0
    inputs: str = ""
    size: Count = 0
    checksum: int = 0
    complete: bool = False


def journal_of(part: Path) -> Path:
    """Return the path of the journal that lies beside a part."""
    return part.with_name(f"{part.name}.journal")


class Journal:
    """The journal of one job. The object holds a lock until it is closed.

    Args:
        part: The file with the rows of the incomplete output.
        resume: Whether to resume an earlier run.
        overwrite: Whether to delete the part of an earlier run.

    Attributes:
        record: The record of the earlier run; None if there is no work to go on with.
        mark: The position that the earlier run reached.
        complete: Whether the earlier run has finished, so that the part has become the output already.

    Raises:
        SettingsError: There is a part, and neither `resume` nor `overwrite` is set; or it cannot be resumed.
        PartBusyError: Another process writes this part.
        OSError: The journal cannot be written.
    """

    def __init__(self, part: Path, *, resume: bool, overwrite: bool) -> None:
        self.path = journal_of(part)
        self.record: JobRecord | None = None
        self.mark = Mark()
        self.complete = False
        self._part = part
        self._synced = time.monotonic()
        self._check_owners()
        self._file = self._lock()
        try:
            self._check_owners()  # another user may have laid one meanwhile
            if not overwrite:
                self._load(resume=resume)
        except BaseException:
            if not os.fstat(self._file.fileno()).st_size:
                self.remove()
            self.close()
            raise

    def begin(self, record: JobRecord) -> None:
        """Write the record of the job. This comes before the part, since a part without a journal counts as a foreign file."""
        self._file.seek(0)
        self._file.truncate()
        self._append(record)
        sync_file(self._file)
        sync_path(self.path.parent)
        self.mark = Mark(size=record.head)

    def add(self, data: bytes, *, done: int, failed: int, inputs: str) -> None:
        """Write the mark for bytes that were appended to the part. The other arguments are those of `Mark`."""
        size, checksum = self.mark.size + len(data), zlib.crc32(data, self.mark.checksum)
        self._note(Mark(done, failed, inputs, size, checksum))

    def sync(self, part: BinaryIO, *, now: bool = False) -> None:
        """Write part and journal to the disk, if the last time is `SYNC_SECONDS` ago or `now` is set."""
        if now or time.monotonic() - self._synced >= SYNC_SECONDS:
            sync_file(part)
            sync_file(self._file)
            self._synced = time.monotonic()

    def finish(self) -> None:
        """Write the mark of a complete job.

        The part becomes the output next, and a crash in between does not repeat the job.
        """
        self._note(msgspec.structs.replace(self.mark, complete=True))
        sync_file(self._file)

    def remove(self) -> None:
        """Remove the file of the journal."""
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Release the lock."""
        self._file.close()

    def _lock(self) -> BinaryIO:
        while True:
            file = os.fdopen(open_regular(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "r+b")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # The last holder may have removed the file between our open and our lock.
                if os.path.samestat(os.fstat(file.fileno()), self.path.stat()):
                    return file
            except BlockingIOError:
                file.close()
                raise PartBusyError(
                    f"another `runed embed` is writing {self._part}; wait for its end, or end it first"
                ) from None
            except FileNotFoundError:
                pass
            file.close()

    def _check_owners(self) -> None:
        """Refuse files that another user laid in a directory such as /tmp: that user would get or make the vectors."""
        is_open = self.path.parent.stat().st_mode & stat.S_IWOTH
        for path in (self._part, self.path):
            with contextlib.suppress(FileNotFoundError):
                info = path.lstat()
                if stat.S_ISLNK(info.st_mode) or (is_open and info.st_uid != os.geteuid()):
                    what = "is a link" if stat.S_ISLNK(info.st_mode) else f"belongs to user id {info.st_uid}"
                    raise SettingsError(f"{path} {what}, so it is not written; remove it, or name another output")

    def _load(self, *, resume: bool) -> None:
        record = self._read(JobRecord)
        if not self._part.exists():
            if record is None and os.fstat(self._file.fileno()).st_size:
                raise SettingsError(f"{self.path} exists, and not from an interrupted job; remove it, or add --overwrite")
            last = self._last_mark() if resume and record else Mark()
            if last.complete:
                self.record, self.mark, self.complete = record, last, True
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
        # A bad line after the last good mark would hide the marks that this run adds.
        self._file.truncate(end)
        self._file.seek(end)

    def _last_mark(self) -> Mark:
        mark = Mark()
        while following := self._read(Mark):
            mark = following
        return mark

    def _verify(self, record: JobRecord, end: int, *, read_part: bool) -> tuple[Mark, int]:
        """Return the last mark that agrees with the part, and the position in the journal after its line."""
        good = Mark(size=record.head)
        with os.fdopen(open_regular(self._part), "rb") as part:
            available = os.fstat(part.fileno()).st_size
            part.seek(min(record.head, available))
            while mark := self._read(Mark):
                if not good.size <= mark.size <= available:
                    break
                if read_part and _checksum(part, mark.size - good.size, good.checksum) != mark.checksum:
                    break
                good, end = mark, self._file.tell()
        return good, end

    def _read(self, type_: type[T]) -> T | None:
        """Read the entry of the next line; None if the line is incomplete or no such entry."""
        line = self._file.readline(_MAX_LINE_BYTES)
        return decode_record(line, type_) if line.endswith(b"\n") else None

    def _note(self, mark: Mark) -> None:
        self._append(mark)
        self.mark = mark

    def _append(self, entry: msgspec.Struct) -> None:
        self._file.write(msgspec.json.encode(entry) + b"\n")
        self._file.flush()


def _checksum(file: BinaryIO, length: int, checksum: int) -> int:
    while length:
        data = file.read(min(length, _PIECE))
        if not data:
            break
        checksum = zlib.crc32(data, checksum)
        length -= len(data)
    return checksum
