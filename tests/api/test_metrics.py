"""`GET /metrics` on the daemon's socket."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from runed_proto.runed.v1 import runed_pb2 as pb

from runed.metrics import CONTENT_TYPE
from tests.api.conftest import Served
from tests.api.streams import StreamClient, request
from tests.fakes.fake_host import METRICS
from tests.support import RunningDaemon, wait_until

URL = "http://runed/metrics"


def client_for(served: Served) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(served.path)), timeout=10)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_metrics_are_text_for_prometheus(method: str, served: Served) -> None:
    async with client_for(served) as client:
        for _ in range(2):  # the connection is kept
            response = await client.request(method, URL)
            assert response.status_code == 200
            assert response.headers["content-type"] == CONTENT_TYPE
            assert response.headers["content-length"] == str(len(METRICS))
            assert response.content == (METRICS if method == "GET" else b"")
    assert not served.host.asked


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
async def test_other_methods_are_told_the_right_ones(method: str, served: Served) -> None:
    async with client_for(served) as client:
        response = await client.request(method, URL, content=b"x")
    assert (response.status_code, response.headers["allow"]) == (405, "GET, HEAD")


def scrape(daemon: RunningDaemon) -> str:
    with daemon.http() as http:
        response = http.get("/metrics")
    assert response.status_code == 200
    return response.text


def test_metrics_are_there_before_the_model(start_daemon: Callable[..., RunningDaemon], home: Path) -> None:
    daemon = start_daemon(RUNED_MODEL=str(home / "missing.gguf"))
    daemon.wait_for("STATUS_DEGRADED")
    assert "runed_texts_total 0.0" in scrape(daemon).splitlines()


async def test_neither_metrics_nor_a_silent_stream_keeps_the_engine_awake(start_daemon: Callable[..., RunningDaemon]) -> None:
    daemon = start_daemon(RUNED_IDLE_TIMEOUT="700ms")
    daemon.wait_for("STATUS_OK")
    async with await StreamClient.open(daemon.socket) as stream:
        await stream.send(request("one"))
        await stream.results(1)
        wait_until(lambda: scrape(daemon) and daemon.health()["status"] == "STATUS_IDLE", timeout=10, what="idleness")
        scrape(daemon)
        health = daemon.health()
        assert (health["status"], health.get("enginePid", "0")) == ("STATUS_IDLE", "0")
        assert health["inFlightRequests"] == "1"
        await stream.send(pb.EmbedStreamRequest(items=[pb.EmbedStreamItem(id="2", text="two")]), end=True)
        assert set(await stream.results(2)) == {"one", "2"}
        assert await stream.outcome() is None
