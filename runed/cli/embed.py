"""`runed embed`: texts to vectors."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import runed
from runed.cli.boundary import ExitCode, complain
from runed.cli.completing import completes_models
from runed.cli.options import positive_number
from runed.cli.progress import ProgressDisplay, rate_of
from runed.cli.waiting import connect
from runed.jobs import inputs
from runed.jobs.finished import check_shape
from runed.jobs.folders import is_many
from runed.jobs.formats import ENCODERS
from runed.jobs.input_files import STANDARD_STREAM
from runed.jobs.inputs import INPUT_FORMATS, Batch, Columns, Source, format_of
from runed.jobs.job import JobResult
from runed.jobs.keeping import kept_columns
from runed.jobs.ordering import survey
from runed.jobs.outputs import choose_format, descriptor_of, is_finished
from runed.jobs.partition import FileOptions, PartitionJob, run_here
from runed.jobs.runner import check_keeping, run_job

BAR_TEXTS = 32
"""Texts of the largest job without a bar, and without a word at its end if its vectors go to standard output."""

COUNTED_BYTES = 1024 * 1024
"""Bytes of the largest input whose texts are counted to see if a finished output is of it: less than a second, as a rule."""

DESCRIPTION = """\
Turn texts into vectors, starting the daemon if none runs.

Texts are the arguments, or the lines of files or of standard input (UTF-8, one
text a line). With --batch, they are read from a file of JSON, CSV, TSV, Parquet
or lines, which may be of any size, or from all files of a directory or a glob.
An empty text is refused, since line and row numbers would no longer
agree. All of a file is read and checked before its first text is embedded.
"""

EPILOG = """\
input of --batch, chosen by the extension or --input-format:
  jsonl    a JSON string a line, or an object with "text" and maybe "id";
           other members may hold anything, and blank lines are ignored
  json     an array of the same, or JSON lines
  csv      a header, then rows; .tsv is the same with tabs; --delimiter ";"
  parquet  needs the extra runed[parquet]
  lines    .txt: a text a line
  Without an extension, and on standard input, it is jsonl.
  --text-column and --id-column name other columns or members.
  Files that are compressed by gzip or zstd are decompressed, also behind
  --file. UTF-16 with a byte order mark is read as well as UTF-8.

output:
  json     {"model_identity": "sha256:...", "fingerprint": "...", "dim": 1024,
            "embeddings": [{"index": 0, "token_count": 5, "embedding": [...]},
            ...]}
  jsonl    {"index": 0, "model_identity": "sha256:...", "fingerprint": "...",
            "token_count": 5, "embedding": [...]}
           one line a text, written as it comes
  npy      a NumPy array, float32, one row a text
  parquet  index, id (a string), token_count, error, embedding; the fingerprint
           is in the metadata, as "runed.fingerprint"; --keep adds columns of
           the input, texts where that is not Parquet
  "index" counts the texts from 0; "id" follows it where the input gave one.
  "total_token_count" follows "token_count" where a text was truncated.
  Vectors have L2 norm 1. Those of different fingerprints cannot be compared.

  A FILE that exists is not replaced without --overwrite, and a new one appears
  under its name only when it is complete. A pipe, a device or
  /dev/fd/N is written to at once. Incomplete vectors there and on
  standard output cannot be parsed (json, npy, parquet), or end with the line
  {"error": {"reason": ..., "message": ...}} (jsonl); the exit code is not 0.
  With --keep-going, a text without a vector has "error" instead of "embedding"
  (json, jsonl), a row of NaN (npy) or null (parquet); the exit code is 1.
  During a job, standard error has a bar on a terminal, and elsewhere a line
  every 30 seconds; RUNED_PROGRESS=0 shows neither. At the end, it has a line
  with the number of texts and tokens, the time and the rate. With --json,
  standard output has it as an object:
  {"output": "all.npy", "texts": 1000, "before": 0, "tokens": 21034,
   "seconds": 4.1, "texts_per_second": 243.9, "cached": 12, "errors": 0}
  "before" counts the texts that earlier runs had done.

