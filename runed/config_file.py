"""Reads `config.json`, and changes it in place: one value is set or removed, and all other characters stay as they are."""

from __future__ import annotations

import codecs
import json
import os
import re
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from runed.errors import RunedWarning, SettingsError, quoted
from runed.files import NewFile, open_regular, read_regular, sync_file
from runed.locking import LockFile
from runed.os_errors import naming
from runed.suggesting import did_you_mean

_NEW = '{\n  "version": 1\n}\n'
"""The content of a file that is made."""

_PATIENCE = 5.0
"""Seconds to wait for another command that changes the file, or for an editor that is writing it."""

_PAUSE = 0.02
"""Seconds between two looks at the file."""

_MAX_BYTES = 1024 * 1024
"""Most bytes of a configuration."""

_SPACE = re.compile(r"[ \t\r\n]*")

_DECODER = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class _Member:
    """A member of an object: its key, where the key begins, and where its value begins and ends."""

    key: str
    start: int
    value: int
    end: int


def read_config(path: Path, keys: Mapping[str, Any], *, required: bool) -> Any:  # noqa: ANN401 # its class is made here
    """Read the file.

    Args:
        path: The file.
        keys: The type of each key.
        required: Whether a missing file is an error.

    Returns:
        An object that has each key as an attribute, None where it is missing; or None if there is no file.

    Raises:
        SettingsError: The file is missing, cannot be read, or holds something else.
    """
    try:
        data = read_regular(path, limit=_MAX_BYTES).removeprefix(codecs.BOM_UTF8)
    except (FileNotFoundError, NotADirectoryError):  # a home that is a file is refused later, with a better error
        if required:
            raise SettingsError(f"RUNED_CONFIG={path}: there is no such file; create it or unset the variable") from None
        return None
    except OSError as error:
        raise SettingsError(
            f"{path} cannot be read: {error.strerror}; let this user read it, or name another RUNED_CONFIG"
        ) from None
    schema = msgspec.defstruct("Config", [("version", int, 1), *((name, type_ | None, None) for name, type_ in keys.items())])
    try:
        config: Any = msgspec.json.decode(data, type=schema)
    except (ValueError, RecursionError) as error:  # a DecodeError; bytes that are not UTF-8; lists in lists in lists
        example = '{"version": 1, "idle_timeout": "10m"}'
        raise SettingsError(
            f"{path}: {_problem(data, error)}; accepted is a JSON object of settings, such as {example}"
        ) from None
    if config.version != 1:
        raise SettingsError(f"{path}: version is {config.version}; accepted is 1")
    _warn_of_keys(path, data, ["version", *keys])
    return config


def _problem(data: bytes, error: Exception) -> str:
    """Return what is wrong with the content. Malformed JSON has a line and a column, which an editor shows, too."""
    if not data.strip():
        return "it is empty; write {} into it, or remove it"
    try:
        json.loads(data)
    except json.JSONDecodeError as malformed:
        rest = malformed.doc[malformed.pos :].lstrip(" \t\r\n,")
        is_comment = rest.startswith(("//", "/*", "#"))
        problem = "JSON has no comments; remove this one" if is_comment else malformed.msg
        return f"line {malformed.lineno}, column {malformed.colno}: {problem}"
    except UnicodeDecodeError as undecodable:
        line = data.count(b"\n", 0, undecodable.start) + 1
        return f"line {line} is not UTF-8"
    except (ValueError, RecursionError):
        pass
    return str(error)


def _warn_of_keys(path: Path, data: bytes, known: Sequence[str]) -> None:
    """Tell of keys that are there twice, or are like a known one. Others may be comments, or those of a newer version."""
    twice: list[str] = []

    def note(members: list[tuple[str, Any]]) -> dict[str, Any]:
        twice.extend(key for key, times in Counter(key for key, _ in members).items() if times > 1)
        return dict(members)

    try:
        keys = list(json.loads(data, object_pairs_hook=note))
    except (ValueError, RecursionError):  # a key that is not UTF-8, which is like none
        return
    for key in twice:
        warnings.warn(f"{path}: {quoted(key)} is there twice, and the last one counts; remove one", RunedWarning, stacklevel=2)
    for key in keys:
        if key not in known and (meant := did_you_mean(key, known)):
            warnings.warn(f"{path}: there is no setting {quoted(key)}, so it is ignored{meant}", RunedWarning, stacklevel=2)


