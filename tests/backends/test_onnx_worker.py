"""The ONNX worker: its vectors, its limits, and its end."""

from __future__ import annotations

import asyncio
import signal
import socket
import struct
import subprocess
import sys
import time
from array import array
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from random import Random

import numpy as np
import pytest

from runed.backends.onnx import worker as engine
from runed.backends.onnx.http import OnnxHTTP
from runed.errors import BackendFaultError, InvalidTextError, TextTooLongError
from runed.processes import peak_resident_bytes, resident_bytes
from tests.backends.onnx_graphs import (
    CLS,
    SEP,
    VOCABULARY,
    WORDS,
    WORKER,
    Worker,
    build_graph,
    describe,
    embeddings,
    worker_argv,
)
from tests.support import eventually, http_over, process_gone, short_home, wait_until

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_graph(tmp_path_factory.mktemp("graphs") / "small")


@pytest.fixture(scope="module")
def slow_graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph whose long texts take seconds."""
    return build_graph(tmp_path_factory.mktemp("graphs") / "slow", dim=1024, layers=8, max_tokens=100_000)


@pytest.fixture(scope="module")
def wide_graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph whose long texts take much memory, and little time."""
    return build_graph(tmp_path_factory.mktemp("graphs") / "wide", dim=1024, layers=1, max_tokens=100_000)


@pytest.fixture(scope="module")
def shared(graph: Path) -> Iterator[Worker]:
    """A worker for all tests that leave it alive."""
    home = short_home()
    with Worker(graph, home) as worker:
        yield worker
    (home / "w.sock").unlink()
    (home / "worker.log").unlink()
    home.rmdir()


@pytest.fixture
async def http(shared: Worker) -> AsyncIterator[OnnxHTTP]:
    client = shared.connect()
    yield client
    client.close()


def text(random: Random, most: int = 60) -> str:
    return " ".join(random.choices(WORDS, k=random.randint(1, most)))


def cosine(one: bytes, other: bytes) -> float:
    a, b = np.frombuffer(one, "<f4").astype(float), np.frombuffer(other, "<f4").astype(float)
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


# Vectors


async def test_vectors_come_in_the_order_of_their_texts(http: OnnxHTTP) -> None:
    random = Random(1)
    texts = [text(random) for _ in range(100)]
    together = await http.embed(texts)
    alone = [await http.embed([each]) for each in texts]
    assert together.tokens == sum(batch.tokens for batch in alone)
    assert min(cosine(vector, batch.vectors[0]) for vector, batch in zip(together.vectors, alone, strict=True)) > 0.9999999


async def test_a_text_and_its_tokens_have_one_vector(http: OnnxHTTP) -> None:
    texts = ["word1 word2 word3", "word4", "word5 word6"]
    tokens = await http.tokenize(texts)
    assert [ids.tolist() for ids in tokens][1] == [CLS, VOCABULARY["word4"], SEP]
    mixed = await http.embed([texts[0], tokens[1], texts[2]])
    plain = await http.embed(texts)
    assert mixed.vectors == plain.vectors
    assert mixed.tokens == plain.tokens == sum(map(len, tokens))


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
async def test_states_are_pooled_to_unit_vectors(pooling: str, tmp_path: Path, home: Path) -> None:
    folder = build_graph(tmp_path / "graph", pooling=pooling)
    states = embeddings(folder)["embedding"]
    texts = ["word1 word2 word3 word4", "word9"]
    with Worker(folder, home) as worker:
        client = worker.connect()
        tokens, vectors = await client.tokenize(texts), (await client.embed(texts)).vectors
        client.close()
    for ids, vector in zip(tokens, vectors, strict=True):
        of_all = states[np.array(ids)].astype(float)
        pooled = {"mean": of_all.mean(axis=0), "cls": of_all[0], "last": of_all[-1]}[pooling]
        assert np.allclose(np.frombuffer(vector, "<f4"), pooled / np.linalg.norm(pooled), atol=1e-6)


