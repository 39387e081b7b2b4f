"""The page on the loopback port: who may see it, what it tells, and what a browser is told about it."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runed.api.app import build_app, build_port_app
from runed.api.page.access import LINK_SECONDS, NO_ACCESS, SESSION_SECONDS, Access
from runed.api.token_guard import token_gate
from runed.domain.history import Failure, LastHour, Slot, Work
from runed.domain.status import ConnectedClient
from runed.lifecycle.loopback import Loopback
from runed.server import Head, Server
from tests.fakes.fake_host import LOAD, FakeHost
from tests.support import capture_logs, no_task_but

BROWSER = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8", "sec-fetch-site": "none", "sec-fetch-dest": "document"}
"""What a browser sends for an address that somebody types or opens."""

HOUR = LastHour(
    born=5.5,
    now=12,
    slots=[Slot(10, 4, 40, 2, 1, 0.5, 1.5, 3, 7), Slot(11, 6, 60, 0, 0, 0.0, 0.0, 0, 7)],
    works=[Work("stream", "unix:7", 0.0, 5, "fake.f32")],
    failures=[Failure("QUEUE_FULL", 2, 1000.5)],
)


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Port:
    """A fake host, served on a loopback port with the page, and on a socket."""

    host: FakeHost
    http: Loopback
    access: Access
    clock: Clock
    socket: Path

    def client(self, **headers: str) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.http.url, headers=headers, timeout=10)

    async def opened(self) -> tuple[str, str]:
        """Open a link. Return the cookie that the browser gets, and the key of the page."""
        link = urlsplit(self.access.link())
        async with self.client(**BROWSER) as client:
            response = await client.get(f"/?{link.query}")
        assert response.status_code == 200
        return response.headers["set-cookie"].partition(";")[0], link.fragment


@pytest.fixture(params=[True], ids=["token"])
async def port(request: pytest.FixtureRequest, home: Path) -> AsyncIterator[Port]:
    """A port that needs the token, unless the test says False."""
    host, clock, before = (
        FakeHost(load=LOAD, hour=HOUR, clients=[ConnectedClient(7, "python", 2)]),
        Clock(),
        asyncio.all_tasks(),
    )
    needs_token = bool(request.param)
    with Loopback.open(("127.0.0.1", 0), home / "http.token" if needs_token else None) as http:
        access = Access(http.url, http.port, needs_link=needs_token, clock=clock)
        gate = token_gate(token=http.token, port=http.port, page=access)
        server = Server(build_port_app(host, access=access), http.sock, gate=gate)
        socket_path = home / "s"
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(socket_path))
            sock.listen()
            inner = Server(build_app(host, access=access), sock)
            await server.start()
            await inner.start()
            try:
                yield Port(host, http, access, clock, socket_path)
            finally:
                await server.stop(0)
                await inner.stop(0)
    await no_task_but(before)


open_port = pytest.mark.parametrize("port", [False], ids=["no token"], indirect=True)


@pytest.fixture
def log() -> Iterator[list[Any]]:
    with capture_logs() as lines:
        yield lines


def from_page(cookie: str, key: str) -> dict[str, str]:
    """Return the headers of a request that the page sends."""
    return {"cookie": cookie, "x-runed-page": key, "sec-fetch-site": "same-origin", "sec-fetch-dest": "empty"}


# Links and sessions


async def test_a_link_works_once_and_sets_a_cookie_that_scripts_and_other_sites_do_not_get(port: Port, log: list[Any]) -> None:
    url = port.access.link()
    link = urlsplit(url)
    token = port.http.token
    assert token is not None
    assert (link.path, f"{link.scheme}://{link.netloc}") == ("/", port.http.url)
    assert token not in url
    async with port.client(**BROWSER) as client:
        first = await client.get(f"/?{link.query}")
        client.cookies.clear()
        second = await client.get(f"/?{link.query}")
    assert (first.status_code, second.status_code) == (200, 401)
    assert re.fullmatch(
        rf"runed-{port.http.port}=[\w-]{{43}}; Path=/; Max-Age={SESSION_SECONDS}; HttpOnly; SameSite=Strict",
        first.headers["set-cookie"],
    )
    assert "set-cookie" not in second.headers
    assert second.headers["content-type"] == "text/html; charset=utf-8"
    assert "runed open" in second.text
    for secret in (token, link.query.partition("=")[2], link.fragment):
        assert secret not in first.text + second.text + json.dumps(log)


async def test_of_two_requests_with_the_same_link_one_wins(port: Port) -> None:
    query = urlsplit(port.access.link()).query
    async with port.client(**BROWSER) as client:
        answers = await asyncio.gather(*(client.get(f"/?{query}", headers={"cookie": "x=y"}) for _ in range(4)))
    assert sum("set-cookie" in answer.headers for answer in answers) == 1


async def test_a_link_ends_after_a_minute_and_a_session_after_hours(port: Port) -> None:
    late, good = (urlsplit(port.access.link()) for _ in range(2))
    async with port.client(**BROWSER) as client:
        port.clock.now = LINK_SECONDS - 1
        opened = await client.get(f"/?{good.query}")
        client.cookies.clear()
        port.clock.now = LINK_SECONDS
        assert (await client.get(f"/?{late.query}")).status_code == 401
        cookie = opened.headers["set-cookie"].partition(";")[0]
        port.clock.now = LINK_SECONDS - 1 + SESSION_SECONDS - 1
        assert (await client.get("/", headers={"cookie": cookie})).status_code == 200
        port.clock.now += 1
        assert (await client.get("/", headers={"cookie": cookie})).status_code == 401
        state = await client.get("/page/state", headers=from_page(cookie, good.fragment))
        assert (state.status_code, state.json()["error"]["code"]) == (401, "UNAUTHENTICATED")


@pytest.mark.parametrize("query", ["link=", "link=x", "link=%00", "link=" + "x" * 4000, "", "link=x&link=y", "a&b", "%FF=%FF"])
async def test_no_other_query_is_a_link(query: str, port: Port) -> None:
    port.access.link()
    async with port.client(**BROWSER) as client:
        assert (await client.get(f"/?{query}")).status_code == 401


async def test_a_look_at_a_link_by_head_or_in_a_frame_does_not_use_it_up(port: Port) -> None:
    query = urlsplit(port.access.link()).query
    async with port.client(**BROWSER) as client:
        looked = await client.head(f"/?{query}")
        assert (looked.status_code, "set-cookie" in looked.headers) == (200, False)
        for dest in ("iframe", "image", "empty"):
            assert (await client.get(f"/?{query}", headers={"sec-fetch-dest": dest})).status_code == 401
        assert "set-cookie" in (await client.get(f"/?{query}", headers={"sec-fetch-site": "cross-site"})).headers


async def test_links_and_sessions_are_bounded_and_the_oldest_ends(port: Port) -> None:
    queries = [urlsplit(port.access.link()).query for _ in range(17)]
    async with port.client(**BROWSER) as client:
        assert (await client.get(f"/?{queries[0]}")).status_code == 401
        assert (await client.get(f"/?{queries[1]}")).status_code == 200
        client.cookies.clear()
        first, key = await port.opened()
        assert (await client.get("/page/state", headers=from_page(first, key))).status_code == 200
        for _ in range(16):
            await port.opened()
        assert (await client.get("/page/state", headers=from_page(first, key))).status_code == 401


# What the cookie opens


async def test_the_cookie_and_the_key_open_the_page_and_nothing_else(port: Port) -> None:
    cookie, key = await port.opened()
    async with port.client(**from_page(cookie, key)) as client:
        assert (await client.get("/page/state")).status_code == 200
        for method, path in [
            ("GET", "/v1/models"),
            ("POST", "/v1/embeddings"),
            ("POST", "/api/embed"),
            ("POST", "/embed"),
            ("POST", "/"),
            ("GET", "/"),
            ("OPTIONS", "/"),
            ("GET", "/metrics"),
            ("POST", "/page/link"),
            ("GET", "/page/state/"),
            ("GET", "//page/state"),
            ("GET", "/page/%73tate"),
        ]:
            answer = await client.request(method, path, content=b'{"inputs": "x", "input": "x"}' if method == "POST" else None)
            assert answer.status_code == 401, (method, path)
    assert not port.host.asked


@pytest.mark.parametrize(
    "change",
    [
        {"cookie": ""},
        {"cookie": "runed-1=x"},
        {"x-runed-page": ""},
        {"x-runed-page": "x" * 43},
        {"sec-fetch-site": "same-site"},  # a page of another port of this machine
        {"sec-fetch-site": "cross-site"},
        {"origin": "http://127.0.0.1:1"},
        {"origin": "null"},
        {"origin": "https://evil.example"},
    ],
)
async def test_neither_another_page_nor_the_cookie_alone_learns_anything(change: dict[str, str], port: Port) -> None:
    cookie, key = await port.opened()
    async with port.client(**(from_page(cookie, key) | change)) as client:
        for answer in (
            await client.get("/page/state"),
            await client.post("/page/similarity", json={"texts": ["a", "b"]}),
        ):
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "UNAUTHENTICATED")
            assert not [name for name in answer.headers if name.startswith("access-control")]
    assert not port.host.asked


async def test_the_key_of_another_session_does_not_fit(port: Port) -> None:
    cookie, _ = await port.opened()
    _, key = await port.opened()
    async with port.client(**from_page(cookie, key)) as client:
        assert (await client.get("/page/state")).status_code == 401


async def test_a_foreign_host_is_refused_with_link_and_cookie(port: Port) -> None:
    cookie, key = await port.opened()
    query = urlsplit(port.access.link()).query
    async with port.client(host=f"evil.example:{port.http.port}") as client:
        for answer in (
            await client.get(f"/?{query}", headers=BROWSER),
            await client.get("/", headers=BROWSER | {"cookie": cookie}),
            await client.get("/page/state", headers=from_page(cookie, key)),
        ):
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "FOREIGN_HOST")


@pytest.mark.parametrize("port", [True, False], ids=["token", "no token"], indirect=True)
async def test_browsers_are_told_to_keep_frame_and_run_nothing(port: Port) -> None:
    async with port.client(**BROWSER) as client:
        page = await client.get(f"/?{urlsplit(port.access.link()).query}")
        assert page.status_code == 200
        answers = [page] if port.access.needs_link is False else [page, await client.get("/", headers={"cookie": ""})]
    for answer in answers:
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["x-content-type-options"] == "nosniff"
        policy = dict(part.strip().partition(" ")[::2] for part in answer.headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'none'"
        assert policy["frame-ancestors"] == "'none'"
        assert "unsafe" not in answer.headers["content-security-policy"]
    policy = dict(part.strip().partition(" ")[::2] for part in page.headers["content-security-policy"].split(";"))
    assert policy["connect-src"] == "'self'"
    assert re.fullmatch(r"'sha256-[\w+/]{43}='", policy["script-src"])
    assert page.headers["content-type"] == "text/html; charset=utf-8"


def test_the_page_is_one_file_that_asks_for_nothing_else() -> None:
    text = (Path(__file__).parents[2] / "runed" / "api" / "page" / "page.html").read_text()
    assert set(re.findall(r"https?://[^\s\"'%]+", text)) == {"http://www.w3.org/2000/svg"}
    assert not re.findall(r"<script[^>]|<style[^>]|\bsrc=|innerHTML|insertAdjacent|document\.write|\beval\b|\son\w+=", text)


# Beside the other APIs


async def test_programs_that_are_no_browsers_find_the_paths_as_before(port: Port) -> None:
    async with port.client(authorization=f"Bearer {port.http.token}") as client:
        health = await client.get("/")  # the API of TEI
        assert (health.status_code, health.content) == (200, b"")
        assert (await client.post("/", json={"inputs": "x"})).status_code == 200
        assert (await client.get("/page/link")).status_code == 404
        assert (await client.get("/page/state")).json()["daemon"]["version"] == "1.2.3"
    async with port.client() as client:
        refused = await client.get("/")
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "UNAUTHENTICATED")


@open_port
async def test_port_without_a_token_shows_the_page_to_its_own_origin_without_a_link(port: Port) -> None:
    assert port.access.link() == f"{port.http.url}/"
    async with port.client() as client:
        page = await client.get("/", headers=BROWSER)
        assert (page.status_code, "set-cookie" in page.headers) == (200, False)
        assert "Compare two texts" in page.text
        assert (await client.get("/")).content == b""
        own = {"sec-fetch-site": "same-origin", "origin": port.http.url}
        assert (await client.get("/page/state", headers=own)).status_code == 200
        compared = await client.post("/page/similarity", headers=own, json={"texts": ["a", "a"]})
        assert compared.json()["cosine"] == pytest.approx(1, abs=1e-6)
        for foreign in ({"sec-fetch-site": "same-site"}, {"origin": "https://evil.example"}, {"host": "evil.example"}):
            assert (await client.get("/page/state", headers=own | foreign)).status_code == 403


async def test_socket_makes_links_and_tells_the_state(port: Port) -> None:
    transport = httpx.AsyncHTTPTransport(uds=str(port.socket), verify=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://runed") as client:
        made = (await client.post("/page/link")).json()
        assert made["expires_in"] == LINK_SECONDS
        assert (await client.get("/page/link")).status_code == 405
        assert (await client.get("/page/state")).json()["daemon"]["version"] == "1.2.3"
        async with port.client(**BROWSER) as browser:
            assert (await browser.get(f"/?{urlsplit(made['url']).query}")).status_code == 200


# What the page tells


async def test_state_has_everything_that_the_page_shows_and_later_slots_alone_if_asked(port: Port) -> None:
    cookie, key = await port.opened()
    async with port.client(**from_page(cookie, key)) as client:
        state = (await client.get("/page/state?since=10")).json()
        for bad in ("-1", "x", "1e3", "٣", "9" * 5000):
            assert (await client.get("/page/state", params={"since": bad})).status_code == 200
    assert state["daemon"] | {"memory_bytes": 0} == {
        "version": "1.2.3",
        "pid": 2,
        "born": 5.5,
        "uptime_seconds": 1,
        "status": "OK",
        "phase": None,
        "message": "",
        "bytes_done": 0,
        "bytes_total": 0,
        "engine_restarts": 4,
        "requests": 0,
        "in_flight": 0,
        "memory_bytes": 0,
        "engines_memory_bytes": 0,
        "engines_memory_limit": 0,
    }
    assert state["load"]["lanes"]["bulk"] == {"queued": 13, "wait_p50_seconds": 0.75, "wait_p99_seconds": 1.5}
    assert [model["name"] for model in state["models"]] == ["fake.f32", "fake.q8_0", "other"]
    assert [work | {"seconds": 0} for work in state["work"]] == [
        {"kind": "stream", "client": "unix:7", "model": "fake.f32", "texts": 5, "seconds": 0}
    ]
    assert state["clients"] == [{"pid": 7, "name": "python", "connections": 2}]
    assert state["errors"] == [{"reason": "QUEUE_FULL", "times": 2, "last_at": 1000.5}]
    assert state["history"]["rows"] == [[11, 6, 60, 0, 0, 0.0, 0.0, 0, 7]]
    assert state["history"]["columns"][:2] == ["number", "texts"]


async def test_similarity_is_the_cosine_of_two_texts(port: Port) -> None:
    cookie, key = await port.opened()
    async with port.client(**from_page(cookie, key), origin=port.http.url) as client:
        same = (await client.post("/page/similarity", json={"texts": ["tea", "tea"], "model": "other"})).json()
        other = (await client.post("/page/similarity", json={"texts": ["tea", "a lorry"]})).json()
    assert same | {"seconds": 0} == {
        "cosine": pytest.approx(1, abs=1e-6),
        "model": "other",
        "dimensions": 8,
        "tokens": [3, 3],
        "seconds": 0,
    }
    assert -1 <= other["cosine"] < 0.999
    assert port.host.asked[0].options.model == "other"


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        ({"texts": ["a"]}, 400, "INVALID_REQUEST"),
        ({"texts": ["a", "b", "c"]}, 400, "INVALID_REQUEST"),
        ({"texts": ["a", " "]}, 400, "EMPTY_TEXT"),
        ({"texts": ["a", "fail:BACKEND_UNAVAILABLE"]}, 503, "BACKEND_UNAVAILABLE"),
        ({"texts": ["a", "b"], "model": "<script>alert(1)</script>"}, 404, "UNKNOWN_MODEL"),
        ({"texts": ["a", "b"], "model": 1}, 400, "INVALID_REQUEST"),
        ({}, 400, "INVALID_REQUEST"),
        ([], 400, "MALFORMED_REQUEST"),
    ],
)
async def test_similarity_is_refused_with_the_reason(body: object, status: int, reason: str, port: Port) -> None:
    cookie, key = await port.opened()
    async with port.client(**from_page(cookie, key)) as client:
        answer = await client.post("/page/similarity", json=body)
    assert (answer.status_code, answer.json()["error"]["reason"]) == (status, reason)
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"


async def test_a_form_of_another_page_is_no_request_to_compare(port: Port) -> None:
    cookie, key = await port.opened()
    async with port.client(**from_page(cookie, key)) as client:
        answer = await client.post("/page/similarity", content=b'{"texts": ["a", "b"]}', headers={"content-type": "text/plain"})
    assert answer.status_code == 415


@settings(max_examples=300, deadline=None)
@given(
    method=st.binary(max_size=8),
    target=st.binary(max_size=60).map(lambda rest: b"/" + rest) | st.binary(max_size=60).map(lambda rest: b"/?link=" + rest),
    headers=st.lists(
        st.tuples(
            st.sampled_from([b"accept", b"cookie", b"host", b"origin", b"sec-fetch-dest", b"sec-fetch-site", b"x-runed-page"]),
            st.binary(max_size=40) | st.sampled_from([b"text/html", b"runed-1=x", b"same-origin", b"document"]),
        ),
        max_size=8,
    ),
)
def test_no_head_without_a_secret_is_admitted_or_breaks_the_gate(
    method: bytes, target: bytes, headers: list[tuple[bytes, bytes]]
) -> None:
    access = Access("http://127.0.0.1:1", 1, needs_link=True)
    access.link()
    head = Head(method, target, headers, "1.1")
    assert not access.admits(head)
    assert access.refusal(head) in (None, NO_ACCESS)


async def test_exposed_port_which_has_any_name_shows_the_page_to_its_session_alone(home: Path) -> None:
    with Loopback.open(("127.0.0.1", 0), home / "http.token") as http:
        access = Access(http.url, http.port, needs_link=True)
        gate = token_gate(token=http.token, port=http.port, exposed=True, page=access)
        server = Server(build_port_app(FakeHost(), access=access), http.sock, gate=gate)
        await server.start()
        link = urlsplit(access.link())
        name = {"host": "box.example:80"}
        async with httpx.AsyncClient(base_url=http.url, headers=name) as client:
            opened = await client.get(f"/?{link.query}", headers=BROWSER)
            page = from_page(opened.headers["set-cookie"].partition(";")[0], link.fragment)
            client.cookies.clear()
            assert (await client.get("/page/state", headers=page | {"origin": "http://box.example:80"})).status_code == 200
            # A page of another name that leads here has no cookie of ours, and another origin.
            for change in ({"cookie": ""}, {"x-runed-page": ""}, {"origin": "http://evil.example"}):
                assert (await client.get("/page/state", headers=page | change)).status_code == 401
        await server.stop(0)
