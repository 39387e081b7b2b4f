"""An engine on another machine: its answers are checked, its failures are told, and its space is proven."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import logging
import math
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import hypercorn
import hypercorn.asyncio
import numpy as np
import psutil
import pytest
import trustme

from runed.backends.base import BackendStatus, Counting, Tokens, pack
from runed.backends.remote import Fallback, RemoteBackend, meet
from runed.backends.remote import backend as backend_module
from runed.backends.remote.fallback import Substitute
from runed.backends.remote.space import load_space
from runed.bootstrap import network
from runed.bootstrap.network import Transport
from runed.bootstrap.proxies import Proxies
from runed.errors import (
    BackendFaultError,
    BackendUnavailableError,
    RunedError,
    SpaceChangedError,
    TextTooLongError,
    UnimplementedError,
)
from runed.own_models import RemoteModel
from tests.fakes.fake_remote import Behaviour, FakeRemote, vector_of
from tests.fakes.plain_http import patient_plain_server
from tests.support import eventually

TEXTS = ["one small text", "another text", "a third one that is longer"]

KEY = "sk-very-secret-4711"


@pytest.fixture
def remote() -> Iterator[FakeRemote]:
    server = FakeRemote()
    yield server
    server.close()


class Meet:
    """Meets engines, and closes them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.met: list[RemoteBackend] = []

    async def __call__(self, url: str, fallback: Fallback | None = None, **configuration: Any) -> RemoteBackend:  # noqa: ANN401 # those of `RemoteModel`
        options = {"timeout": 5.0} | configuration

        def transport(remote: RemoteModel, limits: httpx.Limits) -> httpx.AsyncBaseTransport:
            return Transport(Proxies(), authorities=remote.ca_file, http2=True, limits=limits)

        model = RemoteModel(url=url, **options)
        record = self.folder / "remote-big.json"
        self.met.append(await meet(model, name="big", record=record, make_transport=transport, fallback=fallback))
        return self.met[-1]

    async def close(self) -> None:
        for backend in self.met:
            await backend.stop()


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Meet]:
    meeting = Meet(tmp_path)
    yield meeting
    await meeting.close()


def wanted(remote: FakeRemote, text: str) -> np.ndarray[Any, Any]:
    values = vector_of(text, remote.behaviour)
    return values / np.linalg.norm(values)


async def ready(backend: RemoteBackend) -> None:
    """Wait until an engine that was away answers again."""
    async with asyncio.timeout(20):
        while backend.state.status is not BackendStatus.READY:  # noqa: ASYNC110 # a state has no event
            await asyncio.sleep(0.05)


def is_right(remote: FakeRemote, texts: list[str], vectors: list[bytes]) -> bool:
    pairs = zip(texts, vectors, strict=True)
    return all(float(np.frombuffer(vector, "<f4") @ wanted(remote, text)) > 0.999999 for text, vector in pairs)


@pytest.mark.parametrize("api", ["openai", "tei"])
async def test_vectors_tokens_and_limits_are_those_of_the_engine(api: str, remote: FakeRemote, engine: Meet) -> None:
    remote.behaviour.api = api
    backend = await engine(remote.url)
    answer = await backend.embed(TEXTS)
    assert is_right(remote, TEXTS, answer.vectors)
    assert answer.tokens == sum(len(text.split()) for text in TEXTS)
    assert (backend.model.name, backend.model.dim) == ("toy", 16)
    limits = backend.limits
    assert (limits.texts, limits.flights) == ((8, 4) if api == "tei" else (32, 4))
    assert limits.counting is (Counting.ASKED if api == "tei" else Counting.SUM)
    assert backend.model.max_tokens == (50 if api == "tei" else 8192)
    assert backend.state.status is BackendStatus.READY


@pytest.mark.parametrize("api", [None, "openai"])
@pytest.mark.parametrize("path", ["", "/v1", "/v1/"])
async def test_a_url_with_and_without_its_version_means_the_same(
    path: str, api: str | None, remote: FakeRemote, engine: Meet
) -> None:
    backend = await engine(f"{remote.url}{path}".rstrip("/"), api=api)
    assert is_right(remote, TEXTS, (await backend.embed(TEXTS)).vectors)


@pytest.mark.parametrize(
    ("behaviour", "remark"),
    [
        ({"encoding": "base64"}, ""),
        ({"encoding": "float"}, ""),
        ({"encoding": "refused"}, ""),
        ({"order": "indexed"}, ""),
        ({"norm": 3.5}, "its vectors are not of norm 1, and are scaled here"),
        ({"norm": 1e-5}, "its vectors are not of norm 1, and are scaled here"),
    ],
    ids=str,
)
async def test_odd_but_right_answers_are_understood(
    behaviour: dict[str, Any], remark: str, remote: FakeRemote, engine: Meet
) -> None:
    vars(remote.behaviour).update(behaviour)
    backend = await engine(remote.url)
    answer = await backend.embed(TEXTS)
    assert is_right(remote, TEXTS, answer.vectors)
    assert all(math.isclose(float(np.linalg.norm(np.frombuffer(vector, "<f4"))), 1, rel_tol=1e-6) for vector in answer.vectors)
    assert remark in backend.state.reason
    assert ("norm" in backend.state.reason) == bool(remark)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("encoding", ["float", "base64"])