@pytest.mark.slow
async def test_company_does_not_matter_to_the_real_model(minilm_graph: Path, home: Path) -> None:
    random = Random(2)
    texts = [text(random, 120) for _ in range(64)]
    with Worker(minilm_graph, home) as worker:
        client = worker.connect(dim=384, max_tokens=512)
        alone = [(await client.embed([each])).vectors[0] for each in texts]
        for size in (2, 5, 16, 64):
            chosen = random.sample(range(len(texts)), size)
            together = (await client.embed([texts[index] for index in chosen])).vectors
            worst = min(cosine(alone[index], vector) for index, vector in zip(chosen, together, strict=True))
            assert worst >= 0.9999999, f"beside {size - 1} others"
        client.close()


async def test_tokens_are_spelled(http: OnnxHTTP) -> None:
    assert await http.spell([CLS, VOCABULARY["word7"], SEP]) == ["[CLS]", "word7", "[SEP]"]
    with pytest.raises(BackendFaultError, match="status 400"):
        await http.spell([10_000])
    with pytest.raises(BackendFaultError, match="status 400"):
        await http.spell([-1])


# Runs


@pytest.mark.parametrize("seed", range(20))
def test_runs_hold_each_text_once_and_little_padding(seed: int) -> None:
    random = Random(seed)
    lengths = [random.randint(1, random.choice([8, 60, 600])) for _ in range(random.randint(1, 200))]
    runs = engine.plan_runs(lengths)
    assert sorted(index for run in runs for index in run) == list(range(len(lengths)))
    for run in runs:
        width = lengths[run[0]]
        assert width == max(lengths[index] for index in run)
        assert sum(width - lengths[index] for index in run) <= engine._MAX_PADDING
        assert len(run) == 1 or len(run) * width <= engine._MAX_RUN_TOKENS


def test_equal_texts_make_one_run() -> None:
    assert engine.plan_runs([12] * 32) == [list(range(32))]


def test_a_text_that_is_longer_than_a_run_goes_alone() -> None:
    assert engine.plan_runs([3, 100_000, 3]) == [[1], [0, 2]]


# Questions that are refused


def sizes(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}I", *numbers)


DAMAGED = {
    "nothing": b"",
    "half a number": b"\x01\x00",
    "no sizes": sizes(1),
    "more texts than bytes": sizes(0xFFFF_FFFF, 1) + b"a",
    "a text that is cut off": sizes(1, 10) + b"short",
    "bytes after the last text": sizes(1, 1) + b"ab",
    "no UTF-8": sizes(1, 2) + b"\xff\xfe",
    "half an id": sizes(1, 0x8000_0003) + b"abc",
    "sizes that wrap around": sizes(2, 0x7FFF_FFFF, 0x7FFF_FFFF) + b"ab",
}


@pytest.mark.parametrize("path", ["/tokenize", "/embed"])
@pytest.mark.parametrize("question", DAMAGED.values(), ids=DAMAGED)
async def test_a_damaged_question_is_refused_and_the_next_one_answered(
    question: bytes, path: str, shared: Worker, http: OnnxHTTP
) -> None:
    with http_over(shared.socket) as client:
        answer = client.post(path, content=question)
        assert (answer.status_code, answer.text) == (400, "the question is damaged")
        assert client.get("/health").status_code == 200  # on the same connection
    assert len((await http.embed(["word1"])).vectors) == 1


async def test_a_text_without_tokens_and_one_with_too_many_are_refused(shared: Worker, http: OnnxHTTP) -> None:
    with http_over(shared.socket) as client:
        assert client.post("/embed", content=sizes(1, 0x8000_0000)).status_code == 400
    with pytest.raises(TextTooLongError, match="a text has 67 tokens and at most 64 are read at once") as caught:
        await http.embed(["word1", " ".join(WORDS[:65])])
    assert caught.value.metadata == {"tokens": "67", "limit": "64"}
    assert len((await http.embed([" ".join(WORDS[:62])])).vectors) == 1


@pytest.mark.parametrize("number", [len(VOCABULARY), 2**31 - 1, -len(VOCABULARY) - 1, -(2**31)])
async def test_ids_that_do_not_exist_are_refused(number: int, shared: Worker, http: OnnxHTTP) -> None:
    with pytest.raises(BackendFaultError, match="status 500"):
        await http.embed([array("i", [CLS, number, SEP])])
    assert len((await http.embed(["word1"])).vectors) == 1
    assert str(number) not in shared.output


