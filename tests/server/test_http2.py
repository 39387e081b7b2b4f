"""HTTP/2: one request or one peer must not disturb the others."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from h2.errors import ErrorCodes
from h2.events import PingAckReceived
from h2.settings import SettingCodes
from hyperframe.frame import ContinuationFrame, DataFrame, Frame, HeadersFrame, PingFrame, RstStreamFrame, SettingsFrame
from runed_proto.runed.v1 import runed_pb2 as pb

from runed.server.http2 import PREFACE
from tests.server.app import FAIL, IGNORE, SECRET, WAIT, Servicer
from tests.server.clients import SERVICE, GrpcClient, RawClient, envelope, stop_reading
from tests.server.conftest import Serve
from tests.support import eventually

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

SET_CENTROIDS = f"{SERVICE}/SetCentroids".encode()


async def test_every_connection_has_its_own_number(path: Path, serve: Serve, servicer: Servicer) -> None:
    async with serve(servicer), GrpcClient(path) as first, GrpcClient(path) as second:
        for client in (first, second, first):
            await client.embed(pb.EmbedRequest(text="hello"))
    assert list(servicer.clients) == ["unix:1", "unix:2", "unix:1"]


async def test_responses_of_32_mib_pass_a_window_of_64_kib(path: Path, serve: Serve, servicer: Servicer) -> None:
    async with serve(servicer), await RawClient.connect(path) as client:
        large = client.call("EmbedBatch", pb.EmbedBatchRequest(texts=["x"] * 8192))
        exchange = await client.over(large, within=30)
    assert exchange.succeeded
    response = pb.EmbedBatchResponse.FromString(bytes(exchange.body[5:]))
    assert len(response.embeddings) == 8192


async def test_requests_of_32_mib_arrive_whole(path: Path, serve: Serve, servicer: Servicer) -> None:
    async with serve(servicer), GrpcClient(path) as client:
        response = await client.embed_batch(pb.EmbedBatchRequest(texts=["x" * (16 * 1024 * 1024)] * 2), timeout=30)
    assert len(response.embeddings) == 2


@pytest.mark.parametrize("kind", ["header block", "frame"])
async def test_a_frame_that_trickles_ends_its_connection(kind: str, path: Path, serve: Serve, servicer: Servicer) -> None:
    begin, piece = HeadersFrame(1, b"\x83\x86").serialize(), ContinuationFrame(1).serialize()
    if kind == "frame":
        begin, piece = DataFrame(1, b"x" * 10_000).serialize()[:9], b"x"
    async with serve(servicer, stall_timeout=1.0), await RawClient.connect(path) as client, GrpcClient(path) as other:
        await client.flush()
        await client.over(client.call("Embed", pb.EmbedRequest(text="hello")))
        client.writer.write(begin)
        reading = asyncio.create_task(client.reader.read())
        async with asyncio.timeout(10):
            while not reading.done():
                client.writer.write(piece)
                await asyncio.sleep(0.02)
        await other.embed(pb.EmbedRequest(text="hello"))


async def test_oversize_request_is_refused_alone(path: Path, serve: Serve, servicer: Servicer) -> None:
    async with serve(servicer), GrpcClient(path) as client:
        in_flight = client.embed(pb.EmbedRequest(text=WAIT), timeout=20)
        await eventually(lambda: servicer.waiting == 1)
        oversize = client.embed(pb.EmbedRequest(text="x" * (40 * 1024 * 1024)), timeout=20)
        assert await oversize.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        servicer.let_go()
        assert await in_flight.code() is grpc.StatusCode.OK


async def test_client_whose_request_is_answered_early_is_told_to_stop(path: Path, serve: Serve, servicer: Servicer) -> None:
    async with serve(servicer, stall_timeout=0.3), await RawClient.connect(path) as client:
        early = client.exchanges[client.open(b"/no.such.Service/Method", end=False)]
        assert await client.until(lambda: early.ended and early.reset is not None)
        assert early.reset == ErrorCodes.NO_ERROR


async def test_request_that_is_answered_early_may_be_sent_to_its_end(path: Path, serve: Serve, servicer: Servicer) -> None:
    async with serve(servicer), await RawClient.connect(path) as client:
        stream = client.open(b"/no.such.Service/Method", end=False)
        early = client.exchanges[stream]
        assert await client.until(lambda: early.ended)
        for _ in range(40):  # more than the window of a stream
            assert await client.until(lambda: client.h2.local_flow_control_window(stream) >= 16_000)
            client.h2.send_data(stream, bytes(16_000))
        client.h2.end_stream(stream)
        assert (await client.over(client.call("Info", pb.InfoRequest()))).succeeded
        assert early.reset is None


async def test_streams_that_are_answered_early_are_bounded(path: Path, serve: Serve, servicer: Servicer) -> None:
    async with serve(servicer, max_streams=8), await RawClient.connect(path) as client:
        early = [client.exchanges[client.open(b"/no.such.Service/Method", end=False)] for _ in range(3)]
        assert await client.until(lambda: all(it.ended for it in early) and early[0].reset is not None)
        assert [it.reset for it in early] == [ErrorCodes.NO_ERROR, None, None]


async def test_body_that_was_under_way_when_it_was_refused_ends_no_other_call(
    path: Path, serve: Serve, servicer: Servicer
) -> None:
    async with serve(servicer, stall_timeout=0.3), await RawClient.connect(path) as client:
        in_flight = client.call("Embed", pb.EmbedRequest(text=WAIT))
        refused = client.open(b"/no.such.Service/Method", end=False)
        assert await client.until(lambda: client.exchanges[refused].reset is not None and servicer.waiting == 1)
        assert (await client.over(client.call("Info", pb.InfoRequest()))).succeeded  # h2 forgets closed streams at a new one
        client.writer.write(DataFrame(refused, bytes(16_000)).serialize() * 16)  # the whole window of a stream
        assert (await client.over(client.call("Info", pb.InfoRequest()))).succeeded
        servicer.let_go()
        assert (await client.over(in_flight)).succeeded


async def test_bodies_that_nobody_reads_do_not_use_up_the_connection(path: Path, serve: Serve, servicer: Servicer) -> None:
    header = envelope(pb.SetCentroidsRequest(header=pb.CentroidSetHeader(preset=IGNORE)))
    async with serve(servicer, max_streams=4) as server, await RawClient.connect(path) as client:
        assert (await client.over(client.call("Info", pb.InfoRequest()))).succeeded
        [connection] = server._connections.values()
        for _ in range(20):  # each takes a fifth of the connection's window
            stream = client.open(SET_CENTROIDS, header, end=False)
            await client.flush()
            await eventually(lambda: servicer.waiting == 1)
            for _ in range(20):
                client.h2.send_data(stream, bytes(10_000), pad_length=255)
                await client.flush()
            client.h2.reset_stream(stream, ErrorCodes.CANCEL)
            assert await client.until(lambda: client.h2.outbound_flow_control_window > 500_000)
            servicer.let_go()
            await eventually(lambda: connection.idle)


async def test_small_answer_is_not_behind_a_large_one(path: Path, serve: Serve, servicer: Servicer) -> None:
    async with serve(servicer), await RawClient.connect(path, settings={SettingCodes.INITIAL_WINDOW_SIZE: 2**30}) as client:
        client.h2.increment_flow_control_window(2**30)
        large = client.call("EmbedBatch", pb.EmbedBatchRequest(texts=["x"] * 8192))
        assert await client.until(lambda: len(client.exchanges[large].body) > 0)
        small = client.call("Info", pb.InfoRequest())
        assert (await client.over(small)).succeeded
        assert not client.exchanges[large].ended
        assert (await client.over(large, within=30)).succeeded


async def test_handler_waits_for_the_window_and_holds_no_second_copy(path: Path, serve: Serve) -> None:
    sent = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal sent
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(100):
            await send({"type": "http.response.body", "body": bytes(1024), "more_body": True})
            sent += 1

    settings: dict[SettingCodes | int, int] = {SettingCodes.INITIAL_WINDOW_SIZE: 10 * 1024}
    async with serve(app), await RawClient.connect(path, settings=settings, takes_bodies=False) as client:
        stream = client.open(b"/")
        assert await client.until(lambda: len(client.exchanges[stream].body) == 10 * 1024)
        assert sent == 10
        client.h2.increment_flow_control_window(5 * 1024, stream)
        assert await client.until(lambda: len(client.exchanges[stream].body) == 15 * 1024)
        assert sent == 15


async def test_client_that_takes_nothing_cannot_hold_a_response_for_ever(path: Path, serve: Serve, servicer: Servicer) -> None:
    settings: dict[SettingCodes | int, int] = {SettingCodes.INITIAL_WINDOW_SIZE: 0}
    async with serve(servicer, stall_timeout=0.3), await RawClient.connect(path, settings=settings) as client:
        stalled = client.call("EmbedBatch", pb.EmbedBatchRequest(texts=["x"] * 64))
        assert (await client.over(stalled)).reset == ErrorCodes.CANCEL


async def test_client_that_sends_nothing_cannot_hold_a_request_for_ever(path: Path, serve: Serve, servicer: Servicer) -> None:
    async with serve(servicer, stall_timeout=0.3), await RawClient.connect(path) as client:
        stalled = client.open(SET_CENTROIDS, b"\0\0", end=False)
        assert (await client.over(stalled)).reset == ErrorCodes.CANCEL
        assert (await client.over(client.call("Info", pb.InfoRequest()))).succeeded


async def test_conversation_may_pause(path: Path, serve: Serve) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        disconnected = scope["extensions"]["runed.duplex"]["begin"]()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            message = await receive()
            await send({"type": "http.response.body", "body": message["body"], "more_body": message["more_body"]})
            if not message["more_body"]:
                break
        assert not disconnected.is_set()

    async with serve(app, stall_timeout=0.1, head_timeout=0.1), await RawClient.connect(path) as client:
        stream = client.open(b"/", b"first", end=False)
        exchange = client.exchanges[stream]
        assert await client.until(lambda: exchange.body == b"first")
        await asyncio.sleep(0.3)
        client.h2.send_data(stream, b", last", end_stream=True)
        await client.over(stream)
        assert (exchange.ended, bytes(exchange.body)) == (True, b"first, last")


@pytest.mark.parametrize("how", ["reset", "lost connection", "takes nothing"])
async def test_conversation_learns_that_its_client_has_gone_though_it_does_not_read(path: Path, serve: Serve, how: str) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        disconnected: asyncio.Event = scope["extensions"]["runed.duplex"]["begin"]()
        begun.set()
        if how == "takes nothing":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": bytes(1000), "more_body": True})
        await disconnected.wait()
        ended.set()

    settings: dict[SettingCodes | int, int] = {SettingCodes.INITIAL_WINDOW_SIZE: 0}
    async with serve(app, stall_timeout=0.2), await RawClient.connect(path, settings=settings) as client:
        stream = client.open(b"/", bytes(10_000), end=False)
        await client.flush()
        await asyncio.wait_for(begun.wait(), 3)
        if how == "reset":
            client.h2.reset_stream(stream, ErrorCodes.CANCEL)
            await client.flush()
        elif how == "lost connection":
            client.writer.close()
        await asyncio.wait_for(ended.wait(), 3)


async def test_client_that_reads_nothing_is_cut_off(path: Path, serve: Serve, servicer: Servicer) -> None:
    settings: dict[SettingCodes | int, int] = {SettingCodes.INITIAL_WINDOW_SIZE: 2**30}
    async with serve(servicer, stall_timeout=0.3) as server, await RawClient.connect(path, settings=settings) as client:
        client.h2.increment_flow_control_window(2**30)
        client.call("EmbedBatch", pb.EmbedBatchRequest(texts=["x"] * 8192))
        stop_reading(client.writer)
        await client.flush()
        await eventually(lambda: len(server._connections) == 1)
        await eventually(lambda: not server._connections)


async def test_slow_handler_is_no_stalled_client(path: Path, serve: Serve, servicer: Servicer) -> None:
    async with serve(servicer, stall_timeout=0.1, head_timeout=0.1), GrpcClient(path) as client:
        call = client.embed(pb.EmbedRequest(text=WAIT), timeout=10)
        await eventually(lambda: servicer.waiting == 1)
        await asyncio.sleep(0.5)
        servicer.let_go()
        assert await call.code() is grpc.StatusCode.OK


async def test_body_that_nobody_reads_is_held_within_its_window(path: Path, serve: Serve, servicer: Servicer) -> None:
    async with serve(servicer) as server, await RawClient.connect(path) as client:
        header = pb.SetCentroidsRequest(header=pb.CentroidSetHeader(preset=IGNORE))
        stream = client.open(SET_CENTROIDS, envelope(header), end=False)
        await client.flush()
        await eventually(lambda: servicer.waiting == 1)
        await client.until(lambda: client.h2.local_flow_control_window(stream) > 100_000)
        while window := client.h2.local_flow_control_window(stream):
            client.h2.send_data(stream, bytes(min(window, 1000)))
            await client.flush()
        await client.put(DataFrame(stream))  # costs no window
        assert (await client.over(client.call("Info", pb.InfoRequest()))).succeeded
        assert client.h2.local_flow_control_window(stream) == 0
        (connection,) = server._connections.values()
        held = connection._protocol.streams[stream]._body  # type: ignore[union-attr] # it is HTTP/2
        assert len(held) <= 256 * 1024


async def test_reset_reaches_the_handler(path: Path, serve: Serve, servicer: Servicer) -> None:
    async with serve(servicer), await RawClient.connect(path) as client:
        call = client.call("Embed", pb.EmbedRequest(text=WAIT))
        await client.flush()
        await eventually(lambda: servicer.waiting == 1)
        client.h2.reset_stream(call, ErrorCodes.CANCEL)
        await client.flush()
        await eventually(lambda: servicer.cancelled == 1)
        assert (await client.over(client.call("Info", pb.InfoRequest()))).succeeded


async def test_lost_connection_reaches_all_its_handlers(path: Path, serve: Serve, servicer: Servicer) -> None:
    async with serve(servicer) as server:
        async with await RawClient.connect(path) as client:
            for _ in range(10):
                client.call("Embed", pb.EmbedRequest(text=WAIT))
            client.open(SET_CENTROIDS, b"\0", end=False)
            await client.flush()
            await eventually(lambda: servicer.waiting == 10)
        await eventually(lambda: servicer.cancelled == 10)
        await eventually(lambda: not server._connections)


async def test_failing_handler_ends_its_own_call_and_logs_no_text(
    path: Path, serve: Serve, servicer: Servicer, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with serve(servicer), GrpcClient(path) as client:
        in_flight = client.embed(pb.EmbedRequest(text=WAIT), timeout=10)
        await eventually(lambda: servicer.waiting == 1)
        assert await client.embed(pb.EmbedRequest(text=FAIL), timeout=10).code() is grpc.StatusCode.UNKNOWN
        servicer.let_go()
        assert await in_flight.code() is grpc.StatusCode.OK
    facts = [getattr(record, "facts", "") for record in caplog.records]
    logged = "".join(capsys.readouterr()) + caplog.text + str(facts)
    assert "RuntimeError" in logged
    assert SECRET not in logged


@pytest.mark.parametrize(
    ("before_failing", "outcome"),
    [
        pytest.param([], {b":status": b"500"}, id="before its answer"),
        pytest.param([{"type": "http.response.start", "status": 200, "headers": []}], ErrorCodes.INTERNAL_ERROR, id="amid it"),
    ],
)
async def test_app_that_raises_ends_its_own_stream(
    path: Path, serve: Serve, before_failing: list[dict[str, Any]], outcome: dict[bytes, bytes] | ErrorCodes
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in before_failing:
            await send(message)
        raise RuntimeError(SECRET)

    async with serve(app), await RawClient.connect(path) as client:
        for _ in range(3):
            exchange = await client.over(client.open(b"/"))
            if isinstance(outcome, ErrorCodes):
                assert exchange.reset == outcome
            else:
                assert exchange.ended
                assert exchange.headers.items() >= outcome.items()


async def test_malformed_request_that_was_taken_back_at_once_hurts_nobody(path: Path, serve: Serve, servicer: Servicer) -> None:
    async with serve(servicer), await RawClient.connect(path) as client:
        in_flight = client.call("Embed", pb.EmbedRequest(text=WAIT))
        # All in one write, so that the server knows of the reset before it looks at the path.
        client.h2.reset_stream(client.open("/é".encode()), ErrorCodes.CANCEL)
        await client.flush()
        await eventually(lambda: servicer.waiting == 1)
        servicer.let_go()
        assert (await client.over(in_flight)).succeeded


async def test_keepalive_pings_are_answered(path: Path, serve: Serve, servicer: Servicer) -> None:
    async with serve(servicer), await RawClient.connect(path) as client:
        client.h2.ping(b"\1\2\3\4\5\6\7\x08")
        assert await client.until(lambda: any(isinstance(event, PingAckReceived) for event in client.events))


async def test_flood_of_resets_starts_few_handlers_and_freezes_nobody(path: Path, serve: Serve, servicer: Servicer) -> None:
    async with serve(servicer, max_streams=16), GrpcClient(path) as other, await RawClient.connect(path) as attacker:
        await other.embed(pb.EmbedRequest(text="hello"))
        headers = attacker.h2.encoder.encode(
            [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/runed.v1.RunedService/Embed")]
        )
        await attacker.flush()
        body = envelope(pb.EmbedRequest(text=WAIT))

        async def flood() -> None:
            for number in itertools.count(1, 2):
                frames: list[Frame] = [
                    HeadersFrame(number, headers, flags=["END_HEADERS"]),
                    DataFrame(number, body, flags=["END_STREAM"]),
                    RstStreamFrame(number, error_code=ErrorCodes.CANCEL),
                ]
                attacker.writer.write(b"".join(frame.serialize() for frame in frames))
                if number % 100 == 1:
                    await attacker.writer.drain()
                    await asyncio.sleep(0)

        flooding = asyncio.create_task(flood())
        slowest = 0.0
        for _ in range(30):
            begun = time.perf_counter()
            await other.embed(pb.EmbedRequest(text="hello"), timeout=5)
            slowest = max(slowest, time.perf_counter() - begun)
        flooding.cancel()
        assert slowest < 1.0
        assert servicer.waiting <= 16


async def test_flood_of_pings_whose_answers_are_not_read_is_held_up(path: Path, serve: Serve, servicer: Servicer) -> None:
    async with serve(servicer) as server, await RawClient.connect(path) as attacker:
        await attacker.flush()
        stop_reading(attacker.writer)
        attacker.writer.transport.set_write_buffer_limits(high=0)
        async with asyncio.timeout(10):
            while True:
                attacker.writer.write(PingFrame(opaque_data=bytes(8)).serialize() * 1000)
                try:
                    await asyncio.wait_for(attacker.writer.drain(), 0.5)
                except TimeoutError:
                    break
        (connection,) = server._connections.values()
        answers = connection._writer.transport.get_write_buffer_size() + len(connection._protocol._h2._data_to_send)  # type: ignore[union-attr, operator] # it is HTTP/2
        assert answers < 512 * 1024


async def test_sizes_of_the_table_of_headers_cost_no_memory_and_no_search(path: Path, serve: Serve, servicer: Servicer) -> None:
    def sizes(*values: int) -> bytes:
        return b"".join(SettingsFrame(settings={SettingCodes.HEADER_TABLE_SIZE: value}).serialize() for value in values)

    async with serve(servicer) as server, await RawClient.connect(path) as client:
        client.h2.decoder.max_allowed_table_size = 2**32 - 1
        assert (await client.over(client.call("Embed", pb.EmbedRequest(text="hello")))).succeeded
        (connection,) = server._connections.values()
        encoder = connection._protocol._h2.encoder  # type: ignore[union-attr] # it is HTTP/2
        for last in (2**32 - 1, 4096, 60, 0, 65536):
            client.writer.write(sizes(*[100, 2**32 - 1] * 500, last, last))
            for _ in range(3):
                assert (await client.over(client.call("Embed", pb.EmbedRequest(text="hello")))).succeeded
            assert encoder.header_table_size == min(last, 4096)
            assert client.h2.decoder.header_table_size == min(last, 4096)
        client.writer.write(sizes(*[100, 2**32 - 1] * 500))
        await eventually(lambda: bool(encoder.table_size_changes))
        assert len(encoder.table_size_changes) == 2


@pytest.mark.parametrize(
    "flood",
    [
        pytest.param((b"\xff\xff\xff\x00\x00" + b"\x00\x00\x00\x01") + bytes(15_000_000), id="a frame of 16 MiB"),
        pytest.param(
            HeadersFrame(1, b"").serialize() + ContinuationFrame(1, bytes(16_000)).serialize() * 60, id="headers without an end"
        ),
    ],
)
async def test_endless_frames_are_cut_off(path: Path, serve: Serve, servicer: Servicer, flood: bytes) -> None:
    async with serve(servicer), await RawClient.connect(path) as client:
        await client.flush()
        client.writer.write(flood)
        await client.until(lambda: client.ended)
        assert client.ended
        assert client.goaway is None or client.goaway.error_code == ErrorCodes.ENHANCE_YOUR_CALM


async def test_noise_after_the_preface_hurts_nobody_else(path: Path, serve: Serve, servicer: Servicer) -> None:
    rng = random.Random(2)  # the same noise in each run
    async with serve(servicer) as server, GrpcClient(path) as other:
        for _ in range(60):
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(PREFACE + SettingsFrame().serialize())
            for _ in range(rng.randrange(1, 8)):
                body = rng.randbytes(rng.randrange(64))
                kind, flags, stream = rng.randrange(11), rng.randrange(256), rng.randrange(4)
                writer.write(len(body).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + body)
            writer.write_eof()
            await asyncio.wait_for(reader.read(), 3)
            writer.close()
        assert await other.embed(pb.EmbedRequest(text="hello"), timeout=5).code() is grpc.StatusCode.OK
        await eventually(lambda: len(server._connections) == 1)
