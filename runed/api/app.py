"""The application of the daemon's socket: the RPC services, the OpenAI API and the metrics."""

from __future__ import annotations

from functools import partial
from typing import Any

from runed.api.host import Host
from runed.api.later import Later
from runed.api.openai import PREFIX
from runed.api.rpc.app import build_rpc_app
from runed.api.rpc.refusals import Application, Receive, Scope, Send, respond
from runed.metrics import CONTENT_TYPE

_METRICS_PATH = "/metrics"


def build_app(host: Host) -> Application:
    """Build the application that serves everything on the daemon's socket.

    Args:
        host: The daemon.

    Returns:
        An ASGI application. A request over HTTP/2 has to offer the extension "runed.duplex" of `runed.server`.
    """
    rpc = build_rpc_app(host)
    openai = Later(partial(_build_openai, host))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"].startswith(PREFIX):
            await (await openai.get())(scope, receive, send)
        elif scope["path"] == _METRICS_PATH:
            await _serve_metrics(host, scope, send)
        else:
            await rpc(scope, receive, send)

    return app


def _build_openai(host: Host) -> Any:  # noqa: ANN401 # its types for ASGI differ
    from runed.api.openai.app import build_openai_app  # noqa: PLC0415 # see `Later`

    return build_openai_app(host)


async def _serve_metrics(host: Host, scope: Scope, send: Send) -> None:
    if scope["method"] not in {"GET", "HEAD"}:
        await respond(send, 405, [(b"allow", b"GET, HEAD"), (b"content-length", b"0")])
        return
    body = host.metrics()
    headers = [(b"content-type", CONTENT_TYPE.encode()), (b"content-length", str(len(body)).encode())]
    await respond(send, 200, headers, b"" if scope["method"] == "HEAD" else body)
