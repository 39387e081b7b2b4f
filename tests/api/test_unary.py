"""Ordinary calls with one message take a way of their own; all others, and all errors, are left to the RPC library."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from runed_proto.runed.v1 import runed_pb2 as pb

from tests.api.conftest import Served
from tests.server.clients import SERVICE, RawClient, envelope
from tests.support import http_over

MESSAGE = pb.EmbedRequest(text="some text").SerializeToString()


@pytest.mark.parametrize("kind", ["application/proto", "application/json"])
async def test_answer_tells_its_length_and_no_encoding(kind: str, served: Served) -> None:
    def ask() -> httpx.Response:
        with http_over(served.path) as http:
            body = b'{"text": "some text"}' if kind.endswith("json") else MESSAGE
            return http.post(f"{SERVICE}/Embed", content=body, headers={"content-type": kind})

    response = await asyncio.to_thread(ask)
    assert response.status_code == 200
    assert response.headers["content-type"] == kind
    assert int(response.headers["content-length"]) == len(response.content)
    assert "transfer-encoding" not in response.headers
    assert "content-encoding" not in response.headers


@pytest.mark.parametrize("body", [b"", envelope(pb.EmbedRequest(text="a")) * 2], ids=["none", "two"])
async def test_other_numbers_of_messages_are_refused_by_the_library(body: bytes, served: Served) -> None:
    async with await RawClient.connect(served.path) as client:
        refused = await client.over(client.open(f"{SERVICE}/Embed".encode(), body))
        assert refused.headers[b"grpc-status"] == b"12"
        again = await client.over(client.open(f"{SERVICE}/Embed".encode(), envelope(pb.EmbedRequest(text="a"))))
        assert again.succeeded


async def test_a_deadline_covers_the_reading_of_the_message(served: Served) -> None:
    reader, writer = await asyncio.open_unix_connection(served.path)
    head = f"POST {SERVICE}/Embed HTTP/1.1\r\nhost: a\r\ncontent-type: application/proto\r\nconnect-timeout-ms: 200\r\n"
    writer.write(head.encode() + b"content-length: 100\r\n\r\n" + MESSAGE)
    answer = await asyncio.wait_for(reader.readuntil(b"}]}"), 5)
    writer.close()
    assert answer.startswith(b"HTTP/1.1 504")
    assert b"deadline_exceeded" in answer