async def test_a_vector_that_is_not_finite_blames_its_text_alone(
    encoding: str, value: float, remote: FakeRemote, engine: Meet
) -> None:
    backend = await engine(remote.url)
    vars(remote.behaviour).update(encoding=encoding, spoil=value)
    with pytest.raises(BackendFaultError, match="not finite"):
        await backend.embed(["a text", "a spoiled text"])
    assert is_right(remote, TEXTS, (await backend.embed(TEXTS)).vectors)


@pytest.mark.parametrize("behaviour", [{"order": "wrong"}, {"order": "short"}], ids=str)
async def test_vectors_of_other_texts_are_nobodys(behaviour: dict[str, Any], remote: FakeRemote, engine: Meet) -> None:
    backend = await engine(remote.url)
    vars(remote.behaviour).update(behaviour)
    with pytest.raises(BackendUnavailableError, match=r"cannot be used: .* vectors"):
        await backend.embed(TEXTS)
    assert backend.state.status is BackendStatus.FAILED


async def test_an_answer_that_is_nested_too_deeply_makes_the_engine_unusable(remote: FakeRemote, engine: Meet) -> None:
    backend = await engine(remote.url)
    remote.behaviour.script.append((200, {}, b'{"x":' + b"[" * 100_000))
    with pytest.raises(BackendUnavailableError, match="none of its API"):
        await backend.embed(TEXTS)


async def test_an_answer_that_is_longer_than_its_vectors_can_be_takes_no_memory(remote: FakeRemote, engine: Meet) -> None:
    backend = await engine(remote.url)
    numbers = b'{"data": [{"embedding": [' + b"0," * 1_100_000 + b"0]}]}"
    remote.behaviour.script.append((200, {}, numbers))
    with pytest.raises(BackendUnavailableError, match="answered more than"):
        await backend.embed(["a text"])
    await ready(backend)
    assert is_right(remote, TEXTS, (await backend.embed(TEXTS)).vectors)


@pytest.mark.parametrize(
    ("url", "warns"),
    [
        ("http://gpu.example/v1", True),
        ("HTTP://gpu.example/v1", True),
        ("http://localhost.example/v1", True),
        ("http://127.gpu.example/v1", True),
        ("http://[2001:db8::1]:80/v1", True),
        ("https://gpu.example/v1", False),
        ("http://LOCALHOST:8/v1", False),
        ("http://127.0.0.9/v1", False),
        ("http://[::1]:80/v1", False),
    ],
)
async def test_a_key_over_http_to_another_machine_is_told(url: str, engine: Meet, remote: FakeRemote, *, warns: bool) -> None:
    backend = await engine(remote.url)
    backend._remote = RemoteModel(url=url, key_variable="SOME_API_KEY")
    assert ("without encryption" in backend.state.reason) == warns


@pytest.mark.parametrize(
    "refusal",
    [
        (413, b"payload too large"),
        (400, b'{"error": {"message": "array too long. Expected an array with maximum length 2"}}'),
        (422, b'{"error": "batch size 3 > maximum allowed batch size 2"}'),
    ],
    ids=["413", "400", "422"],
)
async def test_a_batch_that_is_too_large_is_halved_and_the_next_one_is_smaller(
    refusal: tuple[int, bytes], remote: FakeRemote, engine: Meet
) -> None:
    backend = await engine(remote.url)
    vars(remote.behaviour).update(max_batch=2, too_many=refusal)
    texts = [f"text number {number}" for number in range(9)]
    answer = await backend.embed(texts)
    assert is_right(remote, texts, answer.vectors)
    assert answer.tokens == 27
    assert backend.limits.texts <= 3
    backend_limit = backend.limits.texts
    remote.seen.clear()
    await backend.embed(texts[:backend_limit])
    assert backend.limits.texts <= backend_limit


@pytest.mark.parametrize(
    "refusal",
    [
        (400, b'{"error": {"message": "This model\'s maximum context length is 5 tokens"}}'),
        (413, b'{"error": "`inputs` must have less than 5 tokens. Given: 9"}'),
        (400, b'{"error": {"message": "input (9 tokens) is too large to process. increase the physical batch size"}}'),
        (400, b'{"error": {"code": "TEXT_TOO_LONG"}}'),
    ],
    ids=["openai", "tei", "llama-server", "runed"],
)
async def test_a_text_that_is_too_long_is_told_and_says_that_nobody_can_cut_it(
    refusal: tuple[int, bytes], remote: FakeRemote, engine: Meet
) -> None:
    backend = await engine(remote.url, max_tokens=20)
    vars(remote.behaviour).update(max_words=5, too_long=refusal)
    for texts in (["one two three four five six seven"], ["short", "one two three four five six seven"]):
        with pytest.raises(TextTooLongError, match=r"limit is 20 tokens.*tells no tokens") as told:
            await backend.embed(texts)
        assert told.value.metadata == {"limit": "20"}
    assert backend.limits.texts == 32, "not the number of texts was to blame"


