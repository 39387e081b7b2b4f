"""`runed embed --batch`: every kind of input and output, of any size, with every fault that one text of many can have."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from runed.errors import EmptyTextError, InvalidRequestError, RunedError, SettingsError
from runed.extras import install_command
from runed.jobs import input_files, inputs, ordering, parquet
from runed.jobs.inputs import Item
from tests.cli import jobs
from tests.cli.stand_in import DIM, Options, StandIn

TEXTS = ["one", "two, with a comma", 'three "quoted"', "four\nlines\n", "fünf \u2028 ∑"]
IDS = [7, "b", None, {"x": [1]}, 12345678901234567890123]


def lines_of(*arguments: str | os.PathLike[str], capfdbinary: pytest.CaptureFixture[bytes]) -> list[dict[str, Any]]:
    """Run a job, and return its JSON lines."""
    assert jobs.here(*arguments, "--format", "jsonl") == 0
    return [json.loads(line) for line in capfdbinary.readouterr().out.splitlines()]


@pytest.fixture
def expected(capfdbinary: pytest.CaptureFixture[bytes]) -> list[list[float]]:
    """The vectors of `TEXTS`."""
    return [record["embedding"] for record in lines_of(*TEXTS, capfdbinary=capfdbinary)]


# Input


@pytest.mark.parametrize(("extension", "delimiter"), [("csv", ","), ("tsv", "\t")])
def test_table_is_read_by_its_columns(
    tmp_path: Path, expected: list[list[float]], capfdbinary: pytest.CaptureFixture[bytes], extension: str, delimiter: str
) -> None:
    path = tmp_path / f"table.{extension}"
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(["key", "id", "body"])
        writer.writerows([f"k{number}", number, text] for number, text in enumerate(TEXTS))
    records = lines_of("--batch", path, "--text-column", "body", capfdbinary=capfdbinary)
    assert [record["embedding"] for record in records] == expected
    assert [record["id"] for record in records] == ["0", "1", "2", "3", "4"]
    records = lines_of("--batch", path, "--text-column", "body", "--id-column", "key", capfdbinary=capfdbinary)
    assert [record["id"] for record in records] == ["k0", "k1", "k2", "k3", "k4"]


@pytest.mark.parametrize("text_type", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_parquet_is_read_by_its_columns(
    tmp_path: Path, expected: list[list[float]], capfdbinary: pytest.CaptureFixture[bytes], text_type: pa.DataType
) -> None:
    path = tmp_path / "table.parquet"
    pq.write_table(pa.table({"id": [1, 2, 3, 4, 5], "text": pa.array(TEXTS).cast(text_type)}), path, row_group_size=2)
    for arguments in (["--batch", path], ["--batch", os.fspath(path), "--id-column", "id"]):
        records = lines_of(*arguments, capfdbinary=capfdbinary)
        assert [record["embedding"] for record in records] == expected
        assert [record["id"] for record in records] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("input_format", list(inputs.INPUT_FORMATS))
@pytest.mark.parametrize("spooled", [1, 2**20], ids=["file", "memory"])
def test_every_format_is_read_from_a_pipe_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, input_format: str, spooled: int
) -> None:
    monkeypatch.setattr(input_files, "_SPOOLED_BYTES", spooled)
    texts = [f"text {number}" for number in range(300)]
    stream = io.BytesIO()
    pq.write_table(pa.table({"text": texts}), stream)
    data = {
        "lines": "\n".join(texts).encode(),
        "jsonl": "\n".join(map(json.dumps, texts)).encode(),
        "json": json.dumps([{"text": text} for text in texts], indent=1).encode(),
        "csv": "\n".join(["text", *texts]).encode(),
        "tsv": "\r\n".join(["other\ttext", *(f"x\t{text}" for text in texts)]).encode(),
        "parquet": stream.getvalue(),
    }[input_format]
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    assert jobs.here("--batch", tmp_path / "texts.txt", "-o", tmp_path / "whole.npy") == 0
    reader, writer = os.pipe()
    os.write(writer, data)  # less than a pipe holds
    os.close(writer)
    arguments = ("--input-format", input_format, "-o", tmp_path / "out.npy")
    assert jobs.here("--batch", f"/dev/fd/{reader}", *arguments) == 0
    os.close(reader)
    assert (tmp_path / "out.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()


def test_redirected_file_is_read_in_place_from_where_it_stands(tmp_path: Path) -> None:
    (tmp_path / "texts").write_text("a header\none\ntwo\n")
    command = " ".join(f"'{os.fspath(word)}'" for word in jobs.command("--batch", "-", "--input-format", "lines"))
    done = subprocess.run(
        ["/bin/sh", "-c", f"{{ head -c 9 >/dev/null; {command}; }} < {tmp_path}/texts"], capture_output=True, check=True
    )
    assert len(json.loads(done.stdout)["embeddings"]) == 2


def test_members_of_json_lines_may_have_other_names(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text('{"id": "one", "key": 5}\n"two"\n')
    records = lines_of("--batch", path, "--text-column", "id", capfdbinary=capfdbinary)
    assert [record.get("id") for record in records] == [None, None]
    records = lines_of("--batch", path, "--text-column", "id", "--id-column", "key", capfdbinary=capfdbinary)
    assert [record.get("id") for record in records] == [5, None]


@pytest.mark.parametrize(
    ("name", "data", "error", "message"),
    [
        (
            "t.csv",
            b"a,b\n1,2\n",
            SettingsError,
            't.csv has no column "text", but "a", "b"; name the right one by --text-column',
        ),
        ("t.csv", b"text\n\n\xff\n", InvalidRequestError, "t.csv, line 3 is not valid UTF-8"),
        ("t.csv", b'text,x\n"a\nb",1\nc\n', InvalidRequestError, "t.csv, line 4 has 1 columns instead of 2"),
        ("t.csv", b"text,x\na, b,1\n", InvalidRequestError, "t.csv, line 2 has 3 columns instead of 2"),
        ("t.csv", b'text\na\n"never closed\n', InvalidRequestError, "t.csv, line 3: unexpected end of data"),
        ("t.csv", b'text,x\n"",1\n', EmptyTextError, "t.csv, line 2 is empty"),
        ("t.csv", b"\ntext\n", SettingsError, "t.csv names no columns; put a line with their names, such as text, at its"),
        ("t.csv", b",\n1,2\n", SettingsError, "t.csv names no columns"),
        ("t.csv", b"text\n", InvalidRequestError, "the input holds no text"),
        ("t.csv", b"", InvalidRequestError, "the input holds no text"),
        ("t.txt", b"\xef\xbb\xbf", InvalidRequestError, "the input holds no text"),
        ("t.txt", b"a\n\nb\n", EmptyTextError, "t.txt, line 2 is empty"),
        ("t.txt", b"a\nb\0\n", InvalidRequestError, "t.txt, line 2: the text has a NUL character"),
        ("t.parquet", b"PAR1 not really", InvalidRequestError, "t.parquet cannot be read as Parquet: ArrowInvalid"),
    ],
)
def test_bad_input_is_named_by_its_place(tmp_path: Path, name: str, data: bytes, error: type[RunedError], message: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(error) as caught:
        jobs.here("--batch", path)
    assert caught.value.message.removeprefix(f"{tmp_path}/").startswith(message)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array(["a", None, "c"]), "row 2 is empty"),
        (pa.array([1, 2]), 'the column "text" holds int64 instead of strings'),
        (pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff"]).buffers()), "row 1: byte 0 of it is not valid UTF-8"),
    ],
)
def test_bad_column_of_parquet_is_named_by_its_place(tmp_path: Path, column: pa.Array, message: str) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"text": column}), path)
    with pytest.raises(InvalidRequestError, match=message):
        jobs.here("--batch", path)


def test_damaged_parquet_is_told_before_the_first_text_is_embedded(tmp_path: Path) -> None:
    path, log = tmp_path / "t.parquet", tmp_path / "log"
    log.touch()
    pq.write_table(pa.table({"text": [f"text {number}" for number in range(5000)]}), path, row_group_size=1000)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 200] = b"\xff" * 200
    path.write_bytes(data)
    with pytest.raises(InvalidRequestError, match="cannot be read as Parquet"):
        jobs.here("--batch", path, options=Options(log=os.fspath(log)))
    assert log.read_text() == ""


def test_line_without_an_end_fills_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "MAX_TEXT_BYTES", 2**20)
    for name in ("t.txt", "t.jsonl", "t.csv"):
        (tmp_path / name).write_bytes(b"text\n" + b"x" * 2**21)
        with pytest.raises(InvalidRequestError, match=r"does not end within 1 MiB|JSON is malformed"):
            jobs.here("--batch", tmp_path / name)
    with pytest.raises(InvalidRequestError, match="has more than 1 MiB"):
        jobs.here("--whole", "-f", tmp_path / "t.txt")


def test_input_that_changes_while_it_is_read_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.txt"
    path.write_text("one\ntwo\n")

    class Meddler(StandIn):
        def embed_stream(self, items: Iterable[tuple[int, str]], **options: object) -> Iterator[Any]:
            path.write_text("one\nTWO\n")
            return super().embed_stream(items, **options)

    monkeypatch.setattr(jobs, "StandIn", Meddler)
    with pytest.raises(RunedError, match="the input was changed while it was read"):
        jobs.here("--batch", path, "-o", tmp_path / "out.npy")
    assert not (tmp_path / "out.npy").exists()


def test_what_is_appended_after_the_first_reading_is_left_for_another_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t.txt"
    path.write_text("one\ntwo\n")

    class Appender(StandIn):
        def embed_stream(self, items: Iterable[tuple[int, str]], **options: object) -> Iterator[Any]:
            with path.open("a") as file:
                file.write("three\n")
            return super().embed_stream(items, **options)

    monkeypatch.setattr(jobs, "StandIn", Appender)
    assert jobs.here("--batch", path, "-o", tmp_path / "out.npy") == 0
    assert len(np.load(tmp_path / "out.npy")) == 2


# Output


def write_batch(path: Path) -> Path:
    path.write_text("".join(json.dumps({"id": name, "text": text}) + "\n" for name, text in zip(IDS, TEXTS, strict=True)))
    return path


def test_parquet_holds_what_the_other_formats_hold(tmp_path: Path, expected: list[list[float]]) -> None:
    output = tmp_path / "out.parquet"
    assert jobs.here("--batch", write_batch(tmp_path / "texts.jsonl"), "-o", output) == 0
    table = pq.read_table(output)
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), DIM)
    assert table.column_names == ["index", "id", "token_count", "error", "embedding"]
    assert table["index"].to_pylist() == [0, 1, 2, 3, 4]
    assert table["id"].to_pylist() == ["7", "b", None, '{"x": [1]}', "12345678901234567890123"]
    assert table["error"].null_count == 5
    assert np.array_equal(np.array(table["embedding"].to_pylist(), dtype=np.float32), np.array(expected, dtype=np.float32))
    assert table.schema.metadata == {
        b"runed.fingerprint": b"space-1",
        b"runed.model_identity": b"sha256:0123456789abcdef",
    }


def test_parquet_goes_to_a_pipe_as_well_as_to_a_file(tmp_path: Path) -> None:
    output = tmp_path / "out.parquet"
    assert jobs.here("--batch", write_batch(tmp_path / "texts.jsonl"), "-o", output) == 0
    done = jobs.run("--batch", tmp_path / "texts.jsonl", "--format", "parquet")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == output.read_bytes()
    assert jobs.here(*TEXTS, "-o", output, "--overwrite") == 0
    assert pq.read_table(output)["id"].null_count == 5
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out.parquet", "texts.jsonl"]


def test_parquet_of_several_row_groups_is_the_same_however_its_rows_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "_GROUP_BYTES", DIM * 4 * 100)
    vectors = np.random.default_rng(1).random((250, DIM), dtype=np.float32)
    results = []
    for step in (1, 7, 100, 250):
        schema = parquet.Schema(DIM, {"name": "value"})
        parts = [schema.head()]
        for start in range(0, 250, step):
            rows = range(start, min(start + step, 250))
            some = [vectors[row] if row % 3 else None for row in rows]
            parts.append(schema.rows(list(rows), [b""] * len(rows), [1] * len(rows), [None] * len(rows), some))
        target = io.BytesIO()
        schema.convert(io.BytesIO(b"".join(parts)), target)
        results.append(target.getvalue())
    assert len(set(results)) == 1
    file = pq.ParquetFile(io.BytesIO(results[0]))
    assert [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)] == [100, 100, 50]
    assert file.read()["index"].to_pylist() == list(range(250))


def test_without_pyarrow_the_extra_is_named_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    write_batch(tmp_path / "t.jsonl")
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "t.parquet")
    for source, output in (("t.parquet", "out.npy"), ("t.jsonl", "out.parquet")):
        with pytest.raises(SettingsError, match=re.escape(install_command("parquet"))):
            jobs.here("--batch", tmp_path / source, "-o", tmp_path / output)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["t.jsonl", "t.parquet"]


def test_many_files_of_this_machine_need_no_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("pyarrow", "pyarrow.fs"):
        monkeypatch.setitem(sys.modules, module, None)
    for name in ("a.txt", "below/b.txt"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text("a line\nanother\n")
    assert jobs.here("--batch", tmp_path / "in", "-o", tmp_path / "out") == 0
    for name in ("a.txt.jsonl", "below/b.txt.jsonl"):
        assert len((tmp_path / "out" / name).read_text().splitlines()) == 2
    assert jobs.here("--batch", tmp_path / "in", "-o", tmp_path / "out", "--resume") == 0
    with pytest.raises(SettingsError, match="URLs need pyarrow"):
        jobs.here("--batch", "s3://bucket/in", "-o", tmp_path / "other")


def test_pyarrow_is_imported_for_parquet_alone(tmp_path: Path) -> None:
    program = "import sys; from runed.cli.embed import run; assert 'pyarrow' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_options_reach_the_daemon_and_truncation_is_told(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    long = "more than ten characters"
    plain, *_ = lines_of(long, capfdbinary=capfdbinary)
    assert (plain["token_count"], "total_token_count" in plain, plain["fingerprint"]) == (24, False, "space-1")
    query, *_ = lines_of("--role", "query", "--instruction", "i", long, capfdbinary=capfdbinary)
    assert query["embedding"] != plain["embedding"]
    short, *_ = lines_of("--dimensions", "8", "--truncate", "end", long, capfdbinary=capfdbinary)
    assert (len(short["embedding"]), short["token_count"], short["total_token_count"]) == (8, 10, 24)


# Bad texts


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Good texts, one text that the daemon refuses, and three that are refused without asking the daemon."""
    path = tmp_path / "mixed.jsonl"
    path.write_bytes(b'"one"\n{"id": 1, "text": "fail:TEXT_TOO_LONG"}\n"two"\n{"id": 3, "text": ""}\n5\n"\xff"\n"three"\n')
    return path


REASONS = [None, "TEXT_TOO_LONG", None, "EMPTY_TEXT", "INVALID_REQUEST", "INVALID_TEXT", None]


def test_bad_text_ends_the_job_after_all_that_come_before_it(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("".join(f"text {number}\n" for number in range(300)) + "fail:TEXT_TOO_LONG\nfail:EMPTY_TEXT\n")
    done = jobs.run("--batch", path, "--format", "jsonl")
    *complete, last = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 1
    assert [record["index"] for record in complete] == list(range(300))
    assert last == {"error": {"reason": "TEXT_TOO_LONG", "message": f"{path}, line 301: the text is bad"}}
    assert done.stderr.decode() == f"runed: {path}, line 301: the text is bad\n"


@pytest.mark.parametrize("output_format", ["json", "jsonl", "npy", "parquet"])
def test_bad_texts_are_recorded_where_they_stand_if_asked_for(mixed: Path, tmp_path: Path, output_format: str) -> None:
    output = tmp_path / f"out.{output_format}"
    done = jobs.run("--batch", mixed, "--keep-going", "-o", output)
    *told, summary = done.stderr.decode().splitlines()
    assert done.returncode == 1
    assert re.fullmatch(rf"runed: 7 texts, \d+ tokens, .* s.*, 0 cached, 4 errors, to {re.escape(str(output))}", summary)
    assert [line.removeprefix(f"runed: {mixed}, ")[:6] for line in told] == ["line 2", "line 4", "line 5", "line 6"]
    good = [reason is None for reason in REASONS]
    if output_format == "npy":
        assert list(np.isfinite(np.load(output)).all(axis=1)) == good
        assert list(np.isnan(np.load(output)).all(axis=1)) == [not is_good for is_good in good]
    elif output_format == "parquet":
        rows = pq.read_table(output).to_pylist()
        assert [row["error"] and row["error"].split(":")[0] for row in rows] == REASONS
        assert [row["embedding"] is not None and row["token_count"] is not None for row in rows] == good
        assert [row["id"] for row in rows] == [None, "1", None, "3", None, None, None]
    else:
        text = output.read_text()
        records = json.loads(text)["embeddings"] if output_format == "json" else list(map(json.loads, text.splitlines()))
        assert [record["index"] for record in records] == list(range(7))
        assert [record.get("error", {}).get("reason") for record in records] == REASONS
        assert ["embedding" in record for record in records] == good
        assert list(records[1]) == ["index", "id", "error"]


def test_job_without_any_good_text_still_has_a_shape(tmp_path: Path) -> None:
    assert jobs.here("--keep-going", "--dimensions", "8", "fail:TEXT_TOO_LONG", " ", "-o", tmp_path / "out.npy") == 1
    assert np.load(tmp_path / "out.npy").shape == (2, 8)


def test_only_so_many_bad_texts_are_named(tmp_path: Path) -> None:
    done = jobs.run("--keep-going", *[" "] * 50, "-o", os.devnull)
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 11


def test_what_is_no_fault_of_a_text_ends_the_job_anyway() -> None:
    with pytest.raises(RunedError, match=r"^the text is bad$"):
        jobs.here("--keep-going", "fail:BACKEND_UNAVAILABLE")


def test_model_that_changes_in_the_middle_ends_the_job(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("".join(f"text {number}\n" for number in range(300)))
    with pytest.raises(RunedError, match='the fingerprint was "space-1" and is "space-1-changed"'):
        jobs.here("--batch", path, "-o", tmp_path / "out.npy", options=Options(changed_after=100))
    assert not (tmp_path / "out.npy").exists()


# Order and memory


class Watched(StandIn):
    """A source that notes the largest number of waiting answers while a text was not answered."""

    def __init__(self) -> None:
        super().__init__(Options(in_flight=1000))
        self.streams = 0
        self.most = 0

    def embed_stream(self, items: Iterable[tuple[int, str]], **options: object) -> Iterator[Any]:
        self.streams += 1
        for number, result in enumerate(super().embed_stream(items, **options)):
            self.most = max(self.most, number)
            yield result


def test_text_that_takes_for_ever_lets_no_other_answers_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ordering, "WINDOW", 32)
    texts = ["hang", *(f"text {number}" for number in range(99))]
    client = Watched()
    surveyed = ordering.survey(lambda: inputs.from_arguments(texts), done=0, keep_going=False)
    in_order = ordering.InOrder(client, lambda: inputs.from_arguments(texts), surveyed, done=0)
    rows = list(in_order.rows(role=None, instruction="", dimensions=None, truncate="none"))
    assert [row.index for row in rows] == list(range(100))
    assert [row.origin for row in rows] == [f"argument {number}" for number in range(1, 101)]
    assert client.most < 32
    assert client.streams == 4


def test_text_that_is_answered_twice_is_a_fault_of_the_daemon() -> None:
    with pytest.raises(RunedError, match="answered a text twice"):
        jobs.here("one", "stray", "two")


def test_links_tell_all_inputs_apart() -> None:
    items = [
        [Item("ab", "")],
        [Item("a", ""), Item("b", "")],
        [Item("b", "", b"a")],
        [Item("", "", b"ab")],
        [Item("", "", b"", EmptyTextError("empty"))],
        [],
    ]
    links = set()
    for each in items:
        inputs_so_far = ordering.NOTHING
        for item in each:
            inputs_so_far = ordering.link(inputs_so_far, item)
        links.add(inputs_so_far)
    assert len(links) == len(items)


@pytest.mark.parametrize("output_format", ["jsonl", "parquet"])
@pytest.mark.slow
def test_memory_does_not_grow_with_the_job(tmp_path: Path, output_format: str) -> None:
    peaks = []
    for count in (9000, 20_000):
        texts, peak = tmp_path / "texts.jsonl", tmp_path / "peak"
        texts.write_text("".join(json.dumps({"id": number, "text": "x" * 1000}) + "\n" for number in range(count)))
        options = Options(peak=os.fspath(peak))
        done = jobs.run("--batch", texts, "-o", tmp_path / f"{count}.{output_format}", options=options)
        assert done.returncode == 0
        peaks.append(int(peak.read_text()))
    assert peaks[1] - peaks[0] < 8 * 1024, f"{peaks} KiB"


# Usage


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch", "a", "text"], "not by several"),
        (["--resume", "text"], "--resume is for --batch"),
        (["--text-column", "t", "text"], "--text-column is for --batch"),
        (["--input-format", "csv", "-f", "a.csv"], "--input-format is for --batch"),
        (["--batch", "a", "--whole"], "--whole is for --file"),
        (["--batch", "a", "--resume"], "only a job with --output FILE"),
        (["--batch", "a", "-o", "b", "--resume", "--overwrite"], "not both"),
        (["--batch", "a", "--text-column", "t", "--id-column", "t"], "the same column"),
        (["--instruction", "find tea", "text"], "--instruction is for --role query"),
        (["--instruction", "find tea", "--role", "document", "text"], "--instruction is for --role query"),
    ],
)
def test_options_that_make_no_sense_together_are_wrong_usage(arguments: list[str], message: str) -> None:
    with pytest.raises(jobs.WrongUsageError, match=message):
        jobs.here(*arguments)


def test_a_pattern_that_the_shell_has_expanded_is_to_be_quoted(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.txt", "b.txt")]
    for path in paths:
        path.write_text("a line\n")
    with pytest.raises(jobs.WrongUsageError, match="put the pattern in quotes, as in --batch 'notes/"):
        jobs.here("--batch", *paths, "-o", tmp_path / "out")


@pytest.mark.parametrize("option", ["--batch", "--file"])
def test_input_is_not_written_over(tmp_path: Path, option: str) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("one\ntwo\n")
    link = tmp_path / "link.txt"
    link.symlink_to(path)
    for output in (path, link):
        with pytest.raises(jobs.WrongUsageError, match="take the place of the input"):
            jobs.here(option, path, "--output", output, "--format", "jsonl")
    assert path.read_text() == "one\ntwo\n"
    assert jobs.here(option, path, "--output", tmp_path / "other.jsonl") == 0
