"""The reranker with the real engine: the scores of transformers, exact counts, company, and crashes."""

from __future__ import annotations

import asyncio
import os
import signal
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from runed.backends.base import BackendStatus, pair
from runed.backends.likeness import score_likeness
from runed.backends.llama.backend import LlamaBackend
from runed.backends.llama.passes import RANKING_PASS
from runed.backends.llama.reranker import LlamaReranker, RerankHTTP
from runed.errors import BackendFaultError, ModelFileError, TextTooLongError
from runed.paths import Paths
from tests.backends.support import QUICK, MakeBackend
from tests.support import Scores, eventually
from tools import qwen3

TOLERANCE = 0.02
"""Largest difference of a score to that of transformers, which lie between -8 and 8. llama.cpp approximates GELU."""

COMPANY = 0.01
"""Largest difference of the scores of a pair alone and beside others. llama.cpp rounds the argument of GELU to half
precision."""

QWEN3_TOLERANCE = 0.0005
"""Largest difference of a probability to that of transformers. Measured: 0.00015."""

Make = Callable[[], LlamaReranker]


@pytest.fixture
def make(make_backend: MakeBackend, reranker: Path) -> Make:
    def make() -> LlamaReranker:
        backend = make_backend(model=reranker, ctx_size=2048, kind=LlamaReranker)
        assert isinstance(backend, LlamaReranker)
        return backend

    return make


def numbers(scores: list[bytes]) -> list[float]:
    return [struct.unpack("<f", score)[0] for score in scores]


async def test_scores_are_those_of_transformers(make: Make, scores: Scores) -> None:
    backend = make()
    whole = [row for row in scores.pairs if row.tokens == row.total_tokens]
    texts = [pair(row.query, row.document) for row in whole]
    assert [len(tokens) for tokens in await backend.tokenize(texts)] == [row.tokens for row in whole]
    answers = [await backend.embed([text]) for text in texts]
    assert [answer.tokens for answer in answers] == [row.tokens for row in whole]
    got = np.array([numbers(answer.vectors)[0] for answer in answers])
    expected = np.array([row.score for row in whole])
    assert np.ptp(expected) > 4  # otherwise the tolerance would say little
    assert np.abs(got - expected).max() <= TOLERANCE


async def test_a_score_does_not_depend_on_company(make: Make, scores: Scores) -> None:
    backend = make()
    rows = [row for row in scores.pairs if row.total_tokens < 40]
    texts = [pair(row.query, row.document) for row in rows]
    alone = [numbers((await backend.embed([text])).vectors)[0] for text in texts]
    together = []
    for start in range(0, len(texts), 5):  # of several queries, and at most 200 tokens
        together += numbers((await backend.embed(texts[start : start + 5])).vectors)
    assert len({row.query for row in rows[:15]}) > 1
    assert np.abs(np.array(alone) - together).max() <= COMPANY
    assert backend.state.company_cosine >= 0.99999


async def test_a_batch_of_several_queries_keeps_its_order(make: Make) -> None:
    backend = make()
    texts = [pair(query, document) for document in ("tea", "the train") for query in ("what?", "where?", "who?")]
    mixed = numbers((await backend.embed(texts)).vectors)
    assert mixed == pytest.approx([numbers((await backend.embed([text])).vectors)[0] for text in texts], abs=COMPANY)
    assert len({round(score, 3) for score in mixed}) == len(texts)


async def test_the_model_is_known_before_the_engine_runs(make: Make) -> None:
    backend = make()
    assert (backend.model.dim, backend.model.pooling, backend.model.max_tokens) == (1, "rank", 512)
    assert backend.state.status is BackendStatus.STOPPED


async def test_pairs_are_taken_up_to_the_limit_and_not_one_token_more(make: Make) -> None:
    backend = make()
    longest = pair("the query", "the " * 507)
    assert (await backend.embed([longest])).tokens == backend.model.max_tokens
    with pytest.raises(TextTooLongError) as caught:
        await backend.embed([longest + "the"])
    assert caught.value.metadata == {"tokens": "513", "limit": "512"}


@pytest.mark.parametrize("document", ["", "a [SEP] b", "naïve 北京 🙂", '{"query"}\\\n', "{document} {query}"])
async def test_odd_documents_are_counted_as_they_are_scored(make: Make, document: str) -> None:
    backend = make()
    [tokens] = await backend.tokenize([pair("a {document}?", document)])
    assert len(tokens) == (await backend.embed([pair("a {document}?", document)])).tokens


async def test_tokens_of_a_document_become_its_text_again(make: Make) -> None:
    backend = make()
    [tokens] = await backend.tokenize(["Unaffable people drink tea."])
    assert await backend.detokenize(tokens) == "unaffable people drink tea ."
    assert await backend.detokenize(tokens[:2]) == "una" + "ffa"
    assert await backend.detokenize([]) == ""


