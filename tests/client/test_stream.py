"""`embed_stream` of both clients against a daemon in a process of its own."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import socket
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator
from contextlib import aclosing, closing
from pathlib import Path
from typing import Any

import pytest

import runed
from runed import errors
from runed.client.calls import pending
from runed.client.options import EmbedOptions
from tests.client.conftest import Arrange, events, live_descriptors, pids
from tests.support import process_gone, wait_until

Items = Iterable[tuple[Any, str]]
Outcome = runed.Embedding | errors.RunedError
Streamed = Callable[..., list[tuple[Any, Outcome]]]


def streamed_blocking(
    home: Path, items: Items, options: EmbedOptions | None = None, on_progress: Callable[[runed.Health], None] | None = None
) -> list[tuple[Any, Outcome]]:
    with runed.connect(home=home, on_progress=on_progress) as client:
        return list(client.embed_stream(items, **(options or {})))


def streamed_by_asyncio(
    home: Path, items: Items, options: EmbedOptions | None = None, on_progress: Callable[[runed.Health], None] | None = None
) -> list[tuple[Any, Outcome]]:
    async def run() -> list[tuple[Any, Outcome]]:
        async with await runed.connect_async(home=home, on_progress=on_progress) as client:
            return [result async for result in client.embed_stream(items, **(options or {}))]

    return asyncio.run(run())


@pytest.fixture(params=[streamed_blocking, streamed_by_asyncio], ids=["blocking", "asyncio"])
def streamed(request: pytest.FixtureRequest) -> Streamed:
    """Run a whole stream by one of the two clients."""
    function: Streamed = request.param
    return function


def numbered(count: int) -> Iterator[tuple[int, str]]:
    return ((number, "x" * (1 + number % 90)) for number in range(count))


def check_all(results: list[tuple[Any, Outcome]], count: int) -> set[int]:
    """Check that each of `numbered` has exactly its own embedding. Return the pids of the daemons that made them."""
    assert sorted(key for key, _ in results) == list(range(count))
    made_by = set()
    for key, outcome in results:
        assert isinstance(outcome, runed.Embedding)
        assert outcome.vector[0] == 1 + key % 90
        made_by.add(int(outcome.vector[1]))
    return made_by


class TestResults:
    """Every text has exactly one outcome, with the caller's own id."""

    def test_any_number_of_texts(self, shared: Path, streamed: Streamed) -> None:
        check_all(streamed(shared, numbered(3000)), 3000)

    def test_none_at_all_takes_no_stream(self, shared: Path, streamed: Streamed) -> None:
        before = events(shared).count("stream began")
        assert streamed(shared, []) == []
        assert events(shared).count("stream began") == before

    def test_names_need_be_neither_unique_nor_str(self, shared: Path, streamed: Streamed) -> None:
        results = streamed(shared, [("a", "1"), ("a", "22"), (None, "333"), (("t", 1), "4444"), ("a", "1")])
        lengths = sorted(
            (repr(key), int(outcome.vector[0])) for key, outcome in results if isinstance(outcome, runed.Embedding)
        )
        assert lengths == sorted([("'a'", 1), ("'a'", 1), ("'a'", 2), ("None", 3), ("('t', 1)", 4)])

    def test_options_arrive_and_details_come_back(self, shared: Path) -> None:
        options: EmbedOptions = {"role": "query", "instruction": "find tea", "dimensions": 2, "truncate": "end", "lane": "bulk"}
        ((_, outcome),) = streamed_blocking(shared, [("a", "four")], options)
        assert isinstance(outcome, runed.Embedding)
        assert outcome.vector.tolist() == [4, pids(shared)[0]]
        assert outcome.prompt == "Instruct: find tea\nQuery:"
        assert (outcome.fingerprint, outcome.truncated, outcome.cached) == ("space-0", True, True)
        assert "stream lane 2" in events(shared)

    def test_a_text_that_cannot_be_embedded_leaves_the_others_alone(self, arrange: Arrange) -> None:
        items = [(0, "a"), (1, "\ud800"), (2, "fail:TEXT_TOO_LONG"), (3, "x" * 2_000_000), (4, "bb")]
        outcomes = dict(streamed_blocking(arrange(max_request_bytes=1_000_000), items))
        assert [type(outcomes[key]) for key in range(5)] == [
            runed.Embedding,
            errors.InvalidTextError,
            errors.TextTooLongError,
            errors.RequestTooLargeError,
            runed.Embedding,
        ]
        too_long = outcomes[2]
        assert isinstance(too_long, errors.TextTooLongError)
        assert too_long.metadata == {"limit": "7"}, "the index of a message means nothing to the caller"

    def test_large_texts_and_vectors_go_through_all_windows(self, shared: Path, streamed: Streamed) -> None:
        items = ((number, chr(97 + number % 26) * 300_000) for number in range(30))
        results = streamed(shared, items, EmbedOptions(dimensions=100_000))
        assert sorted(key for key, _ in results) == list(range(30))
        assert {len(outcome.vector) for _, outcome in results if isinstance(outcome, runed.Embedding)} == {100_000}

    @pytest.mark.parametrize(
        ("items", "cls", "message"),
        [
            (["ab"], TypeError, "pairs of an id and a text, but got a str"),
            ([("a", None)], TypeError, "the text is a NoneType"),
            ([("a", "b", "c")], ValueError, "pairs of an id and a text: too many values"),
        ],
    )
    def test_what_is_no_pair_is_an_error(
        self, shared: Path, streamed: Streamed, items: list[tuple[Any, str]], cls: type[Exception], message: str
    ) -> None:
        with pytest.raises(cls, match=message):
            streamed(shared, items)


