"""A client of streams over raw HTTP/2, in each protocol. It breaks off, stalls or stays silent as a test wants."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any, Self

from google.protobuf.json_format import MessageToJson, Parse
from google.protobuf.message import Message
from h2.settings import SettingCodes
from runed_proto.runed.v1 import runed_pb2 as pb

from tests.server.clients import SERVICE, TIMEOUT, RawClient
from tests.support import Refusal, refusal_of_json, refusal_of_trailers

PATH = f"{SERVICE}/EmbedStream"

CONTENT_TYPES = {
    "grpc": b"application/grpc+proto",
    "grpc-web": b"application/grpc-web+proto",
    "connect+proto": b"application/connect+proto",
    "connect+json": b"application/connect+json",
}
"""Content types of the protocols that have streams."""

_CONNECT_END, _GRPC_WEB_TRAILERS = 0x02, 0x80


def deadline_headers(protocol: str, milliseconds: int) -> dict[bytes, bytes]:
    """Return the header with which a protocol limits the time of a call."""
    if protocol.startswith("connect"):
        return {b"connect-timeout-ms": str(milliseconds).encode()}
    return {b"grpc-timeout": f"{milliseconds}m".encode()}


def request(*texts: str, **options: object) -> pb.EmbedStreamRequest:
    """Return a message with texts that are their own ids."""
    items = [pb.EmbedStreamItem(id=text, text=text) for text in texts]
    return pb.EmbedStreamRequest(items=items, **options)  # type: ignore[arg-type] # each test gives what the field takes


class StreamClient:
    """One stream on a connection of its own, by default a stream of EmbedStream."""

    def __init__(
        self, client: RawClient, protocol: str, headers: dict[bytes, bytes], method: str, output: type[Message]
    ) -> None:
        self.client = client
        self._protocol = protocol
        self._output = output
        self.stream_id = client.open(method.encode(), end=False, headers={b"content-type": CONTENT_TYPES[protocol]} | headers)
        self.exchange = client.exchanges[self.stream_id]

    @classmethod
    async def open(
        cls,
        path: Path,
        protocol: str = "grpc",
        *,
        headers: dict[bytes, bytes] | None = None,
        settings: dict[SettingCodes | int, int] | None = None,
        takes_bodies: bool = True,
        method: str = PATH,
        output: type[Message] = pb.EmbedStreamResponse,
    ) -> StreamClient:
        """Connect and begin a stream. A client that takes no bodies never opens its window again."""
        client = await RawClient.connect(path, settings=settings, takes_bodies=takes_bodies)
        return cls(client, protocol, headers or {}, method, output)

    async def __aenter__(self) -> Self:
        await self.client.flush()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.client.__aexit__()

    async def send(self, *messages: Message, end: bool = False) -> None:
        """Send messages, and the end of the client's side if `end` is true."""
        for message in messages:
            data = MessageToJson(message).encode() if self._protocol == "connect+json" else message.SerializeToString()
            await self.send_raw(data)
        if end:
            self.client.h2.end_stream(self.stream_id)
        await self.client.flush()

    async def send_raw(self, data: bytes) -> None:
        """Send bytes in the frame of a message."""
        frame = struct.pack(">BI", 0, len(data)) + data
        for start in range(0, len(frame), 16384):
            self.client.h2.send_data(self.stream_id, frame[start : start + 16384])
        await self.client.flush()

    async def results(self, count: int) -> dict[str, pb.EmbedResponse]:
        """Wait until `count` results are there, and return all results by id."""
        await self.client.until(lambda: self.exchange.over or len(self._results()) >= count)
        results = self._results()
        assert len(results) >= count, self.exchange
        return results

    async def received(self, count: int) -> list[Any]:
        """Wait until `count` messages are there, and return all messages."""
        await self.client.until(lambda: self.exchange.over or len(self._frames()) >= count)
        messages = self.messages()
        assert len(messages) >= count, self.exchange
        return messages

    async def outcome(self, *, within: float = TIMEOUT) -> Refusal | None:
        """Wait for the end, and return the error that the stream ended with, or None."""
        await self.client.over(self.stream_id, within=within)
        assert self.exchange.ended, self.exchange
        headers = {name.decode(): value.decode() for name, value in self.exchange.headers.items()}
        if self._protocol == "grpc":
            return refusal_of_trailers(headers)
        flags, payload = self._frames()[-1] if self.exchange.body else (0, b"")
        if self._protocol == "grpc-web":
            lines = payload.decode().splitlines() if flags & _GRPC_WEB_TRAILERS else []
            return refusal_of_trailers(headers | dict(line.split(": ", 1) for line in lines))
        assert flags & _CONNECT_END
        error = json.loads(payload).get("error")
        return refusal_of_json(error) if error else None

    def messages(self) -> list[Any]:
        """Return the complete messages that have arrived."""
        payloads = [payload for flags, payload in self._frames() if not flags]
        if self._protocol == "connect+json":
            return [Parse(payload, self._output()) for payload in payloads]
        return [self._output.FromString(payload) for payload in payloads]

    def _results(self) -> dict[str, pb.EmbedResponse]:
        return {result.id: result.embedding for message in self.messages() for result in message.results}

    def _frames(self) -> list[tuple[int, bytes]]:
        frames: list[tuple[int, bytes]] = []
        body = bytes(self.exchange.body)
        while len(body) >= 5:
            flags, length = struct.unpack(">BI", body[:5])
            if len(body) < 5 + length:
                break
            frames.append((flags, body[5 : 5 + length]))
            body = body[5 + length :]
        return frames
