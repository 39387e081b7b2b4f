"""The client that all adapters share, tested with the adapter that needs no other package."""

from __future__ import annotations

import asyncio
import copy
import gc
import pickle
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import runed
from runed import errors
from runed.client.options import EmbedOptions
from runed.extras import install_command
from runed.integrations.lazy_client import LazyClient
from tests.client.conftest import live_descriptors
from tests.support import RunningDaemon, clean_environment

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def connection(qwen_daemon: RunningDaemon) -> LazyClient:
    return LazyClient(socket_path=qwen_daemon.socket)


def run(code: str, daemon: RunningDaemon) -> str:
    """Run a program in which every warning is an error, and return its output. Check that it writes no error."""
    # Since 3.12, Python warns of every fork beside a thread. asyncio's first connection uses one.
    warnings = ["-W", "error", "-W", "ignore:This process:DeprecationWarning"]
    argv = [sys.executable, "-X", "dev", *warnings, "-c", code, str(daemon.socket)]
    result = subprocess.run(argv, env=clean_environment(), cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    # In development mode, asyncio also warns of steps over 0.1 s, which may happen on a busy machine.
    complaints = [line for line in result.stderr.splitlines() if not re.fullmatch(r"Executing <.*> took [\d.]+ seconds", line)]
    assert (result.returncode, complaints) == (0, [])
    return result.stdout


def test_nothing_is_connected_before_the_first_text(tmp_path: Path) -> None:
    connection = LazyClient(socket_path=tmp_path / "none.sock")
    with pytest.raises(errors.DaemonUnavailableError):
        connection.embed("a", "query")
    with pytest.raises(errors.DaemonUnavailableError):
        asyncio.run(connection.aembed("a", "query"))


@pytest.mark.parametrize(
    ("options", "cls"),
    [
        ({"dimensions": 0}, errors.BadDimensionsError),
        ({"truncate": "middle"}, errors.InvalidRequestError),
        ({"lane": "fast"}, errors.InvalidRequestError),
        ({"instruction": "\ud800"}, errors.BadInstructionError),
    ],
)
def test_a_wrong_option_is_told_where_it_was_given(options: EmbedOptions, cls: type[Exception]) -> None:
    with pytest.raises(cls):
        LazyClient(**options)  # type: ignore[misc] # mypy sees that role is none of them


def test_one_daemon_is_named(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="not both"):
        LazyClient(home=tmp_path, socket_path=tmp_path / "a.sock")


def test_the_options_go_with_the_texts(qwen_daemon: RunningDaemon) -> None:
    connection = LazyClient(socket_path=qwen_daemon.socket, dimensions=32, instruction="Find teas", truncate="end", lane="bulk")
    long = "word " * 3000
    with runed.connect(socket_path=qwen_daemon.socket) as client:
        query = client.embed("green", role="query", instruction="Find teas", dimensions=32)
        cut = client.embed(long, role="document", truncate="end", dimensions=32)
        bulk = client.health().bulk.total_texts
        assert np.array_equal(connection.embed("green", "query"), query)
        assert np.array_equal(connection.embed(long, "document"), cut)
        assert connection.embed("a text of the bulk lane alone", None).shape == (32,)
        assert client.health().bulk.total_texts == bulk + 1
    with pytest.raises(errors.TextTooLongError):
        LazyClient(socket_path=qwen_daemon.socket).embed(long, "document")


def test_threads_that_come_at_once_share_a_client(connection: LazyClient) -> None:
    start = threading.Barrier(8)

    def first_use(_number: int) -> runed.Client:
        start.wait()
        return connection.client()

    with ThreadPoolExecutor(8) as pool:
        assert len({id(client) for client in pool.map(first_use, range(8))}) == 1
        vectors = list(pool.map(lambda number: connection.embed(f"text {number}", "document"), range(32)))
    assert np.array_equal(vectors, connection.embed_batch([f"text {number}" for number in range(32)], "document"))


def test_copies_connect_by_themselves(connection: LazyClient) -> None:
    vector = connection.embed("green tea", "query")
    for twin in (copy.copy(connection), copy.deepcopy(connection), pickle.loads(pickle.dumps(connection))):
        assert isinstance(twin, LazyClient)
        assert twin.client() is not connection.client()
        assert np.array_equal(twin.embed("green tea", "query"), vector)
        twin.close()
        assert np.array_equal(connection.embed("green tea", "query"), vector)


def test_a_closed_one_connects_again(connection: LazyClient) -> None:
    descriptors = live_descriptors()
    vector = connection.embed("green tea", "query")
    connection.close()
    assert live_descriptors() == descriptors
    assert np.array_equal(connection.embed("green tea", "query"), vector)


def test_one_that_nobody_uses_any_more_holds_no_socket(qwen_daemon: RunningDaemon) -> None:
    gc.collect()  # so that nothing of earlier tests is closed meanwhile
    descriptors = live_descriptors()
    connection = LazyClient(socket_path=qwen_daemon.socket)
    connection.embed("green tea", "query")
    assert live_descriptors() != descriptors
    del connection
    assert live_descriptors() == descriptors


def test_each_event_loop_has_connections_of_its_own_that_end_with_it(connection: LazyClient) -> None:
    vector = connection.embed("green tea", "query")
    descriptors = live_descriptors()
    for _ in range(3):
        assert np.array_equal(asyncio.run(connection.aembed("green tea", "query")), vector)
        assert live_descriptors() == descriptors
    assert len(connection._loops) == 1  # clients of ended loops are forgotten

    meet = threading.Barrier(2)

    async def both_at_once() -> bool:
        first = await connection.aembed("green tea", "query")
        await asyncio.to_thread(meet.wait)
        texts = [f"tea {number}" for number in range(40)]
        rest = await asyncio.gather(*(connection.aembed(text, "document") for text in texts))
        await asyncio.to_thread(meet.wait)
        return np.array_equal(first, vector) and np.array_equal(rest, await connection.aembed_batch(texts, "document"))

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda _: asyncio.run(both_at_once()), range(2))) == [True, True]
    assert live_descriptors() == descriptors


