"""A table of Arrow gets columns of vectors: rows in their order, nulls where they were, and bad texts as the caller likes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from runed.client.types import Embedding
from runed.errors import (
    BackendUnavailableError,
    EmptyTextError,
    InvalidRequestError,
    InvalidTextError,
    RunedError,
    TextTooLongError,
)
from runed.jobs.columns import Batch, Columns, OnError, Space

DIM = 4


def embedding(number: int, fingerprint: str = "space-a") -> Embedding:
    return Embedding(
        vector=np.full(DIM, number, dtype=np.float32),
        token_count=number,
        total_token_count=number,
        truncated=False,
        fingerprint=fingerprint,
        prompt="",
        cached=False,
    )


def answered(batch: Batch) -> Batch:
    """Answer the texts, which are numbers, in the reverse order."""
    batch.take((row, embedding(int(text))) for row, text in reversed(batch.texts.items()))
    return batch


@pytest.mark.parametrize(
    "type_",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.binary(),
        pa.dictionary(pa.int8(), pa.string()),
    ],
    ids=str,
)
@pytest.mark.parametrize("chunked", [False, True])
def test_rows_keep_their_order_and_nulls_stay_null(*, type_: pa.DataType, chunked: bool) -> None:
    values = pa.array(["3", None, "1", "2", None], pa.string()).cast(type_)
    if chunked:
        values = pa.chunked_array([values[:2], values[2:2], values[2:]])
    batch = answered(Batch(Columns(token_count="tokens", fingerprint="space"), values))
    arrays = batch.arrays(DIM)
    assert list(arrays) == ["embedding", "tokens", "space"]
    assert arrays["embedding"].type == pa.list_(pa.float32(), DIM)
    assert arrays["embedding"].to_pylist() == [[3] * DIM, None, [1] * DIM, [2] * DIM, None]
    assert arrays["tokens"].to_pylist() == [3, None, 1, 2, None]
    assert arrays["space"].to_pylist() == ["space-a", None, "space-a", "space-a", None]
    assert batch.fingerprints == {"space-a"}


@pytest.mark.parametrize("values", [pa.nulls(3), pa.array([None] * 3, pa.string())], ids=["untyped", "typed"])
def test_column_of_nulls_alone_has_the_type_of_vectors(values: pa.Array) -> None:
    batch = Batch(Columns(on_error="column"), values)
    batch.take([])
    arrays = batch.arrays(DIM)
    assert arrays["embedding"].type == pa.list_(pa.float32(), DIM)
    assert arrays["embedding"].null_count == 3
    assert arrays["error"].type == pa.string()
    assert batch.fingerprints == set()


def test_empty_table_has_the_columns() -> None:
    batch = Batch(Columns(), pa.array([], pa.string()))
    batch.take([])
    assert batch.arrays(DIM)["embedding"].type == pa.list_(pa.float32(), DIM)
    assert len(batch.arrays(DIM)["embedding"]) == 0


def test_error_of_a_text_ends_the_job_and_names_the_row() -> None:
    batch = Batch(Columns(text="body"), pa.array(["1", "2"]))
    with pytest.raises(TextTooLongError, match=r'row 1 of a batch of 2, column "body": 600 tokens; on_error="null"') as raised:
        batch.take([(0, embedding(1)), (1, TextTooLongError("600 tokens", metadata={"tokens": "600"}))])
    assert raised.value.metadata == {"tokens": "600"}


@pytest.mark.parametrize("on_error", ["null", "column"])
def test_error_of_a_text_leaves_the_others(on_error: OnError) -> None:
    values = pa.array([b"1", b"", b"\xff", None, b"2"], pa.binary())
    batch = Batch(Columns(on_error=on_error, token_count="tokens"), values)
    assert batch.texts == {0: "1", 1: "", 4: "2"}
    batch.take([(0, embedding(1)), (1, EmptyTextError("it is empty")), (4, embedding(2))])
    arrays = batch.arrays(DIM)
    assert arrays["embedding"].to_pylist() == [[1] * DIM, None, None, None, [2] * DIM]
    assert arrays["tokens"].to_pylist() == [1, None, None, None, 2]
    if on_error == "column":
        told = "INVALID_TEXT: byte 0 is not valid UTF-8; decode the text by its own codec"
        assert arrays["error"].to_pylist() == [None, "EMPTY_TEXT: it is empty", told, None, None]
    else:
        assert "error" not in arrays


def test_bytes_that_are_no_text_end_the_job() -> None:
    with pytest.raises(InvalidTextError, match="row 1 of a batch of 2"):
        Batch(Columns(), pa.array([b"a", b"\xff"], pa.binary()))


@pytest.mark.parametrize("on_error", ["raise", "null", "column"])
def test_failure_of_the_daemon_is_no_data(on_error: OnError) -> None:
    batch = Batch(Columns(on_error=on_error), pa.array(["1"]))
    with pytest.raises(BackendUnavailableError):
        batch.take([(0, BackendUnavailableError("gone"))])


@pytest.mark.parametrize(
    ("outcomes", "message"),
    [
        ([(0, embedding(1))], "left 1 texts unanswered"),
        ([(0, embedding(1)), (0, embedding(1)), (1, embedding(1))], "a text twice"),
        ([(0, embedding(1)), (2, embedding(1))], "that it was not sent"),
    ],
)
def test_each_text_is_answered_once(outcomes: list[tuple[int, Embedding]], message: str) -> None:
    with pytest.raises(RunedError, match=message):
        Batch(Columns(), pa.array(["1", "2", None])).take(outcomes)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["id", "body"], 'no column "text"; its columns are "id", "body"'),
        ([], "its columns are none"),
        (["text", "text"], 'several columns "text"'),
        (["text", "embedding"], 'has a column "embedding" already'),
    ],
)
def test_dataset_without_the_column_is_refused(names: list[str], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        Columns().check(names)


def test_column_of_another_type_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match='the column "text" holds int64 instead of strings'):
        Batch(Columns(), pa.array([1, 2]))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"on_error": "ignore"}, 'on_error is \'ignore\', but must be one of "raise", "null", "column"'),
        ({"vector": "text"}, 'two columns have the name "text"'),
        ({"token_count": "error", "on_error": "column"}, 'two columns have the name "error"'),
        ({"fingerprint": ""}, "is no name of a column"),
        ({"text": 5}, "5 is no name of a column"),
    ],
)
def test_names_are_checked_before_any_work(names: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        Columns(**names)


def test_vectors_of_another_space_are_refused() -> None:
    space = Space("space-a")
    space.check(["space-a"], "n1")
    space.check([], "n2")
    with pytest.raises(RunedError, match=r'of node n3 has another .* is "b" instead of "space-a".*same RUNED_ENGINE'):
        space.check(["b"], "n3")
    first = Space(None)
    first.check(["b"], "n1")
    with pytest.raises(RunedError, match='"c" instead of "b"'):
        first.check(["c"], "n1")
