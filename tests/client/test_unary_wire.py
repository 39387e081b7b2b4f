"""The exchange of single calls over one connection: requests to bytes, bytes to answers."""

from __future__ import annotations

import tracemalloc

import pytest

from runed.client.wire.unary import Answer, BrokenAnswerError, Exchange

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"


def asked() -> Exchange:
    exchange = Exchange()
    exchange.request("Embed", b"", None)
    return exchange


def test_request_has_its_length_and_its_time_limit() -> None:
    data = Exchange().request("Embed", b"a message", 1.5)
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert lines[0] == b"POST /runed.v1.RunedService/Embed HTTP/1.1"
    assert {b"host: runed", b"content-length: 9", b"connect-timeout-ms: 1500"} <= set(lines)
    assert body == b"a message"
    assert b"connect-timeout-ms" not in Exchange().request("Embed", b"", None)


@pytest.mark.parametrize("size", [1, 7, len(ANSWER)])
def test_answer_may_come_in_pieces_and_another_one_follow(size: int) -> None:
    exchange = Exchange()
    for _ in range(3):
        exchange.request("Embed", b"", None)
        pieces = [ANSWER[start : start + size] for start in range(0, len(ANSWER), size)]
        assert [exchange.receive(piece) for piece in pieces] == [None] * (len(pieces) - 1) + [Answer(200, b"hello")]
        assert exchange.can_go_on()


def test_nothing_of_an_answer_is_kept() -> None:
    size = 8 * 1024 * 1024
    exchange = asked()
    tracemalloc.start()
    try:
        answer = exchange.receive(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size + b"x" * size)
        assert answer is not None
        assert tracemalloc.get_traced_memory()[0] > size
        del answer
        assert tracemalloc.get_traced_memory()[0] < size / 4
    finally:
        tracemalloc.stop()
    assert exchange.can_go_on()


def test_chunked_answer_is_read() -> None:
    chunked = b"HTTP/1.1 503 \r\ntransfer-encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n"
    assert asked().receive(chunked) == Answer(503, b"hello")


def test_notice_of_an_answer_is_not_the_answer() -> None:
    exchange = asked()
    assert exchange.receive(b"HTTP/1.1 100 Continue\r\n\r\n") is None
    assert exchange.receive(ANSWER) == Answer(200, b"hello")
    assert exchange.can_go_on()


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(ANSWER.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"), id="the daemon closes"),
        pytest.param(ANSWER + ANSWER, id="a second answer"),
        pytest.param(ANSWER + b"HTTP/1.1 200", id="half a second answer"),
    ],
)
def test_connection_that_cannot_go_on_is_not_used_again(data: bytes) -> None:
    exchange = asked()
    assert exchange.receive(data) == Answer(200, b"hello")
    assert not exchange.can_go_on()


@pytest.mark.parametrize("data", [b"", b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 101 \r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"])
def test_end_and_anything_but_an_answer_break_the_call(data: bytes) -> None:
    with pytest.raises(BrokenAnswerError):
        asked().receive(data)


def test_end_amid_an_answer_breaks_the_call() -> None:
    exchange = asked()
    assert exchange.receive(ANSWER[:-1]) is None
    assert not exchange.can_go_on()
    with pytest.raises(BrokenAnswerError):
        exchange.receive(b"")
