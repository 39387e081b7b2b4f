"""Where vectors go: standard output or a device as they come, or a file that takes its name only when it is complete."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from runed.cli.boundary import complain
from runed.errors import RunedError, SettingsError
from runed.jobs.formats import BINARY, ENCODERS, Encoder, Space
from runed.jobs.inputs import STANDARD_INPUT
from runed.jobs.journal import VERSION, JobRecord, Journal, Mark, sync_directory


class Output(ABC):
    """Where the bytes of one job go.

    Attributes:
        mark: How far an earlier run came; nothing is done where there was none.
        space: What holds for the vectors of the earlier run; None where there was none.
        complete: Whether an earlier run left nothing to do.
    """

    mark = Mark()
    space: Space | None = None
    complete = False

    def check(self, _options: Mapping[str, str], _inputs: str, /) -> None:
        """Make sure that an earlier run, if there was one, was of the same job.

        Args:
            _options: What the user chose that the output depends on.
            _inputs: Stands for as many texts and ids of the input as an earlier run has done; see `ordering.link`.

        Raises:
            RunedError: It was another one.
        """
        return

    @abstractmethod
    def begin(self, encoder: Encoder, space: Space, options: Mapping[str, str]) -> None:
        """Write what comes before the first row, or take up what an earlier run wrote.

        Args:
            encoder: Gives the bytes.
            space: What holds for all vectors.
            options: As for `check`.

        Raises:
            RunedError: The earlier run's vectors lie in another space.
        """

    @abstractmethod
    def append(self, data: bytes, *, done: int, failed: int, inputs: str) -> None:
        """Write rows, and hand them on at once; the other arguments tell how far the job is then, as in `Mark`."""

    @abstractmethod
    def finish(self) -> None:
        """Write what comes after the last row; now the output is complete."""

    @abstractmethod
    def abandon(self, reason: str, message: str) -> None:
        """Leave the output as one that is not complete; does nothing where it is.

        Args:
            reason: The stable name of what happened.
            message: The sentence for people.
        """

    def close(self) -> None:
        """Give back what is held."""
        return


class StreamOutput(Output):
    """Writes as the rows come, or where the format needs them all, at the end.

    Args:
        stream: Where to.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._rows: BinaryIO = stream
        self._encoder: Encoder | None = None
        self._torn = False

    def begin(self, encoder: Encoder, _space: Space, _options: Mapping[str, str]) -> None:
        """Write what comes before the first row."""
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
        """Write what comes after the last row."""
        assert self._encoder is not None
        self._rows.write(self._encoder.tail())
        if self._encoder.convert:
            self._rows.seek(0)
            self._encoder.convert(self._rows, self._stream)
        self._stream.flush()

    def abandon(self, reason: str, message: str) -> None:
        """Write what keeps the output from being taken for complete."""
        if self._encoder and (last := self._encoder.failure(reason, message)):
            with contextlib.suppress(OSError):  # as where the reader has gone; what happened first is what is told
                self._stream.write(b"\n" * self._torn + last)

    def close(self) -> None:
        """Close what is no standard stream."""
        for stream in {self._rows, self._stream} - {sys.stdout.buffer}:
            stream.close()


