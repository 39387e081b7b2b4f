"""Tells what is wrong with the content of `config.json`, in words for its owner."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, get_args

import msgspec

from runed.errors import quoted
from runed.model_names import is_name
from runed.urls import printable_url, scheme_of

_EXAMPLE = '{"version": 1, "idle_timeout": "10m"}'

_EXAMPLES = {
    "idle_timeout": '"10m"',
    "http": '"127.0.0.1:8321"',
    "memory": '"8GiB"',
    "models": '{"mine": {"path": "/models/mine.gguf"}}',
    "aliases": '{"small": "bge-m3"}',
    "an entry of models": '{"path": "/models/mine.gguf"}',
}
"""What may stand as the value of a key, as JSON. Others say enough by their kind."""

_KINDS = {
    "str": "text in double quotes",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "object": "an object",
    "array": "a list",
}
"""Kinds of values by the names that msgspec has for them."""

_EXPECTED = re.compile(r"Expected `([a-z |]+)`(?: ([<>]=? [0-9.]+|matching .*?))?(?:, got| - at|$)")
_PLACE = re.compile(r" - at `\$(?:\.([A-Za-z0-9_.]+))?")


def problem_of(data: bytes, keys: Mapping[str, Any]) -> str:
    """Return what is wrong with the content, as a clause. Malformed JSON has a line and a column, which an editor shows, too.

    Args:
        data: The content, which could not be read.
        keys: The type of each key.
    """
    if not data.strip():
        return "it is empty; write {} into it, or remove it"
    accepted = f"accepted is a JSON object of settings, such as {_EXAMPLE}"
    try:
        content = json.loads(data)
        if not isinstance(content, dict):
            return f"it is no object; {accepted}"
        return next(_mistyped(content, {"version": int} | {name: type_ | None for name, type_ in keys.items()}))
    except json.JSONDecodeError as malformed:
        rest = malformed.doc[malformed.pos :].lstrip(" \t\r\n,")
        is_comment = rest.startswith(("//", "/*", "#"))
        problem = "JSON has no comments; remove this one" if is_comment else f"{malformed.msg}; {accepted}"
        return f"line {malformed.lineno}, column {malformed.colno}: {problem}"
    except UnicodeDecodeError as undecodable:
        line = data.count(b"\n", 0, undecodable.start) + 1
        return f"line {line} is not UTF-8"
    except (ValueError, RecursionError, StopIteration):
        return f"it cannot be read; {accepted}"


def _mistyped(content: Mapping[str, Any], keys: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with each value of another type than its key has."""
    for key, value in content.items():
        if key not in keys:
            continue
        for name, part, type_ in _parts(key, value, keys[key]):
            try:
                msgspec.convert(part, type_)
            except msgspec.ValidationError as error:
                yield _told(name, part, type_, str(error))


def _parts(key: str, value: object, type_: Any) -> Iterator[tuple[str, object, Any]]:  # noqa: ANN401 # any type of a key
    """Yield the name, the value and the type of each part of a value that can be wrong alone."""
    inner = [get_args(each)[1] for each in get_args(type_) if len(get_args(each)) == 2]  # noqa: PLR2004 # of a dict[str, X]
    if not inner or not isinstance(value, dict):
        yield key, value, type_
        return
    for name, part in value.items():
        yield f"{key}.{name if is_name(name) else quoted(name)}", part, inner[0]


def _told(name: str, value: object, type_: Any, complaint: str) -> str:  # noqa: ANN401 # as above
    example = _EXAMPLES.get(name) or (_EXAMPLES["an entry of models"] if name.startswith("models.") else "")
    place = _PLACE.search(complaint)
    if place and place[1]:
        name, example = f"{place[1]} of {name}", ""
        for key in place[1].split("."):
            value = value.get(key) if isinstance(value, dict) else None
            type_ = next((each.type for each in _fields(type_) if each.encode_name == key), None)
    if expected := _EXPECTED.match(complaint):
        kinds = [_KINDS.get(kind, kind) for kind in expected[1].split(" | ") if kind != "null"]
        accepted = " ".join(filter(None, [" or ".join(kinds), expected[2]]))
    else:  # one of some words
        accepted = ", ".join(map(json.dumps, _literals(type_))) or "another value"
    return f"{name} = {_shown(value)}: accepted is {accepted}" + (f", such as {example}" if example else "")


def _fields(type_: Any) -> tuple[msgspec.structs.FieldInfo, ...]:  # noqa: ANN401 # as above
    return msgspec.structs.fields(type_) if isinstance(type_, type) and issubclass(type_, msgspec.Struct) else ()


def _literals(type_: Any) -> list[str]:  # noqa: ANN401 # as above
    """Return the words that a type accepts."""
    inner = [word for each in get_args(type_) for word in _literals(each)]
    return [type_] if isinstance(type_, str) else inner


def _shown(value: object) -> str:
    """Return a value as a message repeats it, without what could be a secret."""
    match value:
        case dict():
            return "{...}"
        case list():
            return "[...]"
        case str():
            return quoted(printable_url(value) if scheme_of(value) else value)
    return json.dumps(value)
