"""Jobs of many files: each file is a part with a journal of its own, and counts once.

A part is done when its receipt lies in the output directory. The receipt has the checksums of the input and of the output, and
the options. It is written last, after the output has got its name. A part without a receipt is embedded again, so that the
death of a worker costs work and never a row. Two workers with the same part, such as speculative tasks, write the same output
and the same receipt: the later ones replace the earlier ones whole.

An output on this machine grows beside its place, as that of `runed embed --batch FILE` does, and an interrupted part is
resumed. An output elsewhere grows in the home of the worker, and is uploaded when it is complete.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, TypedDict

import msgspec

import runed
from runed.errors import EmptyBatchError, RunedError, SettingsError, quoted
from runed.jobs.folders import OWN, Folder, Found, is_deep, locate
from runed.jobs.formats import ENCODERS
from runed.jobs.inputs import EXTENSIONS, Columns, format_of, open_batch
from runed.jobs.job import JobResult
from runed.jobs.journal import Journal, PartBusyError
from runed.jobs.keeping import kept_columns
from runed.jobs.nodes import Node
from runed.jobs.outputs import part_of
from runed.jobs.receipts import VERSION, FileMark, Receipt
from runed.jobs.runner import run_job
from runed.paths import Paths, ensure_home, ensure_private_dir
from runed.settings import load_settings

if TYPE_CHECKING:
    from runed.client.options import Role, Truncate
    from runed.jobs.row import JobSpace

_log = logging.getLogger("runed.jobs")

_BUSY_SECONDS = 1.0
"""Seconds between two looks at a part that another worker writes."""

Connect: TypeAlias = Callable[[], AbstractContextManager[runed.Client]]


class FileOptions(TypedDict, total=False):
    """The options of a job of many files.

    Attributes:
        input_format: The format of all files: "lines", "json", "jsonl", "csv", "tsv" or "parquet"; None chooses by content and
            extension.
        text_column: The column of the texts; "text" by default.
        id_column: The column of ids, which the output repeats; None means "id" if there is one.
        delimiter: The character between two columns of a table of text; None means that of the format.
        output_format: "json", "jsonl", "npy" or "parquet"; None means Parquet for Parquet, and JSON lines for all others.
        keep: The columns of the input that Parquet output keeps; ["all"] means all of them.
        role: As for `runed.Client.embed`, like the next four.
        instruction: The task of queries.
        dimensions: The number of values of each vector.
        truncate: The treatment of a text that is too long.
        model: The name of the model; None means the daemon's default model.
        keep_going: Whether a text that cannot be embedded is recorded in the output; otherwise it ends the job.
        overwrite: Whether to begin anew, and forget what an earlier run has done.
        home: The directory of the daemon; None means `RUNED_HOME` or `~/.runed`.
    """

    input_format: str | None
    text_column: str | None
    id_column: str | None
    delimiter: str | None
    output_format: Literal["json", "jsonl", "npy", "parquet"] | None
    keep: Sequence[str] | None
    role: Role | None
    instruction: str
    dimensions: int | None
    truncate: Truncate
    model: str | None
    keep_going: bool
    overwrite: bool
    home: str | None


@dataclass(frozen=True, slots=True)
class Part:
    """One file of a job.

    Attributes:
        source: Its name below the input directory.
        target: The name of its output below the output directory.
    """

    source: str
    target: str

    @property
    def receipt(self) -> str:
        """The name of its receipt below the output directory."""
        return f"{OWN}/{self.target}.json"


@dataclass(frozen=True, slots=True)
class PartResult:
    """The result of a part.

    Attributes:
        texts: The result for its texts.
        fingerprint: The space of its vectors; empty if the part has no text.
        was_done: Whether an earlier run had done it.
    """

    texts: JobResult
    fingerprint: str = ""
    was_done: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The circumstances of one run of parts.

    Attributes:
        expected: The space that all vectors must lie in; None for any.
        resume: Whether to go on with a part that was interrupted.
        connect: Returns a client; None connects to the daemon of this machine.
        on_progress: As for `run_job`, for the texts of one part.
        on_complaint: As for `run_job`.
    """

    expected: str | None = None
    resume: bool = True
    connect: Connect | None = None
    on_progress: Callable[[int, int], None] = lambda _done, _total: None
    on_complaint: Callable[[str], None] = lambda _message: None

    def check(self, fingerprint: str, part: Part) -> None:
        """Check the space of a part's vectors.

        Raises:
            RunedError: It is another one than that of other parts.
        """
        if self.expected and fingerprint and fingerprint != self.expected:
            raise RunedError(
                f"the vectors of {part.target} are of another model or engine than those of other parts: their fingerprint is "
                f'"{fingerprint}" and not "{self.expected}"; use one model and version, and one engine, such as by '
                "RUNED_ENGINE=cpu, or start with --overwrite"
            )