def with_value(text: str, path: Sequence[str], value: object) -> str:
    """Set a value in the text of a JSON object.

    Args:
        text: The text.
        path: The keys that lead to the value. Objects that are missing on the way are made.
        value: The value.

    Raises:
        ValueError: The text is no JSON object.
    """
    members, end = _members(text, 0)
    start = 0
    for depth, key in enumerate(path):
        found = [member for member in members if member.key == key]
        rest = path[depth + 1 :]
        if not found:
            for name in reversed(rest):
                value = {name: value}
            return _with_member(text, range(start, end), members, key, value)
        member = found[-1]  # the last one counts if a key is there twice
        if not rest or text[member.value] != "{":
            for name in reversed(rest):
                value = {name: value}
            return text[: member.value] + _written(text, member.start, value, text[start:end]) + text[member.end :]
        start = member.value
        members, end = _members(text, start)
    raise AssertionError("a path has at least one key")


def without_value(text: str, path: Sequence[str]) -> str:
    """Remove a value, and its key, from the text of a JSON object. If it is not there, return the text as it is.

    Args:
        text: The text.
        path: The keys that lead to the value.

    Raises:
        ValueError: The text is no JSON object.
    """
    start = 0
    for key in path[:-1]:
        found = [member for member in _members(text, start)[0] if member.key == key]
        if not found or text[found[-1].value] != "{":
            return text
        start = found[-1].value
    while True:
        members, end = _members(text, start)
        index = next((number for number, member in enumerate(members) if member.key == path[-1]), None)
        if index is None:
            return text
        if index:
            text = text[: members[index - 1].end] + text[members[index].end :]
        elif len(members) > 1:
            text = text[: members[0].start] + text[members[1].start :]
        else:
            text = text[: start + text[start:].index("{") + 1] + text[end:]


def edit_config(path: Path, lock: Path, change: Callable[[str], str]) -> None:
    """Change a configuration file. Nothing is lost if somebody else changes it meanwhile: the change is made again, to theirs.

    Args:
        path: The file; a missing one is made. If it is a link, the file behind it is changed.
        lock: The lock that all commands take which change it.
        change: Returns the new text for a text. It may be called several times.

    Raises:
        SettingsError: The file is no JSON object, or another command or an editor keeps it busy.
        OSError: It cannot be read or written.
    """
    target = path.resolve()
    deadline = time.monotonic() + _PATIENCE
    with LockFile(lock) as held:
        while not held.try_acquire():
            _wait(deadline, f"process {held.holder()} is changing {path}; try again when it has ended")
        with naming(path):
            text = on_disk = _read(target)
            while (changed := _changed(text, change, path, deadline)) != on_disk:
                found = None
                if changed is not None and (found := _replace(target, on_disk, changed)) is None:
                    return
                _wait(deadline, f"{path} changes all the time; try again when nobody writes to it")
                text, on_disk = found or (_read(target),) * 2


def _changed(data: bytes, change: Callable[[str], str], path: Path, deadline: float) -> bytes | None:
    """Return the new content; None if this content cannot be changed, perhaps because an editor has not written all of it."""
    bom, content = (codecs.BOM_UTF8, data[len(codecs.BOM_UTF8) :]) if data.startswith(codecs.BOM_UTF8) else (b"", data)
    try:
        text = content.decode() if content else _NEW
        json.loads(text)  # refuses what follows the object, too
        return bom + change(text).encode()
    except (ValueError, RecursionError) as error:
        if time.monotonic() < deadline:
            return None
        raise SettingsError(f"{path} is no JSON object, so it was left as it is: {error}; correct it") from None


