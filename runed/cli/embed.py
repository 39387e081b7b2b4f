"""`runed embed`: texts to vectors."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

import runed
from runed.cli import inputs
from runed.cli.boundary import ExitCode
from runed.cli.inputs import STANDARD_INPUT, Item
from runed.cli.outputs import WRITERS, Vectors, Writer, choose_format, open_output
from runed.cli.progress import ProgressDisplay
from runed.cli.waiting import connect
from runed.errors import EmptyBatchError, InvalidRequestError, RequestTooLargeError, RunedError

CHUNK_TEXTS = 32
CHUNK_BYTES = 32 * 1024
"""What goes into one request: enough that its cost does not count, and little enough for the progress to be seen, for Ctrl-C to
spare the daemon much work in vain, and for a result to be on disk or in the pipe soon."""

DESCRIPTION = """\
Turn texts into vectors, starting the daemon if none runs.

Texts are the arguments, or the lines of files or of standard input (UTF-8, one
text a line). An empty line is refused, since line and row numbers would no
longer agree. All of the input is read and checked before the first text is
embedded.
"""

EPILOG = """\
output:
  json   {"model_identity": "sha256:...", "dim": 1024,
          "embeddings": [{"index": 0, "embedding": [...]}, ...]}
  jsonl  {"index": 0, "model_identity": "sha256:...", "embedding": [...]}
         one line a text, written as it comes
  npy    a NumPy array, float32, one row a text
  "index" counts the texts from 0; "id" follows it where --batch gave one.
  Vectors have L2 norm 1.

  FILE appears under its name only when it is complete. On standard output,
  what ends early does not parse (json, npy), or ends with the line
  {"error": {"reason": ..., "message": ...}} (jsonl); the exit code is not 0.

examples:
  runed embed "first text" "second text"
  runed embed -f lines.txt -o vectors.npy
  runed embed --whole -f chapter1.txt -f chapter2.txt
  cut -f2 table.tsv | runed embed --format jsonl | gzip > vectors.jsonl.gz
  runed embed --batch texts.jsonl   with lines {"id": 7, "text": "..."} or "..."
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = DESCRIPTION
    parser.epilog = EPILOG
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="a text; a single - means the lines of standard input")
    parser.add_argument(
        "-f", "--file", action="append", default=[], metavar="FILE", help="a file with one text a line, or - ; may be repeated"
    )
    parser.add_argument("-w", "--whole", action="store_true", help="take each file, and standard input, as one text")
    parser.add_argument("--batch", metavar="FILE", help='JSON lines, or -: strings, or objects with "text" and maybe "id"')
    parser.add_argument("--format", choices=WRITERS, help="default: by the extension of --output, else json")
    parser.add_argument("-o", "--output", default=STANDARD_INPUT, metavar="FILE", help="default: - , standard output")
    parser.set_defaults(usage_error=parser.error)


def run(arguments: argparse.Namespace) -> int:
    """Embed all texts and write the vectors."""
    output_format = choose_format(arguments.format, arguments.output)
    items = list(_read_items(arguments))
    if not items:
        raise EmptyBatchError("the input holds no text; give at least one")
    with open_output(arguments.output) as stream, ProgressDisplay() as display, connect(display) as client:
        # A bar would mix with vectors on the same terminal.
        mixed = arguments.output == STANDARD_INPUT and sys.stdout.isatty()
        results = _embed(client, items, display if display.live and not mixed else None)
        # The first vectors come when the model is there, and only then there is an identity to name.
        first = next(results)
        display.close()
        info = client.info()
        writer = WRITERS[output_format](stream, count=len(items), dim=info.vector_dim, model_identity=info.model_identity)
        with _marking_failure(writer):
            writer.begin()
            for chunk, vectors in chain([first], results):
                writer.write(chunk, vectors)
            _check_model(client, info)
            writer.end()
    return ExitCode.OK


def _read_items(arguments: argparse.Namespace) -> Iterator[Item]:
    sources = [bool(arguments.texts), bool(arguments.file), arguments.batch is not None]
    if sum(sources) > 1:
        arguments.usage_error("give the texts as arguments, by --file or by --batch, not by several of them")
    if arguments.batch is not None:
        return inputs.from_json_lines(arguments.batch)
    if arguments.texts and arguments.texts != [STANDARD_INPUT]:
        return inputs.from_arguments(arguments.texts)
    if not arguments.texts and not arguments.file and (sys.stdin is None or sys.stdin.isatty()):
        arguments.usage_error('there is no text; try: runed embed "hello world"')
    read = inputs.from_whole_file if arguments.whole else inputs.from_lines
    return chain.from_iterable(map(read, arguments.file or [STANDARD_INPUT]))


def _embed(
    client: runed.Client, items: Sequence[Item], display: ProgressDisplay | None
) -> Iterator[tuple[Sequence[Item], Vectors]]:
    """Embed the texts chunk by chunk, and show how far that is, unless all is one request."""
    done = 0
    for chunk in _chunks(items):
        if display and len(chunk) < len(items):
            display.update("embedding", done, len(items), unit="texts")
        yield chunk, _embed_chunk(client, chunk)
        done += len(chunk)


def _chunks(items: Iterable[Item]) -> Iterator[list[Item]]:
    chunk: list[Item] = []
    size = 0
    for item in items:
        length = len(item.text.encode())
        if chunk and (len(chunk) == CHUNK_TEXTS or size + length > CHUNK_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(item)
        size += length
    yield chunk


def _embed_chunk(client: runed.Client, chunk: Sequence[Item]) -> Vectors:
    try:
        return client.embed_batch([item.text for item in chunk])
    except (InvalidRequestError, RequestTooLargeError) as error:
        if "index" not in error.metadata:
            raise
        item = chunk[int(error.metadata["index"])]
    # The daemon counts within our chunk, which says nothing to the user: ask about the text alone, and tell where it stands.
    try:
        client.embed(item.text)
    except (InvalidRequestError, RequestTooLargeError) as error:
        raise type(error)(f"{item.origin}: {error.message}", metadata=error.metadata) from None
    raise InvalidRequestError(f"{item.origin}: the daemon refused the text among others, but not alone; try again")


def _check_model(client: runed.Client, before: runed.Info) -> None:
    """Refuse to mix vectors of two models, as happens when somebody exchanges the daemon in the middle of a long run."""
    now = client.info().model_identity
    if now != before.model_identity:
        raise RunedError(f"the model changed from {before.model_identity} to {now} while embedding; start again")


@contextlib.contextmanager
def _marking_failure(writer: Writer) -> Iterator[None]:
    """Let the writer mark its output as incomplete where the block fails."""
    try:
        yield
    except RunedError as error:
        writer.fail(error.reason, error.message)
        raise
    except (KeyboardInterrupt, SystemExit):
        writer.fail("INTERRUPTED", "the command was ended by Ctrl-C or a signal")
        raise