@dataclass(frozen=True, slots=True)
class PartitionJob:
    """A job of many files. It can be pickled, so that workers of Ray and Spark run its parts.

    Attributes:
        source: A directory, a glob such as "in/*.parquet" or "s3://bucket/in/*.parquet", or a file. Of a directory, all files
            are read whose extension tells a format.
        output: The directory of the results, a path or URL.
        options: The options.

    Raises:
        TypeError: There is no such option.
    """

    source: str
    output: str
    options: FileOptions = field(default_factory=FileOptions)

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.options) - set(FileOptions.__annotations__)):
            raise TypeError(f"there is no option {', '.join(unknown)}, but {', '.join(FileOptions.__annotations__)}")

    @property
    def node(self) -> Node:
        """The daemon of the node that a part runs on."""
        return Node(home=self.options.get("home"), model=self.options.get("model"))

    def begin(self, *, resume: bool = True, on_complaint: Callable[[str], None] = _log.warning) -> list[Part]:
        """Find the parts.

        Args:
            resume: Whether an earlier run may have done some of them.
            on_complaint: Called with a sentence about files that are left out.

        Raises:
            SettingsError: The input cannot be read or has no file, the output would lie in it, or an earlier run has done parts
                and neither `resume` nor the option `overwrite` is set.
            PartBusyError: A part shall be overwritten that another process writes.
        """
        folder, patterns = locate(self.source)
        output = Folder(self.output)
        if output.is_file:
            raise SettingsError(f"--output {output.shown} is a file; many files need a directory")
        if output.lies_in(folder, below=is_deep(patterns)):
            raise SettingsError(f"--output {output.shown} lies in the input, which it would change; name another directory")
        found = folder.matching(patterns)
        unknown: list[Found] = []
        if patterns[0] == "**" and not self.options.get("input_format"):  # not chosen by the user, one by one
            unknown = [file for file in found if not format_of(file.name)]
            found = [file for file in found if format_of(file.name)]
        if unknown:
            on_complaint(
                f"left out, since the extension tells no known format: {unknown[0].name}"
                + (f" and {len(unknown) - 1:,} more" if len(unknown) > 1 else "")
                + "; --input-format chooses one for all files, and --whole -f FILES embeds each as one text"
            )
        if not found:
            raise SettingsError(
                f"{folder.shown} has no file of a known format ({', '.join(EXTENSIONS)}) that the pattern names; name another "
                "directory or glob, or choose by --input-format"
            )
        parts = [Part(file.name, self._target(file.name)) for file in found]
        if self.options.get("overwrite"):
            _forget(output, parts)
        elif not resume and (done := sum(output.find(part.receipt) is not None for part in parts)):
            raise SettingsError(
                f"{output.shown} holds {done:,} of the {len(parts):,} parts of an earlier run; "
                "add --resume to go on with it, or --overwrite to start anew"
            )
        elif not resume and (taken := next((part.target for part in parts if output.find(part.target)), None)):
            raise SettingsError(
                f"{output.shown}/{taken} exists already; add --overwrite to replace it, or name another directory"
            )
        return parts

    def run(self, part: Part, run: Run) -> PartResult:
        """Embed a part, unless its receipt tells that it is done. If another process writes it, wait for that.

        Raises:
            RunedError: As for `run_job`; also if the vectors lie in another space, or the receipt is of other options.
        """
        waits = False
        while True:
            if (receipt := self._valid_receipt(part, run)) is not None:
                run.check(receipt.fingerprint, part)
                done = JobResult(count=receipt.count, failed=receipt.failed, before=receipt.count)
                return PartResult(done, receipt.fingerprint, was_done=True)
            try:
                return self._embed(part, run)
            except PartBusyError as error:
                if not waits:
                    run.on_complaint(f"waiting for another process: {error.message}")
                waits = True
                time.sleep(_BUSY_SECONDS)

    def run_on_node(self, part: Part, expected: str) -> PartResult:
        """Embed a part on a node of a cluster, by the daemon of that node; see `run`."""
        replace(self.node, expected=expected).prepare()
        return self.run(part, Run(expected=expected, on_complaint=_log.warning))

    def _target(self, source: str) -> str:
        """Return the name of an output: that of the input, and the extension of the output's format unless it is the same."""
        chosen = self.options.get("output_format")
        if chosen is None:
            is_parquet = (self.options.get("input_format") or format_of(source)) == "parquet"
            chosen = "parquet" if is_parquet else "jsonl"
        if chosen not in ENCODERS:
            raise SettingsError(f"output_format is {quoted(chosen)}, but must be one of {', '.join(ENCODERS)}")
        return source if source.endswith(f".{chosen}") else f"{source}.{chosen}"

    def _chosen(self, part: Part) -> dict[str, str]:
        """Return the options that change the output, as words."""
        names = ("input_format", "text_column", "id_column", "delimiter", "role", "instruction", "dimensions", "truncate")
        chosen = {name: str(self.options.get(name) or "") for name in names}
        if keep := self.options.get("keep"):
            chosen["keep"] = ",".join(keep)
        chosen["truncate"] = chosen["truncate"] or "none"
        return chosen | {"format": part.target.rpartition(".")[2]}

    def _valid_receipt(self, part: Part, run: Run) -> Receipt | None:
        """Return the receipt of a part if its input and its output are still the same; otherwise None."""
        output = Folder(self.output)
        receipt = Receipt.read(output, part.receipt)
        if receipt is None:
            return None
        receipt.check(self._chosen(part), f"{output.shown}/{part.target}")
        folder, _ = locate(self.source)
        if not receipt.input.holds(folder, part.source):
            run.on_complaint(f"{folder.shown}/{part.source} was changed since its vectors were made; it is embedded anew")
            return None
        return receipt if receipt.output is None or receipt.output.holds(output, part.target) else None

    def _embed(self, part: Part, run: Run) -> PartResult:
        """Embed a part, and write its receipt."""
        (folder, _), output = locate(self.source), Folder(self.output)
        name = f"{folder.shown}/{part.source}"
        spaces: list[str] = []

        def note(space: JobSpace) -> None:
            run.check(space.fingerprint, part)
            spaces.append(space.fingerprint)

        with self._on_disk(folder, part) as (path, mark):
            target = Path(output.path(part.target)) if output.local else self._spool(output, part, mark)
            target.parent.mkdir(parents=True, exist_ok=True)
            columns = Columns(
                self.options.get("text_column") or Columns().text, self.options.get("id_column"), self.options.get("delimiter")
            )
            with open_batch(str(path), self.options.get("input_format"), columns, name=name) as source:
                try:
                    result = run_job(
                        source,
                        target,
                        connect=run.connect or self.node.connect,
                        output_format=part.target.rpartition(".")[2],
                        kept=kept_columns(source, keep) if (keep := self.options.get("keep")) else None,
                        role=self.options.get("role"),
                        instruction=self.options.get("instruction", ""),
                        dimensions=self.options.get("dimensions"),
                        truncate=self.options.get("truncate", "none"),
                        lane="bulk",
                        model=self.options.get("model"),
                        keep_going=self.options.get("keep_going", False),
                        resume=run.resume,
                        on_space=note,
                        on_progress=run.on_progress,
                        on_complaint=run.on_complaint,
                    )
                except EmptyBatchError:
                    run.on_complaint(f"{name} holds no text, so it has no output")
                    result = JobResult(count=0, failed=0)
        written = _published(output, part, target) if spaces else None
        fingerprint = spaces[0] if spaces else ""
        receipt = Receipt(VERSION, self._chosen(part), mark, written, fingerprint, result.count, result.failed)
        receipt.write(output, part.receipt)
        return PartResult(result, fingerprint)

    @contextmanager
    def _on_disk(self, folder: Folder, part: Part) -> Iterator[tuple[Path, FileMark]]:
        """Yield a path of the part's input on this machine, and its mark. A file from elsewhere is copied for that time."""
        found = folder.find(part.source)
        if found is None:
            raise SettingsError(f"{folder.shown}/{part.source} is not there any more")
        if folder.local:
            with folder.reading(part.source) as file:
                mark = FileMark.of(found, file)
            yield Path(folder.path(part.source)), mark
            return
        with tempfile.NamedTemporaryFile(dir=self._private_dir(), suffix=".input") as copy:
            with folder.reading(part.source) as file:
                shutil.copyfileobj(file, copy, 1024 * 1024)
            copy.seek(0)
            yield Path(copy.name), FileMark.of(found, copy)

    def _spool(self, output: Folder, part: Part, mark: FileMark) -> Path:
        """Return the path at which a part grows before it is uploaded. Another input or other options have another path."""
        what = msgspec.json.encode([output.shown, part.target, self._chosen(part), mark.sha256])
        return self._private_dir() / "parts" / hashlib.sha256(what).hexdigest()[:32] / "output"

    def _private_dir(self) -> Path:
        paths = Paths(load_settings(home=self.options.get("home") or None).home)
        ensure_home(paths.home)
        ensure_private_dir(paths.cache)
        return paths.cache


