"""The output of a job: standard output or a device, written row by row; or a file that gets its name when it is complete."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
import stat
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from runed.errors import RunedError, SettingsError
from runed.files import sync_file, sync_path
from runed.jobs.formats import BINARY, ENCODERS, Encoder
from runed.jobs.input_files import STANDARD_STREAM
from runed.jobs.journal import VERSION, JobRecord, Journal, Mark, journal_of
from runed.jobs.row import JobSpace

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a disk without room for the output."""

_EXTENSIONS = {
    "": "json",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".npy": "npy",
    ".parquet": "parquet",
    ".pq": "parquet",
}
"""The format that each extension of an output tells."""

_STARTS = {"json": b'{"model_identity":', "jsonl": b'{"index":0', "npy": b"\x93NUMPY", "parquet": b"PAR1"}
"""The first bytes of each format."""

_START_BYTES = 64

INTERRUPTED = "INTERRUPTED"
"""The reason why an output is incomplete if a user or a signal has ended the job."""

_MOST_LINKS = 40
"""Symbolic links that are followed, as many as by Linux."""


class Output(ABC):
    """Takes the encoded rows of one job.

    Attributes:
        mark: The position that an earlier run reached; 0 rows without one.
        space: The space of the earlier run's vectors; None without one.
        complete: Whether an earlier run has done all the work.
    """

    mark = Mark()
    space: JobSpace | None = None
    complete = False

    def check(self, _options: Mapping[str, str], _inputs: str, /) -> None:
        """Check that an earlier run, if there was one, was of the same job.

        Args:
            _options: The options that change the output.
            _inputs: The hash of the texts and ids of the input that the earlier run has done; see `ordering.link`.

        Raises:
            RunedError: The earlier run was of another job.
        """
        return

    @abstractmethod
    def begin(self, encoder: Encoder, space: JobSpace, options: Mapping[str, str]) -> None:
        """Write the bytes before the first row, or go on with the file of an earlier run.

        Args:
            encoder: The encoder of the rows.
            space: The space of all vectors.
            options: As for `check`.

        Raises:
            RunedError: The earlier run's vectors lie in another space.
        """

    @abstractmethod
    def append(self, data: bytes, *, done: int, failed: int, inputs: str) -> None:
        """Write rows at once. The other arguments are the position of the job after them, as in `Mark`."""

    @abstractmethod
    def finish(self) -> None:
        """Write the bytes after the last row. The output is complete then."""

    @abstractmethod
    def abandon(self, reason: str, message: str) -> None:
        """Mark the output as incomplete, unless it is complete.

        Args:
            reason: The stable name of the error, as of `RunedError`.
            message: The sentence for people.
        """

    def close(self) -> None:
        """Close files and release locks."""
        return


