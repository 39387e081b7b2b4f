"""Members of a JSON line that nobody reads may hold anything. A line that cannot be read is refused with the true reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runed.errors import EmptyTextError, InvalidRequestError, InvalidTextError
from runed.jobs import inputs
from runed.jobs.inputs import Item
from runed.jobs.json_lines import LineDecoder

DEEP = b"[" * 20_000 + b"]" * 20_000
DEEP_OBJECT = b'{"a":' * 20_000 + b"1" + b"}" * 20_000


def items_of(path: Path, data: bytes) -> list[Item]:
    path.write_bytes(data)
    with inputs.open_batch(str(path)) as source:
        return list(source())


@pytest.mark.parametrize(
    "unread",
    [
        b"NaN",
        b"Infinity",
        b"-Infinity",
        b'"\\ud800"',
        b'"\\udc00\\ud800"',
        b'"\xff"',
        b'"\xed\xa0\x80"',
        b"1e999",
        DEEP,
        DEEP_OBJECT,
        b'[NaN, {"text": "another", "id": 8, "y": [NaN, {}]}, []]',
        b'{"text": NaN, "id": NaN}',
        b'"[{,:"',
    ],
    ids=lambda value: value[:20].decode(errors="replace"),
)
@pytest.mark.parametrize(
    "shape", [b'{"x":%b,"id":7,"text":"a \\"text\\""}', b' { "id" : 7 , "text" : "a \\"text\\"" , "x" : %b } ']
)
def test_member_that_is_not_read_may_hold_anything(tmp_path: Path, shape: bytes, unread: bytes) -> None:
    [item] = items_of(tmp_path / "t.jsonl", shape % unread + b"\n")
    assert (item.text, item.id, item.problem) == ('a "text"', b"7", None)


@pytest.mark.parametrize("name", [b'"\\ud800"', b'"\xff"'])
def test_member_that_is_not_read_may_have_any_name(tmp_path: Path, name: bytes) -> None:
    [item] = items_of(tmp_path / "t.jsonl", b'{%b: NaN, "text": "a"}' % name)
    assert (item.text, item.problem) == ("a", None)


FORM = '; each line must be a JSON string or an object like {"id": 1, "text": "..."}'


@pytest.mark.parametrize(
    ("line", "error", "message"),
    [
        (b'{"text": "a", "x": nan}', InvalidRequestError, f"JSON is malformed: invalid character (byte 19){FORM}"),
        (b'{"text": "a", "x": NaN, }', InvalidRequestError, f"JSON is malformed: invalid character (byte 24){FORM}"),
        (b'{"text": "a", "x": [1,,2]}', InvalidRequestError, f"JSON is malformed: invalid character (byte 22){FORM}"),
        (b'{"text": "a", "x": [}]}', InvalidRequestError, f"JSON is malformed: invalid character (byte 20){FORM}"),
        (b'{"text": "a"} x', InvalidRequestError, f"JSON is malformed: invalid character (byte 14){FORM}"),
        (b'{"text": "a", "x": 01}', InvalidRequestError, f"JSON is malformed: invalid character (byte 19){FORM}"),
        (b'{"text": "a", "x": "\\q"}', InvalidRequestError, f"JSON is malformed: invalid character (byte 19){FORM}"),
        (b'{"text": "a"', InvalidRequestError, f"JSON ends too early{FORM}"),
        (b'{"text": "a", "x": [', InvalidRequestError, f"JSON ends too early{FORM}"),
        (
            b"\0\0\0",
            InvalidRequestError,
            "JSON is malformed: a NUL, as in a damaged file or one of another kind (byte 0); each",
        ),
        (b"text", InvalidRequestError, f"JSON is malformed: invalid character (byte 0){FORM}"),
        (b'{"x": NaN}', InvalidRequestError, f"Object missing required field `text`{FORM}"),
        (b'{"x": NaN, "text": 5}', InvalidRequestError, f"Expected `str` - at `$.text`{FORM}"),
        (
            b'{"text": "\\ud800"}',
            InvalidTextError,
            "the text is not valid Unicode (it has half of a surrogate pair at position 0)",
        ),
        (b'"ab\\ud800"', InvalidTextError, "the text is not valid Unicode (it has half of a surrogate pair at position 2)"),
        (b'{"text": "\xff"}', InvalidTextError, "the text is not valid UTF-8; convert the file"),
        (b'"\xff"', InvalidTextError, "the text is not valid UTF-8; convert the file"),
        (b'{"text": "a", "id": NaN}', InvalidRequestError, "its id holds NaN, Infinity, half of a surrogate pair or deep"),
        (b'{"text": "a", "id": {"a": [Infinity]}}', InvalidRequestError, "its id holds NaN, Infinity, half of"),
        (b'{"text": "a", "id": "\\ud800"}', InvalidRequestError, "its id holds NaN, Infinity, half of a surrogate pair"),
        (
            b'{"text": "a", "id": %b}' % DEEP,
            InvalidRequestError,
            "its id holds NaN, Infinity, half of a surrogate pair or deep",
        ),
        (b'{"text": "a", "id": "\xff"}', InvalidTextError, "its id is not valid UTF-8; convert the file"),
    ],
    ids=lambda value: value[:30].decode(errors="replace") if isinstance(value, bytes) else "",
)
def test_wrong_line_is_refused_with_its_number_and_the_true_reason(
    tmp_path: Path, line: bytes, error: type[InvalidRequestError], message: str
) -> None:
    path = tmp_path / "t.jsonl"
    before, bad, after = items_of(path, b'"good"\n' + line + b'\n"good"')
    assert (before.problem, after.problem) == (None, None)
    assert type(bad.problem) is error
    assert bad.problem is not None
    assert bad.problem.message.startswith(f"{path}, line 2: {message}")


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_blank_lines_are_ignored_and_lines_keep_their_numbers(tmp_path: Path, end: bytes) -> None:
    path = tmp_path / "t.jsonl"
    items = items_of(path, end.join([b"\xef\xbb\xbf", b'"one"', b"", b" \t", b'{"text": "two"}', b"", b'"three"']))
    assert [(item.text, item.origin) for item in items] == [
        ("one", f"{path}, line 2"),
        ("two", f"{path}, line 5"),
        ("three", f"{path}, line 7"),
    ]


def test_byte_order_mark_is_accepted_where_files_were_put_together(tmp_path: Path) -> None:
    mark = b"\xef\xbb\xbf"
    items = items_of(tmp_path / "t.jsonl", mark + b'"one"\n' + mark + b'{"id": 2, "text": "two"}\n' + mark)
    assert [(item.text, item.id) for item in items] == [("one", b""), ("two", b"2")]


def test_object_over_several_lines_is_refused_with_the_way_to_make_lines_of_it(tmp_path: Path) -> None:
    problem = items_of(tmp_path / "texts.json", b'{\n  "text": "a"\n}\n')[0].problem
    assert problem is not None
    assert "`jq -c . FILE`" in str(problem)


def test_empty_text_is_no_blank_line(tmp_path: Path) -> None:
    [item] = items_of(tmp_path / "t.jsonl", b'{"text": " ", "x": NaN}\n')
    assert isinstance(item.problem, EmptyTextError)


def test_long_line_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "MAX_TEXT_BYTES", 1000)
    monkeypatch.setattr(inputs, "_PIECE", 100)
    for name, shape in (("t.jsonl", b'"%b"'), ("t.txt", b"%b")):
        lines = [shape % text for text in (b"one", b"x" * 5000, b"two", b"y" * 990, b"z" * 5000)]
        items = items_of(tmp_path / name, b"\n".join(lines))
        assert [item.text[:3] for item in items] == ["one", "", "two", "yyy", ""]
        problems = [item.problem for item in items if item.problem]
        assert [problem.message.partition(" does not end within ")[0] for problem in problems] == [
            f"{tmp_path / name}, line 2",
            f"{tmp_path / name}, line 5",
        ]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=20,
)


@given(text=st.text(st.characters(exclude_categories=["Cs"])), unread=VALUES, ascii_=st.booleans())
def test_whatever_python_writes_is_read(text: str, unread: object, ascii_: bool) -> None:  # noqa: FBT001 # drawn by hypothesis
    line = json.dumps({"id": "7", "unread": unread, "text": text}, ensure_ascii=ascii_).encode("utf-8", "surrogatepass")
    assert LineDecoder("text", "id").read(line) == (text, b'"7"')


@given(line=st.binary() | st.text('{}[]:,"\\ antexd8', max_size=60).map(str.encode))
def test_no_line_is_a_bug(line: bytes) -> None:
    try:
        record = LineDecoder("text", "id").read(line)
    except InvalidRequestError:
        return
    assert record is None or record[0].encode() is not None
