"""Each side of a socket looks at the user of the other side. Nothing is sent to another user's process, or read from it.

The tests run as root, so they show as well that root is no user of somebody else's daemon.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from connectrpc.errors import ConnectError
from runed_proto.runed.v1.runed_connect import RunedServiceClient, RunedServiceClientSync
from runed_proto.runed.v1.runed_pb2 import EmbedRequest

import runed
import runed.testing
from runed.backends.engine.interface import ConnectionLostError
from runed.backends.llama.http import LlamaHTTP
from runed.backends.onnx.http import OnnxHTTP
from runed.errors import AlreadyRunningError, ForeignPathError
from runed.lifecycle.listener import Listener, dial, probe
from runed.log import REFUSALS_PAUSE
from runed.server.door import refusal_of_stranger
from tests.support import capture_logs, http_over
from tests.users import OTHER, Eavesdropper, answer_to_other, listening_as_other, needs_root, swapping_as_other

pytestmark = needs_root

REFUSED = rf"belongs to user id {OTHER}, and you are user id 0, so nothing was sent; .*RUNED_HOME"


@pytest.fixture
def eavesdropper(home: Path) -> Iterator[Eavesdropper]:
    """The other user, who listens at the home's socket."""
    with listening_as_other(home / "embedding.sock") as other:
        yield other
        heard = other.heard()
        assert heard
        assert set(heard) == {0}


@pytest.mark.usefixtures("eavesdropper")
class TestAnotherUserListens:
    @pytest.mark.parametrize("spawn", [True, False])
    def test_the_blocking_client_sends_nothing(self, home: Path, *, spawn: bool) -> None:
        with pytest.raises(ForeignPathError, match=REFUSED):
            runed.connect(home=home, spawn=spawn)

    async def test_the_client_for_asyncio_sends_nothing(self, home: Path) -> None:
        with pytest.raises(ForeignPathError, match=REFUSED):
            await runed.connect_async(home=home)

    async def test_generated_clients_send_nothing(self, home: Path) -> None:
        blocking = RunedServiceClientSync("http://runed", http_client=runed.http_client(home=home))
        with pytest.raises(ConnectError, match=REFUSED):
            blocking.embed(EmbedRequest(text="a"))
        awaited = RunedServiceClient("http://runed", http_client=runed.http_client_async(home=home))
        with pytest.raises(ConnectError, match=REFUSED):
            await awaited.embed(EmbedRequest(text="a"))

    def test_a_daemon_does_not_take_its_socket(self, home: Path) -> None:
        with pytest.raises((ForeignPathError, AlreadyRunningError)):
            Listener.bind(home / "embedding.sock")
        with pytest.raises(ForeignPathError, match=REFUSED):
            probe(home / "embedding.sock")

    @pytest.mark.parametrize("interface", [LlamaHTTP, OnnxHTTP])
    async def test_a_daemon_sends_no_text_to_its_engine(self, home: Path, interface: type[LlamaHTTP | OnnxHTTP]) -> None:
        http = interface(home / "embedding.sock", dim=3, max_tokens=10)
        with capture_logs() as log:
            try:
                assert not await http.healthy()
                with pytest.raises(ConnectionLostError) as caught:
                    await http.embed(["a"])
                assert caught.value.unreachable, "such an engine is replaced"
            finally:
                http.close()
        told = "another user's process listens on the engine's socket"
        assert [(line["event"], line["uid"]) for line in log] == [(told, OTHER)], "once, though it was tried twice"


def test_a_client_that_was_connected_before_sends_nothing() -> None:
    with runed.testing.daemon() as daemon, runed.connect(socket_path=daemon.socket) as client:
        client.embed("a")
        with listening_as_other(daemon.socket) as other:
            with pytest.raises(ForeignPathError, match=REFUSED):
                list(client.embed_stream([("a", "a")]))
            with pytest.raises(ForeignPathError, match=REFUSED):
                client.set_centroids([[1.0] * 8])
            heard = other.heard()
    assert heard == [0] * len(heard)
    assert heard


def test_a_directory_that_is_swapped_at_the_right_moment_brings_nothing(home: Path) -> None:
    """All clients in Python connect by `dial`."""
    directory, theirs = home / "d", home / "d.theirs"
    directory.mkdir(mode=0o700)
    theirs.mkdir()
    for each in (home, theirs):
        os.chown(each, OTHER, OTHER)
    home.chmod(0o755)
    served, refusals = 0, []
    with socket.socket(socket.AF_UNIX) as listener, listening_as_other(theirs / "s") as other:
        listener.bind(str(directory / "s"))
        listener.listen()
        listener.settimeout(5)
        with swapping_as_other(directory):
            for _ in range(2000):
                try:
                    with dial(directory / "s") as connection:
                        connection.sendall(b"secret")
                        listener.accept()[0].close()
                    served += 1
                except ForeignPathError as error:
                    refusals.append(str(error))
        if directory.stat().st_uid == OTHER:
            directory.rename(home / "d.ours")
            theirs.rename(directory)
            (home / "d.ours").rename(theirs)
        heard = other.heard()
    assert served > 0
    assert len(refusals) == len(heard) > 0
    assert set(heard) == {0}
    assert {f"belongs to user id {OTHER}" in refusal for refusal in refusals} == {True}


class TestAnotherUserConnects:
    @pytest.fixture
    def daemon(self) -> Iterator[runed.testing.DaemonDouble]:
        """A daemon whose user has opened the home and the socket to everybody."""
        with runed.testing.daemon() as daemon:
            daemon.home.chmod(0o777)
            daemon.socket.chmod(0o666)
            yield daemon

    def test_the_daemon_says_why_and_serves_its_user(self, daemon: runed.testing.DaemonDouble) -> None:
        head, _, body = answer_to_other(daemon.socket).partition("\r\n\r\n")
        assert head.startswith("HTTP/1.1 403 Forbidden\r\n")
        assert json.loads(body) == {
            "code": "permission_denied",
            "message": f"this daemon serves user id 0 alone, and you are user id {OTHER}; run this as that user",
        }
        assert daemon.calls == []
        with http_over(daemon.socket) as http:
            assert http.post("/runed.v1.RunedService/Health", json={}).status_code == 200

    async def test_the_log_tells_of_clients_that_come_again_and_again_once_a_second(self, home: Path) -> None:
        with Listener.bind(home / "s") as listener, capture_logs() as log, ThreadPoolExecutor() as pool:
            os.chmod(home, 0o777)  # noqa: PTH101 # a method of Path is taken for one that blocks
            os.chmod(home / "s", 0o666)  # noqa: PTH101 # as above
            answers = pool.map(answer_to_other, [home / "s"] * 3)
            for _ in range(3):
                connection, _ = listener.sock.accept()
                with connection:
                    connection.sendall(refusal_of_stranger(connection))
            assert all(answers)
            await asyncio.sleep(REFUSALS_PAUSE + 0.2)
        assert [(line["uid"], line.get("times")) for line in log] == [(OTHER, None), (OTHER, 2)]
