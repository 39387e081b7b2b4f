"""The blocking client against a daemon in a process of its own."""

from __future__ import annotations

import inspect
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import typing
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import runed
from runed import errors
from tests.client.conftest import Arrange, events, live_descriptors, pids
from tests.support import process_gone, wait_until


def test_connecting_starts_a_daemon_and_embeds(shared: Path) -> None:
    with runed.connect(home=shared) as client:
        vector = client.embed("four")
        assert vector.dtype == np.float32
        assert vector.shape == (4,)
        assert vector[0] == 4
        vector[0] = 1  # it belongs to the caller
        assert client.health().status is runed.Status.OK
        assert client.info().model_name == "fake"


def test_a_daemon_that_dies_at_start_is_reported_at_once_with_its_log(home: Path) -> None:
    program = home / "runed"
    program.write_text("#!/bin/sh\necho no such luck >&2\nexit 5\n")
    program.chmod(0o700)
    (home / "config.json").write_text(f'{{"version": 1, "runed_binary": "{program}"}}')
    with pytest.raises(errors.DaemonStartError, match=r"exited with code 5 .*\nno such luck$"):
        runed.connect(home=home)


class TestNotSpawning:
    """The error of a client that may not start a daemon tells the user what to do."""

    def test_without_a_daemon(self, arrange: Arrange) -> None:
        home = arrange()
        with pytest.raises(errors.DaemonUnavailableError, match="runed ensure"):
            runed.connect(home=home, spawn=False)
        with pytest.raises(errors.DaemonUnavailableError, match="runed ensure"):
            runed.connect(socket_path=home / "embedding.sock")
        assert pids(home) == []

    def test_with_a_daemon_that_went_away(self, arrange: Arrange) -> None:
        home = arrange()
        with runed.connect(home=home), runed.connect(socket_path=home / "embedding.sock") as client:
            client.embed("a")
            with pytest.raises(errors.DaemonUnavailableError):
                client.embed("die")
            wait_until(lambda: process_gone(pids(home)[0]))
            with pytest.raises(errors.DaemonUnavailableError, match="no daemon listens"):
                client.embed("a")
        assert len(pids(home)) == 1

    def test_home_and_socket_path_together_are_refused(self, home: Path) -> None:
        with pytest.raises(TypeError, match="home or socket_path"):
            runed.connect(home=home, socket_path=home / "embedding.sock")