async def test_a_text_that_the_engine_cuts_without_telling_it_is_refused(remote: FakeRemote, engine: Meet) -> None:
    backend = await engine(remote.url, max_tokens=0)
    await backend.stop()
    vars(remote.behaviour).update(owner="library", tags=True)
    backend = await engine(remote.url, model="toy", max_tokens=20)
    vars(remote.behaviour).update(max_words=20, too_long=(0, b""))
    with pytest.raises(TextTooLongError):
        await backend.embed(["a " * 40, "short"])
    assert is_right(remote, ["a b c d e f g", "short"], (await backend.embed(["a b c d e f g", "short"])).vectors)


async def test_ollama_is_known_by_its_list_of_files_whoever_made_the_model(remote: FakeRemote, engine: Meet) -> None:
    vars(remote.behaviour).update(owner="jeffh", tags=True, digest="one")
    first = await engine(remote.url, max_tokens=20)
    vars(remote.behaviour).update(max_words=20, too_long=(0, b""))
    with pytest.raises(TextTooLongError):
        await first.embed(["a " * 40])
    remote.behaviour.digest = "two"
    assert (await engine(remote.url, max_tokens=20)).model.identity != first.model.identity


async def test_infinity_tells_characters_as_tokens_and_cuts(remote: FakeRemote, engine: Meet) -> None:
    remote.behaviour.owner = "infinity"
    backend = await engine(remote.url, max_tokens=20)
    vars(remote.behaviour).update(max_words=20, too_long=(0, b""))
    texts = ["a b", "several words that have more than twenty letters", "short"]
    answer = await backend.embed(texts)
    assert is_right(remote, texts, answer.vectors)
    assert answer.tokens == 0, "nobody knows them"
    for text in ("a " * 40, " ".join(f"word{number}" for number in range(400))):
        with pytest.raises(TextTooLongError, match="limit is 20 tokens"):
            await backend.embed(["short", text])
    long = " ".join(f"word{number}" for number in range(19))
    assert is_right(remote, [long], (await backend.embed([long])).vectors)


async def test_an_engine_without_models_says_so(remote: FakeRemote, engine: Meet) -> None:
    answer = b'HTTP/1.1 200 OK\r\ncontent-length: 30\r\n\r\n{"object":"list","data": null}'
    remote.behaviour.raw = lambda: [answer]
    with pytest.raises(BackendUnavailableError, match="has several models or lists none, so name one as model; it lists: none"):
        await engine(f"{remote.url}/v1")


async def test_a_reranker_of_text_embeddings_inference_is_told(remote: FakeRemote, engine: Meet) -> None:
    vars(remote.behaviour).update(api="tei", kind="reranker")
    with pytest.raises(BackendUnavailableError, match="gives no vectors, since it classifies or reranks") as refusal:
        await engine(remote.url)
    assert refusal.value.retry_after is None


async def test_what_passes_is_tried_again(remote: FakeRemote, engine: Meet) -> None:
    backend = await engine(remote.url)
    for status in (408, 429, 500, 502, 503):
        remote.behaviour.script.append((status, {}, b"a page of a proxy"))
        assert is_right(remote, TEXTS, (await backend.embed(TEXTS)).vectors)
    assert backend.state.status is BackendStatus.READY


async def test_the_engine_says_when_to_come_back(remote: FakeRemote, engine: Meet) -> None:
    backend = await engine(remote.url)
    remote.behaviour.script.append((429, {"retry-after": "1"}, b""))
    began = time.monotonic()
    await backend.embed(TEXTS)
    assert time.monotonic() - began >= 1
    remote.behaviour.script.extend([(429, {"retry-after": "60"}, b"")] * 3)
    began = time.monotonic()
    with pytest.raises(BackendUnavailableError) as refusal:
        await backend.embed(TEXTS)
    assert time.monotonic() - began < 30, "nobody waits for a minute here"
    assert refusal.value.retry_after == 60


async def test_a_time_to_wait_without_end_has_one(remote: FakeRemote, engine: Meet) -> None:
    backend = await engine(remote.url)
    remote.behaviour.script.append((429, {"retry-after": "9" * 400}, b""))
    with pytest.raises(BackendUnavailableError) as refusal:
        await backend.embed(TEXTS)
    assert refusal.value.retry_after == 366 * 86400, "infinity cannot be told to a client"


async def test_a_cut_answer_is_asked_for_again_and_an_engine_that_only_cuts_is_away(remote: FakeRemote, engine: Meet) -> None:
    backend = await engine(remote.url)
    remote.behaviour.cut = True
    asking = asyncio.create_task(backend.embed(TEXTS))
    await asyncio.sleep(0.05)
    remote.behaviour.cut = False
    assert is_right(remote, TEXTS, (await asking).vectors)
    remote.behaviour.cut = True
    with pytest.raises(BackendUnavailableError) as refusal:
        await backend.embed(TEXTS)
    assert refusal.value.retry_after