long jobs:
  If --batch to FILE is interrupted, by Ctrl-C, a crash or a power failure, the
  finished vectors stay in FILE.part. The same command with --resume goes on
  from there. Without a FILE.part, it begins, or does nothing if FILE is there
  and the input is not newer. Without --batch, nothing is kept.

many files:
  --batch takes a directory, a glob in quotes ("**" means any directories), or a
  URL such as s3://bucket/in; names that begin with "." or "_" are left out.
  --output is then a directory or URL, where each file has its output under the
  same name, and a receipt with checksums in _runed/. Parquet gives Parquet,
  everything else JSON lines, unless --format says otherwise. With --resume,
  files whose receipts are right are done, and others are embedded.
  `runed.ray.embed_files` and `runed.spark.embed_files` do so on clusters.
  URLs and Parquet need the extra runed[parquet].

examples:
  runed embed "first text" "second text"
  runed embed --role query "what is a daemon?"
  runed embed -f lines.txt -o vectors.npy
  runed embed --whole -f chapters/*.txt
  cut -f2 table.tsv | runed embed --format jsonl | gzip > vectors.jsonl.gz
  runed embed --batch texts.jsonl   with lines {"id": 7, "text": "..."} or "..."
  runed embed --batch all.csv --text-column body -o all.parquet --resume
  runed embed --batch rows.parquet --keep all -o vectors.parquet
  runed embed --batch 'in/*.parquet' -o out/ --resume
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = DESCRIPTION
    parser.epilog = EPILOG
    add = parser.add_argument
    add("texts", nargs="*", metavar="TEXT", help="a text; a single - means the lines of standard input")
    add(
        *("-f", "--file"),
        action="extend",
        nargs="+",
        default=[],
        metavar="FILE",
        help="files with one text a line, or - ; may be repeated",
    )
    add("-w", "--whole", action="store_true", help="take each file, and standard input, as one text; its path is the id")
    add(
        "--batch",
        metavar="FILE",
        help="a file of any size, or -, or many files; its extension tells the format",
    )
    add("--input-format", choices=INPUT_FORMATS, help="the format of the --batch file")
    add("--text-column", metavar="NAME", help="where --batch has the texts (default: text)")
    add("--id-column", metavar="NAME", help="where --batch has ids (default: id, if there)")
    add(
        "--delimiter", type=_delimiter, metavar="CHAR", help='what separates the columns of a table of text, such as ";" or tab'
    )
    add("--keep", action="append", metavar="COLUMN", help="keep a column of the input in Parquet output; all means all of them")
    completes_models(
        add("--model", metavar="NAME", help="the model; `runed models` lists them (default: the daemon's default model)")
    )
    add("--role", choices=("query", "document"), help="the purpose of the texts; the model's own prompt for it is put in front")
    add("--instruction", default="", metavar="TEXT", help="the task of a query, in one English sentence")
    add("--dimensions", type=positive_number, metavar="N", help="shorten the vectors to N values, where the model allows it")
    add("--truncate", choices=("none", "end", "start"), default="none", help="cut a text that is too long (default: refuse it)")
    add("--keep-going", action="store_true", help="record texts that cannot be embedded instead of stopping at the first")
    add("--format", choices=ENCODERS, help="default: by the extension of --output, else json")
    add("--json", action="store_true", help="for programs: --format json; with --output, what was done as a JSON object")
    add("-o", "--output", default=STANDARD_STREAM, metavar="FILE", help="default: - , standard output")
    add("--resume", action="store_true", help="go on with an interrupted --batch to FILE; no text is done twice or lost")
    add("--overwrite", action="store_true", help="replace FILE, and throw away the FILE.part of an interrupted job")
    add("-q", "--quiet", action="store_true", help="show no progress, and no line at the end")
    parser.set_defaults(usage_error=parser.error)


def run(arguments: argparse.Namespace) -> int:
    """Embed all texts and write the vectors."""
    if descriptor_of(arguments.output) == (os.getpid(), 1):
        arguments.output = STANDARD_STREAM
    _check_usage(arguments)
    if arguments.batch is not None and is_many(arguments.batch):
        return _run_many(arguments)
    source_path, output_format = arguments.batch or STANDARD_STREAM, choose_format(arguments.format, arguments.output)
    check_keeping(output_format, wanted=bool(arguments.keep))  # before pyarrow is looked for, which may not be needed
    if not arguments.overwrite and is_finished(arguments.output, output_format, source_path, resume=arguments.resume):
        _leave(arguments, output_format, Path(source_path))
        return ExitCode.OK
    _hint_at_files(arguments)
    to_terminal = arguments.output == STANDARD_STREAM and sys.stdout.isatty()
    with _open_source(arguments) as source, _display(arguments) as display:
        kept = kept_columns(source, arguments.keep) if arguments.keep and isinstance(source, Batch) else None
        result = run_job(
            source,
            arguments.output,
            connect=lambda: _connected(display, arguments.model or ""),
            output_format=output_format,
            role=arguments.role,
            instruction=arguments.instruction,
            dimensions=arguments.dimensions,
            truncate=arguments.truncate,
            model=arguments.model,
            keep_going=arguments.keep_going,
            keep=arguments.batch is not None,
            resume=arguments.resume,
            overwrite=arguments.overwrite,
            kept=kept,
            on_progress=_shown_on(display, to_terminal=to_terminal),
            on_complaint=complain,
        )
    told = not _is_stream(arguments.output) or (result.count > BAR_TEXTS and not to_terminal)
    return _judged(result, arguments.output, told=told and not arguments.quiet, as_json=arguments.json)


def _leave(arguments: argparse.Namespace, output_format: str, source_path: Path) -> None:
    """Tell that the output of an earlier job is left as it is, unless something cheap shows that it is of another job."""
    count, age = None, ""
    if source_path.is_file():
        age = f" and is not older than {source_path}"
        if source_path.stat().st_size <= COUNTED_BYTES:
            with _open_source(arguments) as source, _display(arguments) as display:
                count = survey(source, done=0, keep_going=True, on_progress=_shown_on(display, to_terminal=False)).count
    rows = check_shape(arguments.output, output_format, count=count, dimensions=arguments.dimensions) or count
    if arguments.json:
        known = JobResult(count=rows or 0, failed=0, before=rows or 0)
        print(json.dumps(_as_dict(known, arguments.output) | ({} if rows else {"texts": None, "before": None})))
    complain(
        f"{arguments.output} is there{age}, so nothing is done; it does not tell what it was made from: "
        "--overwrite makes it anew"
    )


def _run_many(arguments: argparse.Namespace) -> int:
    """Embed the texts of many files."""
    if arguments.output == STANDARD_STREAM or descriptor_of(arguments.output) is not None:
        arguments.usage_error("many files need a directory for their vectors: add `-o DIRECTORY`")
    options: FileOptions = {
        "input_format": arguments.input_format,
        "text_column": arguments.text_column,
        "id_column": arguments.id_column,
        "delimiter": arguments.delimiter,
        "output_format": arguments.format,
        "keep": arguments.keep,
        "role": arguments.role,
        "instruction": arguments.instruction,
        "dimensions": arguments.dimensions,
        "truncate": arguments.truncate,
        "model": arguments.model,
        "keep_going": arguments.keep_going,
        "overwrite": arguments.overwrite,
    }
    with _display(arguments) as display:
        step = ""

        def show_part(number: int, count: int) -> None:
            nonlocal step
            step = f"file {number:,} of {count:,}"
            display.update(step, unit="texts")

        result = run_here(
            PartitionJob(arguments.batch, arguments.output, options),
            resume=arguments.resume,
            connect=lambda: connect(display, arguments.model or ""),
            on_part=show_part,
            on_progress=lambda done, total: display.update(step, done, total, unit="texts"),
            on_complaint=complain,
        )
    return _judged(result, arguments.output, told=not arguments.quiet, as_json=arguments.json)


def _judged(result: JobResult, output: str, *, told: bool, as_json: bool) -> int:
    """Tell what was done, and return the exit code.

    Args:
        result: The result.
        output: The output.
        told: Whether there is something to tell. A few vectors on standard output speak for themselves.
        as_json: Whether the user wants it as JSON on standard output, if no vectors are there.
    """
    if as_json and output != STANDARD_STREAM:
        print(json.dumps(_as_dict(result, output)))
    elif told and result.before < result.count:
        complain(_summary(result, output))
    elif result.failed:
        complain(f"{result.failed:,} of {result.count:,} texts have no vector")
    return ExitCode.FAILED if result.failed else ExitCode.OK


def _as_dict(result: JobResult, output: str) -> dict[str, object]:
    return {
        "output": output,
        "texts": result.count,
        "before": result.before,
        "tokens": result.tokens,
        "seconds": round(result.seconds, 3),
        "texts_per_second": round((result.count - result.before) / result.seconds, 1) if result.seconds else 0.0,
        "cached": result.cached,
        "errors": result.failed,
    }


def _summary(result: JobResult, output: str) -> str:
    texts = _counted(result.count, "text")
    if result.before:
        texts += f" ({result.before:,} of them by an earlier run)"
    new = result.count - result.before
    rate = f" ({rate_of(new, result.seconds)} texts/s)" if new and result.seconds else ""
    place = "standard output" if output == STANDARD_STREAM else output
    return (
        f"{texts}, {_counted(result.tokens, 'token')}, {result.seconds:,.1f} s{rate}, {result.cached:,} cached, "
        f"{_counted(result.failed, 'error')}, to {place}"
    )


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _hint_at_files(arguments: argparse.Namespace) -> None:
    """Tell a user whose only text is the name of a file how to embed the texts in it."""
    (text,) = arguments.texts if len(arguments.texts) == 1 else ("",)
    if text != STANDARD_STREAM and os.path.isfile(text):  # noqa: PTH113 # `Path` fails for a text that is too long for a name
        option = "-f" if format_of(text) in {None, "lines"} else "--batch"
        complain(
            f"{text} is a file, and its name is embedded here; for the texts in it: runed embed {option} {shlex.quote(text)}"
        )


def _check_usage(arguments: argparse.Namespace) -> None:
    refuse: Callable[[str], None] = arguments.usage_error
    sources = [bool(arguments.texts), bool(arguments.file), arguments.batch is not None]
    if arguments.batch is not None and arguments.texts and all(map(os.path.isfile, arguments.texts)):
        refuse("--batch takes one file, directory or pattern; put the pattern in quotes, as in --batch 'notes/*.txt'")
    if sum(sources) > 1:
        refuse("give the texts as arguments, by --file or by --batch, not by several of them")
    if folder := next(filter(os.path.isdir, arguments.file), ""):
        refuse(f"{folder} is a directory; name its files, or embed them all: --batch {shlex.quote(folder)} -o DIRECTORY")
    if not any(sources) and (sys.stdin is None or sys.stdin.isatty()):
        refuse('there is no text; try: runed embed "hello world"')
    only_batch = ("input_format", "text_column", "id_column", "delimiter", "keep", "resume")
    if arguments.batch is None and (given := next((name for name in only_batch if getattr(arguments, name)), None)):
        refuse(f"--{given.replace('_', '-')} is for --batch")
    if arguments.whole and arguments.batch is not None:
        refuse("--whole is for --file and standard input, not for --batch")
    if arguments.text_column is not None and arguments.text_column == arguments.id_column:
        refuse("--text-column and --id-column name the same column")
    if arguments.instruction and arguments.role != "query":
        refuse("--instruction is for --role query")
    _check_output_usage(arguments, refuse)


def _check_output_usage(arguments: argparse.Namespace, refuse: Callable[[str], None]) -> None:
    if any(_is_same_file(path, arguments.output) for path in _input_paths(arguments)):
        refuse("--output would take the place of the input; name another file")
    if arguments.resume and arguments.overwrite:
        refuse("give --resume or --overwrite, not both")
    for option, value in (("--output", arguments.output), ("--batch", arguments.batch)):
        if value == "":
            refuse(
                f"{option} is empty; name a file, or give - for standard {option.removeprefix('--').replace('batch', 'input')}"
            )
    is_one = arguments.batch is None or not is_many(arguments.batch)
    if is_one and (arguments.output.endswith("/") or Path(arguments.output).is_dir()):
        refuse(f"--output {arguments.output} is a directory, which is for the vectors of many files; name a file in it")
    if (arguments.resume or arguments.overwrite) and is_one and _is_stream(arguments.output):
        refuse("only a job with --output FILE can be resumed or overwritten")
    if arguments.json and arguments.output == STANDARD_STREAM and arguments.format not in {None, "json"}:
        refuse("--json means --format json on standard output; leave one of the two out, or add --output FILE")


def _display(arguments: argparse.Namespace) -> ProgressDisplay:
    return ProgressDisplay(wanted=False if arguments.quiet else None)


def _delimiter(value: str) -> str:
    """Convert the argument of --delimiter."""
    char = {"tab": "\t", "\\t": "\t"}.get(value, value)
    if len(char) != 1 or char in '"\r\n\0':
        raise argparse.ArgumentTypeError(f'{value!r} is not one character, such as ";", or the word tab')
    return char


def _input_paths(arguments: argparse.Namespace) -> list[str]:
    if arguments.batch is not None:
        return [arguments.batch]
    return arguments.file or ([] if arguments.texts and arguments.texts != [STANDARD_STREAM] else [STANDARD_STREAM])


def _is_same_file(path: str, output: str) -> bool:
    """Return whether the output would replace an input, or be appended to it. A device, such as a terminal, can be both."""
    try:
        read = os.fstat(0) if path == STANDARD_STREAM else os.stat(path)  # noqa: PTH116 # as the next line
        written = os.fstat(1) if output == STANDARD_STREAM else os.stat(output)  # noqa: PTH116 # a descriptor has no path
    except OSError:
        return False  # the reading of the input will fail with the reason
    return stat.S_ISREG(read.st_mode) and os.path.samestat(read, written)


def _is_stream(output: str) -> bool:
    path = Path(output)
    return output == STANDARD_STREAM or descriptor_of(output) is not None or (path.exists() and not path.is_file())


def _open_source(arguments: argparse.Namespace) -> AbstractContextManager[Source]:
    if arguments.batch is not None:
        columns = Columns(arguments.text_column or Columns().text, arguments.id_column, arguments.delimiter)
        return inputs.open_batch(arguments.batch, arguments.input_format, columns)
    if arguments.texts and arguments.texts != [STANDARD_STREAM]:
        return nullcontext(lambda: inputs.from_arguments(arguments.texts))
    return inputs.open_files(arguments.file or [STANDARD_STREAM], whole=arguments.whole)


@contextmanager
def _connected(display: ProgressDisplay, model: str) -> Iterator[runed.Client]:
    """Connect, and end the bar with the work: the last words of an output would be cut into lines above a live bar."""
    with display, connect(display, model) as client:
        yield client


def _shown_on(display: ProgressDisplay, *, to_terminal: bool) -> Callable[[int, int], None]:
    """Return a callback that shows the progress of a job; `to_terminal` tells whether vectors go to a terminal."""
    # It would mix with the vectors on the same terminal.
    is_shown = not to_terminal

    def show(done: int, total: int) -> None:
        if is_shown and (not total or total > BAR_TEXTS):
            display.update("embedding" if total else "reading", done, total, unit="texts")
        else:
            display.close()  # ends the bar of a daemon's start

    return show
