"""The applications of the daemon's socket and of its port: the RPC services, the JSON APIs and the metrics."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from runed.api.host import CountCall, Host, count_nothing
from runed.api.later import Later
from runed.api.ollama import PREFIX as OLLAMA
from runed.api.openai import PREFIX as OPENAI
from runed.api.page import LINK, ROOT, SIMILARITY, STATE
from runed.api.rerank import PATHS as RERANK_PATHS
from runed.api.rpc.app import build_rpc_app
from runed.api.rpc.refusals import Application, Receive, Scope, Send, respond
from runed.api.tei import PATHS as TEI_PATHS
from runed.metrics import CONTENT_TYPE
from runed.tracing import arrive

if TYPE_CHECKING:
    from runed.api.page.access import Access

_METRICS_PATH = "/metrics"


def build_app(host: Host, count: CountCall = count_nothing, access: Access | None = None) -> Application:
    """Build the application that serves everything on the daemon's socket.

    Args:
        host: The daemon.
        count: Counts all calls.
        access: Makes links to the page on the port; None if there is no port.

    Returns:
        An ASGI application. A request over HTTP/2 has to offer the extension "runed.duplex" of `runed.server`.
    """
    rpc = build_rpc_app(host, count)
    api = _json_apis(host, count)
    links = Later(partial(_build_links, host, count, access))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        arrive(scope)
        if (found := api(scope["path"])) is not None:
            await (await found.get())(scope, receive, send)
        elif scope["path"] in {LINK, STATE}:
            await (await links.get())(scope, receive, send)
        elif scope["path"] == _METRICS_PATH:
            await _serve_metrics(host, scope, send)
        else:
            await rpc(scope, receive, send)

    return app


def build_port_app(host: Host, count: CountCall = count_nothing, access: Access | None = None) -> Application:
    """Build the application of the port. It serves the JSON APIs, the metrics and the page alone.

    Args:
        host: The daemon.
        count: Counts all calls.
        access: Begins the sessions of the page; None where the page needs none.

    Returns:
        An ASGI application. The OpenAI API answers unknown paths.
    """
    from runed.api.page.access import is_for_page  # noqa: PLC0415 # most daemons have no port

    api = _json_apis(host, count)
    page = Later(partial(_build_page, host, count, access))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        arrive(scope)
        path = scope["path"]
        if path == _METRICS_PATH:
            await _serve_metrics(host, scope, send)
            return
        is_page = path in {STATE, SIMILARITY} or (path == ROOT and is_for_page(scope["method"].encode(), scope["headers"]))
        found = page if is_page else api(path) or api(OPENAI)
        assert found is not None
        await (await found.get())(scope, receive, send)

    return app


def _json_apis(host: Host, count: CountCall) -> Callable[[str], Later[Application] | None]:
    """Return a function that finds the API of a path. Each API is made by its first request."""
    builders = (_build_openai, _build_ollama, _build_tei, _build_rerank)
    openai, ollama, tei, rerank = (Later(partial(build, host, count)) for build in builders)

    def find(path: str) -> Later[Application] | None:
        if path in RERANK_PATHS:
            return rerank
        if path.startswith(OPENAI):
            return openai
        if path.startswith(OLLAMA):
            return ollama
        return tei if path in TEI_PATHS else None

    return find


def _build_openai(host: Host, count: CountCall) -> Application:
    from runed.api.openai.app import build_openai_app  # noqa: PLC0415 # see `Later`

    return build_openai_app(host, count)  # type: ignore[return-value] # its types for ASGI differ


def _build_ollama(host: Host, count: CountCall) -> Application:
    from runed.api.ollama.app import build_ollama_app  # noqa: PLC0415 # see `Later`

    return build_ollama_app(host, count)  # type: ignore[return-value] # as above


def _build_tei(host: Host, count: CountCall) -> Application:
    from runed.api.tei.app import build_tei_app  # noqa: PLC0415 # see `Later`

    return build_tei_app(host, count)  # type: ignore[return-value] # as above


def _build_rerank(host: Host, count: CountCall) -> Application:
    from runed.api.rerank.app import build_rerank_app  # noqa: PLC0415 # see `Later`

    return build_rerank_app(host, count)  # type: ignore[return-value] # as above


def _build_page(host: Host, count: CountCall, access: Access | None) -> Application:
    from runed.api.page.app import build_page_app  # noqa: PLC0415 # see `Later`

    return build_page_app(host, count, access)  # type: ignore[return-value] # as above


def _build_links(host: Host, count: CountCall, access: Access | None) -> Application:
    from runed.api.page.app import build_link_app  # noqa: PLC0415 # see `Later`

    return build_link_app(host, count, access)  # type: ignore[return-value] # as above


async def _serve_metrics(host: Host, scope: Scope, send: Send) -> None:
    if scope["method"] not in {"GET", "HEAD"}:
        await respond(send, 405, [(b"allow", b"GET, HEAD"), (b"content-length", b"0")])
        return
    body = host.metrics()
    headers = [(b"content-type", CONTENT_TYPE.encode()), (b"content-length", str(len(body)).encode())]
    await respond(send, 200, headers, b"" if scope["method"] == "HEAD" else body)