async def test_one_deadline_holds_over_all_tries(remote: FakeRemote, engine: Meet) -> None:
    backend = await engine(remote.url, timeout=2.0)
    remote.behaviour.delay = 3.0
    before = len(remote.questions)
    with pytest.raises(BackendUnavailableError, match="no answer in time") as refusal:
        await backend.embed(TEXTS)
    assert len(remote.questions) == before + 1, "there was no time for a second try"
    assert refusal.value.retry_after


async def test_the_breaker_spares_an_engine_that_is_away_and_closes_when_it_is_back(remote: FakeRemote, engine: Meet) -> None:
    backend = await engine(remote.url)
    port = remote.port
    remote.close()
    with pytest.raises(BackendUnavailableError):
        await backend.embed(TEXTS)
    began = time.monotonic()
    for _ in range(50):
        with pytest.raises(BackendUnavailableError) as refusal:
            await backend.embed(TEXTS)
        assert refusal.value.retry_after
    assert time.monotonic() - began < 15
    assert backend.state.status is BackendStatus.FAILED
    again = FakeRemote(port=port)
    try:
        await ready(backend)
        assert is_right(again, TEXTS, (await backend.embed(TEXTS)).vectors)
    finally:
        await backend.stop()
        again.close()


async def test_a_cancelled_call_closes_its_request(remote: FakeRemote, engine: Meet) -> None:
    backend = await engine(remote.url)
    remote.behaviour.delay = 0.3
    remote.behaviour.norm = 1.0
    before = remote.broken
    asking = asyncio.create_task(backend.embed(["word " * 20000] * 8))
    await asyncio.sleep(0.1)
    asking.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asking
    await eventually(lambda: not backend._link.http._transport._transports[None, "http"]._pool._requests)  # type: ignore[union-attr] # httpx's
    remote.behaviour.delay = 0
    assert is_right(remote, TEXTS, (await backend.embed(TEXTS)).vectors)
    assert remote.broken >= before


async def test_never_more_requests_at_once_than_the_configuration_allows(remote: FakeRemote, engine: Meet) -> None:
    backend = await engine(remote.url, concurrency=2)
    remote.behaviour.delay = 0.1
    await asyncio.gather(*(backend.embed([f"text {number}"]) for number in range(6)))
    assert remote.most_at_once <= 2


