"""The table of calls, `calls.json`, and the comparison of results with the table and with those of other drivers.

The table has the calls of each model in the order in which a driver sends them, each with its expected result. These are the
rules:

- an object must have every field of the table's object; other fields are ignored;
- a list must have the same number of items; a string, number or boolean must be equal; a missing field has its default;
- `{"$any": true}`: any value that is not missing and not a default;
- `{"$golden": N}`: the reference vector N of the model, up to a cosine of 0.9999; with `"dimensions": D` its first D values;
- `{"$like": "ID"}`: the vector of another call, up to the same cosine;
- `{"$times": N, "$each": X}`: a list of N items that are all X.

In the arguments `{"$golden": [N, ...]}` stands for a list of reference vectors, and `$times` for a list as above.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.support import Golden

Json = Any

VOLATILE = {"cached", "message", "in_flight_requests", "interactive", "bulk", "uptime_seconds", "tokens_per_second"} | {
    *("total_requests", "total_texts", "total_tokens", "total_batches", "mean_batch_texts"),
    *("cache_hits", "shared_texts", "cache_entries", "cache_bytes", "disk_cache_bytes", "refused_requests", "loaded_models"),
}
"""Fields that differ from one call to the next, or contain prose."""

_COSINE = 0.9999


@dataclass(frozen=True)
class Call:
    """One line of the table.

    Attributes:
        id: Its name.
        line: The line that a driver reads.
        expected: The expected answer.
    """

    id: str
    line: str
    expected: Json


def read_calls(model: str, golden: Golden) -> list[Call]:
    """Read the calls of one model."""
    calls = json.loads((Path(__file__).resolve().parent / "calls.json").read_text())[model]
    return [
        Call(
            id=call["id"],
            line=json.dumps({"id": call["id"], "call": call["call"], "args": _expand(call.get("args", {}), golden)}),
            expected={name: call[name] for name in ("result", "error") if name in call},
        )
        for call in calls
    ]


def _expand(args: Json, golden: Golden) -> Json:
    match args:
        case {"$golden": list(numbers)}:
            return golden.vectors[numbers].tolist()
        case {"$times": int(count), "$each": each}:
            return [each] * count
        case dict():
            return {name: _expand(value, golden) for name, value in args.items()}
    return args


def violations(  # noqa: C901 # one case for each kind of expectation
    expected: Json, actual: Json, golden: Golden, answers: Mapping[str, Json], at: str = ""
) -> Iterator[str]:
    """Yield the differences between an answer and the expectation, in words.

    Args:
        expected: The expectation, as described above.
        actual: The answer, or a part of it.
        golden: The reference vectors.
        answers: The answers of the same driver, by the id of their call.
        at: The path of the part in the answer.
    """
    match expected:
        case {"$any": True} if not actual:
            yield f"{at}: nothing"
        case {"$any": True}:
            return
        case {"$golden": int(number)}:
            reference = golden.vectors[number][: expected.get("dimensions")]
            yield from _unlike(reference / np.linalg.norm(reference), actual, at)
        case {"$like": str(other)}:
            yield from _unlike(_vector(answers[other]["result"]["vector"]), actual, at)
        case {"$times": int(count), "$each": each}:
            yield from violations([each] * count, actual, golden, answers, at)
        case dict() if isinstance(actual, dict):
            for name, value in expected.items():
                yield from violations(value, actual.get(name), golden, answers, f"{at}.{name}")
        case list() if isinstance(actual, list) and len(actual) == len(expected):
            for index, value in enumerate(expected):
                yield from violations(value, actual[index], golden, answers, f"{at}[{index}]")
        case _ if actual != expected and (actual or expected):
            yield f"{at}: {str(actual)[:200]}, not {str(expected)[:200]}"


def differences(one: Json, other: Json, at: str = "") -> Iterator[str]:
    """Yield the differences between two drivers' answers to one call, in words. Fields of only one of them are ignored.

    Args:
        one: An answer, or a part of it.
        other: The same of the other driver.
        at: The path of the part in the answer.
    """
    if isinstance(one, dict) and isinstance(other, dict):
        for name in (one.keys() & other.keys()) - VOLATILE:
            if name == "vector":
                if _vector(one[name]).tobytes() != _vector(other[name]).tobytes():
                    yield f"{at}.{name}: other bits"
            else:
                yield from differences(one[name], other[name], f"{at}.{name}")
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for index, (left, right) in enumerate(zip(one, other, strict=True)):
            yield from differences(left, right, f"{at}[{index}]")
    elif None not in (one, other) and one != other and (one or other):
        yield f"{at}: {str(one)[:200]} and {str(other)[:200]}"


def _vector(values: list[float] | None) -> NDArray[np.float32]:
    return np.array(values or [], dtype=np.float32)


def _unlike(reference: NDArray[np.float32], actual: Json, at: str) -> Iterator[str]:
    vector = _vector(actual)
    if vector.shape != reference.shape:
        yield f"{at}: {vector.size} values, not {reference.size}"
    elif not abs(float(np.linalg.norm(vector)) - 1) < 1e-5:
        yield f"{at}: the norm is {np.linalg.norm(vector)}"
    elif not float(vector @ reference) >= _COSINE:
        yield f"{at}: the cosine is {vector @ reference}"