def _replace(target: Path, before: bytes, after: bytes) -> tuple[bytes, bytes] | None:
    """Replace the content of a file, if it still is the one that was read.

    Args:
        target: The file.
        before: The content that was read; b"" if there was no file.
        after: The new content.

    Returns:
        None if the file is replaced. Otherwise the content that somebody else has written, which has to be changed instead, and
        the content that the file has now.
    """
    try:
        old = open_regular(target)
    except FileNotFoundError:
        old = None
    new = NewFile(target, mode=0o600 if old is None else os.fstat(old).st_mode & 0o777)
    try:
        new.file.write(after)
        sync_file(new.file)  # now, so that little time passes between the look and the rename
        if (now := _read(target)) != before:
            return now, now
        new.publish()
        # An editor may have written to the old file at the very moment of the rename.
        late = before if old is None else os.pread(old, _MAX_BYTES, 0)
        return None if late == before else (late, after)
    finally:
        new.discard()
        if old is not None:
            os.close(old)


def _read(path: Path) -> bytes:
    """Return the content of a file; b"" if there is none."""
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            return file.read()
    except FileNotFoundError:
        return b""


def _wait(deadline: float, problem: str) -> None:
    if time.monotonic() >= deadline:
        raise SettingsError(problem)
    time.sleep(_PAUSE)


def _members(text: str, start: int) -> tuple[list[_Member], int]:
    """Return the members of the object that begins at `start`, after white space, and the place of its closing brace."""
    place = _after_space(text, start)
    if text[place : place + 1] != "{":
        raise ValueError("it begins with something else than {")
    members: list[_Member] = []
    place = _after_space(text, place + 1)
    while text[place : place + 1] != "}":
        if members:
            if text[place : place + 1] != ",":
                raise ValueError(f"a comma is missing at character {place}")
            place = _after_space(text, place + 1)
        key, after = _decode(text, place)
        colon = _after_space(text, after)
        if not isinstance(key, str) or text[colon : colon + 1] != ":":
            raise ValueError(f"a key is missing at character {place}")
        value = _after_space(text, colon + 1)
        _, end = _decode(text, value)
        members.append(_Member(key, place, value, end))
        place = _after_space(text, end)
    return members, place


def _decode(text: str, place: int) -> tuple[Any, int]:
    return _DECODER.raw_decode(text, place)


def _after_space(text: str, place: int) -> int:
    found = _SPACE.match(text, place)
    return found.end() if found else place


def _with_member(text: str, place: range, members: list[_Member], key: str, value: object) -> str:
    """Add a member at the end of the object that begins and ends at `place`, in the style of the one before it."""
    name = json.dumps(key, ensure_ascii=False)
    if members:
        last = members[-1]
        comma = text.rindex(",", 0, last.start) if len(members) > 1 else text.index("{", place.start)
        space = text[comma + 1 : last.start] or " "
        written = _written(text, last.start, value, text[place.start : place.stop])
        return f"{text[: last.end]},{space}{name}: {written}{text[last.end :]}"
    inner, newline = _indent(text, place.start) + "  ", _newline(text)
    opening = text.index("{", place.start) + 1
    member = f"{newline}{inner}{name}: {_json(value, inner, newline)}{newline}{inner[:-2]}"
    return text[:opening] + member + text[place.stop :]


def _written(text: str, place: int, value: object, around: str) -> str:
    """Return the JSON of a value, for a member that begins at `place`. It has one line if the object around has one line."""
    if "\n" not in around.strip():
        return json.dumps(value, ensure_ascii=False)
    return _json(value, _indent(text, place), _newline(text))


def _json(value: object, indent: str, newline: str) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False).replace("\n", f"{newline}{indent}")


def _indent(text: str, place: int) -> str:
    """Return the white space at the beginning of the line of a place."""
    line = text[text.rfind("\n", 0, place) + 1 : place]
    return line[: len(line) - len(line.lstrip(" \t"))]


def _newline(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"