class TestSpace:
    async def test_it_has_one_name_over_restarts_although_the_engine_rounds(self, remote: FakeRemote, engine: Meet) -> None:
        remote.behaviour.wobble = 2e-4
        names = {(await engine(remote.url)).model.identity for _ in range(4)}
        assert len(names) == 1

    async def test_another_model_has_another_name(self, remote: FakeRemote, engine: Meet) -> None:
        first = await engine(remote.url)
        remote.behaviour.seed = 2
        second = await engine(remote.url)
        assert first.model.identity != second.model.identity
        assert load_space(engine.folder / "remote-big.json") == second._space

    async def test_a_digest_that_is_told_belongs_to_it(self, remote: FakeRemote, engine: Meet) -> None:
        vars(remote.behaviour).update(api="tei", digest="one")
        first = await engine(remote.url)
        remote.behaviour.digest = "two"
        assert first.model.identity != (await engine(remote.url)).model.identity

    @pytest.mark.parametrize("change", [{"seed": 2}, {"dim": 8}], ids=str)
    async def test_a_change_amid_the_use_is_refused_until_it_is_undone(
        self, change: dict[str, Any], remote: FakeRemote, engine: Meet, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(backend_module, "_PROBE_AGE", 0.2)
        monkeypatch.setattr(backend_module, "_FIRST_PAUSE", 0.2)
        backend = await engine(remote.url)
        usual = dict(vars(remote.behaviour))
        vars(remote.behaviour).update(change)
        await asyncio.sleep(0.25)
        with pytest.raises(SpaceChangedError, match="another space") as refusal:
            await backend.embed(TEXTS)
        assert refusal.value.metadata == {"model": "big"}
        assert backend.state.status is BackendStatus.SPACE_CHANGED
        vars(remote.behaviour).update(usual)
        await ready(backend)
        assert is_right(remote, TEXTS, (await backend.embed(TEXTS)).vectors)

    async def test_it_is_proven_after_a_lost_connection(self, remote: FakeRemote, engine: Meet) -> None:
        backend = await engine(remote.url)
        port = remote.port
        remote.close()
        other = FakeRemote(port=port)
        other.behaviour.seed = 2
        try:
            backend._link.http.was_lost = True  # as after an error; a connection that was closed in peace is no reason
            with pytest.raises(SpaceChangedError):
                await backend.embed(TEXTS)
        finally:
            await backend.stop()
            other.close()

    @pytest.mark.parametrize("count", [1, 4])
    async def test_a_reconnect_is_a_reason_to_prove_it_for_all_that_are_on_their_way(
        self, count: int, remote: FakeRemote, engine: Meet
    ) -> None:
        backend = await engine(remote.url, concurrency=4)
        port = remote.port
        await asyncio.to_thread(remote.close)
        other = FakeRemote(port=port, seed=2)
        try:
            answers = await asyncio.gather(*(backend.embed(TEXTS) for _ in range(count)), return_exceptions=True)
            assert [type(answer) for answer in answers] == [SpaceChangedError] * count
        finally:
            await backend.stop()
            other.close()

    async def test_a_further_connection_is_none(self, remote: FakeRemote, engine: Meet) -> None:
        backend = await engine(remote.url, concurrency=4)
        remote.behaviour.delay = 0.2
        await asyncio.gather(*(backend.embed(TEXTS) for _ in range(4)))
        # One probe, and four batches. An answer that is about to be read looks like a closed connection for a moment.
        assert len(remote.questions) < 1 + 4 + 3

    async def test_an_engine_that_closes_each_connection_is_not_proven_each_time(
        self, remote: FakeRemote, engine: Meet
    ) -> None:
        remote.behaviour.closes = True
        backend = await engine(remote.url)
        for _ in range(3):
            assert is_right(remote, TEXTS, (await backend.embed(TEXTS)).vectors)
        assert len(remote.questions) == 4

    async def test_an_engine_that_is_away_at_the_start_has_its_space_of_earlier(self, remote: FakeRemote, engine: Meet) -> None:
        first = await engine(remote.url)
        url = remote.url
        remote.close()
        second = await engine(url)
        assert (second.model, second.state.status) == (first.model, BackendStatus.FAILED)
        with pytest.raises(BackendUnavailableError):
            await engine(url, model="another")
        with pytest.raises(BackendUnavailableError):
            await engine(url, dimensions=8)


class TestKeys:
    async def test_a_key_of_a_file_and_its_successor(
        self, remote: FakeRemote, engine: Meet, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG, "runed")
        file = tmp_path / "key"
        file.write_text(f"{KEY}\n")
        file.chmod(0o600)
        remote.behaviour.key = KEY
        backend = await engine(remote.url, key_file=file)
        await backend.embed(TEXTS)
        remote.behaviour.key = "the-next-one"
        with pytest.raises(BackendUnavailableError, match="refuses the key") as refusal:
            await backend.embed(TEXTS)
        assert refusal.value.retry_after is None
        file.write_text("the-next-one")
        await ready(backend)
        await backend.embed(TEXTS)
        for told in (str(refusal.value), repr(backend._link.http.key), caplog.text, repr(backend._remote)):
            assert KEY not in told
            assert "the-next-one" not in told

    async def test_a_key_that_was_replaced_costs_no_call(self, remote: FakeRemote, engine: Meet, tmp_path: Path) -> None:
        file = tmp_path / "key"
        file.write_text(KEY)
        remote.behaviour.key = KEY
        backend = await engine(remote.url, key_file=file)
        file.write_text("the-next-one")
        remote.behaviour.key = "the-next-one"
        assert is_right(remote, TEXTS, (await backend.embed(TEXTS)).vectors)
        assert "chmod go-r" in backend.state.reason

    async def test_a_key_of_a_variable(self, remote: FakeRemote, engine: Meet, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SOME_API_KEY", KEY)
        remote.behaviour.key = KEY
        backend = await engine(remote.url, key_variable="SOME_API_KEY")
        assert is_right(remote, TEXTS, (await backend.embed(TEXTS)).vectors)

    @pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"two words", b"a\x07b", b"\xef\xbb\xbfkey"], ids=repr)
    async def test_what_is_no_key_is_told_without_it(
        self, content: bytes, remote: FakeRemote, engine: Meet, tmp_path: Path
    ) -> None:
        file = tmp_path / "key"
        file.write_bytes(content)
        with pytest.raises(BackendUnavailableError, match="holds") as refusal:
            await engine(remote.url, key_file=file)
        assert "words" not in str(refusal.value)
        assert not remote.seen

    async def test_a_missing_file_and_a_missing_key(self, remote: FakeRemote, engine: Meet, tmp_path: Path) -> None:
        with pytest.raises(BackendUnavailableError, match="cannot be read"):
            await engine(remote.url, key_file=tmp_path / "missing")
        remote.behaviour.key = KEY
        with pytest.raises(BackendUnavailableError, match="wants a key") as refusal:
            await engine(remote.url)
        assert KEY not in str(refusal.value)

    async def test_another_host_gets_neither_key_nor_texts(self, remote: FakeRemote, engine: Meet, tmp_path: Path) -> None:
        file = tmp_path / "key"
        file.write_text(KEY)
        other = FakeRemote()
        try:
            remote.behaviour.redirect = other.url
            with pytest.raises(BackendUnavailableError, match="another server"):
                await engine(remote.url, key_file=file)
            remote.behaviour.redirect = ""
            backend = await engine(remote.url, key_file=file)
            remote.behaviour.redirect = other.url.replace("127.0.0.1", "localhost")
            with pytest.raises(BackendUnavailableError, match="another server"):
                await backend.embed(TEXTS)
            assert not other.seen
        finally:
            other.close()

    @pytest.mark.parametrize("place", ["http://xn--", "http://[", "ftp://gpu.test"])
    async def test_a_redirect_to_what_is_no_place_is_told(self, place: str, remote: FakeRemote, engine: Meet) -> None:
        backend = await engine(remote.url)
        remote.behaviour.redirect = place
        with pytest.raises(BackendUnavailableError, match="url"):
            await backend.embed(TEXTS)


