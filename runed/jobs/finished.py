"""What can be told of an output that an earlier job has completed. It does not name its input, but its shape."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from runed.errors import RunedError, SettingsError
from runed.jobs import parquet

_READ_BYTES = 4 * 1024 * 1024
"""Bytes of the beginning and of the end of an output that are read: more than one row of JSON has, as a rule."""

_ROW = re.compile(rb'^\{"index":(\d+),', re.MULTILINE)
"""The beginning of a row of JSON, as `runed.jobs.formats` writes it. A line feed within a text is escaped there."""

_DIM = re.compile(rb'"dim":(\d+),"embeddings":\[')
_VECTOR = re.compile(rb'"embedding":\[([^\]]*)\]')


def check_shape(output: str, output_format: str, *, count: int | None, dimensions: int | None) -> int | None:
    """Refuse a completed output that has another shape than that of this job would have.

    Args:
        output: The path.
        output_format: A key of `ENCODERS`.
        count: The number of texts of this job; None if it is not known.
        dimensions: The number of values of each vector; None if it is not known.

    Returns:
        The number of vectors of the output; None if it does not tell.

    Raises:
        RunedError: The output is of another job.
        SettingsError: It is no output of a job; or pyarrow is missing.
    """
    try:
        rows, dim = _SHAPES[output_format](output)
    except (ValueError, KeyError):  # as NumPy and pyarrow say that a file is damaged, or of another kind
        raise SettingsError(f"{output} exists already, and is no output of such a job; add --overwrite to replace it") from None
    remedy = "add --overwrite to replace it, or name another file"
    if None not in {dimensions, dim} and dimensions != dim:
        raise RunedError(f"{output} is of another job: its vectors have {dim} values, not {dimensions}; {remedy}")
    if count is not None and rows is not None and count != rows:
        raise RunedError(f"{output} is of another job: it has {rows:,} vectors, and the input has {count:,} texts; {remedy}")
    return rows


def _shape_of_json(path: str, end: bytes) -> tuple[int | None, int | None]:
    """Return the shape of JSON or JSON lines by the first and last bytes of the file, which ends with `end` if it is whole."""
    with Path(path).open("rb") as file:
        head = file.read(_READ_BYTES)
        file.seek(max(0, file.seek(0, os.SEEK_END) - _READ_BYTES))
        tail = file.read(_READ_BYTES)
    if not (_ROW.search(head) and tail.endswith(end)):
        raise ValueError("it is cut short, or has no row")
    last = [int(row[1]) for row in _ROW.finditer(tail)][-1:]
    told, vector = _DIM.search(head), _VECTOR.search(head)
    dim = int(told[1]) if told else vector[1].count(b",") + 1 if vector else None
    return last[0] + 1 if last else None, dim


def _shape_of_array(path: str) -> tuple[int, int]:
    import numpy as np  # noqa: PLC0415 # 60 ms that `runed embed --help` does not spend

    rows, dim = np.load(path, mmap_mode="r").shape
    return rows, dim


def _shape_of_table(path: str) -> tuple[int, int]:
    with parquet.pyarrow("pyarrow.parquet").ParquetFile(path) as table:
        return table.metadata.num_rows, getattr(table.schema_arrow.field("embedding").type, "list_size", 0)


_SHAPES: dict[str, Callable[[str], tuple[int | None, int | None]]] = {
    "json": partial(_shape_of_json, end=b"\n]}\n"),
    "jsonl": partial(_shape_of_json, end=b"}\n"),
    "npy": _shape_of_array,
    "parquet": _shape_of_table,
}
"""What tells the rows of an output and the values of a vector, by the format; None for a number that is not told."""
