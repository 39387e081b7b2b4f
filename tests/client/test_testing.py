"""`runed.testing`, used as the tests of an application use it."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import runed
import runed.testing
from runed import errors
from runed.testing import Call, DaemonDouble
from tests.support import clean_environment


@pytest.fixture
def daemon() -> Iterator[DaemonDouble]:
    with runed.testing.daemon() as daemon:
        yield daemon


@pytest.fixture
def client(daemon: DaemonDouble) -> Iterator[runed.Client]:
    with runed.connect(home=daemon.home) as client:
        yield client


def find(client: runed.Client, question: str, passages: list[str]) -> str:
    """Find the passage that is nearest to a question, as an application would."""
    vectors = client.embed_batch(passages, role="document")
    return passages[int(np.argmax(vectors @ client.embed(question, role="query")))]


class TestVectors:
    """Vectors depend on the text alone."""

    def test_an_application_finds_what_is_there(self, client: runed.Client) -> None:
        assert find(client, "tea", ["coffee", "tea", "milk"]) == "tea"

    def test_of_all_calls_and_in_every_run(self, daemon: DaemonDouble, client: runed.Client) -> None:
        vector = client.embed("tea")
        assert vector.shape == (8,)
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)
        assert vector.tolist() == daemon.vector("tea").tolist() == runed.testing.vector_of("tea", 8).tolist()
        assert vector[0] == pytest.approx(-0.5280, abs=1e-4)
        assert client.embed_batch(["milk", "tea"])[1].tolist() == vector.tolist()
        ((_, streamed),) = client.embed_stream([("a", "tea")])
        assert isinstance(streamed, runed.Embedding)
        assert streamed.vector.tolist() == vector.tolist()

    def test_of_any_dimensions(self) -> None:
        with runed.testing.daemon(dimensions=300) as daemon, runed.connect(socket_path=daemon.socket) as client:
            assert client.info().vector_dim == 300
            assert client.embed("tea").shape == (300,)
            short = client.embed("tea", dimensions=10)
            assert short.tolist() == daemon.vector("tea", 10).tolist()
            whole = daemon.vector("tea")[:10]
            assert np.allclose(short, whole / np.linalg.norm(whole))
            with pytest.raises(errors.BadDimensionsError):
                client.embed("tea", dimensions=301)

    def test_routes(self, daemon: DaemonDouble, client: runed.Client) -> None:
        with pytest.raises(errors.NoCentroidSetError):
            client.embed_items(["a"], with_route=True)
        texts = ["a", "b", "c"]
        client.set_centroids([daemon.vector(text) for text in texts])
        assert [
            item.cluster_id for item in client.embed_items(texts, with_route=True) if isinstance(item, runed.Embedding)
        ] == [
            0,
            1,
            2,
        ]


class TestFaults:
    """The double can return every error that an application must handle."""

    def test_a_full_queue_that_passes(self, daemon: DaemonDouble, client: runed.Client) -> None:
        daemon.refuse(errors.QueueFullError("full", retry_after=0.01), times=2)
        assert client.embed("tea").shape == (8,)
        assert len(daemon.calls) == 3

    def test_an_engine_that_does_not_come_back(self, daemon: DaemonDouble, client: runed.Client) -> None:
        daemon.refuse(errors.BackendUnavailableError("no engine"))
        with pytest.raises(errors.BackendUnavailableError, match=r"^no engine$"):
            client.embed("tea")

    def test_a_text_that_fails(self, daemon: DaemonDouble, client: runed.Client) -> None:
        daemon.fail("poison", errors.BackendFaultError("NaN"))
        fine, poisoned = client.embed_items(["tea", "poison"])
        assert isinstance(fine, runed.Embedding)
        assert isinstance(poisoned, errors.BackendFaultError)
        with pytest.raises(errors.BackendFaultError, match="NaN"):
            client.embed("poison")
        outcomes = dict(client.embed_stream([(1, "poison"), (2, "tea")]))
        assert isinstance(outcomes[1], errors.BackendFaultError)
        assert isinstance(outcomes[2], runed.Embedding)

    def test_a_text_that_is_empty_or_too_long(self, client: runed.Client) -> None:
        with pytest.raises(errors.EmptyTextError) as caught:
            client.embed_batch(["tea", " "])
        assert caught.value.metadata == {"index": "1"}
        long = "word " * 511
        with pytest.raises(errors.TextTooLongError):
            client.embed(long)
        (cut,) = client.embed_items([long], truncate="end")
        assert isinstance(cut, runed.Embedding)
        assert (cut.token_count, cut.total_token_count, cut.truncated) == (512, 513, True)
        assert client.count_tokens([long]) == [513]

    def test_a_download(self, daemon: DaemonDouble) -> None:
        told: list[runed.Health] = []
        with runed.connect(home=daemon.home, on_progress=told.append) as client:
            with daemon.bootstrapping(bytes_done=10, bytes_total=100):
                with pytest.raises(errors.BootstrappingError, match="10 of 100 bytes"):
                    client.info()
                with pytest.raises(errors.DeadlineExceededError, match="not ready yet: downloading the model"):
                    client.embed("tea", timeout=0.3)
            assert client.embed("tea").shape == (8,)
        assert (told[0].bytes_done, told[0].phase) == (10, runed.Phase.FETCHING_MODEL)


class TestCalls:
    """A test can read the calls of an application."""

    def test_with_their_options(self, daemon: DaemonDouble, client: runed.Client) -> None:
        client.embed("tea", role="query", instruction="find teas", dimensions=4, truncate="start", lane="bulk")
        client.embed_batch(["a", "b"], role="document", truncate="end", lane="interactive")
        client.count_tokens(["a"])
        list(client.embed_stream([(1, "x"), (2, "y")], role="document"))
        assert daemon.calls == [
            Call(
                "embed",
                ["tea"],
                {"role": "query", "instruction": "find teas", "dimensions": 4, "truncate": "start", "lane": "bulk"},
            ),
            Call("embed", ["a", "b"], {"role": "document", "truncate": "end", "lane": "interactive"}),
            Call("count_tokens", ["a"], {}),
            Call("embed_stream", ["x", "y"], {"role": "document"}),
        ]

    async def test_from_the_same_event_loop_too(self, daemon: DaemonDouble) -> None:
        async with runed.connect_async(home=daemon.home) as client:
            vectors = await asyncio.gather(*(client.embed(text) for text in "abc"))
        assert sorted(call.texts[0] for call in daemon.calls) == ["a", "b", "c"]
        assert vectors[1].tolist() == daemon.vector("b").tolist()

    def test_of_another_process_that_finds_it_by_its_home(self, daemon: DaemonDouble) -> None:
        program = "import runed\nwith runed.connect() as client: print(client.embed('tea')[0])"
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=clean_environment(RUNED_HOME=str(daemon.home)),
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        assert float(done.stdout) == pytest.approx(float(daemon.vector("tea")[0]))
        assert daemon.calls == [Call("embed", ["tea"], {})]


class TestHomes:
    """Nothing real is ever started in the home of a double, and nothing is left behind."""

    def test_one_of_its_own_is_removed(self) -> None:
        with runed.testing.daemon() as daemon:
            assert daemon.home.stat().st_mode & 0o777 == 0o700
        assert not daemon.home.exists()
        assert not daemon.socket.exists()

    def test_one_of_the_callers(self, home: Path) -> None:
        with runed.testing.daemon(home / "own") as daemon, runed.connect(home=daemon.home) as client:
            client.embed("tea")
        assert list(home.iterdir()) == [home / "own"]

    def test_the_configuration_of_the_caller_stays(self, home: Path) -> None:
        config = home / "config.json"
        config.write_text('{"profile": "memory"}')
        with runed.testing.daemon(home), runed.connect(home=home) as client:
            with pytest.raises(errors.AlreadyRunningError), runed.testing.daemon(home):
                pass
            client.embed("tea")
        assert config.read_text() == '{"profile": "memory"}'

    def test_a_client_that_outlives_it_starts_no_daemon(self, home: Path) -> None:
        with runed.testing.daemon(home) as daemon:
            client = runed.connect(home=daemon.home)
            client.embed("tea")
        with client, pytest.raises(errors.DaemonStartError, match="no-daemon-in-tests"):
            client.embed("tea")

    def test_it_prints_nothing(self, capfd: pytest.CaptureFixture[str]) -> None:
        with runed.testing.daemon() as daemon, runed.connect(home=daemon.home) as client:
            client.embed("tea")
        assert capfd.readouterr() == ("", "")

    def test_two_print_nothing_whichever_ends_first(self, capfd: pytest.CaptureFixture[str]) -> None:
        one, other = runed.testing.daemon(), runed.testing.daemon()
        one.__enter__()
        home = other.__enter__().home
        one.__exit__(None, None, None)
        with runed.connect(home=home) as client:
            client.embed("tea")
        other.__exit__(None, None, None)
        assert capfd.readouterr() == ("", "")

    def test_it_ends_in_order_when_the_test_fails(
        self, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
    ) -> None:
        double = runed.testing.daemon()
        client = runed.connect(home=double.__enter__().home)
        stream = client.embed_stream((number, "tea") for number in range(1000))
        next(stream)
        failure = AssertionError("a test fails")
        assert not double.__exit__(AssertionError, failure, None)
        stream.close()
        client.close()
        gc.collect()
        assert capfd.readouterr() == ("", "")
        assert not [record for record in caplog.records if record.levelname == "ERROR"]

    def test_two_at_once_know_nothing_of_each_other(self) -> None:
        with runed.testing.daemon() as one, runed.testing.daemon(dimensions=4) as other:
            with runed.connect(home=one.home) as client:
                client.embed("tea")
            with runed.connect(home=other.home) as client:
                assert client.embed("tea").shape == (4,)
        assert len(one.calls) == len(other.calls) == 1
