"""Input files of other forms than plain UTF-8: compressed ones, UTF-16, and what is refused with a remedy."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import sqlite3
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from runed.errors import InvalidRequestError, InvalidTextError, SettingsError
from runed.jobs import inputs
from runed.jobs.inputs import Columns, Item

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

TEXTS = ["one", "zwei ä", "drei 🙂", *(f"text {number}" for number in range(5000))]

COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {"gz": gzip.compress, "zst": zstd.compress}


def read(path: Path, input_format: str | None = None, columns: Columns | None = None) -> list[Item]:
    with inputs.open_batch(str(path), input_format, columns) as source:
        items = list(source())
        assert [item.text for item in source()] == [item.text for item in items]
    return items


def texts_of(path: Path, input_format: str | None = None) -> list[str]:
    items = read(path, input_format)
    assert [item.problem for item in items] == [None] * len(items)
    return [item.text for item in items]


def encoded(name: str) -> bytes:
    if name == "parquet":
        stream = io.BytesIO()
        pq.write_table(pa.table({"text": TEXTS}), stream)
        return stream.getvalue()
    lines = {
        "txt": TEXTS,
        "jsonl": [json.dumps({"text": text}) for text in TEXTS],
        "csv": ["id,text", *(f"{number},{text}" for number, text in enumerate(TEXTS))],
        "tsv": ["id\ttext", *(f"{number}\t{text}" for number, text in enumerate(TEXTS))],
    }
    return "\n".join(lines[name]).encode()


# Compressed files


@pytest.mark.parametrize("compression", COMPRESSORS)
@pytest.mark.parametrize("name", ["txt", "jsonl", "csv", "tsv", "parquet"])
def test_every_format_is_read_compressed(tmp_path: Path, name: str, compression: str) -> None:
    path = tmp_path / f"t.{name}.{compression}"
    path.write_bytes(COMPRESSORS[compression](encoded(name)))
    assert texts_of(path) == TEXTS


@pytest.mark.parametrize("compression", COMPRESSORS)
def test_several_members_are_one_content(tmp_path: Path, compression: str) -> None:
    data, compress = encoded("jsonl"), COMPRESSORS[compression]
    path = tmp_path / f"t.jsonl.{compression}"
    path.write_bytes(compress(data[:10]) + compress(b"") + compress(data[10:]))
    assert texts_of(path) == TEXTS


@pytest.mark.parametrize("compression", COMPRESSORS)
def test_content_counts_and_not_the_name(tmp_path: Path, compression: str) -> None:
    (tmp_path / "t.jsonl").write_bytes(COMPRESSORS[compression](encoded("jsonl")))
    (tmp_path / f"t.csv.{compression}").write_bytes(encoded("csv"))
    (tmp_path / "t").write_bytes(COMPRESSORS[compression](encoded("parquet")))
    assert texts_of(tmp_path / "t.jsonl") == texts_of(tmp_path / f"t.csv.{compression}") == texts_of(tmp_path / "t") == TEXTS


def test_compressed_pipe_and_lines_and_whole_files_are_read(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.write(writer, gzip.compress(encoded("jsonl")))  # less than a pipe holds
    os.close(writer)
    assert texts_of(Path(f"/dev/fd/{reader}")) == TEXTS
    os.close(reader)
    path = tmp_path / "t.txt.zst"
    path.write_bytes(zstd.compress(encoded("txt")))
    for whole, expected in ((False, TEXTS), (True, ["\n".join(TEXTS)])):
        with inputs.open_files([str(path)], whole=whole) as source:
            assert [item.text for item in source()] == expected


@pytest.mark.parametrize("compression", COMPRESSORS)
@pytest.mark.parametrize("name", ["jsonl", "csv", "parquet"])
def test_file_that_is_cut_short_is_told_with_the_line(tmp_path: Path, name: str, compression: str) -> None:
    path = tmp_path / f"t.{name}.{compression}"
    data = COMPRESSORS[compression](encoded(name) * 20 if name != "parquet" else encoded(name))
    path.write_bytes(data[: len(data) - 10])
    with pytest.raises(InvalidRequestError, match=r", after line \d+: the file ends too early; copy it again") as caught:
        read(path)
    assert caught.value.message.startswith(str(path))


@pytest.mark.parametrize("compression", COMPRESSORS)
def test_damaged_file_is_told(tmp_path: Path, compression: str) -> None:
    path = tmp_path / f"t.jsonl.{compression}"
    data = bytearray(COMPRESSORS[compression](encoded("jsonl")))
    data[len(data) // 2 : len(data) // 2 + 1000] = b"\xff" * 1000
    for content in (bytes(data), COMPRESSORS[compression](b'"one"\n') + b"garbage at the end"):
        path.write_bytes(content)
        with pytest.raises(InvalidRequestError, match=r", after line \d+: the file is damaged"):
            read(path)


@pytest.mark.slow
def test_bomb_fills_no_memory(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.jsonl.zst"
    with zstd.open(bomb, "wb") as file:
        for _ in range(64):
            file.write(b"x" * 2**24)
    program = (
        "import resource, sys\nfrom runed.jobs import inputs\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2**30,) * 2)\n"
        "with inputs.open_batch(sys.argv[1]) as source:\n    print([item.problem for item in source()])\n"
    )
    done = subprocess.run([sys.executable, "-c", program, bomb], capture_output=True, text=True, check=True)
    assert "line 1 does not end within 64 MiB" in done.stdout


def test_window_that_needs_too_much_memory_is_told(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl.zst"
    path.write_bytes(b"\x28\xb5\x2f\xfd\x00\xa8\x01\x00\x00")  # a window of 2 GiB, and an empty last block
    with pytest.raises(InvalidRequestError, match=r"needs too much memory \(.*\)"):
        read(path)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has such a file")
def test_file_that_fails_while_it_is_read_is_named() -> None:
    with pytest.raises(SettingsError, match=r"^/proc/self/mem cannot be read: Input/output error$"):
        read(Path("/proc/self/mem"))


# UTF-16 and UTF-32


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32", "utf-32-be"])
@pytest.mark.parametrize("name", ["txt", "jsonl", "csv", "tsv"])
def test_utf_16_is_known_by_its_byte_order_mark(tmp_path: Path, name: str, encoding: str) -> None:
    text = encoded(name).decode().replace("\n", "\r\n")
    data = (text if encoding in ("utf-16", "utf-32") else f"\ufeff{text}").encode(encoding)
    (tmp_path / f"t.{name}").write_bytes(data)
    (tmp_path / f"t.{name}.gz").write_bytes(gzip.compress(data))
    assert texts_of(tmp_path / f"t.{name}") == texts_of(tmp_path / f"t.{name}.gz") == TEXTS


def test_half_of_a_surrogate_pair_in_utf_16_fails_alone(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes("\ufeffone\nx\ud800x\ntwo".encode("utf-16-le", "surrogatepass"))
    one, bad, two = read(path)
    assert (one.text, two.text) == ("one", "two")
    assert isinstance(bad.problem, InvalidTextError)
    assert bad.problem.message.startswith(f"{path}, line 2: byte 1 of it is not valid UTF-8")


def test_utf_16_that_is_cut_short_is_told(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes("one\ntwo".encode("utf-16")[:-1])
    with pytest.raises(InvalidRequestError, match=r"t\.txt, after line [01]: the file ends too early"):
        read(path)


@pytest.mark.parametrize("encoding", ["UTF-16LE", "UTF-16BE"])
@pytest.mark.parametrize("name", ["txt", "jsonl", "csv"])
def test_utf_16_without_a_mark_is_named_with_the_remedy(tmp_path: Path, name: str, encoding: str) -> None:
    path = tmp_path / f"t.{name}"
    path.write_bytes(encoded(name)[:3000].decode(errors="ignore").encode(encoding))
    with pytest.raises(InvalidRequestError) as caught:
        read(path)
    assert f"{path} seems to be {encoding} without a byte order mark" in caught.value.message
    assert f"`iconv -f {encoding} -t UTF-8`" in caught.value.message


# Files of other programs


def test_file_of_another_program_is_named_with_the_remedy(tmp_path: Path) -> None:
    archive, database, arrow = io.BytesIO(), tmp_path / "t.sqlite", io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("t.txt", "text")
    connection = sqlite3.connect(database)
    connection.execute("create table t (text)")
    connection.close()
    with pa.ipc.new_file(arrow, pa.schema({"text": pa.string()})):
        pass
    cases = {
        "ZIP archive": archive.getvalue(),
        "compressed by xz; decompress it first, with `xz -d`": lzma.compress(b"text"),
        "compressed by bzip2": bz2.compress(b"text"),
        "SQLite": database.read_bytes(),
        "Arrow file; write it as Parquet": arrow.getvalue(),
        "PDF": b"%PDF-1.7\n",
    }
    for what, data in cases.items():
        for path in (tmp_path / "t.jsonl", tmp_path / "t.csv", tmp_path / "t.txt"):
            path.write_bytes(data)
            with pytest.raises(InvalidRequestError, match=what):
                read(path)


def test_parquet_is_known_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes(encoded("parquet"))
    assert texts_of(path) == TEXTS
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "empty.csv")
    assert texts_of(tmp_path / "empty.csv") == []
    with pytest.raises(InvalidRequestError, match="is a Parquet file; give it by --batch, without --input-format"):
        read(path, "jsonl")
    with inputs.open_files([str(path)]) as source, pytest.raises(InvalidRequestError, match="is a Parquet file; give it by"):
        list(source())
    path.write_text("PAR1 is what a golfer says")
    assert texts_of(path) == ["PAR1 is what a golfer says"]


# Tables


@pytest.mark.parametrize(("delimiter", "shown"), [(";", '";"'), ("\t", "tab"), ("|", '"|"')])
def test_other_delimiter_is_named_and_taken(tmp_path: Path, delimiter: str, shown: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f'id{delimiter}text\n1{delimiter}one, two\n2{delimiter}"a{delimiter}b"\n')
    with pytest.raises(SettingsError) as caught:
        read(path)
    assert f"its columns seem to be separated by {shown}: add `--delimiter {shown}`, or name the right one" in str(caught.value)
    items = read(path, columns=Columns(delimiter=delimiter))
    assert [(item.text, item.id) for item in items] == [("one, two", b'"1"'), (f"a{delimiter}b", b'"2"')]
    assert texts_of(path, "lines")[0] == f"id{delimiter}text"


@pytest.mark.parametrize(
    ("columns", "option"), [(Columns(), "--text-column"), (Columns(text="a", id="text"), "--id-column")], ids=["text", "id"]
)
def test_two_columns_of_one_name_are_refused_only_if_they_are_read(tmp_path: Path, columns: Columns, option: str) -> None:
    (tmp_path / "t.csv").write_text("text,text,a,b,b\n1,2,3,4,5\n")
    names = ["text", "text", "a", "b", "b"]
    pq.write_table(pa.table([pa.array([str(number)]) for number in range(5)], names=names), tmp_path / "t.parquet")
    for path in (tmp_path / "t.csv", tmp_path / "t.parquet"):
        with pytest.raises(SettingsError, match=f'has 2 columns "text"; rename all but one, or name another one by {option}'):
            read(path, columns=columns)
        assert len(read(path, columns=Columns(text="a"))) == 1
