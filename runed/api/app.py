"""The applications of the daemon's socket and of its port: the RPC services, the JSON APIs and the metrics."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from runed.api.host import CountCall, Host, count_nothing
from runed.api.later import Later
from runed.api.ollama import PREFIX as OLLAMA
from runed.api.openai import PREFIX as OPENAI
from runed.api.rerank import PATHS as RERANK_PATHS
from runed.api.rpc.app import build_rpc_app
from runed.api.rpc.refusals import Application, Receive, Scope, Send, respond
from runed.api.tei import PATHS as TEI_PATHS
from runed.metrics import CONTENT_TYPE
from runed.tracing import arrive

_METRICS_PATH = "/metrics"


def build_app(host: Host, count: CountCall = count_nothing) -> Application:
    """Build the application that serves everything on the daemon's socket.

    Args:
        host: The daemon.
        count: Counts all calls.

    Returns:
        An ASGI application. A request over HTTP/2 has to offer the extension "runed.duplex" of `runed.server`.
    """
    rpc = build_rpc_app(host, count)
    api = _json_apis(host, count)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        arrive(scope)
        if (found := api(scope["path"])) is not None:
            await (await found.get())(scope, receive, send)
        elif scope["path"] == _METRICS_PATH:
            await _serve_metrics(host, scope, send)
        else:
            await rpc(scope, receive, send)

    return app


def build_port_app(host: Host, count: CountCall = count_nothing) -> Application:
    """Build the application of the loopback port. It serves the JSON APIs and the metrics alone.

    Args:
        host: The daemon.
        count: Counts all calls.

    Returns:
        An ASGI application. The OpenAI API answers unknown paths.
    """
    api = _json_apis(host, count)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        arrive(scope)
        if scope["path"] == _METRICS_PATH:
            await _serve_metrics(host, scope, send)
            return
        found = api(scope["path"]) or api(OPENAI)
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


async def _serve_metrics(host: Host, scope: Scope, send: Send) -> None:
    if scope["method"] not in {"GET", "HEAD"}:
        await respond(send, 405, [(b"allow", b"GET, HEAD"), (b"content-length", b"0")])
        return
    body = host.metrics()
    headers = [(b"content-type", CONTENT_TYPE.encode()), (b"content-length", str(len(body)).encode())]
    await respond(send, 200, headers, b"" if scope["method"] == "HEAD" else body)
