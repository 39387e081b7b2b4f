"""The client calls again if the daemon is too busy for the moment."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

import runed
from runed import errors
from runed.client.calls import patience as waiting
from runed.client.calls.flows import Flows
from runed.client.calls.patience import Deadline, Patience
from runed.client.calls.steps import Send, Sleep
from runed.client.options import Options
from runed.client.transport import aio, blocking
from tests.client.conftest import Arrange, events
from tests.support import wait_until

BUSY_FOR_EVER = 1_000_000


class TestPauses:
    """The length of each pause, and the end of the tries."""

    def test_they_lie_around_the_told_time_and_grow(self) -> None:
        runs = [self.pauses(retry_after=0.4, count=4) for _ in range(200)]
        for number, told in enumerate([0.4, 0.6, 0.9, 1.35]):
            pauses = [run[number] for run in runs]
            assert min(pauses) >= told * 0.5
            assert max(pauses) <= told * 1.5
            assert max(pauses) - min(pauses) > told * 0.8, "they are spread"

    def test_they_are_limited_but_never_below_what_was_told(self) -> None:
        assert max(self.pauses(retry_after=0.0, count=1)) <= 0.075
        assert min(self.pauses(retry_after=0.0, count=1)) >= 0.025
        assert max(self.pauses(retry_after=1.0, count=30, timeout=1e9)) <= 15
        assert min(self.pauses(retry_after=30.0, count=3, timeout=1e9)) >= 15

    def test_an_error_without_a_time_to_retry_is_final(self) -> None:
        error = errors.BackendUnavailableError("no disk")
        with pytest.raises(errors.BackendUnavailableError, match=r"^no disk$"):
            Patience(Deadline(None)).pause(error)

    def test_without_a_deadline_it_ends_after_a_minute(self) -> None:
        patience = Patience(Deadline(None))
        with pytest.raises(errors.QueueFullError, match=r"^full$"):
            patience.pause(errors.QueueFullError("full", retry_after=waiting.MAX_PATIENCE * 2.1))

    def test_a_deadline_that_ends_a_try_tells_the_refusal_before_it(self) -> None:
        flow = Flows(spawn=True, on_progress=None).embed("four", Options(), Deadline(60))
        assert isinstance(next(flow), Send)
        pause = flow.throw(errors.QueueFullError("full", metadata={"limit": "7"}, retry_after=0.02))
        assert isinstance(pause, Sleep)
        assert isinstance(flow.send(None), Send)
        with pytest.raises(errors.QueueFullError, match=r"^full \(tried 2 times in \d\.\d s\)$") as caught:
            flow.throw(errors.DeadlineExceededError("the daemon did not answer within 0.01 s"))
        assert caught.value.metadata == {"limit": "7"}

    def pauses(self, *, retry_after: float, count: int, timeout: float | None = None) -> list[float]:
        patience = Patience(Deadline(timeout))
        return [patience.pause(errors.QueueFullError("full", retry_after=retry_after)) for _ in range(count)]


class TestCalls:
    """Every call that embeds succeeds in the end, or fails with the daemon's error."""

    @pytest.mark.parametrize("reason", ["QUEUE_FULL", "BACKEND_UNAVAILABLE"])
    def test_until_there_is_room(self, arrange: Arrange, reason: str) -> None:
        home = arrange(busy=3, busy_reason=reason)
        with runed.connect(home=home) as client:
            assert client.embed("four")[0] == 4
        assert events(home).count("busy") == 3

    def test_without_spawning_too(self, arrange: Arrange) -> None:
        home = arrange(busy=2)
        with runed.connect(home=home), runed.connect(socket_path=home / "embedding.sock") as client:
            assert client.embed("four")[0] == 4

    def test_up_to_the_deadline_with_the_daemons_own_error(self, arrange: Arrange) -> None:
        with runed.connect(home=arrange(busy=BUSY_FOR_EVER)) as client:
            began = time.monotonic()
            with pytest.raises(errors.QueueFullError, match=r"^fake: busy \(tried \d+ times in \d+\.\d s\)$") as caught:
                client.embed("four", timeout=0.5)
            assert time.monotonic() - began < 20
        assert caught.value.metadata == {"limit": "7"}
        assert caught.value.retry_after == 0.02

    def test_up_to_the_limit_without_a_deadline(self, arrange: Arrange, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(waiting, "MAX_PATIENCE", 0.3)
        with (
            runed.connect(home=arrange(busy=BUSY_FOR_EVER)) as client,
            pytest.raises(errors.QueueFullError, match=r"tried \d+ times in \d+\.\d s"),
        ):
            client.embed_batch(["four"])

    def test_a_pause_that_would_outlast_the_deadline_is_not_begun(self, arrange: Arrange) -> None:
        home = arrange(busy=BUSY_FOR_EVER, retry_after=80)
        with runed.connect(home=home) as client:
            began = time.monotonic()
            with pytest.raises(errors.QueueFullError, match=r"^fake: busy$"):
                client.embed("four", timeout=25)
            assert time.monotonic() - began < 20
        assert events(home).count("busy") == 1

    def test_the_parts_of_a_batch_that_came_through_are_not_sent_again(self, arrange: Arrange) -> None:
        home = arrange(max_batch_size=2)
        with runed.connect(home=home) as client:
            # Each text that fails is refused once. The fake counts the requests that it accepted.
            vectors = client.embed_batch(["a", "b", "busy-once", "c"])
            assert vectors[:, 2].tolist() == [1, 1, 3, 3]


class TestInterruption:
    """A pause ends at once if the caller cancels."""

    def test_by_cancellation(self, arrange: Arrange) -> None:
        async def run() -> None:
            home = arrange(busy=BUSY_FOR_EVER, retry_after=50)
            async with await runed.connect_async(home=home) as client:
                call = asyncio.create_task(client.embed("four", timeout=600))
                await asyncio.to_thread(wait_until, lambda: "busy" in events(home))
                call.cancel()
                began = time.monotonic()
                with pytest.raises(asyncio.CancelledError):
                    await call
                assert time.monotonic() - began < 20

        asyncio.run(run())

    def test_by_ctrl_c(self, arrange: Arrange) -> None:
        home = arrange(busy=BUSY_FOR_EVER, retry_after=20)
        program = textwrap.dedent(f"""
            import runed
            try:
                runed.connect(home={str(home)!r}).embed("four")
            except KeyboardInterrupt:
                print("interrupted")
        """)
        process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        try:
            wait_until(lambda: "busy" in events(home))
            process.send_signal(signal.SIGINT)
            assert process.communicate(timeout=10)[0] == "interrupted\n"
        finally:
            process.kill()
            process.communicate()


class TestFullBacklog:
    """A frozen daemon with a full backlog does not delay a call beyond its deadline."""

    @pytest.fixture
    def full(self, home: Path) -> Iterator[Path]:
        path = home / "full.sock"
        with ExitStack() as stack:
            listening = stack.enter_context(socket.socket(socket.AF_UNIX))
            listening.bind(str(path))
            listening.listen(0)
            with suppress(BlockingIOError):
                while True:
                    waiting_one = stack.enter_context(socket.socket(socket.AF_UNIX))
                    waiting_one.setblocking(False)
                    waiting_one.connect(str(path))
            yield path

    def test_blocking(self, full: Path) -> None:
        with runed.connect(socket_path=full) as client:
            with pytest.raises(errors.DeadlineExceededError, match=r"within 0\.3 s"):
                client.embed("a", timeout=0.3)
            with pytest.raises(errors.DeadlineExceededError, match=r"within 0\.3 s"):
                list(client.embed_stream([("a", "a")], timeout=0.3))

    async def test_asyncio(self, full: Path) -> None:
        async with await runed.connect_async(socket_path=full) as client:
            with pytest.raises(errors.DeadlineExceededError, match=r"within 0\.3 s"):
                await client.embed("a", timeout=0.3)
            with pytest.raises(errors.DeadlineExceededError, match=r"within 0\.3 s"):
                async for _ in client.embed_stream([("a", "a")], timeout=0.3):
                    pass

    def test_without_a_deadline_it_ends_after_a_while(self, full: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(blocking, "DIAL_PATIENCE", 0.3)
        with runed.connect(socket_path=full) as client:
            with pytest.raises(errors.DeadlineExceededError, match=r"within 0\.3 s"):
                client.embed("a")
            with pytest.raises(errors.DeadlineExceededError, match=r"within 0\.3 s"):
                list(client.embed_stream([("a", "a")]))

    async def test_on_asyncio_too(self, full: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(aio, "DIAL_PATIENCE", 0.3)
        async with runed.connect_async(socket_path=full) as client:
            with pytest.raises(errors.DeadlineExceededError, match=r"within 0\.3 s"):
                await client.embed("a")
