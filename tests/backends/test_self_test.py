"""The self-test of an engine is remembered over restarts of the daemon, as long as the engine computes what it did."""

from __future__ import annotations

import json

import pytest

from runed.backends.likeness import cosine
from runed.errors import BackendFaultError
from runed.paths import Paths
from tests.backends.support import FakeEngine, MakeBackend

UNTESTED = {"two words": "nan"}
"""A fault that only the whole self-test notices, since the short one does not have this text."""


async def serve_once(make_backend: MakeBackend, fake: FakeEngine) -> None:
    backend = make_backend(fake.executable)
    await backend.start()
    await backend.stop()
    assert backend.state.company_cosine == 1.0


async def test_a_passed_self_test_is_not_run_again(make_backend: MakeBackend, fake: FakeEngine) -> None:
    await serve_once(make_backend, fake)
    fake.behave(on=UNTESTED)
    await serve_once(make_backend, fake)


async def test_an_engine_that_computes_another_vector_than_before_is_tested_anew(
    make_backend: MakeBackend, fake: FakeEngine
) -> None:
    await serve_once(make_backend, fake)
    fake.behave(on=UNTESTED | {"runed": "other"})
    with pytest.raises(BackendFaultError, match="not finite"):
        await serve_once(make_backend, fake)


@pytest.mark.parametrize("changed", ["llama-server", "libllama.so.0"])
async def test_another_build_of_the_engine_is_tested_anew(make_backend: MakeBackend, fake: FakeEngine, changed: str) -> None:
    await serve_once(make_backend, fake)
    with fake.executable.with_name(changed).open("a") as file:
        file.write("\n")
    fake.behave(on=UNTESTED)
    with pytest.raises(BackendFaultError, match="not finite"):
        await serve_once(make_backend, fake)


@pytest.mark.parametrize("reference", ["", "AAAA", "AAAA" * 85 + "AA==", "AACAfwAAgP8="], ids=len)
async def test_a_damaged_memory_of_the_self_test_is_as_good_as_none(
    make_backend: MakeBackend, fake: FakeEngine, paths: Paths, reference: str
) -> None:
    await serve_once(make_backend, fake)
    document = json.loads(paths.engine_quirks.read_text())
    (passed,) = document["self_tests"].values()
    passed["reference"] = reference
    paths.engine_quirks.write_text(json.dumps(document))
    fake.behave(on=UNTESTED)
    with pytest.raises(BackendFaultError, match="not finite"):
        await serve_once(make_backend, fake)


def test_vectors_without_a_direction_have_no_cosine() -> None:
    zeros, ones, infinite = bytes(8), b"\0\0\x80\x3f" * 2, b"\0\0\x80\x7f" * 2
    assert cosine(ones, ones) == pytest.approx(1)
    for other in (zeros, infinite, ones[:4], b""):
        assert not cosine(ones, other) >= -1
