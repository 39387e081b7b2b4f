"""A thread that reads a large message leaves the event loop time for others."""

from __future__ import annotations

import asyncio
import json
from functools import partial

import pytest
from runed_proto.runed.v1 import runed_pb2 as pb

from runed.api.large import beside_the_loop
from runed.api.rpc.decoding import decode

CHARACTERS = {"two bytes": "\u00e9", "three bytes": "\u4e16", "four bytes": "\U0001f600", "escapes": "\\u4e16"}


@pytest.mark.parametrize("character", CHARACTERS.values(), ids=CHARACTERS)
async def test_the_event_loop_has_many_rounds_while_a_large_text_is_read(character: str) -> None:
    body = f'{{"text":"{character * (20 * 2**20 // len(character.encode()))}"}}'.encode()
    reading = asyncio.ensure_future(beside_the_loop(partial(decode, body, pb.EmbedRequest, "json"), len(body)))
    rounds = 0
    while not reading.done():
        rounds += 1
        await asyncio.sleep(0.0001)  # the loop asks the kernel, and then waits for the interpreter
    decoded = await reading
    assert isinstance(decoded.message, pb.EmbedRequest)
    assert decoded.message.text == json.loads(body)["text"]
    assert rounds > 50
