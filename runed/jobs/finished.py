"""What can be told of an output that an earlier job has completed. It does not name its input, but maybe its shape."""

from __future__ import annotations

from runed.errors import RunedError, SettingsError
from runed.jobs import parquet


def check_shape(output: str, output_format: str, *, count: int | None, dimensions: int | None) -> None:
    """Refuse a completed output that has another shape than that of this job would have. Only npy and Parquet tell theirs.

    Args:
        output: The path.
        output_format: A key of `ENCODERS`.
        count: The number of texts of this job; None if it is not known.
        dimensions: The number of values of each vector; None if it is not known.

    Raises:
        RunedError: The output is of another job.
        SettingsError: It is no output of a job; or pyarrow is missing.
    """
    if output_format not in {"npy", "parquet"}:
        return
    try:
        rows, dim = (_shape_of_array if output_format == "npy" else _shape_of_table)(output)
    except (ValueError, KeyError):  # as NumPy and pyarrow say that a file is damaged, or of another kind
        raise SettingsError(f"{output} exists already, and is no output of such a job; add --overwrite to replace it") from None
    remedy = "add --overwrite to replace it, or name another file"
    if dimensions is not None and dimensions != dim:
        raise RunedError(f"{output} is of another job: its vectors have {dim} values, not {dimensions}; {remedy}")
    if count is not None and count != rows:
        raise RunedError(f"{output} is of another job: it has {rows:,} vectors, and the input has {count:,} texts; {remedy}")


def _shape_of_array(path: str) -> tuple[int, int]:
    import numpy as np  # noqa: PLC0415 # 60 ms that `runed embed --help` does not spend

    rows, dim = np.load(path, mmap_mode="r").shape
    return rows, dim


def _shape_of_table(path: str) -> tuple[int, int]:
    with parquet.pyarrow("pyarrow.parquet").ParquetFile(path) as table:
        return table.metadata.num_rows, getattr(table.schema_arrow.field("embedding").type, "list_size", 0)