class TestOtherServices:
    @pytest.mark.parametrize("path", ["", "/v1", "/some/page"])
    async def test_a_url_of_another_service_is_told(self, path: str, remote: FakeRemote, engine: Meet) -> None:
        remote.behaviour.api = "none"
        with pytest.raises(BackendUnavailableError, match="check the url") as refusal:
            await engine(f"{remote.url}{path}")
        assert "such page" not in str(refusal.value)

    async def test_a_gateway_that_lists_no_models_needs_a_name(self, remote: FakeRemote, engine: Meet) -> None:
        remote.behaviour.api = "none"
        backend = await engine(f"{remote.url}/v1", model="toy")
        assert is_right(remote, TEXTS, (await backend.embed(TEXTS)).vectors)

    async def test_a_port_at_which_nobody_listens(self, remote: FakeRemote, engine: Meet) -> None:
        url = remote.url
        remote.close()
        with pytest.raises(BackendUnavailableError) as refusal:
            await engine(url)
        assert refusal.value.retry_after

    async def test_a_dimension_other_than_configured(self, remote: FakeRemote, engine: Meet) -> None:
        with pytest.raises(BackendUnavailableError, match="a vector of 16 values, and 4096 were expected") as refusal:
            await engine(remote.url, dimensions=4096)
        assert refusal.value.retry_after is None

    async def test_a_page_for_every_question_is_no_engine(self, remote: FakeRemote, engine: Meet) -> None:
        remote.behaviour.raw = lambda: [b"HTTP/1.1 200 OK\r\ncontent-length: 26\r\n\r\n<html>a page of a cat</html>"]
        for path in ("", "/v1"):
            with pytest.raises(BackendUnavailableError, match="answers neither as the API of OpenAI nor") as refusal:
                await engine(f"{remote.url}{path}")
            assert "cat" not in str(refusal.value)
            assert refusal.value.retry_after is None