async def test_half_a_surrogate_pair_is_refused_before_it_is_sent(http: OnnxHTTP) -> None:
    with pytest.raises(InvalidTextError, match="lone surrogate"):
        await http.embed(["word1", "\ud800"])


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"\n",
        b"GET\r\n\r\n",
        b"\x00" * 100_000,
        b"POST /embed HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /embed HTTP/1.1\r\nContent-Length: many\r\n\r\n",
        b"POST /embed HTTP/1.1\r\nContent-Length: 100\r\n\r\nshort",
        b"POST /embed HTTP/1.1\r\nContent-Length: 5",
    ],
)
async def test_what_is_not_http_gets_no_answer(sent: bytes, shared: Worker, http: OnnxHTTP) -> None:
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.settimeout(10)
        stranger.connect(str(shared.socket))
        stranger.sendall(sent)
        with suppress(OSError):  # it may have closed the connection
            stranger.shutdown(socket.SHUT_WR)
        with suppress(ConnectionResetError):  # it has not read all
            assert stranger.recv(1000) == b""
    assert len((await http.embed(["word1"])).vectors) == 1


async def test_a_question_of_too_many_bytes_is_refused_unread(shared: Worker) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(shared.socket))
        client.sendall(b"POST /embed HTTP/1.1\r\nContent-Length: 999999999999\r\n\r\n")
        assert b"a question has at most" in client.recv(1000)
        assert client.recv(1000) == b""


async def test_other_questions_do_not_exist(shared: Worker) -> None:
    with http_over(shared.socket) as client:
        assert client.get("/embed").status_code == 404
        assert client.post("/").status_code == 404


async def test_nothing_of_a_text_is_told(graph: Path, home: Path) -> None:
    secret = "secret42"
    with Worker(graph, home) as worker:
        client = worker.connect()
        await client.embed([secret])
        with pytest.raises(TextTooLongError):
            await client.embed([f"{secret} " * 100])
        with pytest.raises(BackendFaultError):
            await client.embed([array("i", [4242])])
        with http_over(worker.socket) as raw:
            broken = secret.encode() + b"\xff"
            assert secret not in raw.post("/embed", content=sizes(1, len(broken)) + broken).text
        client.close()
        assert secret not in worker.output
        assert "4242" not in worker.output


# Life and death


def long_text(tokens: int) -> array[int]:
    return array("i", [CLS] * tokens)


async def begin_long_text(worker: Worker, tokens: int = 60_000) -> tuple[OnnxHTTP, asyncio.Task[object]]:
    """Send a text that takes seconds, and wait until the worker computes it."""
    client = worker.connect(dim=1024, max_tokens=100_000)
    await client.embed(["word1"])
    task: asyncio.Task[object] = asyncio.create_task(client.embed([long_text(tokens)]))
    before = time.thread_time()
    await asyncio.sleep(0.3)
    assert not task.done(), f"the text took less than 0.3 s ({time.thread_time() - before})"
    return client, task


async def test_a_busy_worker_answers_other_questions(slow_graph: Path, home: Path) -> None:
    with Worker(slow_graph, home) as worker:
        client, task = await begin_long_text(worker)
        assert await client.healthy()
        assert len((await client.tokenize(["word1 word2"]))[0]) == 4
        assert not task.done()
        task.cancel()
        client.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
async def test_a_busy_worker_ends_by_a_signal_at_once(number: signal.Signals, slow_graph: Path, home: Path) -> None:
    with Worker(slow_graph, home) as worker:
        client, task = await begin_long_text(worker)
        worker.process.send_signal(number)
        assert worker.process.wait(2) == -number
        with pytest.raises(Exception, match="connection lost"):
            await task
        client.close()


