"""What `runed embed` says and keeps: the line at the end, outputs that exist, unknown extensions, columns, arrays."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from runed.errors import InvalidRequestError, RunedError, SettingsError
from runed.jobs import inputs, json_array
from runed.jobs.inputs import Columns, Item
from runed.jobs.keeping import kept_columns
from tests.cli import jobs


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(f'{{"id": {number}, "text": "text {number}"}}\n' for number in range(10)))
    return path


def said(capfd: pytest.CaptureFixture[str]) -> list[str]:
    return capfd.readouterr().err.splitlines()


# The line at the end


def test_a_job_ends_with_a_line_that_tells_what_was_done(
    texts: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.npy"
    assert jobs.here("--batch", texts, "-o", output) == 0
    [line] = said(capfd)
    told = r"runed: 10 texts, [1-9]\d* tokens, \d+\.\d s \([\d,.]+ texts/s\), 0 cached, 0 errors, to "
    assert re.fullmatch(told + re.escape(str(output)), line)


def test_a_program_gets_that_line_as_json(texts: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert jobs.here("--batch", texts, "-o", tmp_path / "out.npy", "--json") == 0
    out, err = capfd.readouterr()
    document = json.loads(out)
    assert err == ""
    assert document.keys() == {"output", "texts", "before", "tokens", "seconds", "texts_per_second", "cached", "errors"}
    assert (document["texts"], document["before"], document["errors"]) == (10, 0, 0)
    assert document["tokens"] > 0


def test_many_files_end_with_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        (tmp_path / "in" / f"{name}.txt").write_text("one\ntwo\n")
    assert jobs.here("--batch", tmp_path / "in", "-o", tmp_path / "out") == 0
    *_, line = said(capfd)
    assert line.startswith("runed: 4 texts, ")
    assert jobs.here("--batch", tmp_path / "in", "-o", tmp_path / "out", "--resume") == 0
    *_, line = said(capfd)
    assert line == "runed: all 2 files are done already, so there is nothing to do; --overwrite makes them anew"


# An output that exists


def test_an_output_that_exists_is_replaced_only_on_request(texts: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    output.write_text("precious")
    for arguments in (("--batch", texts), ("one text",), ("-f", texts)):
        with pytest.raises(SettingsError, match=r"out\.jsonl exists already; add --overwrite to replace it"):
            jobs.here(*arguments, "-o", output)
    assert output.read_text() == "precious"
    assert jobs.here("one text", "-o", output, "--overwrite") == 0
    assert json.loads(output.read_text())["index"] == 0


@pytest.mark.parametrize("name", ["out/", "there", "there/"])
@pytest.mark.parametrize("option", ["--format=json", "--overwrite"])
def test_a_directory_is_no_output_of_one_job(texts: Path, tmp_path: Path, name: str, option: str) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(jobs.WrongUsageError, match="is a directory, which is for the vectors of many files; name a file in it"):
        jobs.here("--batch", texts, "-o", f"{tmp_path}/{name}", option)
    assert {path.name for path in tmp_path.iterdir()} <= {"there", texts.name}


@pytest.mark.parametrize(("arguments", "stream"), [(("--output", ""), "output"), (("--batch", ""), "input")])
def test_an_empty_name_is_no_file(arguments: tuple[str, str], stream: str) -> None:
    with pytest.raises(jobs.WrongUsageError, match=f"{arguments[0]} is empty; name a file, or give - for standard {stream}"):
        jobs.here(*(() if stream == "input" else ("text",)), *arguments)


def test_an_empty_output_holds_nothing_to_protect(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    output.touch()
    assert jobs.here("one text", "-o", output) == 0
    assert output.stat().st_size


def test_a_finished_job_is_not_done_again(texts: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out.npy"
    assert jobs.here("--batch", texts, "-o", output, "--resume") == 0
    before = output.stat().st_mtime_ns, output.read_bytes()
    said(capfd)
    assert jobs.here("--batch", texts, "-o", output, "--resume") == 0
    age = f"is not older than {texts}, so nothing is done; it does not tell what it was made from: --overwrite makes it anew"
    assert said(capfd) == [f"runed: {output} is there and {age}"]
    assert (output.stat().st_mtime_ns, output.read_bytes()) == before


def test_a_finished_job_whose_input_was_changed_is_no_finished_job(texts: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.npy"
    assert jobs.here("--batch", texts, "-o", output) == 0
    later = output.stat().st_mtime_ns + 1_000_000_000
    os.utime(texts, ns=(later, later))
    with pytest.raises(
        RunedError, match=r"out\.npy is there, but .*texts\.jsonl is newer: it was changed since, or .*; add --overwrite"
    ):
        jobs.here("--batch", texts, "-o", output, "--resume")


@pytest.mark.parametrize("name", ["out.npy", "out.parquet", "out.json", "out.jsonl"])
def test_a_finished_output_of_another_job_is_refused(texts: Path, tmp_path: Path, name: str) -> None:
    output, other = tmp_path / name, tmp_path / "other.csv"
    other.write_text("text\n" + "row\n" * 7)
    assert jobs.here("--batch", texts, "-o", output) == 0
    os.utime(other, ns=(0, 0))
    before = output.read_bytes()
    with pytest.raises(RunedError, match=r"is of another job: it has 10 vectors, and the input has 7 texts; add --overwrite"):
        jobs.here("--batch", other, "-o", output, "--resume")
    with pytest.raises(RunedError, match=r"is of another job: its vectors have \d+ values, not 32; add --overwrite"):
        jobs.here("--batch", texts, "-o", output, "--resume", "--dimensions", "32")
    assert output.read_bytes() == before


@pytest.mark.parametrize("name", ["out.npy", "out.parquet", "out.json", "out.jsonl"])
def test_a_damaged_output_is_no_finished_job(texts: Path, tmp_path: Path, name: str) -> None:
    output = tmp_path / name
    assert jobs.here("--batch", texts, "-o", output) == 0
    os.truncate(output, output.stat().st_size - 5)
    with pytest.raises(SettingsError, match="is no output of such a job; add --overwrite"):
        jobs.here("--batch", texts, "-o", output, "--resume")


@pytest.mark.parametrize("name", ["out.npy", "out.jsonl"])
def test_a_job_that_does_nothing_tells_so_as_json_too(
    texts: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    output = tmp_path / name
    assert jobs.here("--batch", texts, "-o", output) == 0
    capfd.readouterr()
    assert jobs.here("--batch", texts, "-o", output, "--resume", "--json") == 0
    told = json.loads(capfd.readouterr().out)
    assert (told["output"], told["texts"], told["before"], told["tokens"], told["errors"]) == (str(output), 10, 10, 0, 0)


def test_of_standard_input_and_a_finished_output_no_age_is_told(
    texts: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.npy"
    assert jobs.here("--batch", texts, "-o", output) == 0
    said(capfd)
    assert jobs.here("--batch", "-", "-o", output, "--resume") == 0
    (line,) = said(capfd)
    assert line.startswith(f"runed: {output} is there, so nothing is done; it does not tell")


def test_outputs_of_many_files_are_replaced_only_on_request(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("one\n")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.txt.jsonl").write_text("precious")
    with pytest.raises(SettingsError, match=r"a\.txt\.jsonl exists already; add --overwrite"):
        jobs.here("--batch", tmp_path / "in", "-o", tmp_path / "out")
    assert (tmp_path / "out" / "a.txt.jsonl").read_text() == "precious"
    assert jobs.here("--batch", tmp_path / "in", "-o", tmp_path / "out", "--overwrite") == 0


# Extensions


@pytest.mark.parametrize("name", ["out.xyz", "out.csv", "out.jsonl.gz"])
def test_an_output_with_an_unknown_extension_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError, match=r"no format has the extension .*; known are \.json, \.jsonl, .*--format"):
        jobs.here("one", "-o", tmp_path / name)
    assert jobs.here("one", "-o", tmp_path / name, "--format", "jsonl") == 0


@pytest.mark.parametrize(
    ("name", "start"), [("out", b"{"), ("out.ndjson", b'{"index"'), ("out.PQ", b"PAR1"), ("out.NPY", b"\x93NUMPY")]
)
def test_other_names_of_a_format_are_known(tmp_path: Path, name: str, start: bytes) -> None:
    assert jobs.here("one", "-o", tmp_path / name) == 0
    assert (tmp_path / name).read_bytes().startswith(start)


@pytest.mark.parametrize("name", ["texts.dat", "texts.xlsx.gz"])
def test_an_input_with_an_unknown_extension_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text('"one"\n')
    with pytest.raises(SettingsError, match=r"no format has the extension .*; known are \.json, .*--input-format"):
        jobs.here("--batch", path)
    assert jobs.here("--batch", path, "--input-format", "jsonl") == 0


def test_parquet_is_known_by_its_content_whatever_its_name_is(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["one"]}), tmp_path / "texts.dat")
    assert jobs.here("--batch", tmp_path / "texts.dat") == 0


def test_the_name_of_a_file_as_a_text_is_answered_by_a_hint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, option in (("my notes.txt", "-f"), ("notes.csv", "--batch")):
        Path(name).write_text("text\none\n")
        assert jobs.here(name) == 0
        [line] = said(capfd)
        assert line.startswith(f"runed: {name} is a file, and its name is embedded here; ")
        assert line.endswith(f"runed embed {option} '{name}'" if " " in name else f"runed embed {option} {name}")
    assert jobs.here("notes.md") == 0
    assert said(capfd) == []


# Arrays


def items_of(path: Path, data: bytes) -> list[Item]:
    path.write_bytes(data)
    with inputs.open_batch(str(path)) as source:
        return list(source())


@pytest.mark.parametrize("piece", [1, 2, 7, 2**20])
@pytest.mark.parametrize("indent", [None, 2])
def test_an_array_is_read_as_its_elements_would_be_as_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int, indent: int | None
) -> None:
    monkeypatch.setattr(json_array, "_PIECE", piece)
    document: list[Any] = ["one, ]", {"id": 7, "text": 'two "\\"', "more": [{"x": "}"}, [], {}]}, "\\", {"text": "f\u00fcnf"}]
    lines = b"".join(json.dumps(element).encode() + b"\n" for element in document)
    expected = [(item.text, item.id) for item in items_of(tmp_path / "t.jsonl", lines)]
    for name in ("t.json", "t.jsonl"):
        for mark in (b"", b"\xef\xbb\xbf\r\n "):
            items = items_of(tmp_path / name, mark + json.dumps(document, indent=indent).encode())
            assert [(item.text, item.id) for item in items] == expected
    assert items_of(tmp_path / "t.json", b'["a", "b"]')[1].origin == f"{tmp_path}/t.json, element 2"
    assert items_of(tmp_path / "t.json", b" [ ] ") == []


@pytest.mark.parametrize("piece", [1, 3, 2**20])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'["a",]', "after 1 elements: there is nothing between two commas"),
        (b'["a",,"b"]', "after 1 elements: there is nothing"),
        (b"[,]", "after 0 elements: there is nothing"),
        (b'["a"', "the array does not end"),
        (b'["a", "b', "after 1 elements: the array does not end"),
        (b'["a"]\n["b"]', "the array must be all of the file"),
        (b'["a"}', "the array must be all of the file"),
    ],
)
def test_a_broken_array_is_refused_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int, data: bytes, message: str
) -> None:
    monkeypatch.setattr(json_array, "_PIECE", piece)
    with pytest.raises(InvalidRequestError, match=re.escape(message)):
        items_of(tmp_path / "t.json", data)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_an_array_has_any_encoding_with_a_mark(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "texts.json").write_bytes('["é", {"text": "b", "id": 2}]'.encode(encoding))
    with inputs.open_batch(str(tmp_path / "texts.json")) as source:
        assert [(item.text, item.id) for item in source()] == [("é", b""), ("b", b"2")]


def test_a_huge_element_is_refused_by_a_few_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each read searches the string from its start, so that many small reads would take minutes."""
    monkeypatch.setattr(json_array, "_PIECE", 1000)
    reads: list[int | None] = []

    class Counting(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            reads.append(size)
            return super().read(size)

    file = Counting(b'["' + b"x" * 10_000_000 + b'"]')
    with pytest.raises(InvalidRequestError, match="does not end within 4 MiB"):
        list(json_array.elements(file, 4 * 2**20))
    assert len(reads) < 20


def test_a_bad_element_fails_alone_and_a_huge_one_ends_the_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = items_of(tmp_path / "t.json", b'["a", 5, {"other": 1}, "b"]')
    assert [item.problem is None for item in bad] == [True, False, False, True]
    assert "element 2: Expected `str | object`, got `int`; each element must be a JSON string" in str(bad[1].problem)
    monkeypatch.setattr(inputs, "MAX_TEXT_BYTES", 1000)
    monkeypatch.setattr(json_array, "_PIECE", 100)
    with pytest.raises(InvalidRequestError, match="after 1 elements: it does not end within"):
        items_of(tmp_path / "t.json", b'["a", "' + b"x" * 2000 + b'"]')


# Columns that are kept


def kept(path: Path, output: Path, *names: str, more: tuple[str, ...] = ()) -> pa.Table:
    options = [word for name in names for word in ("--keep", name)]
    assert jobs.here("--batch", path, "-o", output, "--overwrite", *options, *more) == 0
    return pq.read_table(output)


TABLE = {
    "text": ["one", "two", "three"],
    "id": [5, 6, 7],
    "stars": pa.array([1.5, None, 2.5], pa.float32()),
    "tags": [["a", "b"], [], None],
}


def test_columns_of_parquet_keep_their_types(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table(TABLE), path, row_group_size=2)
    table = kept(path, tmp_path / "all.parquet", "all")
    assert table.column_names == ["index", "id", "token_count", "error", "embedding", "text", "stars", "tags"]
    assert table.select(["text", "stars", "tags"]).equals(pa.table({name: TABLE[name] for name in ("text", "stars", "tags")}))
    assert table["id"].to_pylist() == ["5", "6", "7"]
    assert kept(path, tmp_path / "some.parquet", "tags", "text").column_names[-2:] == ["tags", "text"]
    assert pq.read_schema(tmp_path / "all.parquet").metadata[b"runed.fingerprint"]


def test_many_rows_keep_their_columns_in_any_grouping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from runed.jobs import parquet  # noqa: PLC0415 # for the test alone

    path, count = tmp_path / "in.parquet", 3000
    pq.write_table(pa.table({"text": [f"text {n}" for n in range(count)], "n": range(count)}), path)
    monkeypatch.setattr(parquet, "_GROUP_ROWS", 700)
    table = kept(path, tmp_path / "out.parquet", "n")
    assert table["n"].to_pylist() == table["index"].to_pylist() == list(range(count))


def test_columns_of_texts_are_kept_as_texts(tmp_path: Path) -> None:
    stream = io.StringIO()
    csv.writer(stream).writerows([["id", "text", "note"], ["7", "one", "a, b"], [], ["8", "two", ""]])
    (tmp_path / "in.csv").write_text(stream.getvalue())
    table = kept(tmp_path / "in.csv", tmp_path / "csv.parquet", "all")
    assert table.select(["text", "note"]).to_pydict() == {"text": ["one", "two"], "note": ["a, b", ""]}
    rows = [{"text": "one", "n": 5, "x": {"y": [1]}}, {"text": "two", "s": "\u00fc", "n": None}]
    (tmp_path / "in.jsonl").write_text("\n\n".join(map(json.dumps, rows)) + '\n"three"\n')
    (tmp_path / "in.json").write_text(json.dumps([*rows, "three"], indent=1))
    for name in ("in.jsonl", "in.json"):
        table = kept(tmp_path / name, tmp_path / f"{name}.parquet", "n", "x", "s")
        assert table["n"].to_pylist() == ["5", None, None]
        assert table["s"].to_pylist() == [None, "\u00fc", None]
        assert [value and json.loads(value) for value in table["x"].to_pylist()] == [{"y": [1]}, None, None]


def test_an_array_of_strings_has_no_columns_to_keep(tmp_path: Path) -> None:
    (tmp_path / "in.json").write_text('["one", "two"]')
    table = kept(tmp_path / "in.json", tmp_path / "out.parquet", "all")
    assert table.column_names == ["index", "id", "token_count", "error", "embedding"]
    assert table.num_rows == 2


def test_a_member_that_is_no_json_changes_no_other_column(tmp_path: Path) -> None:
    """Python writes NaN, and halves of surrogate pairs. No column can have the name of the last member."""
    lines = ('{"text": "one", "a": "x", "b": null, "c": 1}', '{"text": "two", "a": "x", "b": null, "c": NaN, "\\ud800": 2}')
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    table = kept(tmp_path / "in.jsonl", tmp_path / "out.parquet", "all")
    columns = {"text": ["one", "two"], "a": ["x", "x"], "b": [None, None], "c": ["1", "NaN"]}
    assert table.select(table.column_names[5:]).to_pydict() == columns


def test_texts_without_a_vector_keep_their_columns(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("text,n\none,1\n ,2\nthree\nfour,4\n")
    options = ("--batch", tmp_path / "in.csv", "-o", tmp_path / "out.parquet", "--keep", "n", "--keep-going")
    assert jobs.here(*options) == 1
    assert pq.read_table(tmp_path / "out.parquet")["n"].to_pylist() == ["1", "2", None, "4"]


def test_many_files_keep_their_columns(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        pq.write_table(pa.table({"text": [name], "name": [name]}), tmp_path / "in" / f"{name}.parquet")
    assert jobs.here("--batch", tmp_path / "in", "-o", tmp_path / "out", "--keep", "name") == 0
    assert pq.read_table(tmp_path / "out" / "b.parquet")["name"].to_pylist() == ["b"]
    with pytest.raises(RunedError, match="keep"):
        jobs.here("--batch", tmp_path / "in", "-o", tmp_path / "out", "--keep", "text", "--resume")


@pytest.mark.parametrize(
    ("keep", "output", "message"),
    [
        ("strs", "out.parquet", r'has no column "strs"; did you mean stars\?'),
        ("nothing", "out.parquet", r'has no column "nothing", but text, id, stars, tags'),
        ("id", "out.parquet", r'the output has a column "id" of its own'),
        ("stars", "out.npy", "--keep needs Parquet output"),
    ],
)
def test_what_cannot_be_kept_is_told_before_any_work(tmp_path: Path, keep: str, output: str, message: str) -> None:
    pq.write_table(pa.table(TABLE), tmp_path / "in.parquet")
    with pytest.raises(SettingsError, match=message):
        jobs.here("--batch", tmp_path / "in.parquet", "-o", tmp_path / output, "--keep", keep)
    assert not (tmp_path / output).exists()


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_a_format_without_columns_is_told_before_a_missing_pyarrow(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    pq.write_table(pa.table(TABLE), tmp_path / "in.parquet")
    source = texts if suffix == "jsonl" else tmp_path / "in.parquet"
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(SettingsError, match="--keep needs Parquet output"):
        jobs.here("--batch", source, "-o", tmp_path / "k.npy", "--keep", "all")


def test_lines_have_no_columns(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("one\n")
    with (
        inputs.open_batch(str(tmp_path / "in.txt"), None, Columns()) as source,
        pytest.raises(SettingsError, match="has no columns to keep"),
    ):
        kept_columns(source, ["all"])
    with pytest.raises(jobs.WrongUsageError, match="--keep is for --batch"):
        jobs.here("text", "--keep", "all")