class TestBootstrap:
    """Embedding waits while engine and model are fetched."""

    def test_it_is_waited_out_and_its_progress_told(self, arrange: Arrange) -> None:
        told: list[runed.Health] = []
        with runed.connect(home=arrange(loading=4), on_progress=told.append) as client:
            assert client.embed("four")[0] == 4
        assert [health.bytes_done for health in told] == [97, 98, 99, 100, 0]
        assert told[0].status is runed.Status.LOADING
        assert told[0].phase is runed.Phase.FETCHING_MODEL
        assert (told[0].bytes_total, told[0].message) == (100, "97 of 100")
        assert told[-1].status is runed.Status.OK
        assert told[-1].phase is None

    def test_connecting_does_not_wait_for_it(self, arrange: Arrange) -> None:
        with runed.connect(home=arrange(loading=1000)) as client:
            assert client.health().status is runed.Status.LOADING

    @pytest.mark.parametrize("refuses_info", [False, True])
    def test_info_waits_for_it_while_nothing_is_downloaded(self, arrange: Arrange, *, refuses_info: bool) -> None:
        told: list[runed.Health] = []
        home = arrange(loading=3, downloading=False, refuses_info=refuses_info)
        with runed.connect(home=home, on_progress=told.append) as client:
            assert client.info().vector_dim == 4
        assert told[0].message == "looking for engine and model"

    @pytest.mark.parametrize("refuses_info", [False, True])
    def test_info_does_not_wait_for_a_download(self, arrange: Arrange, *, refuses_info: bool) -> None:
        with (
            runed.connect(home=arrange(loading=1000, refuses_info=refuses_info)) as client,
            pytest.raises(errors.BootstrappingError, match=r"-899 of 100 bytes; wait_until_ready waits") as caught,
        ):
            client.info()
        assert caught.value.metadata == {"bytes_done": "-899", "bytes_total": "100"}

    def test_info_tells_that_it_failed(self, arrange: Arrange) -> None:
        with (
            runed.connect(home=arrange(loading=1, downloading=False, degraded="the disk is full", refuses_info=True)) as client,
            pytest.raises(errors.BackendUnavailableError, match="the disk is full"),
        ):
            client.info()

    def test_limits_are_told_during_it(self, arrange: Arrange) -> None:
        with runed.connect(home=arrange(loading=3, refuses_info=True)) as client:
            assert client.embed_batch(["four"])[0, 0] == 4

    def test_waiting_for_it_without_embedding(self, arrange: Arrange) -> None:
        with runed.connect(home=arrange(loading=3)) as client:
            assert client.wait_until_ready().vector_dim == 4
            assert client.wait_until_ready().vector_dim == 4

    def test_a_warm_up_waits_for_it(self, arrange: Arrange) -> None:
        home = arrange(loading=3)
        with runed.connect(home=home) as client:
            client.warm_up()
            assert client.health().status is runed.Status.OK

    def test_a_failed_one_ends_the_wait_with_the_daemons_message(self, arrange: Arrange) -> None:
        with (
            runed.connect(home=arrange(loading=2, degraded="the disk is full; free 500 MB")) as client,
            pytest.raises(errors.BackendUnavailableError, match="the disk is full; free 500 MB"),
        ):
            client.embed("text")

    def test_a_wait_that_is_too_long_ends_at_the_timeout_and_says_what_for(self, arrange: Arrange) -> None:
        with runed.connect(home=arrange(loading=1000)) as client:
            began = time.monotonic()
            with pytest.raises(errors.DeadlineExceededError, match=r"within 0\.6 s.*not ready yet: -?\d+ of 100"):
                client.embed("text", timeout=0.6)
            assert 0.5 < time.monotonic() - began < 20

    def test_an_error_of_the_callback_reaches_the_caller(self, arrange: Arrange) -> None:
        def stop(health: runed.Health) -> None:
            raise KeyboardInterrupt

        with runed.connect(home=arrange(loading=3), on_progress=stop) as client, pytest.raises(KeyboardInterrupt):
            client.embed("text")


class TestBatch:
    """Any number of texts goes in as many requests as the daemon's limits demand."""

    def test_order_is_kept_over_the_requests_it_is_split_into(self, arrange: Arrange) -> None:
        with runed.connect(home=arrange(max_batch_size=4)) as client:
            vectors = client.embed_batch("x" * length for length in range(1, 11))
            assert vectors.dtype == np.float32
            assert vectors.shape == (10, 4)
            assert vectors[:, 0].tolist() == list(range(1, 11))
            assert vectors[:, 3].tolist() == [4] * 8 + [2] * 2

    def test_it_is_split_by_bytes_of_utf8_too(self, arrange: Arrange) -> None:
        with runed.connect(home=arrange(max_request_bytes=100)) as client:
            vectors = client.embed_batch(["ä" * 20] * 5 + ["z" * 90] + ["a"] * 14)
            assert vectors[:, 3].tolist() == [2, 2, 2, 2, 1, 1] + [14] * 14

    def test_exactly_the_limits_are_one_request(self, arrange: Arrange) -> None:
        with runed.connect(home=arrange(max_batch_size=8, max_request_bytes=8 * 7)) as client:
            assert client.embed_batch(["a"] * 8)[:, 2].tolist() == [1] * 8

    def test_none_at_all_give_an_empty_array_of_the_models_dimension(self, arrange: Arrange) -> None:
        with runed.connect(home=arrange(loading=2)) as client:
            assert client.embed_batch([]).shape == (0, 4)
            assert client.embed_batch(iter(())).dtype == np.float32

    def test_the_limits_are_asked_for_once(self, arrange: Arrange) -> None:
        home = arrange()
        with runed.connect(home=home) as client:
            for _ in range(3):
                client.embed_batch(["a"])
        assert events(home) == ["info"]

    def test_an_error_names_the_text_in_the_whole_batch(self, arrange: Arrange) -> None:
        with runed.connect(home=arrange(max_batch_size=4)) as client:
            with pytest.raises(errors.TextTooLongError, match=r"starts with text 4.*fake: TEXT_TOO_LONG") as caught:
                client.embed_batch(["a"] * 6 + ["fail:TEXT_TOO_LONG"])
            assert caught.value.metadata == {"index": "6", "limit": "7"}
            with pytest.raises(errors.TextTooLongError, match=r"^fake: TEXT_TOO_LONG$") as caught:
                client.embed_batch(["a", "fail:TEXT_TOO_LONG"])
            assert caught.value.metadata["index"] == "1"
            with pytest.raises(errors.BackendFaultError, match="starts with text 4") as fault:
                client.embed_batch(["a"] * 6 + ["fail:BACKEND_FAULT"])
            assert fault.value.metadata["index"] == "6"

    def test_a_text_larger_than_a_request_is_refused_before_anything_is_sent(self, arrange: Arrange) -> None:
        with runed.connect(home=arrange(max_request_bytes=100)) as client:
            with pytest.raises(errors.RequestTooLargeError, match=r"text 1 of the batch has 106 bytes.*may have 100") as caught:
                client.embed_batch(["a", "x" * 100])
            assert caught.value.metadata == {"limit": "100", "index": "1"}
            assert client.health().total_requests == 0

    def test_a_huge_single_text_is_refused_without_sending_it(self, arrange: Arrange) -> None:
        with runed.connect(home=arrange(max_request_bytes=2_000_000)) as client:
            with pytest.raises(errors.RequestTooLargeError, match="cut it into passages"):
                client.embed("x" * 3_000_000)
            assert client.embed("x" * 1_500_000)[0] == 1_500_000

    def test_one_str_is_not_taken_for_a_batch_of_letters(self, shared: Path) -> None:
        with runed.connect(home=shared) as client, pytest.raises(TypeError, match="use embed for one text"):
            client.embed_batch("text")