class TestCertificates:
    async def test_a_certificate_of_nobody_and_one_of_the_own_authority(self, engine: Meet, tmp_path: Path) -> None:
        authority = trustme.CA()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(context)
        server = FakeRemote(context)
        try:
            with pytest.raises(
                BackendUnavailableError, match=r"cannot be trusted: .*as ca_file, or in SSL_CERT_FILE"
            ) as refusal:
                await engine(server.url)
            assert refusal.value.retry_after is None
            file = tmp_path / "ca.pem"
            file.write_bytes(authority.cert_pem.bytes())
            backend = await engine(server.url, ca_file=file)
            assert is_right(server, TEXTS, (await backend.embed(TEXTS)).vectors)
            file.write_bytes(trustme.CA().cert_pem.bytes())
            with pytest.raises(
                BackendUnavailableError, match=f"no authority in {file}, its ca_file, has issued its certificate"
            ):
                await engine(server.url, ca_file=file)
            file.write_text("no certificate")
            with pytest.raises(BackendUnavailableError, match="as PEM"):
                await engine(server.url, ca_file=file)
        finally:
            await engine.close()
            server.close()

    @pytest.mark.parametrize(
        ("name", "days", "told"),
        [
            (
                "127.0.0.1",
                -1,
                "certificate has expired; have it renewed, or correct the clock of this machine: by it, today is 20",
            ),
            ("gpu.example", 1, "name the engine in the url as its certificate does"),
        ],
        ids=["expired", "of another name"],
    )
    async def test_a_certificate_that_does_not_hold_here_says_why(
        self, name: str, days: int, told: str, engine: Meet, tmp_path: Path
    ) -> None:
        authority = trustme.CA()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        ends = datetime.now(UTC) + timedelta(days=days)
        authority.issue_cert(name, not_before=ends - timedelta(days=2), not_after=ends).configure_cert(context)
        file = tmp_path / "ca.pem"
        file.write_bytes(authority.cert_pem.bytes())
        server = FakeRemote(context)
        try:
            with pytest.raises(BackendUnavailableError, match=told) as refusal:
                await engine(server.url, ca_file=file)
            assert "ca_file" not in str(refusal.value)
            assert refusal.value.retry_after is None
        finally:
            server.close()

    async def test_a_server_without_tls_is_told(self, remote: FakeRemote, engine: Meet) -> None:
        with pytest.raises(
            BackendUnavailableError, match=r"does not speak TLS.* the url, which may begin with http"
        ) as refusal:
            await engine(remote.url.replace("http:", "https:"))
        assert refusal.value.retry_after is None

    async def test_a_server_without_tls_that_waits_for_more_is_told(
        self, engine: Meet, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(network, "_SILENCE", 0.1)
        async with patient_plain_server() as url:
            with pytest.raises(BackendUnavailableError, match="speaks http, not https; begin the url with http") as refusal:
                await engine(url)
        assert refusal.value.retry_after is None


HEAD = b"HTTP/1.1 200 OK\r\n"


def slowly(begin: bytes, piece: bytes) -> Iterator[bytes]:
    yield begin
    while True:
        time.sleep(0.05)
        yield piece


def endlessly(begin: bytes, piece: bytes) -> Iterator[bytes]:
    yield begin
    while True:
        yield piece


class TestEndlessAnswers:
    """Each answer ends in bounded time and memory, with one sentence."""

    @pytest.mark.parametrize(
        ("answer", "told"),
        [
            (lambda: slowly(HEAD, b"x-more: y\r\n"), "gave no answer in time"),
            (lambda: slowly(HEAD + b"content-length: 100000\r\n\r\n", b" "), "gave no answer in time"),
            (lambda: slowly(HEAD + b"transfer-encoding: chunked\r\n\r\n", b"1\r\n \r\n"), "gave no answer in time"),
            (lambda: endlessly(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n" * 64), "gave no answer in time"),
            (lambda: endlessly(HEAD, b"x-more: y\r\n" * 1024), "cannot be had now"),
            (lambda: endlessly(HEAD, b"x" * 65536), "cannot be had now"),
            (lambda: endlessly(HEAD + b"content-length: 10000000000\r\n\r\n", b" " * 65536), "answered more than"),
            (lambda: endlessly(HEAD + b"\r\n", b" " * 65536), "answered more than"),
            (lambda: endlessly(HEAD + b"transfer-encoding: chunked\r\n\r\n", b"1\r\n \r\n" * 4096), "gave no answer in time"),
            (
                lambda: endlessly(HEAD + b"content-encoding: gzip\r\n\r\n", gzip.compress(bytes(10_000_000))),
                r"compresses its answers \(gzip\)",
            ),
        ],
        ids=[
            *("slow head", "slow body", "slow chunks", "early hints", "many headers", "long header", "10 GB", "no end"),
            *("tiny chunks", "gzip"),
        ],
    )
    @pytest.mark.parametrize("is_met", [True, False], ids=["met", "new"])
    async def test_an_answer_without_end_has_one(
        self,
        answer: Callable[[], Iterator[bytes]],
        told: str,
        remote: FakeRemote,
        engine: Meet,
        monkeypatch: pytest.MonkeyPatch,
        *,
        is_met: bool,
    ) -> None:
        backend = await engine(remote.url) if is_met else None
        seconds = 0.5 if "in time" in told else 60.0
        monkeypatch.setattr(backend_module, "_MEETING_SECONDS", seconds)
        remote.behaviour.raw = answer
        before = psutil.Process().memory_info().rss
        waiting = asyncio.create_task(longest_wait())
        began = time.monotonic()
        if backend is not None:
            backend._remote = replace(backend._remote, timeout=seconds)
        with pytest.raises(BackendUnavailableError, match=told):
            await (engine(remote.url) if backend is None else backend.embed(TEXTS))
        assert time.monotonic() - began < 60
        waiting.cancel()
        assert await waiting < 10, "other callers waited"
        assert psutil.Process().memory_info().rss - before < 100 * 1024 * 1024
        if backend is not None:
            assert backend.state.status is BackendStatus.FAILED
            backend._remote = replace(backend._remote, timeout=60.0)
            remote.behaviour.raw = None
            await ready(backend)
            assert is_right(remote, TEXTS, (await backend.embed(TEXTS)).vectors)


async def longest_wait() -> float:
    """Return the longest time in seconds that the event loop let this task wait, once it is cancelled."""
    longest, last = 0.0, time.monotonic()
    with contextlib.suppress(asyncio.CancelledError):
        while True:
            await asyncio.sleep(0.01)
            longest, last = max(longest, time.monotonic() - last), time.monotonic()
    return longest


async def test_http2_is_used_where_the_server_offers_it(engine: Meet, tmp_path: Path) -> None:
    how, versions, ended = Behaviour(), [], asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401 # ASGI
        versions.append(scope["http_version"])
        body = b""
        while scope["method"] == "POST" and (event := await receive())["type"] == "http.request":
            body += event["body"]
            if not event["more_body"]:
                break
        if "wait" in body.decode():
            while (await receive())["type"] != "http.disconnect":
                pass
            ended.set()
            return
        answer: dict[str, Any] = {"data": [{"id": "toy", "owned_by": "somebody"}]}
        if body:
            texts = json.loads(body)["input"]
            numbers = [[float(value) for value in vector_of(text, how)] for text in texts]
            answer = {"data": [{"index": index, "embedding": vector} for index, vector in enumerate(numbers)]}
        status = 200 if scope["path"] in {"/v1/models", "/v1/embeddings"} else 404
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps(answer).encode()})

    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    (tmp_path / "ca.pem").write_bytes(authority.cert_pem.bytes())
    (tmp_path / "chain.pem").write_bytes(b"".join(part.bytes() for part in certificate.cert_chain_pems))
    (tmp_path / "key.pem").write_bytes(certificate.private_key_pem.bytes())
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = hypercorn.Config()
    config.bind, config.loglevel = [f"127.0.0.1:{port}"], "CRITICAL"
    config.certfile, config.keyfile = str(tmp_path / "chain.pem"), str(tmp_path / "key.pem")
    end = asyncio.Event()
    serving = asyncio.create_task(hypercorn.asyncio.serve(app, config, shutdown_trigger=end.wait))
    try:
        backend = await engine(f"https://127.0.0.1:{port}/v1", ca_file=tmp_path / "ca.pem")
        answer = await backend.embed(TEXTS)
        assert answer.vectors == [vector_of(text, how).tobytes() for text in TEXTS]
        left = asyncio.create_task(backend.embed(["wait"]))
        await asyncio.sleep(0.3)
        left.cancel()
        async with asyncio.timeout(10):
            await ended.wait()
        assert set(versions) == {"2"}
    finally:
        await engine.close()
        end.set()
        await serving


class TestTokens:
    @pytest.mark.parametrize(("api", "owner"), [("tei", ""), ("openai", "vllm"), ("openai", "llamacpp")])
    async def test_engines_that_tell_them_are_asked(self, api: str, owner: str, remote: FakeRemote, engine: Meet) -> None:
        vars(remote.behaviour).update(api=api, owner=owner)
        backend = await engine(remote.url)
        tokens = await backend.tokenize([*TEXTS, *["word"] * 40])
        assert [len(ids) for ids in tokens[:4]] == [5, 4, 8, 3]
        assert len(tokens) == 43
        with pytest.raises(UnimplementedError):
            await backend.spell([1])

    async def test_the_longest_text_of_vllm_is_one_token_short(self, remote: FakeRemote, engine: Meet) -> None:
        remote.behaviour.owner = "vllm"
        assert (await engine(remote.url)).model.max_tokens == 99
        assert (await engine(remote.url, max_tokens=100)).model.max_tokens == 99
        assert (await engine(remote.url, max_tokens=20)).model.max_tokens == 20

    async def test_others_tell_none(self, remote: FakeRemote, engine: Meet) -> None:
        backend = await engine(remote.url)
        with pytest.raises(UnimplementedError, match="tells no tokens"):
            await backend.tokenize(TEXTS)
        remote.behaviour.tells_tokens = False
        assert (await backend.embed(TEXTS)).tokens == 0


class TestFallback:
    def make(self, remote: FakeRemote, calls: list[list[str]], error: RunedError | None = None) -> Fallback:
        async def compute(texts: Sequence[str]) -> Substitute:
            calls.append(list(texts))
            if error is not None:
                raise error
            return Substitute(
                [wanted(remote, text).astype("<f4").tobytes() for text in texts], 7, f"fp-{remote.behaviour.seed}"
            )

        async def count(texts: Sequence[str]) -> list[Tokens]:
            return [pack(range(len(text.split()))) for text in texts]

        return Fallback("small", compute, count)

    async def test_a_model_of_the_same_space_computes_while_the_engine_is_away(self, remote: FakeRemote, engine: Meet) -> None:
        calls: list[list[str]] = []
        backend = await engine(remote.url, fallback=self.make(remote, calls))
        await backend.embed(TEXTS)
        assert not calls
        remote.close()
        for _ in range(2):
            answer = await backend.embed(TEXTS)
            assert is_right(remote, TEXTS, answer.vectors)
            assert answer.tokens == 7
        assert len(calls) == 3, "the space is proven once"
        assert backend.state.status is BackendStatus.READY
        assert "small computes meanwhile" in backend.state.reason

    async def test_it_counts_as_well(self, remote: FakeRemote, engine: Meet) -> None:
        remote.behaviour.owner = "vllm"
        backend = await engine(remote.url, fallback=self.make(remote, []))
        remote.close()
        assert [len(ids) for ids in await backend.tokenize(TEXTS)] == [3, 2, 6]

    async def test_a_model_of_another_space_is_not_used(self, remote: FakeRemote, engine: Meet) -> None:
        other = FakeRemote()
        other.behaviour.seed = 2
        calls: list[list[str]] = []
        backend = await engine(remote.url, fallback=self.make(other, calls))
        remote.close()
        with pytest.raises(BackendUnavailableError, match=r"small cannot be used: .*0\.9999") as refusal:
            await backend.embed(TEXTS)
        assert refusal.value.retry_after
        assert TEXTS not in calls
        assert backend.state.status is BackendStatus.FAILED
        other.close()

    async def test_its_own_failure_is_told_beside_that_of_the_engine(self, remote: FakeRemote, engine: Meet) -> None:
        fallback = self.make(remote, [], BackendUnavailableError("it is not installed"))
        backend = await engine(remote.url, fallback=fallback)
        remote.close()
        with pytest.raises(BackendUnavailableError, match=r"cannot be had.*it is not installed"):
            await backend.embed(TEXTS)