class StreamOutput(Output):
    """Writes rows to a stream at once, or all rows at the end if the format needs that.

    Args:
        stream: The stream.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._rows: BinaryIO = stream
        self._encoder: Encoder | None = None
        self._torn = False
        self._finished = False

    def begin(self, encoder: Encoder, _space: JobSpace, _options: Mapping[str, str]) -> None:
        """Write the bytes before the first row."""
        if encoder.convert:
            self._rows = tempfile.TemporaryFile()  # noqa: SIM115 # closed by `close`
        self._encoder = encoder
        self._rows.write(encoder.head())

    def append(self, data: bytes, *, done: int, failed: int, inputs: str) -> None:  # noqa: ARG002 # nothing can be resumed
        """Write rows."""
        self._torn = True
        self._rows.write(data)
        self._rows.flush()
        self._torn = False

    def finish(self) -> None:
        """Write the bytes after the last row."""
        assert self._encoder is not None
        self._rows.write(self._encoder.tail())
        if self._encoder.convert:
            self._rows.seek(0)
            self._encoder.convert(self._rows, self._stream)
        self._stream.flush()
        self._finished = True

    def abandon(self, reason: str, message: str) -> None:
        """Write the mark of incomplete output, if the format has one."""
        if self._encoder and (last := self._encoder.failure(reason, message)):
            with contextlib.suppress(OSError):  # such as a reader that has gone: the user is told the first error
                self._stream.write(b"\n" * self._torn + last)

    def close(self) -> None:
        """Close the files, but not standard output."""
        for stream in {self._rows, self._stream} - {sys.stdout.buffer}:
            # After an error, the rest of the buffer fails again, and would hide the first error.
            with contextlib.suppress(*() if self._finished else (OSError,)):
                stream.close()


class FileOutput(Output):
    """Writes a file beside the target, the part, and renames it to the target when it is complete.

    Args:
        target: The file.
        journal: The journal that keeps the part after an interruption; None removes the part then.
        on_complaint: Called with a sentence for the user, if a part is kept.

    Raises:
        OSError: The file cannot be written.
    """

    def __init__(self, target: Path, journal: Journal | None, on_complaint: Callable[[str], None]) -> None:
        self._target = target
        self._journal = journal
        self._on_complaint = on_complaint
        # With a journal, fixed names let the next run find and remove the files of a crash. Its lock keeps other writers away.
        self._part = part_of(target) if journal else _beside(target, "tmp")
        self._converted = target.with_name(f"{target.name}.part.tmp") if journal else _beside(target, "converted.tmp")
        self._file: BinaryIO | None = None
        self._encoder: Encoder | None = None
        self._finished = False
        self._added = 0
        if journal:
            self.complete = journal.complete and target.exists()
            if journal.complete and not self.complete:  # somebody has removed the output
                journal.record, journal.mark = None, Mark()
            self.mark = journal.mark
            self.space = journal.record.space if journal.record else None
        else:
            self._file = self._part.open("xb")  # now, so that a target that cannot be written is an error before any work

    def check(self, options: Mapping[str, str], inputs: str, /) -> None:
        """Check that the part is of the same options and texts."""
        record = self._journal and self._journal.record
        if not record:
            return
        changes = [
            f"{name} was {_shown(record.options.get(name, ''))} and is {_shown(options.get(name, ''))}"
            for name in {**record.options, **options}
            if record.options.get(name, "") != options.get(name, "")
        ]
        if changes:
            raise self._other_job(f"of other options: {'; '.join(changes)}")
        if self.mark.inputs != inputs:
            raise self._other_job(f"of another input: its first {self.mark.done:,} texts or ids are not the same any more")

    def begin(self, encoder: Encoder, space: JobSpace, options: Mapping[str, str]) -> None:
        """Begin the part, or go on with that of an earlier run."""
        self._encoder = encoder
        head = encoder.head()
        if self._journal and (record := self._journal.record):
            if (space.fingerprint, space.dim) != (record.space.fingerprint, record.space.dim):
                raise self._other_job(
                    f'of another model or engine: its fingerprint was "{record.space.fingerprint}" and is "{space.fingerprint}"'
                )
            assert len(head) == record.head
            self._file = self._part.open("r+b")
            self._file.write(head)  # the number of texts may have grown
            self._file.truncate(self.mark.size)
            self._file.seek(self.mark.size)
            return
        if self._journal:
            self._journal.begin(JobRecord(VERSION, dict(options), space, len(head)))
            self._file = _new(self._part)
        assert self._file is not None
        self._file.write(head)

    def append(self, data: bytes, *, done: int, failed: int, inputs: str) -> None:
        """Write rows, and record them in the journal."""
        assert self._file is not None
        self._file.write(data)
        self._file.flush()
        if self._journal:
            self._journal.add(data, done=done, failed=failed, inputs=inputs)
            self._journal.sync(self._file)
        self._added += 1

    def finish(self) -> None:
        """Write the bytes after the last row, and rename the part to the target."""
        assert self._encoder is not None
        assert self._file is not None
        self._file.write(self._encoder.tail())
        sync_file(self._file)
        source = self._part
        if self._encoder.convert:
            source = self._converted
            with self._part.open("rb") as rows, _new(source) as result:
                self._encoder.convert(rows, result)
                sync_file(result)
        if self._target.exists():
            mode = self._target.stat().st_mode
            if not stat.S_ISREG(mode):  # a device that has come meanwhile would be replaced
                raise RunedError(f"{self._target} is not a file any more; move it away, and try again")
            source.chmod(stat.S_IMODE(mode))
        if self._journal:
            self._journal.finish()
        _take_place(source, self._target)
        self._finished = True
        sync_path(self._target.parent)
        self._remove()

    def abandon(self, reason: str, _message: str) -> None:
        """Keep the part if the job can be resumed from it, and tell the user; otherwise delete it."""
        if self._finished:
            return
        self._converted.unlink(missing_ok=True)
        if not self._journal or not self._journal.mark.done:
            self._remove()
            if reason == INTERRUPTED:  # the message of an error is told by whoever catches it
                batch = "" if self._journal else "; --batch keeps finished vectors, and --resume goes on from there"
                self._on_complaint(f"interrupted; nothing of {self._target.name} is kept{batch}")
        elif self._added and self._file is not None:
            self._journal.sync(self._file, now=True)
            done = self._journal.mark.done
            self._on_complaint(
                f"the first {done:,} vectors are kept in {self._part}; add --resume to the same command to go on"
            )

    def close(self) -> None:
        """Close the files, and release the lock of the journal."""
        if self._file is not None:
            self._file.close()
        if self._journal:
            if self.complete:
                self._journal.remove()
            self._journal.close()

    def _remove(self) -> None:
        for path in (self._part, self._converted):
            path.unlink(missing_ok=True)
        if self._journal:
            self._journal.remove()

    def _other_job(self, what: str) -> RunedError:
        return RunedError(f"{self._part} is {what}; undo the change to --resume, or start anew with --overwrite")


def choose_format(name: str | None, output: str) -> str:
    """Return the name of the output format.

    Args:
        name: The name if the user chose one. None means the format of the file's extension, and JSON without an extension.
        output: The path, or "-" for standard output.

    Raises:
        SettingsError: The extension is unknown; or the format is binary, and standard output is a terminal.
    """
    suffix = Path(output).suffix.lower()
    if name is None and suffix not in _EXTENSIONS:
        raise SettingsError(
            f"--output {output}: no format has the extension {suffix}; known are {', '.join(filter(None, _EXTENSIONS))}; "
            f"rename it, or choose by --format {', '.join(ENCODERS)}"
        )
    chosen = name or _EXTENSIONS[suffix]
    if chosen in BINARY and output == STANDARD_STREAM and sys.stdout.isatty():
        raise SettingsError(f"--format {chosen} is binary and standard output is a terminal; add `-o FILE` or redirect it")
    return chosen


def is_finished(output: str, output_format: str, source: str, *, resume: bool) -> bool:
    """Return whether an earlier job has completed the output. Whether it was a job of the same input, nobody knows.

    Args:
        output: As for `open_output`.
        output_format: A key of `ENCODERS`.
        source: The path of the input, or "-".
        resume: Whether to go on with an earlier job.

    Raises:
        SettingsError: There is such a file, and `resume` is not set; or it is of another kind.
        RunedError: The input is newer than the file.
    """
    if output == STANDARD_STREAM or descriptor_of(output) is not None:
        return False
    target = Path(os.path.realpath(output))
    if not target.is_file() or not target.stat().st_size:  # an empty file holds no work, such as one of mktemp
        return False
    part = part_of(target)
    if part.exists() or journal_of(part).exists():
        return False  # an interrupted job that was to replace the file; the journal tells what can be done
    if not resume:
        raise SettingsError(f"{output} exists already; add --overwrite to replace it, or name another file")
    # Without the files of an interrupted job, an output that has its name is complete.
    with target.open("rb") as file:
        if not file.read(_START_BYTES).startswith(_STARTS[output_format]):
            raise SettingsError(f"{output} exists already, and is no output of such a job; add --overwrite to replace it")
    if Path(source).is_file() and Path(source).stat().st_mtime_ns > target.stat().st_mtime_ns:
        raise RunedError(
            f"{output} is there, but {source} is newer: it was changed since, or {output} was made from something else; "
            "add --overwrite to replace it, or name another file"
        )
    return True


@contextlib.contextmanager
def open_output(
    output: str, *, keep: bool, resume: bool, overwrite: bool, on_complaint: Callable[[str], None]
) -> Iterator[Output]:
    """Open the output for the time of a `with` block. The block calls `finish`; otherwise the output is marked as incomplete.

    Args:
        output: A path, or "-" for standard output. A device, a pipe and an open descriptor are written to directly.
        keep: Whether the part of a file is kept after an interruption, so that the job can be resumed.
        resume: Whether to go on with the part of an earlier run. Without a part, the job begins at the start.
        overwrite: Whether to delete the part of an earlier run.
        on_complaint: Called with a sentence for the user, if a part is kept.

    Raises:
        SettingsError: The file cannot be written or resumed, or there is a part and neither `resume` nor `overwrite` is set.
        RunedError: Another process writes the same file.
    """
    opened = _open(output, on_complaint, keep=keep, resume=resume, overwrite=overwrite)
    try:
        yield opened
    except RunedError as error:
        opened.abandon(error.reason, error.message)
        raise
    except (KeyboardInterrupt, SystemExit):
        opened.abandon(INTERRUPTED, "the job was ended by Ctrl-C or a signal")
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _NO_ROOM:  # the kernel names no file
            error.filename = error.filename or ("standard output" if output == STANDARD_STREAM else output)
        opened.abandon("INTERNAL", "the job failed unexpectedly; standard error says why")
        raise
    finally:
        opened.close()


def part_of(target: Path) -> Path:
    """Return the path of the part: the file that holds the rows of an incomplete output."""
    return target.with_name(f"{target.name}.part")


def descriptor_of(path: str) -> tuple[int, int] | None:
    """Return the process and the number of the open descriptor that a path such as "/dev/stdout" names; else None."""
    folders = re.compile(r"/dev/fd|/proc/([0-9]+)(?:/task/[0-9]+)?/fd")
    place = Path(path)
    for _ in range(_MOST_LINKS):
        folder = os.path.realpath(place.parent)
        if (found := folders.fullmatch(folder)) and place.name.isdecimal():
            return int(found[1] or os.getpid()), int(place.name)
        place = Path(folder, place.name)
        if not place.is_symlink():
            break
        place = Path(folder, place.readlink())
    return None


def _open(output: str, on_complaint: Callable[[str], None], *, keep: bool, resume: bool, overwrite: bool) -> Output:
    if output == STANDARD_STREAM:
        return StreamOutput(sys.stdout.buffer)
    try:
        if stream := _open_stream(output, on_complaint):
            return StreamOutput(stream)
        target = _target_of(output)
        journal = Journal(part_of(target), resume=resume, overwrite=overwrite) if keep else None
        return FileOutput(target, journal, on_complaint)
    except OSError as error:
        place = f" ({error.filename})" if error.filename else ""
        raise SettingsError(f"--output {output} cannot be written: {error.strerror}{place}") from None


def _target_of(output: str) -> Path:
    target = Path(os.path.realpath(output))
    if target.is_symlink():
        raise OSError(errno.ELOOP, "its symbolic links form a circle")
    if target.exists() and not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, "the file is write-protected")
    folder = target.parent.stat()
    if folder.st_mode & stat.S_ISVTX and target.exists() and os.geteuid() not in {0, folder.st_uid, target.stat().st_uid}:
        raise PermissionError(errno.EPERM, "the file belongs to another user, whose files nobody else can replace there")
    return target


def _open_stream(output: str, on_complaint: Callable[[str], None]) -> BinaryIO | None:
    """Open a device, a pipe, or an open descriptor; return None for any other path."""
    if descriptor := descriptor_of(output):
        # By its path, it would be opened at the start of a file that others write to, and what they have written be cut off.
        process, number = descriptor
        own = process == os.getpid()
        if own and fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "it is open for reading alone")
        return os.fdopen(os.dup(number) if own else os.open(output, os.O_WRONLY | os.O_APPEND), "wb")
    target = Path(output)
    if not target.exists() or target.is_file():
        return None
    if target.is_fifo():
        try:
            os.close(os.open(output, os.O_WRONLY | os.O_NONBLOCK))
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            on_complaint(f"waiting for a program that reads {output}")
    return target.open("wb")


def _take_place(source: Path, target: Path) -> None:
    try:
        source.replace(target)
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.EXDEV):
            raise
        # A single file that is mounted into a container can only be written into.
        with source.open("rb") as rows, target.open("wb") as file:
            shutil.copyfileobj(rows, file)
            sync_file(file)


def _new(path: Path) -> BinaryIO:
    """Make a file in the place of what a crash left there. Never write to a file of another user, or through a link."""
    path.unlink(missing_ok=True)
    return path.open("xb")


def _beside(target: Path, extension: str) -> Path:
    return target.with_name(f".{target.name}.{os.getpid()}.{extension}")


def _shown(value: str) -> str:
    return f'"{value}"' if value else "not given"
