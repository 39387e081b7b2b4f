"""Clients for the tests of the server: gRPC, and raw HTTP/2 that can break the rules."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import grpc
from google.protobuf.message import Message
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from h2.settings import SettingCodes
from hyperframe.frame import Frame, GoAwayFrame
from runed_proto.runed.v1 import runed_pb2 as pb

SERVICE = "/runed.v1.RunedService"
TIMEOUT = 3.0

_OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1), ("grpc.enable_retries", 0)]


class GrpcClient:
    """A gRPC client with its own connection."""

    def __init__(self, path: Path) -> None:
        # Without its own pool, a channel would share the connection of another channel to the same address.
        self.channel = grpc.aio.insecure_channel(f"unix:{path}", options=[*_OPTIONS, ("grpc.use_local_subchannel_pool", 1)])
        self.embed = self._unary("Embed", pb.EmbedResponse)
        self.embed_batch = self._unary("EmbedBatch", pb.EmbedBatchResponse)
        self.health = self._unary("Health", pb.HealthResponse)
        self.release = self._unary("Shutdown", pb.ShutdownResponse)
        self.set_centroids = self.channel.stream_unary(
            f"{SERVICE}/SetCentroids",
            request_serializer=pb.SetCentroidsRequest.SerializeToString,
            response_deserializer=pb.SetCentroidsResponse.FromString,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.channel.close()

    def _unary(self, method: str, response: type[Message]) -> Callable[..., Any]:
        call: Callable[..., Any] = self.channel.unary_unary(
            f"{SERVICE}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=response.FromString,
        )
        return call


@dataclass(slots=True)
class Exchange:
    """The response to one request.

    Attributes:
        headers: Its headers and trailers.
        body: Its body so far.
        ended: Whether it is complete.
        reset: The error code of a reset, or None.
    """

    headers: dict[bytes, bytes] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    ended: bool = False
    reset: int | None = None

    @property
    def over(self) -> bool:
        return self.ended or self.reset is not None

    @property
    def succeeded(self) -> bool:
        return self.ended and self.headers.get(b":status") == b"200" and self.headers.get(b"grpc-status") == b"0"


class _Protocol(H2Connection):
    """h2's connection, which can still open a stream after the server's GOAWAY, as if the two had crossed."""

    def _receive_goaway_frame(self, frame: GoAwayFrame) -> tuple[list[Frame], list[Event]]:
        event = ConnectionTerminated()
        event.error_code = frame.error_code
        event.last_stream_id = frame.last_stream_id
        return [], [event]


class RawClient:
    """An HTTP/2 client made of h2 alone. It does not check the frames that it sends."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, takes_bodies: bool) -> None:
        self.reader = reader
        self.writer = writer
        self.h2 = _Protocol(
            H2Configuration(client_side=True, validate_outbound_headers=False, normalize_outbound_headers=False)
        )
        self.exchanges: dict[int, Exchange] = {}
        self.events: list[Event] = []
        self.goaway: ConnectionTerminated | None = None
        self.ended = False
        self._takes_bodies = takes_bodies

    @classmethod
    async def connect(
        cls, path: Path, *, settings: dict[SettingCodes | int, int] | None = None, takes_bodies: bool = True
    ) -> RawClient:
        """Connect with the given settings. A client that takes no bodies never opens a window again."""
        client = cls(*await asyncio.open_unix_connection(path), takes_bodies=takes_bodies)
        client.h2.initiate_connection()
        if settings:
            client.h2.update_settings(settings)
        return client

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.writer.transport.abort()
        await asyncio.gather(self.writer.wait_closed(), return_exceptions=True)

    def open(
        self,
        path: bytes,
        body: bytes = b"",
        *,
        method: bytes = b"POST",
        end: bool = True,
        headers: Mapping[bytes, bytes] | None = None,
    ) -> int:
        """Send a request or its beginning, by default a gRPC one. `flush` puts it on the wire."""
        stream_id = self.h2.get_next_available_stream_id()
        pseudo = {b":method": method, b":scheme": b"http", b":path": path, b":authority": b"localhost"}
        own = {b"te": b"trailers", b"content-type": b"application/grpc+proto"} | dict(headers or {})
        self.exchanges[stream_id] = Exchange()
        self.h2.send_headers(stream_id, [*pseudo.items(), *own.items()], end_stream=end and not body)
        for start in range(0, len(body), 16384):
            self.h2.send_data(stream_id, body[start : start + 16384], end_stream=end and start + 16384 >= len(body))
        return stream_id

    def call(self, method: str, message: Message) -> int:
        """Send a complete unary call. `flush` puts it on the wire."""
        return self.open(f"{SERVICE}/{method}".encode(), envelope(message))

    async def flush(self) -> None:
        """Put the buffered frames on the wire."""
        self.writer.write(self.h2.data_to_send())
        await self.writer.drain()

    async def put(self, frame: Frame) -> None:
        """Put a frame on the wire without h2's knowledge, as if it had been sent earlier."""
        await self.flush()
        self.writer.write(frame.serialize())
        await self.writer.drain()

    async def until(self, condition: Callable[[], bool], *, within: float = TIMEOUT) -> bool:
        """Read until the condition holds, and return whether it does. The connection or the time may end before."""
        try:
            async with asyncio.timeout(within):
                await self.flush()
                while not condition() and not self.ended:
                    data = await self.reader.read(65536)
                    self.ended = not data
                    self._take(self.h2.receive_data(data) if data else [])
                    await self.flush()
        except TimeoutError:
            pass
        except ConnectionError:
            self.ended = True
        return condition()

    async def over(self, stream_id: int, *, within: float = TIMEOUT) -> Exchange:
        """Read until a request has been answered or reset, and return its response. The connection may end before."""
        exchange = self.exchanges[stream_id]
        await self.until(lambda: exchange.over, within=within)
        return exchange

    def _take(self, events: list[Event]) -> None:
        self.events += events
        for event in events:
            match event:
                case ResponseReceived() | TrailersReceived():
                    self.exchanges[event.stream_id].headers.update(event.headers)
                case DataReceived():
                    self.exchanges[event.stream_id].body += event.data
                    if self._takes_bodies:
                        self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                case StreamEnded():
                    self.exchanges[event.stream_id].ended = True
                case StreamReset():
                    self.exchanges[event.stream_id].reset = int(event.error_code)
                case ConnectionTerminated():
                    self.goaway = event
                case _:
                    pass


def stop_reading(writer: asyncio.StreamWriter) -> None:
    """Leave arriving bytes in the kernel's buffer."""
    transport = writer.transport
    assert isinstance(transport, asyncio.Transport)
    transport.pause_reading()


def envelope(message: Message) -> bytes:
    """Return a message in gRPC's frame."""
    data = message.SerializeToString()
    return struct.pack(">BI", 0, len(data)) + data
