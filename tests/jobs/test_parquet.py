"""Ids of every type of Parquet: they are kept exactly, or refused with a reason, and never become null in silence."""

from __future__ import annotations

import decimal
import json
import uuid
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from runed.errors import InvalidRequestError, RunedError
from runed.jobs import inputs
from runed.jobs.inputs import Item

YEARS = 86_400 * 365_250
"""Seconds of a thousand years."""


def items_of(path: Path, ids: pa.Array, texts: pa.Array | None = None) -> list[Item]:
    pq.write_table(pa.table({"text": ["text"] * len(ids) if texts is None else texts, "id": ids}), path)
    with inputs.open_batch(str(path)) as source:
        return list(source())


IDS = {
    "int8": (pa.array([-128], pa.int8()), -128),
    "int64": (pa.array([-(2**63)]), -(2**63)),
    "uint64": (pa.array([2**64 - 1], pa.uint64()), 2**64 - 1),
    "float": (pa.array([1.5]), 1.5),
    "bool": (pa.array([True]), True),
    "decimal128": (pa.array([decimal.Decimal("12.50")]), "12.50"),
    "decimal256": (pa.array([decimal.Decimal("1" * 60)], pa.decimal256(70, 2)), "1" * 60 + ".00"),
    "string": (pa.array(["ä"]), "ä"),
    "large_string": (pa.array(["ä"], pa.large_string()), "ä"),
    "string_view": (pa.array(["ä"], pa.string_view()), "ä"),
    "dictionary": (pa.array(["ä"]).dictionary_encode(), "ä"),
    "dictionary of times": (pa.array([1], pa.timestamp("ns")).dictionary_encode(), "1970-01-01T00:00:00.000000001"),
    "binary": (pa.array([b"\xff\0"]), "/wA="),
    "fixed binary": (pa.array([b"\xff\0"], pa.binary(2)), "/wA="),
    "binary_view": (pa.array([b"\xff\0"], pa.binary_view()), "/wA="),
    "uuid": (pa.array([uuid.UUID(int=5).bytes], pa.uuid()), "00000000-0000-0000-0000-000000000005"),
    "date": (pa.array([1], pa.int32()).cast(pa.date32()), "1970-01-02"),
    "far date": (pa.array([10**7], pa.int32()).cast(pa.date32()), "29349-01-26"),
    "date before the first year": (pa.array([-(10**6)], pa.int32()).cast(pa.date32()), "-0768-02-04"),
    "date beyond words": (pa.array([2 * 10**9], pa.int32()).cast(pa.date32()), "2000000000 d"),
    "seconds": (pa.array([1], pa.timestamp("s")), "1970-01-01T00:00:01"),
    "far time": (pa.array([10 * YEARS * 10**6], pa.timestamp("us")), "11970-03-17T00:00:00.000000"),
    "time beyond words": (pa.array([10**15], pa.timestamp("ms")), "1000000000000000 ms"),
    "nanoseconds": (pa.array([10**18 + 1], pa.timestamp("ns")), "2001-09-09T01:46:40.000000001"),
    "whole nanoseconds": (pa.array([10**18], pa.timestamp("ns")), "2001-09-09T01:46:40.000000000"),
    "nanoseconds of a zone": (pa.array([1], pa.timestamp("ns", "UTC")), "1970-01-01T00:00:00.000000001Z"),
    "time of day": (pa.array([1], pa.time64("ns")), "00:00:00.000000001"),
    "duration": (pa.array([10], pa.duration("us")), "PT0.00001S"),
    "duration in nanoseconds": (pa.array([-1], pa.duration("ns")), "-1 ns"),
    "long duration": (pa.array([10**15], pa.duration("s")), "1000000000000000 s"),
    "list": (pa.array([[1, 2]]), [1, 2]),
    "struct": (pa.array([{"a": 1.5, "b": b"x"}]), {"a": 1.5, "b": "eA=="}),
    "map": (pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())), [["k", 1]]),
}


@pytest.mark.parametrize("name", IDS)
def test_id_of_any_type_is_kept(tmp_path: Path, name: str) -> None:
    column, expected = IDS[name]
    with_null = pa.concat_arrays([column, pa.nulls(1, column.type)])
    item, without = items_of(tmp_path / "t.parquet", with_null)
    assert (item.problem, without.problem, without.id) == (None, None, b"")
    assert json.loads(item.id) == expected


def test_column_without_values_gives_no_ids(tmp_path: Path) -> None:
    assert [item.id for item in items_of(tmp_path / "t.parquet", pa.nulls(2))] == [b"", b""]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([1.5, float("nan"), 2.5, float("inf")]),
        pa.array([[1.5], [float("nan")], [2.5], [-float("inf")]]),
        pa.array([{"a": 1.5}, {"a": float("nan")}, {"a": 2.5}, {"a": float("inf")}]),
    ],
)
def test_id_that_json_does_not_have_fails_alone(tmp_path: Path, column: pa.Array) -> None:
    items = items_of(tmp_path / "t.parquet", column)
    assert [item.problem is None for item in items] == [True, False, True, False]
    problem = items[1].problem
    assert problem is not None
    assert (
        problem.message
        == f"{tmp_path}/t.parquet, row 2: its id is or holds NaN or Infinity, which JSON does not have; change it"
    )


def test_id_that_is_not_unicode_fails_alone(tmp_path: Path) -> None:
    column = pa.Array.from_buffers(pa.string(), 2, pa.array([b"\xff", b"a"]).buffers())
    bad, good = items_of(tmp_path / "t.parquet", column)
    assert good.id == b'"a"'
    assert bad.problem is not None
    assert bad.problem.message == f"{tmp_path}/t.parquet, row 1: its id is not valid UTF-8; convert it"


def test_type_that_is_no_id_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match=r'"id" holds list<.*timestamp\[ns\]>, which is no id; .* by --id-column'):
        items_of(tmp_path / "t.parquet", pa.array([[1]], pa.list_(pa.timestamp("ns"))))


@pytest.mark.parametrize(
    "text_type",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.binary(),
        pa.large_binary(),
        pa.binary_view(),
        pa.dictionary(pa.int32(), pa.string()),
        pa.dictionary(pa.int8(), pa.large_string()),
    ],
    ids=str,
)
def test_text_of_any_string_type_is_read(tmp_path: Path, text_type: pa.DataType) -> None:
    items = items_of(tmp_path / "t.parquet", pa.array([1, 2]), pa.array(["eins ä", None]).cast(text_type))
    assert [(item.text, item.id) for item in items] == [("eins ä", b"1"), ("", b"2")]
    problem = items[1].problem
    assert isinstance(problem, RunedError)
    assert problem.reason == "EMPTY_TEXT"


def test_binary_text_that_is_not_unicode_fails_alone(tmp_path: Path) -> None:
    bad, good = items_of(tmp_path / "t.parquet", pa.array([1, 2]), pa.array([b"\xff", b"fine"]))
    assert (good.text, good.problem) == ("fine", None)
    assert bad.problem is not None
    assert bad.problem.message.startswith(f"{tmp_path}/t.parquet, row 1: byte 0 of it is not valid UTF-8")