class TestFlow:
    """Texts are taken as the daemon has room, and results are returned as they come."""

    def test_the_blocking_client_takes_no_more_than_its_window(self, arrange: Arrange) -> None:
        home = arrange()
        taken = itertools.count()

        def items() -> Iterator[tuple[int, str]]:
            yield next(taken), "hold"
            while True:
                yield next(taken), "x" * 100

        with runed.connect(home=home) as client:
            with pytest.raises(errors.DeadlineExceededError, match=r"no embedding of the stream came within 0\.5 s"):
                next(client.embed_stream(items(), timeout=0.5))
            assert next(taken) <= pending.MAX_TEXTS

            taken = itertools.count()
            large = ((number, "hold" if number == 0 else "x" * 500_000) for number in taken)
            with pytest.raises(errors.DeadlineExceededError):
                next(client.embed_stream(large, timeout=0.5))
            assert next(taken) <= 2 + pending.MAX_BYTES / 500_000

    async def test_the_one_for_asyncio_neither(self, arrange: Arrange) -> None:
        home = arrange()
        taken = 0

        async def items() -> AsyncIterator[tuple[int, str]]:
            nonlocal taken
            while True:
                taken += 1
                yield taken, "hold" if taken == 1 else "x" * 100

        async with await runed.connect_async(home=home) as client:
            with pytest.raises(errors.DeadlineExceededError):
                await anext(client.embed_stream(items(), timeout=0.5))
        assert taken <= pending.MAX_TEXTS

    def test_a_slow_iterator_gets_each_result_before_its_end(self, shared: Path) -> None:
        given: list[int] = []

        def items() -> Iterator[tuple[int, str]]:
            for number in range(5):
                yield number, "x"
                if number:  # by now the first one has been sent, answered and returned
                    time.sleep(0.05)
            assert given

        with runed.connect(home=shared) as client:
            for key, _ in client.embed_stream(items()):
                given.append(key)
        assert sorted(given) == list(range(5))

    async def test_an_asynchronous_iterator_may_wait_for_results(self, shared: Path) -> None:
        queue: asyncio.Queue[int] = asyncio.Queue()

        async def items() -> AsyncIterator[tuple[int, str]]:
            yield 0, "x"
            while (key := await queue.get()) < 5:
                yield key + 1, "x"

        async with await runed.connect_async(home=shared) as client:
            async for key, _ in client.embed_stream(items(), timeout=10):
                await queue.put(key)

    async def test_many_at_once_do_not_disturb_each_other(self, shared: Path) -> None:
        async with await runed.connect_async(home=shared) as client:

            async def one() -> None:
                check_all([result async for result in client.embed_stream(numbered(200))], 200)

            await asyncio.gather(*(one() for _ in range(8)), *(client.embed("x") for _ in range(20)))

    def test_time_over_texts_and_results_is_the_callers_own(self, shared: Path) -> None:
        def items() -> Iterator[tuple[int, str]]:
            for number in range(2):
                time.sleep(0.4)
                yield number, "x"

        with runed.connect(home=shared, timeout=0.3) as client:
            for _ in client.embed_stream(items()):
                time.sleep(0.4)


