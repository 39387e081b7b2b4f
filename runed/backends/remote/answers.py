"""Vectors in the answers of engines on other machines: decoded, in order, and checked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, TypeAlias, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from runed.errors import BackendFaultError

Vector: TypeAlias = NDArray[np.float32]

_NORM_TOLERANCE = 1e-3
"""Largest distance of the square of a vector's norm from 1 with which it is left as it is."""

_T = TypeVar("_T")

_Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


class WrongAnswerError(Exception):
    """An answer is none that a text could be to blame for. Its message quotes nothing of the answer."""


class _Item(msgspec.Struct):
    embedding: bytes | list[float | None]  # msgspec decodes base64; some servers write NaN as null
    index: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: _Count = 0
    total_tokens: _Count = 0


class _Embeddings(msgspec.Struct):
    data: list[_Item]
    usage: _Usage | None = None


@dataclass(frozen=True, slots=True)
class Vectors:
    """The vectors of some texts.

    Attributes:
        rows: One vector a text, in their order, as they came.
        tokens: The tokens of all texts together; 0 if the engine does not tell.
    """

    rows: Sequence[Vector]
    tokens: int


def read(body: bytes, kind: type[_T]) -> _T:
    """Return an answer.

    Raises:
        WrongAnswerError: It has another form.
    """
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    try:  # some servers write NaN, which is no JSON
        return msgspec.convert(json.loads(body), kind)
    except (ValueError, RecursionError):
        raise WrongAnswerError("an answer that is none of its API") from None


def read_openai(body: bytes, count: int) -> Vectors:
    """Return the vectors of an answer of the OpenAI API.

    Args:
        body: The answer. Its vectors are numbers or base64, whatever was asked for.
        count: The number of texts.

    Raises:
        WrongAnswerError: It is none, or one to other texts.
    """
    answer = read(body, _Embeddings)
    items = answer.data
    if any(item.index is not None for item in items):
        if sorted(-1 if item.index is None else item.index for item in items) != list(range(count)):
            raise WrongAnswerError(f"{len(items)} vectors to {count} texts, or vectors of other texts")
        items = sorted(items, key=lambda item: item.index or 0)
    usage = answer.usage or _Usage()
    return Vectors(_counted([_row(item.embedding) for item in items], count), usage.prompt_tokens or usage.total_tokens)


def read_tei(body: bytes, count: int, headers: Mapping[str, str]) -> Vectors:
    """Return the vectors of an answer of the API of Text Embeddings Inference; see `read_openai`."""
    rows = [_row(row) for row in read(body, list[list[float | None]])]
    told = headers.get("x-compute-tokens", "")
    return Vectors(_counted(rows, count), int(told) if told.isdecimal() and len(told) < 16 else 0)  # noqa: PLR2004 # digits


def check(rows: Sequence[Vector], dim: int) -> tuple[list[bytes], bool]:
    """Return vectors of norm 1, and whether some had another one.

    Args:
        rows: The vectors.
        dim: The number of values that each must have.

    Raises:
        WrongAnswerError: One has another number of values.
        BackendFaultError: One is not finite, or has no direction.
    """
    vectors, scaled = [], False
    for row in rows:
        if len(row) != dim:
            raise WrongAnswerError(f"a vector of {len(row)} values, and {dim} were expected")
        square = float(np.dot(row, row))
        if not abs(square - 1.0) < _NORM_TOLERANCE:  # also for NaN and infinity
            row, scaled = _scaled(row), True  # noqa: PLW2901 # the same vector
        vectors.append(row.tobytes())
    return vectors, scaled


def _scaled(row: Vector) -> Vector:
    wide = row.astype(np.float64)
    norm = float(np.linalg.norm(wide))
    if not np.isfinite(norm) or norm == 0:
        what = "all zeros" if norm == 0 else "not finite"
        raise BackendFaultError(f"the engine answered a vector that is {what}; the text's vector cannot be trusted")
    return (wide / norm).astype("<f4")


def _row(embedding: bytes | list[float | None]) -> Vector:
    if isinstance(embedding, bytes):
        if len(embedding) % 4:
            raise WrongAnswerError(f"a vector of {len(embedding)} bytes")
        return np.frombuffer(embedding, "<f4")
    with np.errstate(over="ignore"):  # a number that is too large becomes infinity, which is refused
        return np.array(embedding, np.float64).astype("<f4")


def _counted(rows: list[Vector], count: int) -> list[Vector]:
    if len(rows) != count:
        raise WrongAnswerError(f"{len(rows)} vectors to {count} texts")
    return rows