async def test_closing_in_a_loop_closes_its_connections_too(connection: LazyClient) -> None:
    await asyncio.to_thread(int)  # the loop's own descriptors come before
    descriptors = live_descriptors()
    vector = await connection.aembed("green tea", "query")
    assert live_descriptors() != descriptors
    await connection.aclose()
    assert live_descriptors() == descriptors
    assert np.array_equal(await connection.aembed("green tea", "query"), vector)


async def test_batches_that_are_started_at_once_take_turns(connection: LazyClient) -> None:
    await asyncio.to_thread(int)
    descriptors = live_descriptors()
    texts = [f"text {number}" for number in range(120)]
    batches = [texts[start : start + 3] for start in range(0, 120, 3)]
    vectors = await asyncio.gather(*(connection.aembed_batch(batch, "document") for batch in batches))
    # Connections are kept for later calls. Their number is the largest number of concurrent calls.
    assert len(live_descriptors() - descriptors) <= 4
    assert np.array_equal(np.concatenate(vectors), connection.embed_batch(texts, "document"))


async def test_calls_do_not_block_the_loop_and_take_no_thread(connection: LazyClient, monkeypatch: pytest.MonkeyPatch) -> None:
    await connection.aembed("the first call may start a daemon", "query")
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "run_in_executor", None)
    embedding = asyncio.create_task(connection.aembed_batch([f"some text {number}" for number in range(2_000)], "document"))
    turns = 0
    while not embedding.done():
        await asyncio.sleep(0.001)
        turns += 1
    assert turns > 3
    assert (await embedding).shape == (2_000, 64)


FORKING = """
import asyncio, os, sys
import numpy as np
from runed.integrations.lazy_client import LazyClient

def both(text):
    return connection.embed(text, "document"), asyncio.run(connection.aembed(text, "document"))

connection = LazyClient(socket_path=sys.argv[1])
expected = dict((text, both(text)[0]) for text in "abcd")
children = []
for text in "abc":
    if not (pid := os.fork()):
        for _ in range(20):
            assert all(np.array_equal(vector, expected[text]) for vector in both(text))
        os._exit(0)
    children.append(pid)
for _ in range(20):
    assert all(np.array_equal(vector, expected["d"]) for vector in both("d"))
print([os.waitpid(pid, 0)[1] for pid in children])
"""


def test_forked_workers_and_their_parent_get_their_own_answers(qwen_daemon: RunningDaemon) -> None:
    assert run(FORKING, qwen_daemon) == "[0, 0, 0]\n"


FORKING_IN_A_LOOP = """
import asyncio, os, sys
import numpy as np
from runed.integrations.lazy_client import LazyClient

connection = LazyClient(socket_path=sys.argv[1])

def work_in_child(expected):
    for text, vector in expected.items():
        assert np.array_equal(asyncio.run(connection.aembed(text, "document")), vector)

async def main():
    expected = {text: await connection.aembed(text, "document") for text in "ab"}
    if not (pid := os.fork()):
        work_in_child(expected)
        os._exit(0)
    while (status := os.waitpid(pid, os.WNOHANG)) == (0, 0):
        for text, vector in expected.items():
            assert np.array_equal(await connection.aembed(text, "document"), vector)
    print(status[1])

asyncio.run(main())
"""


def test_a_worker_forked_by_a_running_loop_leaves_the_parents_connections_alone(qwen_daemon: RunningDaemon) -> None:
    assert run(FORKING_IN_A_LOOP, qwen_daemon) == "0\n"


LEAVING = """
import asyncio, sys
from runed.integrations.lazy_client import LazyClient

kept = LazyClient(socket_path=sys.argv[1])
kept.embed("a", None)
asyncio.run(kept.aembed("a", None))
asyncio.run(kept.aembed_batch(["a", "b"], None))
dropped = LazyClient(socket_path=sys.argv[1])
dropped.embed("a", None)
asyncio.run(dropped.aembed("a", None))
del dropped

async def drop():
    await LazyClient(socket_path=sys.argv[1]).aembed("a", None)

asyncio.run(drop())
print("done")
"""


def test_a_program_that_closes_nothing_ends_without_a_warning(qwen_daemon: RunningDaemon) -> None:
    assert run(LEAVING, qwen_daemon) == "done\n"


@pytest.mark.parametrize(
    ("module", "package", "extra"),
    [
        ("langchain", "langchain_core", "langchain"),
        ("llama_index", "llama_index.core", "llama-index"),
        ("chroma", "chromadb", "chroma"),
        ("haystack", "haystack", "haystack"),
    ],
)
def test_a_missing_package_is_named_with_the_command_that_installs_it(module: str, package: str, extra: str) -> None:
    code = f"import sys; sys.modules[{package!r}] = None\nimport runed.integrations.{module}"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith("ImportError: ")
    assert last.endswith(f"; run: {install_command(extra)}")