class FileOutput(Output):
    """Writes a file beside the target, which becomes the target when it is complete.

    Args:
        target: The file.
        journal: If given, what was written outlives an interruption.

    Raises:
        OSError: The file cannot be written.
    """

    def __init__(self, target: Path, journal: Journal | None = None) -> None:
        self._target = target
        self._journal = journal
        # Nobody else writes beside the journal that we hold, so that the next run finds and removes what a crash leaves.
        self._part = part_of(target) if journal else _beside(target, "tmp")
        self._converted = target.with_name(f"{target.name}.part.tmp") if journal else _beside(target, "converted.tmp")
        self._file: BinaryIO | None = None
        self._encoder: Encoder | None = None
        self._finished = False
        self._added = 0
        if journal:
            self.mark, self.complete = journal.mark, journal.complete and target.exists()
            self.space = journal.record.space if journal.record else None
        else:
            self._file = self._part.open("xb")  # now, so that a target that cannot be written is told before any work

    def check(self, options: Mapping[str, str], inputs: str, /) -> None:
        """Make sure that the part is of the same options and texts."""
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

    def begin(self, encoder: Encoder, space: Space, options: Mapping[str, str]) -> None:
        """Begin the file, or take up the part."""
        self._encoder = encoder
        head = encoder.head()
        if self._journal and (record := self._journal.record):
            if (space.fingerprint, space.dim) != (record.space.fingerprint, record.space.dim):
                raise self._other_job(
                    f'of another model: its fingerprint was "{record.space.fingerprint}" and is "{space.fingerprint}"'
                )
            assert len(head) == record.head
            self._file = self._part.open("r+b")
            self._file.write(head)  # the number of texts may have grown
            self._file.truncate(self.mark.size)
            self._file.seek(self.mark.size)
            return
        if self._journal:
            self._journal.begin(JobRecord(VERSION, dict(options), space, len(head)))
            self._file = self._part.open("wb")
        assert self._file is not None
        self._file.write(head)

    def append(self, data: bytes, *, done: int, failed: int, inputs: str) -> None:
        """Write rows, and note in the journal that they are there."""
        assert self._file is not None
        self._file.write(data)
        self._file.flush()
        if self._journal:
            self._journal.add(data, done=done, failed=failed, inputs=inputs)
            self._journal.sync(self._file)
        self._added += 1

    def finish(self) -> None:
        """Write what comes after the last row, and let the file appear under its name."""
        assert self._encoder is not None
        assert self._file is not None
        self._file.write(self._encoder.tail())
        _sync(self._file)
        source = self._part
        if self._encoder.convert:
            source = self._converted
            with self._part.open("rb") as rows, source.open("wb") as result:
                self._encoder.convert(rows, result)
                _sync(result)
        if self._target.exists():
            source.chmod(self._target.stat().st_mode & 0o7777)
        if self._journal:
            self._journal.finish()
        source.replace(self._target)
        self._finished = True
        sync_directory(self._target.parent)
        self._remove()

    def abandon(self, _reason: str, _message: str) -> None:
        """Leave what can be gone on with, and say so; else nothing."""
        if self._finished:
            return
        self._converted.unlink(missing_ok=True)
        if not self._journal or not self._journal.mark.done:
            self._remove()
        elif self._added and self._file is not None:
            self._journal.sync(self._file, now=True)
            done = self._journal.mark.done
            complain(f"the first {done:,} vectors are kept in {self._part}; add --resume to the same command to go on")

    def close(self) -> None:
        """Close the files."""
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
    """Give the format: the one asked for, else that of the file's extension, else JSON.

    Raises:
        SettingsError: The format is binary and would go to a terminal.
    """
    suffix = Path(output).suffix.removeprefix(".")
    chosen = name or (suffix if suffix in ENCODERS else "json")
    if chosen in BINARY and output == STANDARD_INPUT and sys.stdout.isatty():
        raise SettingsError(f"--format {chosen} is binary and standard output is a terminal; add `-o FILE` or redirect it")
    return chosen


@contextlib.contextmanager
def open_output(output: str, *, keep: bool = False, resume: bool = False, overwrite: bool = False) -> Iterator[Output]:
    """Give what to write to; the block ends with `finish`, or the output is left as one that is not complete.

    Args:
        output: A path, or "-" for standard output. A device or pipe is written to directly.
        keep: Whether what is done of a file that was interrupted stays, to be resumed.
        resume: Whether to go on with what an earlier run kept; nothing of the kind means to begin.
        overwrite: Whether to throw away what an earlier run kept.

    Raises:
        SettingsError: The file cannot be written or resumed, or an earlier run kept something and neither was asked for.
        RunedError: Another process writes the same file.
    """
    opened = _open(output, keep=keep, resume=resume, overwrite=overwrite)
    try:
        yield opened
    except RunedError as error:
        opened.abandon(error.reason, error.message)
        raise
    except (KeyboardInterrupt, SystemExit):
        opened.abandon("INTERRUPTED", "the command was ended by Ctrl-C or a signal")
        raise
    except Exception:
        opened.abandon("INTERNAL", "the command failed; its last line on standard error says why")
        raise
    finally:
        opened.close()


def part_of(target: Path) -> Path:
    """Give the file that holds a job's output as far as it is complete."""
    return target.with_name(f"{target.name}.part")


def _open(output: str, *, keep: bool, resume: bool, overwrite: bool) -> Output:
    if output == STANDARD_INPUT:
        return StreamOutput(sys.stdout.buffer)
    target = Path(output).resolve()
    try:
        if target.exists() and not target.is_file():
            return StreamOutput(target.open("wb"))
        journal = Journal(part_of(target), resume=resume, overwrite=overwrite) if keep else None
        return FileOutput(target, journal)
    except OSError as error:
        raise SettingsError(f"--output {output} cannot be written: {error.strerror}") from None


def _beside(target: Path, extension: str) -> Path:
    return target.with_name(f".{target.name}.{os.getpid()}.{extension}")


def _shown(value: str) -> str:
    return f'"{value}"' if value else "not given"


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