class TestBadTexts:
    """A text that can never be embedded is refused with the caller's own index."""

    def test_half_a_surrogate_pair(self, shared: Path) -> None:
        with runed.connect(home=shared) as client:
            with pytest.raises(errors.InvalidTextError, match="position 2"):
                client.embed("ab\ud800")
            with pytest.raises(errors.InvalidTextError, match="text 1 of the batch") as caught:
                client.embed_batch(["ab", "\udfff"])
            assert caught.value.metadata == {"index": "1"}

    def test_what_is_no_str(self, shared: Path) -> None:
        with runed.connect(home=shared) as client:
            with pytest.raises(TypeError, match="the text is a bytes, but must be a str"):
                client.embed(b"text")  # type: ignore[arg-type] # on purpose
            with pytest.raises(TypeError, match="text 1 of the batch is a NoneType"):
                client.embed_batch(["a", None])  # type: ignore[list-item] # on purpose


class TestErrors:
    """The daemon's errors arrive as errors of the same class."""

    @pytest.mark.parametrize(
        "cls",
        [
            errors.EmptyTextError,
            errors.InvalidTextError,
            errors.TextTooLongError,
            errors.RequestTooLargeError,
            errors.UnimplementedError,
            errors.DeadlineExceededError,
            errors.BackendUnavailableError,
            errors.RunedError,
        ],
    )
    def test_by_reason_with_metadata_and_time_to_retry(self, shared: Path, cls: type[errors.RunedError]) -> None:
        with runed.connect(home=shared) as client, pytest.raises(cls) as caught:
            # Temporary errors are tried again, but not beyond the time of the call.
            client.embed(f"fail:{cls.reason}", timeout=0.5 if cls is errors.BackendUnavailableError else None)
        assert type(caught.value) is cls
        assert caught.value.message == f"fake: {cls.reason}"
        assert caught.value.metadata == {"index": "0", "limit": "7"}
        assert caught.value.retry_after == 1.5

    @pytest.mark.parametrize(
        ("code", "cls"),
        [
            ("invalid_argument", errors.InvalidRequestError),
            ("unavailable", errors.BackendUnavailableError),
            ("deadline_exceeded", errors.DeadlineExceededError),
            ("internal", errors.RunedError),
        ],
    )
    def test_by_code_where_there_is_no_reason(self, shared: Path, code: str, cls: type[errors.RunedError]) -> None:
        with runed.connect(home=shared) as client, pytest.raises(errors.RunedError) as caught:
            client.embed(f"undetailed:{code}")
        assert type(caught.value) is cls
        assert caught.value.message == "fake: no details"

    @pytest.mark.parametrize(
        ("answer", "message"),
        [
            (b"HTTP/1.1 404 Not Found\r\ncontent-length: 4\r\n\r\noops", "HTTP 404 .* another program"),
            (b"HTTP/1.1 500 Oops\r\ncontent-length: 2\r\n\r\n[]", "HTTP 500 .* another program"),
            (b"HTTP/1.1 500 Oops\r\ncontent-length: 9000\r\n\r\n" + b"[" * 9000, "HTTP 500 .* another program"),
            (b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n\xff\xff\xff\xff", "no message of runed"),
            (b"SSH-2.0-OpenSSH\r\n", "broke before the answer"),
            (b"HTTP/1.1 200 OK\r\ncontent-length: 40\r\n\r\nshort", "broke before the answer"),
            (b"", "broke before the answer"),
        ],
    )
    def test_another_program_on_the_socket_is_a_clear_error(self, home: Path, answer: bytes, message: str) -> None:
        path = home / "other.sock"
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
                        if connection.recv(65536):
                            connection.sendall(answer)

            other = threading.Thread(target=answer_all)
            other.start()
            try:
                with runed.connect(socket_path=path) as client, pytest.raises(errors.RunedError, match=message):
                    client.health()
            finally:
                listening.shutdown(socket.SHUT_RDWR)
                other.join()


class TestTimeout:
    """A call ends at its timeout, and leaves nothing behind that could harm the next call."""

    def test_of_one_call(self, shared: Path) -> None:
        with runed.connect(home=shared) as client:
            with pytest.raises(errors.DeadlineExceededError):
                client.embed("slow", timeout=0.3)
            assert client.embed("four")[0] == 4
            wait_until(lambda: "slow cancelled" in events(shared), what="the end of the call in the daemon")

    def test_of_the_client(self, shared: Path) -> None:
        with runed.connect(home=shared), runed.connect(home=shared, timeout=0.3) as client:
            with pytest.raises(errors.DeadlineExceededError):
                client.embed_batch(["slow"])
            with pytest.raises(errors.DeadlineExceededError):
                client.embed("a", timeout=-1)
            assert client.embed("a", timeout=30)[0] == 1

    def test_of_a_daemon_that_is_frozen(self, shared: Path) -> None:
        with runed.connect(home=shared) as client:
            client.embed("a")
            (pid,) = pids(shared)
            os.kill(pid, signal.SIGSTOP)
            try:
                with pytest.raises(errors.DeadlineExceededError, match=r"within 0\.3 s"):
                    client.embed("a", timeout=0.3)
            finally:
                os.kill(pid, signal.SIGCONT)


class TestDaemonGoesAway:
    """A daemon that ended between two calls is started again once."""

    def test_killed(self, arrange: Arrange) -> None:
        home = arrange()
        with runed.connect(home=home) as client:
            client.embed("a")
            (first,) = pids(home)
            os.kill(first, signal.SIGKILL)
            wait_until(lambda: process_gone(first))
            assert client.embed("a")[1] == pids(home)[1] != first
            assert len(pids(home)) == 2

    def test_draining(self, arrange: Arrange) -> None:
        home = arrange()
        with runed.connect(home=home) as client:
            client.embed("drain")
            assert client.embed("a")[1] == pids(home)[1]
            assert len(pids(home)) == 2

    def test_shut_down_on_request(self, arrange: Arrange) -> None:
        home = arrange()
        with runed.connect(home=home) as client:
            for grace in (-1, 2**31):
                with pytest.raises(
                    errors.InvalidRequestError, match=rf"grace_seconds is {grace}; give a whole number from 0 to"
                ):
                    client.shutdown(grace)
            client.shutdown(grace_seconds=7)
            wait_until(lambda: process_gone(pids(home)[0]))
            with pytest.raises(errors.DaemonUnavailableError):
                client.shutdown()
            assert len(pids(home)) == 1, "a shutdown starts nothing"
            client.embed("a")
        assert "shutdown 7" in events(home)

    def test_a_call_that_kills_every_daemon_is_repeated_three_times(self, arrange: Arrange) -> None:
        home = arrange()
        with runed.connect(home=home) as client, pytest.raises(errors.DaemonUnavailableError, match="broke before the answer"):
            client.embed("die")
        assert len(pids(home)) == 4

    @pytest.mark.parametrize(
        ("smaller", "sizes"), [({"max_batch_size": 2}, [2, 2, 2, 2, 1]), ({"max_request_bytes": 30}, [3, 3, 3])]
    )
    def test_smaller_limits_of_its_successor_are_asked_for(
        self, arrange: Arrange, smaller: dict[str, int], sizes: list[int]
    ) -> None:
        home = arrange()
        with runed.connect(home=home) as client:
            self.check_sizes(client, [9])
            self.restart(arrange, home, **smaller)
            self.check_sizes(client, sizes)
            self.check_sizes(client, sizes)
            assert client.count_tokens(["abc def"] * 9) == [2] * 9
        assert len(pids(home)) == 2
        assert events(home).count("info") == 2

    def test_larger_limits_of_its_successor_are_asked_for(self, arrange: Arrange) -> None:
        home = arrange(max_batch_size=2)
        with runed.connect(home=home) as client:
            self.check_sizes(client, [2, 2, 2, 2, 1])
            self.restart(arrange, home)
            client.embed("a")
            self.check_sizes(client, [9])

    def test_a_text_too_large_for_its_successor_is_the_callers_to_cut(self, arrange: Arrange) -> None:
        home = arrange()
        with runed.connect(home=home) as client:
            client.embed_batch(["a"])
            self.restart(arrange, home, max_request_bytes=100)
            with pytest.raises(errors.RequestTooLargeError, match=r"text 1 of the batch has 206 bytes.*may have 100"):
                client.embed_batch(["a", "x" * 200])
            with pytest.raises(errors.RequestTooLargeError, match="text 1 of the batch has 206 bytes"):
                client.embed_batch(["a", "x" * 200])

    def restart(self, arrange: Arrange, home: Path, **options: object) -> None:
        """Stop the daemon, so that the next call starts another one."""
        old = pids(home)[-1]
        arrange(**options)
        os.kill(old, signal.SIGKILL)
        wait_until(lambda: process_gone(old))

    def check_sizes(self, client: runed.Client, sizes: list[int]) -> None:
        """Check the number of texts in each request of a batch of nine."""
        vectors = client.embed_batch(["abc"] * 9)
        assert vectors[:, 0].tolist() == [3] * 9
        assert vectors[:, 3].tolist() == [size for size in sizes for _ in range(size)]

    def test_only_its_idle_connections_were_closed(self, arrange: Arrange) -> None:
        home = arrange(keep_alive=0.1)
        with runed.connect(home=home) as client:
            with ThreadPoolExecutor(4) as pool:
                list(pool.map(client.embed, ["a"] * 16))
            time.sleep(0.4)  # the daemon's own clock closes them; there is no event to await
            assert client.embed("four")[0] == 4
        assert len(pids(home)) == 1


class TestSharing:
    """One client serves several threads and forks, and leaves no connection open."""

    def test_threads_get_their_own_answers(self, shared: Path) -> None:
        with runed.connect(home=shared) as client, ThreadPoolExecutor(8) as pool:
            lengths = [1 + number % 50 for number in range(200)]
            vectors = list(pool.map(client.embed, ["x" * length for length in lengths]))
            assert [vector[0] for vector in vectors] == lengths

    def test_a_slow_call_of_one_thread_does_not_hold_up_another(self, shared: Path) -> None:
        with runed.connect(home=shared) as client, ThreadPoolExecutor(1) as pool:
            slow = pool.submit(client.embed, "slow", timeout=2)
            wait_until(lambda: "slow began" in events(shared))
            assert client.embed("four", timeout=10)[0] == 4
            assert not slow.done()
            with pytest.raises(errors.DeadlineExceededError):
                slow.result(30)

    def test_parent_and_child_after_a_fork_do_not_read_each_others_answers(self, shared: Path) -> None:
        with runed.connect(home=shared) as client:
            client.embed("a")
            context = multiprocessing.get_context("fork")
            with context.Pool(2) as pool:
                results = pool.map_async(client.embed, ["x" * length for length in range(1, 101)])
                own = [client.embed("y" * length)[0] for length in range(101, 201)]
                assert [vector[0] for vector in results.get(30)] == list(range(1, 101))
                assert own == list(range(101, 201))

    def test_no_connection_stays_open(self, shared: Path) -> None:
        before = live_descriptors()
        client = runed.connect(home=shared)
        with ThreadPoolExecutor(32) as pool:
            list(pool.map(client.embed, ["x"] * 200))
        assert len(live_descriptors() - before) <= 16, "a burst of threads leaves no more than a few"
        with pytest.raises(errors.DeadlineExceededError):
            client.embed("slow", timeout=0.2)
        client.close()
        assert live_descriptors() <= before

    def test_a_closed_client_says_so(self, shared: Path) -> None:
        client = runed.connect(home=shared)
        client.close()
        client.close()
        with pytest.raises(errors.RunedError, match="this client is closed") as caught:
            client.embed("a")
        assert caught.value.reason == "CLOSED"


class TestImport:
    """The cost of the import for a program that only wants vectors."""

    FORBIDDEN = (
        *("server", "domain", "backends", "bootstrap", "caching", "routing", "metrics"),
        *("scheduling", "api", "daemon", "jobs", "cli"),
    )

    def run(self, code: str) -> set[str]:
        source = f"{code}\nimport sys\nprint(*sys.modules)"
        return set(subprocess.run([sys.executable, "-c", source], check=True, capture_output=True, text=True).stdout.split())

    def test_importing_runed_imports_nothing_more(self) -> None:
        modules = self.run("import runed; runed.__version__; dir(runed)")
        assert {name for name in modules if name.startswith("runed")} == {"runed", "runed.errors", "runed.version"}
        assert not modules & {"numpy", "google.protobuf", "asyncio", "msgspec"}

    def test_connecting_imports_neither_the_server_side_nor_what_it_needs(self, shared: Path) -> None:
        code = f"import runed\nwith runed.connect(home={str(shared)!r}) as client: client.embed('a')"
        self.run(code)
        modules = self.run(code)
        assert "runed.client.client" in modules
        assert not modules & {f"runed.{name}" for name in self.FORBIDDEN}
        assert not modules & {
            "asyncio",
            "concurrent.futures",
            "httpx",
            "aiohttp",
            "connectrpc",
            "pyqwest",
            "hypercorn",
            "psutil",
            "rich",
        }

    def test_every_public_name_is_there(self) -> None:
        for name in runed.__all__:
            assert getattr(runed, name) is not None
        with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
            runed.nothing  # noqa: B018 # the access is the test

    def test_the_types_of_all_public_names_can_be_read(self) -> None:
        """Libraries for validation and for commands do so."""
        for name in runed.__all__:
            if inspect.isclass(cls := getattr(runed, name)):
                methods = [method for each, method in inspect.getmembers(cls, inspect.isfunction) if not each.startswith("_")]
                for thing in (cls, *methods):
                    typing.get_type_hints(thing)


class TestFace:
    """The public names."""

    OPTIONS = ("role", "instruction", "dimensions", "truncate", "lane", "model", "timeout")

    @pytest.mark.parametrize("cls", [runed.Client, runed.AsyncClient])
    @pytest.mark.parametrize("method", ["embed", "embed_batch", "embed_items", "embed_stream"])
    def test_every_option_is_a_parameter_that_help_shows(self, cls: type, method: str) -> None:
        parameters = inspect.signature(getattr(cls, method)).parameters
        assert (
            tuple(name for name in parameters if name not in {"self", "text", "texts", "items", "with_route"}) == self.OPTIONS
        )
        assert all(parameters[name].kind is inspect.Parameter.KEYWORD_ONLY for name in self.OPTIONS)
        assert set(runed.EmbedOptions.__annotations__) == set(self.OPTIONS) - {"timeout"}

    def test_both_clients_have_the_same_methods_with_the_same_parameters(self) -> None:
        for name, method in inspect.getmembers(runed.Client, inspect.isfunction):
            if not name.startswith("_"):
                twin = inspect.signature(getattr(runed.AsyncClient, name)).parameters
                assert list(inspect.signature(method).parameters) == list(twin), name

    def test_the_base_of_all_errors_is_at_hand(self, shared: Path) -> None:
        assert runed.RunedError is errors.RunedError
        with runed.connect(home=shared) as client, pytest.raises(runed.RunedError, match="EMPTY_TEXT"):
            client.embed("fail:EMPTY_TEXT")

    def test_options_of_a_dictionary(self, shared: Path) -> None:
        options: runed.EmbedOptions = {"role": "query", "dimensions": 2}
        with runed.connect(home=shared) as client:
            assert client.embed("four", **options).shape == (2,)

    def test_a_client_shows_its_socket_and_its_model_without_asking_for_it(self, arrange: Arrange) -> None:
        home = arrange()
        socket_path = home / "embedding.sock"
        with runed.connect(home=home) as client:
            assert repr(client) == f"<runed.Client on {socket_path}>"
            assert events(home) == []
            client.info()
            assert repr(client) == f"<runed.Client on {socket_path}, model fake>"
