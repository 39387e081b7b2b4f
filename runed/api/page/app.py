"""The applications of the page: the page and its two addresses on the port, and the maker of links on the socket."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import time
from collections.abc import Mapping
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from runed.api.call_log import logged_call
from runed.api.host import CountCall, Host
from runed.api.page import LINK, ROOT, SIMILARITY, STATE
from runed.api.page.access import HEADERS, LINK_SECONDS, NO_ACCESS, Access, nonce_of
from runed.api.web.app import build_web_app, json_response
from runed.api.web.errors import status_of
from runed.api.web.requests import client_of, convert, read_object, texts_of, while_connected
from runed.domain.history import SLOT_SECONDS, SLOTS, Slot
from runed.domain.model_status import ModelStatus
from runed.domain.requests import Embedding, EmbedOptions, Lane
from runed.domain.status import Health
from runed.errors import InvalidRequestError, RunedError
from runed.log import get_logger
from runed.processes import resident_bytes
from runed.server import Headers

_PAGE = Path(__file__).with_name("page.html")

_MODELS_SECONDS = 1.0
"""Seconds that the list of models may take. It may have to be fetched first."""

_MOST_DIGITS = 15
"""Most digits of the number of a slot."""

_ACCEPTED = {"model": "a string, the name of a model"}

_log = get_logger(__name__)


def _decoded(headers: Headers) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in headers}


_HEADERS = _decoded(HEADERS)


class _SimilarityRequest(msgspec.Struct):
    """The body of `POST /page/similarity`."""

    texts: Any = msgspec.UNSET  # read by `texts_of`, whose errors name the fault
    model: str = ""


def build_page_app(host: Host, count: CountCall, access: Access | None) -> Starlette:
    """Build the application of the page on the port: `GET /`, `GET /page/state` and `POST /page/similarity`.

    Args:
        host: The daemon.
        count: Counts all calls.
        access: Begins sessions; None where the page needs none.
    """
    limit, socket = host.info().max_request_bytes, host.info().socket_path
    page = _PAGE.read_bytes()
    headers = _HEADERS | {"content-security-policy": _policy(page.decode())}

    async def show(request: Request) -> Response:
        response = Response(page, headers=headers, media_type="text/html")
        if access is None or not access.needs_link:
            return response
        nonce = nonce_of(request.scope["query_string"])
        if request.method == "GET" and nonce and (cookie := access.redeem(nonce)) is not None:
            _log.info("a link to the page was opened")
            response.headers["set-cookie"] = cookie
        elif request.method == "GET" and nonce and not access.knows(request.scope["headers"]):
            # Two requests have brought the link at the same moment, and the other one was the first.
            return Response(NO_ACCESS.body, NO_ACCESS.status, _decoded(NO_ACCESS.headers))
        return response

    async def similarity(request: Request) -> Response:
        with logged_call("Page", request, socket=socket) as call:
            wanted = convert(await read_object(request, limit), _SimilarityRequest, _ACCEPTED)
            texts = texts_of(wanted.texts, "texts")
            if len(texts) != 2:  # noqa: PLR2004 # as the message says
                raise InvalidRequestError(f"texts holds {len(texts)} texts; send two of them", metadata={"field": "texts"})
            call.texts, call.lane = len(texts), Lane.INTERACTIVE
            options = EmbedOptions(lane=Lane.INTERACTIVE, model=wanted.model)
            began = time.monotonic()
            answer = await while_connected(request, host.embed(texts, options, client=client_of(request)))
            call.count(answer.items, answer.space)
        items = [item for item in answer.items if isinstance(item, Embedding)]  # errors of single items were not requested
        first, second = (np.frombuffer(item.vector, "<f4").astype(float) for item in items)
        return _answer(
            {
                "cosine": float(first @ second),
                "model": answer.space.model,
                "dimensions": first.size,
                "tokens": [item.tokens for item in items],
                "seconds": time.monotonic() - began,
            }
        )

    routes = [Route(ROOT, show), _state_route(host), Route(SIMILARITY, similarity, methods=["POST"])]
    return build_web_app(routes, _refuse, paths=f"GET {ROOT}, GET {STATE} and POST {SIMILARITY}", count=count)


def build_link_app(host: Host, count: CountCall, access: Access | None) -> Starlette:
    """Build the application on the socket: `POST /page/link` makes a link to the page, and `GET /page/state` is as on the port.

    Args:
        host: The daemon.
        count: Counts all calls.
        access: Makes links; None if there is no port.
    """

    async def link(_: Request) -> Response:
        expires = LINK_SECONDS if access is not None and access.needs_link else None
        return _answer({"url": "" if access is None else access.link(), "expires_in": expires})

    routes = [_state_route(host), Route(LINK, link, methods=["POST"])]
    return build_web_app(routes, _refuse, paths=f"GET {STATE} and POST {LINK}", count=count)


def _state_route(host: Host) -> Route:
    async def state(request: Request) -> Response:
        since = request.query_params.get("since", "")
        # The digits are counted first, since int() refuses thousands of them.
        return _answer(await _state(host, int(since) if since.isdecimal() and len(since) <= _MOST_DIGITS else 0))

    return Route(STATE, state)


async def _state(host: Host, since: int) -> dict[str, object]:
    """Return what the page shows. It has no text of a caller, and no name that a caller chose."""
    info, health, room, hour = host.info(), host.health(detailed=True), host.room(), host.last_hour(since)
    try:
        async with asyncio.timeout(_MODELS_SECONDS):
            models: list[ModelStatus] = await host.models()
    except (RunedError, TimeoutError):  # the manifest cannot be had, or not yet; the state of the daemon says so
        models = []
    now = time.monotonic()
    return {
        "daemon": {
            "version": info.daemon_version,
            "pid": health.pid,
            "born": hour.born,
            "uptime_seconds": health.uptime_seconds,
            "status": health.status.name,
            "phase": health.phase.name if health.phase else None,
            "message": health.message,
            "bytes_done": health.bytes_done,
            "bytes_total": health.bytes_total,
            "engine_restarts": health.engine_restarts,
            "requests": health.total_requests,
            "in_flight": health.in_flight_requests,
            "memory_bytes": resident_bytes(health.pid),
            "engines_memory_bytes": room.memory_bytes,
            "engines_memory_limit": room.memory_limit,
        },
        "load": _load(health),
        "models": [_model(model) for model in models],
        "work": [
            {"kind": work.kind, "client": work.client, "model": work.model, "texts": work.texts, "seconds": now - work.began}
            for work in hour.works
        ],
        "clients": [{"pid": each.pid, "name": each.name, "connections": each.connections} for each in health.clients],
        "errors": [{"reason": each.reason, "times": each.times, "last_at": each.last_at} for each in hour.failures],
        "history": {
            "slot_seconds": SLOT_SECONDS,
            "slots": SLOTS,
            "now": hour.now,
            "columns": [field.name for field in fields(Slot)],
            "rows": [astuple(slot) for slot in hour.slots],
        },
    }


def _load(health: Health) -> dict[str, object] | None:
    if (load := health.load) is None:
        return None
    stats = load.stats
    lanes = {Lane.INTERACTIVE: stats.interactive, Lane.BULK: stats.bulk}
    return {
        "tokens_per_second": stats.tokens_per_second,
        "total_texts": stats.total_texts,
        "cache_hits": stats.cache_hits,
        "refused": stats.refused_requests,
        "cache_bytes": load.cache_bytes,
        "lanes": {
            lane.value: {
                "queued": load.queued[lane][0],
                "wait_p50_seconds": of_lane.wait_p50_seconds,
                "wait_p99_seconds": of_lane.wait_p99_seconds,
            }
            for lane, of_lane in lanes.items()
        },
    }


def _model(model: ModelStatus) -> dict[str, object]:
    return {
        "name": model.name,
        "kind": model.kind.value,
        "installed": model.installed,
        "loaded": model.loaded,
        "memory_bytes": model.memory_bytes,
        "size_bytes": model.size_bytes,
        "dimensions": model.vector_dim,
        "last_used_at": model.last_used_at,
    }


def _answer(document: object) -> Response:
    response = json_response(document)
    response.headers.update(_HEADERS)
    return response


def _refuse(error: RunedError, *, status: int | None = None, headers: Mapping[str, str] | None = None) -> Response:
    body = msgspec.json.encode({"error": {"reason": error.reason, "message": error.message}})
    return Response(body, status or status_of(error), {**_HEADERS, **(headers or {})}, media_type="application/json")


def _policy(page: str) -> str:
    """Return the policy of the page: its own script and style, named by their hashes, and requests to its own address."""
    script, style = (
        base64.b64encode(hashlib.sha256(re.search(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)[1].encode()).digest()).decode()  # type: ignore[index] # a page without one is no page of ours
        for tag in ("script", "style")
    )
    return (
        f"default-src 'none'; script-src 'sha256-{script}'; style-src 'sha256-{style}'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )
