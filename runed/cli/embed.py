"""`runed embed`: texts to vectors."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from runed.cli.boundary import ExitCode, complain
from runed.cli.options import positive_number
from runed.cli.progress import ProgressDisplay
from runed.cli.waiting import connect
from runed.errors import EmptyBatchError
from runed.jobs import inputs, parquet
from runed.jobs.formats import ENCODERS
from runed.jobs.inputs import INPUT_FORMATS, STANDARD_INPUT, Columns, InputFile, Item, Source
from runed.jobs.job import Job
from runed.jobs.ordering import survey
from runed.jobs.outputs import choose_format, open_output

if TYPE_CHECKING:
    from runed.client.options import EmbedOptions

BAR_TEXTS = 32
"""Up to how many texts are done before a bar could be read."""

INTERACTIVE_TEXTS = 8
"""Up to how many texts somebody is thought to wait for, as the daemon thinks of batches."""

_READING_STEP = 5000
"""Texts between two looks at how far the first reading is."""

DESCRIPTION = """\
Turn texts into vectors, starting the daemon if none runs.

Texts are the arguments, or the lines of files or of standard input (UTF-8, one
text a line), or with --batch what a file of JSON lines, CSV, TSV, Parquet or
lines holds, which may be of any size. An empty text is refused, since line and
row numbers would no longer agree. All of the input is read and checked before
the first text is embedded.
"""

EPILOG = """\
input of --batch, told by the extension or --input-format:
  jsonl    a JSON string a line, or an object with "text" and maybe "id"
  csv      a header, then rows; .tsv is the same with tabs
  parquet  needs `pip install 'runed[parquet]'`
  lines    .txt: a text a line
  --text-column and --id-column name other columns or members.

output:
  json     {"model_identity": "sha256:...", "fingerprint": "...", "dim": 1024,
            "embeddings": [{"index": 0, "token_count": 5, "embedding": [...]},
            ...]}
  jsonl    {"index": 0, "model_identity": "sha256:...", "fingerprint": "...",
            "token_count": 5, "embedding": [...]}
           one line a text, written as it comes
  npy      a NumPy array, float32, one row a text
  parquet  index, id (a string), token_count, error, embedding; the fingerprint
           is in the metadata, as "runed.fingerprint"
  "index" counts the texts from 0; "id" follows it where the input gave one.
  "total_token_count" follows "token_count" where a text was truncated.
  Vectors have L2 norm 1. Those of different fingerprints cannot be compared.

  FILE appears under its name only when it is complete. On standard output,
  what ends early does not parse (json, npy, parquet), or ends with the line
  {"error": {"reason": ..., "message": ...}} (jsonl); the exit code is not 0.
  With --keep-going, a text without a vector has "error" instead of "embedding"
  (json, jsonl), a row of NaN (npy) or null (parquet); the exit code is 1.

long jobs:
  What --batch has done of FILE when it is interrupted, by Ctrl-C, a crash or a
  power failure, stays in FILE.part. The same command with --resume goes on from
  there; it begins where there is nothing to go on with.

examples:
  runed embed "first text" "second text"
  runed embed --role query "what is a daemon?"
  runed embed -f lines.txt -o vectors.npy
  runed embed --whole -f chapter1.txt -f chapter2.txt
  cut -f2 table.tsv | runed embed --format jsonl | gzip > vectors.jsonl.gz
  runed embed --batch texts.jsonl   with lines {"id": 7, "text": "..."} or "..."
  runed embed --batch all.csv --text-column body -o all.parquet --resume
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = DESCRIPTION
    parser.epilog = EPILOG
    add = parser.add_argument
    add("texts", nargs="*", metavar="TEXT", help="a text; a single - means the lines of standard input")
    add("-f", "--file", action="append", default=[], metavar="FILE", help="a file with one text a line, or - ; may be repeated")
    add("-w", "--whole", action="store_true", help="take each file, and standard input, as one text")
    add("--batch", metavar="FILE", help="a file of any size, or -; JSON lines unless its extension says otherwise")
    add("--input-format", choices=INPUT_FORMATS, help="what --batch holds")
    add("--text-column", metavar="NAME", help="where --batch has the texts (default: text)")
    add("--id-column", metavar="NAME", help="where --batch has ids (default: id, if there)")
    add("--role", choices=("query", "document"), help="what the texts are for: models that have prompts put theirs in front")
    add("--instruction", default="", metavar="TEXT", help="what a query is asked for, in one English sentence")
    add("--dimensions", type=positive_number, metavar="N", help="shorten the vectors to N values, where the model allows it")
    add("--truncate", choices=("none", "end", "start"), default="none", help="cut a text that is too long (default: refuse it)")
    add("--keep-going", action="store_true", help="record texts that cannot be embedded instead of stopping at the first")
    add("--format", choices=ENCODERS, help="default: by the extension of --output, else json")
    add("-o", "--output", default=STANDARD_INPUT, metavar="FILE", help="default: - , standard output")
    add("--resume", action="store_true", help="go on with an interrupted --batch to FILE; no text is done twice or lost")
    add("--overwrite", action="store_true", help="throw away what an interrupted --batch left, and start anew")
    parser.set_defaults(usage_error=parser.error)


def run(arguments: argparse.Namespace) -> int:
    """Embed all texts and write the vectors."""
    _check_usage(arguments)
    output_format = choose_format(arguments.format, arguments.output)
    if output_format == "parquet":
        parquet.pyarrow()  # its absence is told before any work
    with contextlib.ExitStack() as stack:
        source = _open_source(arguments, stack)
        keep = {"keep": arguments.batch is not None, "resume": arguments.resume, "overwrite": arguments.overwrite}
        output = stack.enter_context(open_output(arguments.output, **keep))
        if output.complete:
            complain(f"{arguments.output} is complete already; leave out --resume to make it anew")
            return ExitCode.OK
        display = stack.enter_context(ProgressDisplay())
        # A bar would mix with vectors on the same terminal.
        shown = display if display.live and not (arguments.output == STANDARD_INPUT and sys.stdout.isatty()) else None
        surveyed = survey(_shown_reading(source, shown), done=output.mark.done, keep_going=arguments.keep_going)
        if not surveyed.count:
            raise EmptyBatchError("the input holds no text; give at least one")
        chosen = _chosen(arguments) | {"format": output_format}
        output.check(chosen, surveyed.inputs_done.hex())
        client = stack.enter_context(connect(display))
        job = Job(client, output, ENCODERS[output_format], surveyed, chosen=chosen, keep_going=arguments.keep_going)
        failed = job.run(source, _options(arguments, surveyed.count), _shown_work(display, shown, surveyed.count))
    if failed:
        complain(f"{failed:,} of {surveyed.count:,} texts have no vector")
        return ExitCode.FAILED
    return ExitCode.OK


def _check_usage(arguments: argparse.Namespace) -> None:
    refuse: Callable[[str], None] = arguments.usage_error
    sources = [bool(arguments.texts), bool(arguments.file), arguments.batch is not None]
    if sum(sources) > 1:
        refuse("give the texts as arguments, by --file or by --batch, not by several of them")
    if not any(sources) and (sys.stdin is None or sys.stdin.isatty()):
        refuse('there is no text; try: runed embed "hello world"')
    only_batch = ("input_format", "text_column", "id_column", "resume", "overwrite")
    if arguments.batch is None and (given := next((name for name in only_batch if getattr(arguments, name)), None)):
        refuse(f"--{given.replace('_', '-')} is for --batch")
    if arguments.whole and arguments.batch is not None:
        refuse("--whole is for --file and standard input, not for --batch")
    if arguments.text_column is not None and arguments.text_column == arguments.id_column:
        refuse("--text-column and --id-column name the same column")
    if arguments.instruction and arguments.role != "query":
        refuse("--instruction is for --role query")
    if any(_is_same_file(path, arguments.output) for path in (arguments.batch, *arguments.file)):
        refuse("--output would take the place of the input; name another file")
    if arguments.resume and arguments.overwrite:
        refuse("give --resume or --overwrite, not both")
    if (arguments.resume or arguments.overwrite) and arguments.output == STANDARD_INPUT:
        refuse("only a job with --output FILE can be resumed")


def _is_same_file(path: str | None, output: str) -> bool:
    """Tell whether the output would be written over an input; a device, such as a terminal, can be both."""
    if path is None or STANDARD_INPUT in (path, output) or not Path(output).is_file():
        return False
    try:
        return Path(path).samefile(output)
    except OSError:
        return False  # told when it is read


def _open_source(arguments: argparse.Namespace, stack: contextlib.ExitStack) -> Source:
    def opened(path: str) -> InputFile:
        file = InputFile(path)
        stack.callback(file.close)
        return file

    columns = Columns(arguments.text_column or Columns().text, arguments.id_column)
    if arguments.batch is not None:
        input_format = arguments.input_format or inputs.choose_input_format(arguments.batch)
        return partial(inputs.from_file, opened(arguments.batch), input_format, columns)
    if arguments.texts and arguments.texts != [STANDARD_INPUT]:
        return partial(inputs.from_arguments, arguments.texts)
    files = [opened(path) for path in arguments.file or [STANDARD_INPUT]]
    read = inputs.from_whole_file if arguments.whole else partial(inputs.from_file, input_format="lines", columns=columns)
    return lambda: chain.from_iterable(read(file) for file in files)


def _chosen(arguments: argparse.Namespace) -> dict[str, str]:
    names = ("role", "instruction", "dimensions", "truncate")
    return {name: str(value) if (value := getattr(arguments, name)) else "" for name in names}


def _options(arguments: argparse.Namespace, count: int) -> EmbedOptions:
    return {
        "role": arguments.role,
        "instruction": arguments.instruction,
        "dimensions": arguments.dimensions,
        "truncate": arguments.truncate,
        "lane": "interactive" if count <= INTERACTIVE_TEXTS else None,
    }


def _shown_reading(source: Source, display: ProgressDisplay | None) -> Source:
    """Give a source that shows how far its reading is."""

    def items() -> Iterator[Item]:
        for number, item in enumerate(source()):
            if display and number and number % _READING_STEP == 0:
                display.update("reading", number, unit="texts")
            yield item

    return items


def _shown_work(display: ProgressDisplay, shown: ProgressDisplay | None, count: int) -> Callable[[int], None]:
    """Give what shows how many texts are done, and before that ends what was shown of a start."""

    def show(done: int) -> None:
        if shown and count > BAR_TEXTS:
            shown.update("embedding", done, count, unit="texts")
        else:
            display.close()

    return show