class TestStopping:
    """A cancelled stream ends in the daemon, too, and leaves nothing behind."""

    @pytest.fixture
    def began(self, shared: Path) -> tuple[Path, Callable[[], bool]]:
        """A home, and a function that tells whether its daemon knows of the cancelled stream."""
        before = events(shared).count("stream broken off")
        return shared, lambda: events(shared).count("stream broken off") > before

    def endless(self) -> Iterator[tuple[int, str]]:
        return zip(itertools.count(), itertools.repeat("x"), strict=False)

    def test_by_closing_the_generator(self, began: tuple[Path, Callable[[], bool]]) -> None:
        home, broken_off = began
        with runed.connect(home=home) as client:
            client.health()
            before = live_descriptors()
            with closing(client.embed_stream(self.endless())) as results:
                next(results)
            wait_until(broken_off)
            assert live_descriptors() == before
            assert client.embed("four")[0] == 4

    def test_by_an_error_of_the_callers_iterator(self, began: tuple[Path, Callable[[], bool]]) -> None:
        home, broken_off = began

        def items() -> Iterator[tuple[int, str]]:
            yield from zip(range(1000), itertools.repeat("x"), strict=False)
            # An error of this class could be mistaken for the daemon's answer.
            raise errors.QueueFullError("mine", retry_after=0.1)

        with runed.connect(home=home) as client:
            client.health()
            before = live_descriptors()
            with pytest.raises(errors.QueueFullError, match=r"^mine$"):
                list(client.embed_stream(items()))
            wait_until(broken_off)
            assert live_descriptors() == before

    async def test_by_closing_the_asynchronous_generator(self, began: tuple[Path, Callable[[], bool]]) -> None:
        home, broken_off = began
        async with await runed.connect_async(home=home) as client:
            await client.health()
            before = live_descriptors()
            async with aclosing(client.embed_stream(self.endless())) as results:
                await anext(results)
            assert live_descriptors() == before
            await asyncio.to_thread(wait_until, broken_off)
            assert len(asyncio.all_tasks()) == 1

    async def test_by_cancelling_the_task(self, began: tuple[Path, Callable[[], bool]]) -> None:
        home, broken_off = began
        cleaned = asyncio.Event()

        async def items() -> AsyncIterator[tuple[int, str]]:
            try:
                yield 0, "x"
                await asyncio.sleep(60)
            finally:
                cleaned.set()

        async with await runed.connect_async(home=home) as client:
            results = client.embed_stream(items())
            await anext(results)
            call = asyncio.create_task(self.rest(results))
            await asyncio.sleep(0.05)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert cleaned.is_set()
            await asyncio.to_thread(wait_until, broken_off)
            assert len(asyncio.all_tasks()) == 1

    async def test_by_an_error_of_the_asynchronous_iterator(self, began: tuple[Path, Callable[[], bool]]) -> None:
        home, broken_off = began
        before = events(home).count("stream began")

        async def items() -> AsyncIterator[tuple[int, str]]:
            yield 0, "x"
            await asyncio.to_thread(wait_until, lambda: events(home).count("stream began") > before)
            raise errors.DaemonUnavailableError("mine")

        async with await runed.connect_async(home=home) as client:
            with pytest.raises(errors.DaemonUnavailableError, match=r"^mine$"):
                await self.rest(client.embed_stream(items()))
            await asyncio.to_thread(wait_until, broken_off)

    def test_a_stream_that_is_over_was_not_broken_off(self, shared: Path, streamed: Streamed) -> None:
        before = events(shared)
        streamed(shared, numbered(100))
        ends = wait_until(lambda: [event for event in events(shared)[len(before) :] if event.startswith("stream ")][2:])
        assert ends == ["stream ended"]

    def test_a_closed_client_says_so(self, shared: Path) -> None:
        client = runed.connect(home=shared)
        client.close()
        with pytest.raises(errors.RunedError, match="this client is closed"):
            client.embed_stream([])

    async def rest(self, results: AsyncGenerator[tuple[Any, Outcome], None]) -> None:
        async for _ in results:
            pass