async def test_a_killed_engine_is_replaced_within_the_call(make: Make) -> None:
    backend = make()
    text = pair("what is tea?", "a drink " * 100)
    before = numbers((await backend.embed([text])).vectors)
    pid = backend.state.pid
    calls = [asyncio.create_task(backend.embed([text])) for _ in range(3)]
    await asyncio.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    for call in calls:
        assert numbers((await call).vectors) == pytest.approx(before, abs=1e-4)
    await eventually(lambda: backend.state.restarts == 1)
    assert backend.state.pid not in {0, pid}


def write_qwen3(folder: Path) -> Path:
    path = folder / "reranker.gguf"
    qwen3.write(path, qwen3.Shape(), single=True, rerank=True)
    return path


async def test_qwen3_scores_are_those_of_transformers(make_backend: MakeBackend, tmp_path: Path) -> None:
    """The reference is the share of "yes" against "no" after the prompt of the model card."""
    rows = Scores.load("qwen3-reranker.golden.json").pairs
    backend = make_backend(model=write_qwen3(tmp_path), ctx_size=2048, kind=LlamaReranker)
    texts = [pair(row.query, row.document) for row in rows]
    assert [len(tokens) for tokens in await backend.tokenize(texts)] == [row.tokens for row in rows]
    assert max(row.tokens for row in rows) > RANKING_PASS  # several passes
    got = np.array([numbers((await backend.embed([text])).vectors)[0] for text in texts])
    expected = np.array([row.score for row in rows])
    assert np.ptp(expected) > 0.2  # otherwise the tolerance would say little
    assert np.abs(got - expected).max() <= QWEN3_TOLERANCE


async def test_a_reranker_with_a_template_reads_from_left_to_right(make_backend: MakeBackend, tmp_path: Path) -> None:
    backend = make_backend(model=write_qwen3(tmp_path), ctx_size=1024, kind=LlamaReranker)
    assert backend.model.max_tokens == 1023
    assert backend.limits.texts == 1
    room = 1023 - len((await backend.tokenize([pair("a", "")]))[0])
    texts = [pair("what is tea?", "a hot drink"), pair("what?", "{query} <|endoftext|> {document}"), pair("a", "z" * room)]
    counts = [len(tokens) for tokens in await backend.tokenize(texts)]
    assert counts[-1] == 1023  # in two passes
    first = [await backend.embed([text]) for text in texts]
    assert [answer.tokens for answer in first] == counts
    assert all(0 < score < 1 for answer in first for score in numbers(answer.vectors))
    assert len({answer.vectors[0] for answer in first}) == len(texts)
    assert [await backend.embed([text]) for text in reversed(texts)] == first[::-1]
    with pytest.raises(TextTooLongError):
        await backend.embed([pair("a", "z" * (room + 1))])


def refused(kind: type[LlamaBackend], model: Path, llama_server: Path, home: Path) -> str:
    with pytest.raises(ModelFileError) as caught:
        kind(executable=llama_server, model=model, model_sha256="ab" * 32, paths=Paths(home), ctx_size=256, timings=QUICK)
    return caught.value.message


def test_a_model_of_the_other_kind_is_refused(llama_server: Path, home: Path, tiny_qwen3: Path, reranker: Path) -> None:
    assert "cannot be used for embeddings" in refused(LlamaBackend, reranker, llama_server, home)
    assert "scores no documents" in refused(LlamaReranker, tiny_qwen3, llama_server, home)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"results": [], "usage": {"prompt_tokens": 3}}', "0 scores to 1 documents"),
        (b'{"results": [{"index": 1, "relevance_score": 1}], "usage": {"prompt_tokens": 3}}', "1 scores to 1 documents"),
        (b'{"results": [{"index": 0, "relevance_score": null}], "usage": {"prompt_tokens": 3}}', "expected form"),
        (b'{"results": [{"index": 0, "relevance_score": -1e6}], "usage": {"prompt_tokens": 3}}', "lost a score"),
    ],
)
async def test_an_answer_without_a_score_is_no_answer(home: Path, body: bytes, message: str) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_unix_server(answer, home / "s"):
        http = RerankHTTP(home / "s", max_tokens=512, template="")
        with pytest.raises(BackendFaultError, match=message):
            await http.embed([pair("a", "b")])
        http.close()


def test_likeness_falls_with_the_difference() -> None:
    one, near, far = (struct.pack("<f", score) for score in (2.0, 2.001, 3.0))
    assert score_likeness(one, one) == 1
    assert 0.9999 < score_likeness(one, near) < 1
    assert score_likeness(one, far) < 0.99
    for other in (b"", bytes(8), struct.pack("<f", float("nan"))):
        assert not score_likeness(one, other) >= -1