def run_here(
    job: PartitionJob,
    *,
    resume: bool,
    connect: Connect | None = None,
    on_part: Callable[[int, int], None] = lambda _number, _all: None,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
    on_complaint: Callable[[str], None] = lambda _message: None,
) -> JobResult:
    """Embed all parts of a job on this machine, one after the other.

    Args:
        job: The job.
        resume: Whether to go on with an earlier run.
        connect: As for `Run`.
        on_part: Called before each part with its number, from 1, and the number of all.
        on_progress: As for `Run`.
        on_complaint: As for `Run`.

    Raises:
        RunedError: As for `PartitionJob.begin` and `PartitionJob.run`. Parts that are done stay.
    """
    parts = job.begin(resume=resume, on_complaint=on_complaint)
    results: list[PartResult] = []
    for number, part in enumerate(parts, start=1):
        on_part(number, len(parts))
        expected = next((result.fingerprint for result in results if result.fingerprint), None)
        run = Run(expected=expected, resume=resume, connect=connect, on_progress=on_progress, on_complaint=on_complaint)
        results.append(job.run(part, run))
    if all(result.was_done for result in results):
        on_complaint(f"all {len(parts):,} files are done already, so there is nothing to do; --overwrite makes them anew")
    return summed(result.texts for result in results)


def summed(results: Iterable[JobResult]) -> JobResult:
    """Return the result of all parts together."""
    columns = list(zip(*map(astuple, results), strict=True))
    count, failed, before, tokens, cached, seconds = map(sum, columns) if columns else (0,) * 6
    return JobResult(count=count, failed=failed, before=before, tokens=tokens, cached=cached, seconds=seconds)


def _forget(output: Folder, parts: list[Part]) -> None:
    """Remove the receipts of parts, and what interrupted parts have left."""
    for part in parts:
        output.remove(part.receipt)
        if output.local and (unfinished := part_of(Path(output.path(part.target)))).exists():
            journal = Journal(unfinished, resume=False, overwrite=True)
            unfinished.unlink(missing_ok=True)
            journal.remove()
            journal.close()


def _published(output: Folder, part: Part, target: Path) -> FileMark:
    """Upload an output that grew elsewhere, and return its mark."""
    with target.open("rb") as file:
        if output.local:
            return FileMark.of(output.find(part.target) or Found(part.target, 0, 0), file)
        found = output.put(part.target, file)
        file.seek(0)
        mark = FileMark.of(found, file)
    shutil.rmtree(target.parent)
    return mark