class TestDaemonGoesAway:
    """If the daemon ends, only the texts without an answer are embedded again."""

    def test_it_dies_in_the_middle(self, arrange: Arrange, streamed: Streamed) -> None:
        home = arrange(die_after=400)
        made_by = check_all(streamed(home, numbered(1000)), 1000)
        assert made_by == set(pids(home))
        assert len(made_by) >= 3

    async def test_it_dies_while_the_caller_is_busy_with_a_result(self, arrange: Arrange) -> None:
        home = arrange(die_after=128)
        results: list[tuple[Any, Outcome]] = []

        async def items() -> AsyncIterator[tuple[int, str]]:
            yield 3, "hold"
            for number, text in numbered(200):
                if number != 3:
                    yield number, text
            await asyncio.sleep(0.1)
            (home / "release").touch()

        async with runed.connect_async(home=home) as client:
            async for result in client.embed_stream(items()):
                results.append(result)
                if len(results) == 1:
                    # More results come meanwhile, and with them the end of the connection. Nothing else follows.
                    await asyncio.to_thread(wait_until, lambda: process_gone(pids(home)[0]))
                    await asyncio.sleep(0.1)
        check_all(results, 200)

    def test_it_drains_in_the_middle(self, arrange: Arrange) -> None:
        home = arrange(drain_after=400)
        made_by = check_all(streamed_blocking(home, numbered(1000)), 1000)
        assert made_by == set(pids(home))
        assert "stream broken off" not in events(home), "the draining daemon answered all that it had taken"

    def test_it_dies_while_nothing_is_in_flight(self, arrange: Arrange) -> None:
        home = arrange()

        def items() -> Iterator[tuple[int, str]]:
            yield 0, "x"
            time.sleep(0.1)
            os.kill(pids(home)[0], signal.SIGKILL)
            wait_until(lambda: process_gone(pids(home)[0]))
            yield 1, "xx"

        with runed.connect(home=home) as client:
            check_all(list(client.embed_stream(items())), 2)

    def test_a_text_that_kills_every_daemon_ends_the_stream(self, arrange: Arrange) -> None:
        home = arrange()
        with pytest.raises(errors.DaemonUnavailableError, match="broke in the middle"):
            streamed_blocking(home, [(0, "die")])
        assert len(pids(home)) == 4  # its own, and three more

    def test_without_spawning_it_is_an_error(self, arrange: Arrange) -> None:
        home = arrange()
        with (
            runed.connect(home=home),
            runed.connect(socket_path=home / "embedding.sock") as client,
            pytest.raises(errors.DaemonUnavailableError, match="no daemon listens"),
        ):
            list(client.embed_stream([(0, "die")]))
        assert len(pids(home)) == 1

    def test_another_model_after_the_restart_is_an_error(self, arrange: Arrange) -> None:
        with pytest.raises(errors.RunedError, match=r"changed its model.*space-1.*space-2"):
            streamed_blocking(arrange(die_after=100, new_model=True), numbered(1000))

    def test_a_bootstrap_is_waited_out_and_its_progress_told(self, arrange: Arrange) -> None:
        told: list[runed.Health] = []
        check_all(streamed_by_asyncio(arrange(loading=4), numbered(100), on_progress=told.append), 100)
        assert [health.bytes_done for health in told] == [97, 98, 99, 100, 0]

    def test_a_busy_one_is_asked_again(self, arrange: Arrange) -> None:
        check_all(streamed_blocking(arrange(busy=3), numbered(100)), 100)

    def test_an_error_of_one_text_is_its_outcome_whatever_its_reason(self, arrange: Arrange, streamed: Streamed) -> None:
        home = arrange()
        outcomes = dict(streamed(home, [(0, "x"), (1, "fail:BACKEND_UNAVAILABLE"), (2, "x")]))
        assert isinstance(outcomes[0], runed.Embedding)
        assert isinstance(outcomes[1], errors.BackendUnavailableError)
        assert isinstance(outcomes[2], runed.Embedding)
        assert events(home).count("stream began") == 1

    def test_a_degraded_one_ends_the_stream_with_its_message(self, arrange: Arrange) -> None:
        with pytest.raises(errors.BackendUnavailableError, match=r"^fake: degraded$"):
            streamed_blocking(arrange(degraded="no disk"), numbered(10))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "not HTTP/2; is it another program's socket"),
        (b"", "broke in the middle of a stream"),
    ],
)
def test_another_program_on_the_socket_is_a_clear_error(home: Path, answer: bytes, message: str) -> None:
    """The program answers Info correctly, and nothing after that."""
    path = home / "other.sock"
    info = b"HTTP/1.1 200 OK\r\ncontent-type: application/proto\r\ncontent-length: 0\r\n\r\n"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()

        def answer_all() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    if data := connection.recv(65536):
                        connection.sendall(answer if data.startswith(b"PRI") else info)

        other = threading.Thread(target=answer_all)
        other.start()
        try:
            with runed.connect(socket_path=path) as client, pytest.raises(errors.RunedError, match=message):
                list(client.embed_stream([("a", "a")]))
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            other.join()