def test_a_worker_ends_with_its_parent(graph: Path, home: Path) -> None:
    program = f"""
import asyncio, sys
from pathlib import Path
from runed.backends.engine.process import ChildProcess, OutputLog
async def main():
    home = Path({str(home)!r})
    argv = {worker_argv(graph, home / "w.sock")!r}
    output = OutputLog(home / "log")
    child = await ChildProcess.spawn(argv, env={{}}, output=output, record=home / "record", leftovers=[])
    print(child.pid, flush=True)
    await child.exited
asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        wait_until((home / "w.sock").exists, what="the socket of the worker")
        assert not process_gone(pid)
        parent.kill()
    wait_until(lambda: process_gone(pid), timeout=5, what="the end of the worker")


async def test_the_socket_is_private(shared: Worker) -> None:
    assert shared.socket.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("damage", "status", "told"),
    [
        ("no graph.json", 3, "cannot be served: FileNotFoundError"),
        ("graph.json without a member", 3, "graph.json has no 'pad_id'"),
        ("unknown pooling", 3, "graph.json names an unknown pooling"),
        ("no tokenizer", 3, "cannot be served"),
        ("half a model", 3, "cannot be served"),
        ("another input", 2, "the graph has inputs that texts do not give: pixel_values"),
    ],
)
def test_a_graph_that_cannot_be_served_is_told_by_one_line(
    damage: str, status: int, told: str, tmp_path: Path, home: Path
) -> None:
    inputs = ("input_ids", "pixel_values") if damage == "another input" else ("input_ids",)
    folder = build_graph(tmp_path / "graph", inputs=inputs)
    match damage:
        case "no graph.json":
            (folder / "graph.json").unlink()
        case "graph.json without a member":
            (folder / "graph.json").write_text((folder / "graph.json").read_text().replace("pad_id", "other"))
        case "unknown pooling":
            describe(folder, pooling="maximum", dim=16, max_tokens=64, output="states0")
        case "no tokenizer":
            (folder / "tokenizer.json").unlink()
        case "half a model":
            model = folder / "model.onnx"
            model.write_bytes(model.read_bytes()[: model.stat().st_size // 2])
    worker = Worker(folder, home)
    assert worker.process.wait(20) == status
    lines = worker.output.splitlines()
    assert told in lines[-1]
    assert not any("Traceback" in line for line in lines)


def test_a_device_that_is_not_there_is_told(graph: Path, home: Path) -> None:
    argv = [*worker_argv(graph, home / "w.sock"), "--provider", "dml"]
    ended = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "the installed ONNX Runtime has no DmlExecutionProvider, only " in ended.stderr
    assert "CPUExecutionProvider" in ended.stderr


# Memory


def test_a_worker_without_a_model_is_small() -> None:
    program = f"""
import runpy, psutil
runpy.run_path({str(WORKER)!r}, run_name="worker")
import sys
assert not any(name.partition(".")[0] == "runed" for name in sys.modules)
print(__import__("os").getpid(), psutil.Process().memory_info().rss)
"""
    ended = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    assert int(ended.stdout.split()[1]) <= 80 * MIB


async def test_memory_of_a_large_text_is_given_back(graph: Path, home: Path) -> None:
    with Worker(graph, home) as worker:
        client = worker.connect()
        before = resident_bytes(worker.process.pid)
        [tokens] = await client.tokenize(["word1 word2 " * 100_000])
        assert len(tokens) == 200_002
        peak = peak_resident_bytes(worker.process.pid)
        assert peak - before > 64 * MIB, "the text took little memory, so that nothing can be seen"
        await client.tokenize(["word1"])
        # The answer comes before the memory is given back.
        await eventually(lambda: resident_bytes(worker.process.pid) - before < 32 * MIB)
        client.close()


async def test_memory_of_a_large_batch_is_given_back(wide_graph: Path, home: Path) -> None:
    with Worker(wide_graph, home) as worker:
        client = worker.connect(dim=1024, max_tokens=100_000)
        await client.embed(["word1 word2"])
        before = resident_bytes(worker.process.pid)
        await client.embed([long_text(20_000)])
        peak = peak_resident_bytes(worker.process.pid)
        assert peak - before > 80 * MIB, "the batch took little memory, so that nothing can be seen"
        await client.embed(["word1 word2"])
        assert resident_bytes(worker.process.pid) - before < 32 * MIB
        client.close()
