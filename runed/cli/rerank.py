"""`runed rerank`: documents in the order of their relevance to a query."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator

import runed
from runed.cli.boundary import ExitCode, complain
from runed.cli.completing import completes_models
from runed.cli.options import positive_number
from runed.cli.progress import ProgressDisplay
from runed.cli.waiting import connect
from runed.errors import EmptyTextError, printable
from runed.jobs import inputs
from runed.jobs.input_files import STANDARD_STREAM
from runed.jobs.inputs import INPUT_FORMATS, Columns, Item

FORMATS = ("text", "jsonl", "json")

DESCRIPTION = """\
Rank documents by their relevance to a query, starting the daemon if none runs.
The daemon needs a reranker.

Documents are the lines of FILE or of standard input (UTF-8, one document a
line), or the rows of a file of JSON lines, CSV, TSV or Parquet. Blank ones are
left out.
"""

EPILOG = """\
output, the best document first:
  text   the score from 0 to 1, a tab, and the document with its control
         characters escaped
  jsonl  {"index": 3, "score": 0.98, "document": "..."}, one line a document
  json   an array of the same objects
  "index" counts the documents of the input from 0, blank ones included; "id"
  follows it where the input gave one.

examples:
  runed rerank "how do I brew tea?" passages.txt --top-n 3
  grep -rh tea notes/ | runed rerank "how do I brew tea?"
  runed rerank "how do I brew tea?" docs.jsonl --format jsonl
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = DESCRIPTION
    parser.epilog = EPILOG
    add = parser.add_argument
    add("query", metavar="QUERY", help="the question or search phrase")
    add("file", nargs="?", default=STANDARD_STREAM, metavar="FILE", help="the documents; default: - , standard input")
    add("-n", "--top-n", type=positive_number, metavar="N", help="show the N best documents (default: all)")
    completes_models(
        add("--model", default="", metavar="NAME", help="the reranker (default: the only one that the daemon has)")
    )
    add("--input-format", choices=INPUT_FORMATS, help="the format of the documents (default: by the extension, else lines)")
    add("--text-column", metavar="NAME", help="where rows have the documents (default: text)")
    add("--id-column", metavar="NAME", help="where rows have ids (default: id, if there)")
    add(
        "--truncate", choices=("none", "end", "start"), default="none", help="cut a document that is too long (default: refuse)"
    )
    add("--format", choices=FORMATS, default="text", help="default: text")
    add("--json", dest="format", action="store_const", const="json", help="for programs: the same as --format json")
    parser.set_defaults(usage_error=parser.error)


def run(arguments: argparse.Namespace) -> int:
    """Rank the documents and print them."""
    if arguments.file == STANDARD_STREAM and (sys.stdin is None or sys.stdin.isatty()):
        arguments.usage_error('there are no documents; try: runed rerank "a question" lines.txt')
    items = list(_documents(arguments))
    if not items:
        place = "standard input" if arguments.file == STANDARD_STREAM else arguments.file
        complain(f"{place} has no documents, so nothing is ranked; give a FILE, or lines by a pipe")
    with ProgressDisplay() as display, connect(display, arguments.model or None) as client:
        ranked = client.rerank(
            arguments.query,
            [item.text for _, item in items],
            top_n=arguments.top_n,
            model=arguments.model,
            truncate=arguments.truncate,
        )
    from runed.float_json import shorten_floats  # noqa: PLC0415 # it imports NumPy

    scores = shorten_floats([result.score for result in ranked])
    rows = [_row(result, score, *items[result.index]) for result, score in zip(ranked, scores, strict=True)]
    if arguments.format == "json":
        print(json.dumps(rows, ensure_ascii=False))
    for row in rows:
        if arguments.format == "jsonl":
            print(json.dumps(row, ensure_ascii=False))
        elif arguments.format == "text":
            print(f"{row['score']:.4f}\t{printable(str(row['document']))}")
    return ExitCode.OK


def _documents(arguments: argparse.Namespace) -> Iterator[tuple[int, Item]]:
    """Yield the documents that are not blank, each with its index in the input."""
    columns = Columns(arguments.text_column or Columns().text, arguments.id_column)
    with inputs.open_batch(arguments.file, arguments.input_format, columns, otherwise="lines") as source:
        for index, item in enumerate(source()):
            if isinstance(item.problem, EmptyTextError):
                continue
            if item.problem is not None:
                raise item.problem
            yield index, item


def _row(result: runed.RerankResult, score: float, index: int, item: Item) -> dict[str, object]:
    known = {"id": json.loads(item.id)} if item.id else {}
    return {"index": index, **known, "score": score, "document": result.document}
