"""Streams without a socket: the exchange over HTTP/2, and the whole flow against a daemon that fails at random."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import DataReceived, RequestReceived, StreamEnded, StreamReset
from h2.settings import SettingCodes, Settings
from hyperframe.frame import GoAwayFrame
from hypothesis import given, settings
from hypothesis import strategies as st
from runed_proto.runed.v1.runed_pb2 import (
    EmbedResponse,
    EmbedStreamItem,
    EmbedStreamRequest,
    EmbedStreamResponse,
    EmbedStreamResult,
    ItemError,
)

from runed import errors
from runed.client.calls import pending
from runed.client.calls.flows import Flows
from runed.client.calls.pending import PendingTexts
from runed.client.calls.steps import Connect, Ensure, Give, Outcome, Send, Sleep, Turn
from runed.client.calls.stream import stream_flow
from runed.client.options import Options
from runed.client.types import Embedding
from runed.client.wire.http2 import RECEIVE_WINDOW
from runed.client.wire.stream import MAX_MESSAGE, StreamExchange


def enveloped(message: bytes, flags: int = 0) -> bytes:
    return struct.pack(">BI", flags, len(message)) + message


class Peer:
    """The daemon's side of a connection, in memory.

    Args:
        window: The bytes that the client may send ahead.
    """

    def __init__(self, window: int = 65535) -> None:
        self.h2 = H2Connection(H2Configuration(client_side=False))
        self.h2.local_settings = Settings(client=False, initial_values={SettingCodes.INITIAL_WINDOW_SIZE: window})
        self.h2.initiate_connection()
        self.headers: dict[bytes, bytes] = {}
        self.body = bytearray()
        self.unread = 0
        self.ended = False
        self.reset = False

    def receive(self, data: bytes) -> None:
        for event in self.h2.receive_data(data):
            match event:
                case RequestReceived():
                    self.headers = dict(event.headers)
                case DataReceived():
                    self.body += event.data
                    self.unread += event.flow_controlled_length
                case StreamEnded():
                    self.ended = True
                case StreamReset():
                    self.reset = True

    def read(self) -> bytes:
        """Return the bytes that the client sent, and open its window again."""
        self.h2.acknowledge_received_data(self.unread, 1)
        self.unread = 0
        data, self.body = bytes(self.body), bytearray()
        return data

    def messages(self) -> list[bytes]:
        """Return the complete messages that the client sent, and open its window again."""
        body = self.body
        messages = []
        while len(body) >= 5 and len(body) >= (end := 5 + int.from_bytes(body[1:5], "big")):
            messages.append(bytes(body[5:end]))
            del body[:end]
        self.h2.acknowledge_received_data(self.unread, 1)
        self.unread = 0
        return messages

    def respond(self, data: bytes, *, status: str = "200", end: bool = False) -> None:
        self.h2.send_headers(1, [(":status", status)])
        self.send(data, end=end)

    def send(self, data: bytes, *, end: bool = False) -> None:
        for start in range(0, len(data), 16384):
            self.h2.send_data(1, data[start : start + 16384])
        if end:
            self.h2.end_stream(1)


def pair(window: int = 65535) -> tuple[StreamExchange, Peer]:
    exchange, peer = StreamExchange("EmbedStream"), Peer(window)
    peer.receive(exchange.output())
    exchange.receive(peer.h2.data_to_send())
    return exchange, peer


class TestExchange:
    """Messages in envelopes, both ways, within the windows."""

    def test_the_request_is_one_of_connect(self) -> None:
        exchange, peer = pair()
        exchange.send(b"hello")
        exchange.end()
        peer.receive(exchange.output())
        assert peer.headers[b":path"] == b"/runed.v1.RunedService/EmbedStream"
        assert peer.headers[b"content-type"] == b"application/connect+proto"
        assert peer.read() == enveloped(b"hello")
        assert peer.ended

    def test_no_more_is_sent_than_the_daemon_has_room_for(self) -> None:
        exchange, peer = pair(window=1000)
        message = random.Random(1).randbytes(5000)
        exchange.send(message)
        exchange.send(b"next")
        exchange.end()
        received = b""
        rounds = 0
        while not peer.ended:
            # One byte too many would be an error of the peer's h2.
            peer.receive(exchange.output())
            assert len(peer.body) <= 1000
            assert exchange.blocked != peer.ended
            received += peer.read()
            exchange.receive(peer.h2.data_to_send())
            rounds += 1
        assert received == enveloped(message) + enveloped(b"next")
        assert rounds >= 6

    def test_a_window_that_the_daemon_shrinks_below_what_is_in_flight(self) -> None:
        exchange, peer = pair(window=1000)
        exchange.send(b"x" * 800)
        peer.receive(exchange.output())
        peer.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 100})
        exchange.receive(peer.h2.data_to_send())
        exchange.send(b"y" * 500)
        assert exchange.blocked
        received = b""
        while len(received) < 805 + 505:
            peer.receive(exchange.output())
            received += peer.read()
            exchange.receive(peer.h2.data_to_send())
        assert not exchange.blocked

    def test_messages_are_put_together_from_any_pieces(self) -> None:
        exchange, peer = pair()
        messages = [b"", b"a", b"b" * 40_000]
        peer.respond(b"".join(map(enveloped, messages)))
        data = peer.h2.data_to_send()
        received: list[bytes] = []
        for start in range(0, len(data), 7):
            received += exchange.receive(data[start : start + 7])
        assert received == messages
        assert exchange.failure is None

    def test_the_daemon_may_go_on_sending_as_what_came_is_acknowledged(self) -> None:
        exchange, peer = pair()
        peer.receive(exchange.output())
        peer.respond(b"")
        total = 0
        while total < 5 * RECEIVE_WINDOW:
            assert peer.h2.local_flow_control_window(1) >= 16384
            peer.send(enveloped(b"x" * 16000))
            total += sum(map(len, exchange.receive(peer.h2.data_to_send())))
            peer.receive(exchange.output())

    def test_the_end_of_the_stream(self) -> None:
        exchange, peer = pair()
        peer.respond(enveloped(b"last") + enveloped(b"{}", 2), end=True)
        assert exchange.receive(peer.h2.data_to_send()) == [b"last"]
        assert exchange.ended
        assert exchange.failure is None
        assert exchange.receive(b"") == []
        assert exchange.failure is None, "the connection may end after the stream"

    def test_an_error_comes_after_the_messages_before_it(self) -> None:
        exchange, peer = pair()
        error = {"error": {"code": "unavailable", "message": "later"}}
        peer.respond(enveloped(b"last") + enveloped(json.dumps(error).encode(), 2), end=True)
        assert exchange.receive(peer.h2.data_to_send()) == [b"last"]
        assert isinstance(exchange.failure, errors.BackendUnavailableError)
        assert exchange.failure.message == "later"

    def test_an_error_before_the_stream(self) -> None:
        exchange, peer = pair()
        peer.respond(b'{"code": "unimplemented", "message": "no such method"}', status="404", end=True)
        exchange.receive(peer.h2.data_to_send())
        assert isinstance(exchange.failure, errors.UnimplementedError)

    @pytest.mark.parametrize(
        "answer",
        [
            enveloped(b"compressed", 1),
            enveloped(b"no flag of ours", 128),
            struct.pack(">BI", 0, MAX_MESSAGE + 1),
            enveloped(b"no JSON", 2),
            enveloped(b"[]", 2),
            enveloped(b'{"error": "oops"}', 2),
        ],
    )
    def test_what_is_not_of_runed(self, answer: bytes) -> None:
        exchange, peer = pair()
        peer.respond(answer)
        exchange.receive(peer.h2.data_to_send())
        assert exchange.failure is not None
        assert "no message of runed" in exchange.failure.message

    def test_what_is_not_http2(self) -> None:
        exchange = StreamExchange("EmbedStream")
        exchange.receive(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        assert exchange.failure is not None
        assert "not HTTP/2" in exchange.failure.message

    @pytest.mark.parametrize("code", [ErrorCodes.CANCEL, ErrorCodes.REFUSED_STREAM])
    def test_a_reset_may_pass(self, code: ErrorCodes) -> None:
        exchange, peer = pair(window=10)
        exchange.send(b"x" * 100)
        peer.h2.reset_stream(1, code)
        exchange.receive(peer.h2.data_to_send())
        assert isinstance(exchange.failure, errors.DaemonUnavailableError)
        exchange.send(b"too late")
        exchange.end()
        exchange.reset()

    def test_an_end_without_the_last_envelope_is_none(self) -> None:
        exchange, peer = pair()
        peer.respond(enveloped(b"a"), end=True)
        assert exchange.receive(peer.h2.data_to_send()) == [b"a"]
        assert isinstance(exchange.failure, errors.DaemonUnavailableError)

    def test_a_daemon_that_drains_still_answers(self) -> None:
        exchange, peer = pair()
        exchange.send(b"question")
        peer.receive(exchange.output())
        exchange.receive(GoAwayFrame(last_stream_id=1).serialize())
        assert exchange.draining
        exchange.end()
        peer.receive(exchange.output())
        assert peer.ended
        peer.respond(enveloped(b"answer") + enveloped(b"{}", 2), end=True)
        assert exchange.receive(peer.h2.data_to_send()) == [b"answer"]
        assert exchange.ended
        assert exchange.failure is None

    def test_giving_up_resets(self) -> None:
        exchange, peer = pair()
        exchange.send(b"x")
        exchange.reset()
        peer.receive(exchange.output())
        assert peer.reset


class Daemon:
    """A daemon in memory that answers out of order, and breaks off at random.

    Args:
        chance: The source of randomness.
        trouble: The probability that something goes wrong, 0 to 1.
    """

    def __init__(self, chance: random.Random, trouble: float) -> None:
        self.chance = chance
        self._trouble = trouble
        self.open = 0

    def connect(self, exchange: StreamExchange) -> Line:
        self.open += 1
        return Line(exchange, self)

    def goes_wrong(self, share: float) -> bool:
        return self.chance.random() < self._trouble * share

    def some(self, most: int) -> int:
        return self.chance.randint(0, most)


class Line:
    """A connection to the daemon."""

    def __init__(self, exchange: StreamExchange, daemon: Daemon) -> None:
        self.exchange = exchange
        self._daemon = daemon
        self._peer = Peer(window=2000)
        self._waiting: list[EmbedStreamItem] = []
        self._begun = self._over = self._closed = False
        self._unread = b""

    def turn(self) -> bytes | None:
        """Let the daemon go on, and return some of the bytes that it sent."""
        if not self._over:
            self._go_on()
            self._unread += self._peer.h2.data_to_send()
        if self._unread:
            size = 1 + self._daemon.some(len(self._unread) - 1)
            data, self._unread = self._unread[:size], self._unread[size:]
            return data
        return b"" if self._over else None

    def close(self) -> None:
        assert not self._closed
        self._closed = True
        self._daemon.open -= 1

    def _go_on(self) -> None:
        peer, daemon = self._peer, self._daemon
        peer.receive(self.exchange.output())
        for message in peer.messages():
            self._waiting += EmbedStreamRequest.FromString(message).items
        if daemon.goes_wrong(0.3):
            # Killed: everything not sent is lost, and a part of the bytes sent.
            self._unread += peer.h2.data_to_send()
            self._unread = self._unread[: daemon.some(len(self._unread))]
            self._over = True
            return
        if not self._begun:
            peer.respond(b"")
            self._begun = True
        daemon.chance.shuffle(self._waiting)
        count = daemon.some(len(self._waiting)) if daemon.some(3) == 0 else 0
        now, self._waiting = self._waiting[:count], self._waiting[count:]
        response = EmbedStreamResponse(results=[self._result(item) for item in now], fingerprint="space")
        if now and peer.h2.local_flow_control_window(1) > 60_000:
            peer.send(enveloped(response.SerializeToString()))
        elif now:
            self._waiting += now
        if daemon.goes_wrong(0.1):
            peer.h2.reset_stream(1, ErrorCodes.CANCEL)
            self._over = True
        elif peer.ended and not self._waiting:
            peer.send(enveloped(b"{}", 2), end=True)
            self._over = True

    def _result(self, item: EmbedStreamItem) -> EmbedStreamResult:
        if self._daemon.goes_wrong(0.2):
            return EmbedStreamResult(id=item.id, embedding=EmbedResponse(error=ItemError(reason="BACKEND_UNAVAILABLE")))
        if item.text.startswith("bad"):
            return EmbedStreamResult(id=item.id, embedding=EmbedResponse(error=ItemError(reason="TEXT_TOO_LONG")))
        return EmbedStreamResult(id=item.id, embedding=EmbedResponse(vector=[float(item.text)]))


def run(daemon: Daemon, items: Iterator[tuple[int, str]]) -> Iterator[tuple[int, Outcome]]:
    """Run the steps of a stream without waiting."""
    job, flow = stream_flow(Flows(spawn=True, on_progress=None), Options(), None)
    result: Any = None
    try:
        while True:
            try:
                step = flow.send(result)
            except StopIteration:
                return
            result = None
            match step:
                case Give(results=results):
                    yield from results
                case Connect(exchange=exchange):
                    result = daemon.connect(exchange)
                case Turn(connection=connection):
                    result = connection.turn() if isinstance(connection, Line) else None
                    feed(job, items, daemon.some(30) if isinstance(connection, Line) else 1)
                case Send(response_type=response_type):
                    result = response_type(max_request_bytes=5000)
                case Ensure():
                    result = False
                case Sleep():
                    pass
    finally:
        flow.close()


def feed(job: PendingTexts[int], items: Iterator[tuple[int, str]], count: int) -> None:
    for _ in range(count):
        if job.has_room:
            try:
                job.add(next(items))
            except StopIteration:
                job.source_ended = True


@pytest.mark.slow
@given(
    st.sampled_from([0, 1, 5, 100, 200]),
    st.sampled_from([0.0, 0.02, 0.1, 0.3]),
    st.sampled_from([700, pending.MAX_BYTES]),
    st.integers(0, 2**32),
)
@settings(deadline=None, max_examples=150)
def test_each_text_has_exactly_one_outcome_whatever_happens(count: int, trouble: float, max_bytes: int, seed: int) -> None:
    """Ids are not unique. The daemon refuses some texts, the client others. Connections break at any point."""
    chance = random.Random(seed)
    daemon = Daemon(chance, trouble)
    items = [(chance.randrange(10), chance.choice(["1", "2", "1", "2", "1", "bad", "huge", "\ud800"])) for _ in range(count)]
    taken = 0

    def source() -> Iterator[tuple[int, str]]:
        nonlocal taken
        for key, text in items:
            taken += 1
            yield key, "3" * 6000 if text == "huge" else text

    expected = [(key, text if text in "12" else CLASSES[text]) for key, text in items]
    given_back: list[tuple[int, object]] = []
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pending, "MAX_TEXTS", 20)
            patch.setattr(pending, "MAX_BYTES", max_bytes)
            patch.setattr(pending, "MESSAGE_TEXTS", 6)
            for key, outcome in run(daemon, source()):
                made = f"{outcome.vector[0]:.0f}" if isinstance(outcome, Embedding) else type(outcome)
                given_back.append((key, made))
                assert taken - len(given_back) <= 20 + 6
    except errors.DaemonUnavailableError:
        assert trouble, "only a daemon that fails again and again ends the stream"
    else:
        assert len(given_back) == len(items)
    assert daemon.open == 0
    # A text may have a temporary error as its outcome. If several texts have its id, only the end shows which one it was.
    for result in sorted(given_back, key=lambda result: result[1] is errors.BackendUnavailableError):
        if result in expected:
            expected.remove(result)
        else:
            assert result[1] is errors.BackendUnavailableError
            assert trouble
            expected.remove(next(each for each in expected if each[0] == result[0] and each[1] in ("1", "2", CLASSES["bad"])))


CLASSES = {"bad": errors.TextTooLongError, "huge": errors.RequestTooLargeError, "\ud800": errors.InvalidTextError}
