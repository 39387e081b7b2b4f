"""The embeddings part of Ollama's API. A program written for Ollama only changes its host."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated, Any

import durationpy
import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from runed.api.answer_size import reserve_answer
from runed.api.call_log import logged_call
from runed.api.host import CountCall, Host, count_nothing
from runed.api.ollama import PREFIX
from runed.api.ollama.errors import error_response
from runed.api.ollama.names import tagged, untagged
from runed.api.web.app import build_web_app, json_response
from runed.api.web.requests import WHOLE, client_of, convert, read_object, texts_of, while_connected
from runed.api.web.vectors import all_numbers, numbers
from runed.domain.device import CPU
from runed.domain.model_spec import ModelKind
from runed.domain.model_status import ModelStatus
from runed.domain.requests import Embedding, EmbedOptions, Truncate
from runed.domain.status import Status
from runed.errors import BackendUnavailableError, InvalidRequestError, RunedError

_PULL_STEP = 0.2
"""Seconds between two lines about a download."""

_LATEST = datetime(9999, 12, 31, tzinfo=UTC).timestamp()
"""The latest time that can be told, in seconds since 1970. A keep-alive of any length is accepted."""

_NO_DIGEST = "0" * 64
"""The digest of a file whose hash is not known yet. Ollama's command line takes twelve characters of it, and fails on less."""


class _ModelRequest(msgspec.Struct):
    """The part that all requests have. Ollama's older clients write `name`."""

    model: str | None = None
    name: str | None = None


class _EmbedRequest(_ModelRequest):
    """The body of `/api/embed`. The options of Ollama's engine are ignored, as they change nothing here."""

    input: Any = None
    truncate: bool | None = None
    dimensions: Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)] | None = None
    keep_alive: Any = None


class _EmbeddingsRequest(_ModelRequest):
    """The body of `/api/embeddings`, which Ollama keeps for older programs."""

    prompt: str | None = None
    keep_alive: Any = None


class _PullRequest(_ModelRequest):
    """The body of `/api/pull`."""

    stream: bool | None = None


_ACCEPTED = {"model": "a string, the name of a model", "name": "a string, the name of a model"}
_ACCEPTED_EMBED = _ACCEPTED | {"truncate": "true or false", "dimensions": f"{WHOLE}, or 0 for all"}
_ACCEPTED_EMBEDDINGS = _ACCEPTED | {"prompt": "a string"}
_ACCEPTED_PULL = _ACCEPTED | {"stream": "true or false"}


def build_ollama_app(host: Host, count: CountCall = count_nothing) -> Starlette:
    """Build the application that answers the paths of Ollama's API that are about embeddings and models.

    Args:
        host: The daemon.
        count: Counts all calls.

    Returns:
        An ASGI application that answers any other path with an error of the same shape.
    """
    api = _OllamaAPI(host)
    post = {
        "embed": api.embed,
        "embeddings": api.embeddings,
        "show": api.show,
        "pull": api.pull,
    }
    get = {"tags": api.tags, "ps": api.ps, "version": api.version}
    routes = [
        *(Route(f"{PREFIX}{name}", endpoint, methods=["POST"]) for name, endpoint in post.items()),
        *(Route(f"{PREFIX}{name}", endpoint) for name, endpoint in get.items()),
    ]
    paths = ", ".join([*(f"POST {PREFIX}{name}" for name in post), *(f"GET {PREFIX}{name}" for name in get)])
    paths += "; this daemon embeds, and neither chats nor generates"
    return build_web_app(routes, error_response, paths=paths, count=count)


class _OllamaAPI:
    """The endpoints.

    Args:
        host: The daemon.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._limit = host.info().max_request_bytes
        self._socket = host.info().socket_path
        self._version = host.info().daemon_version

    async def embed(self, request: Request) -> Response:
        """Embed one text or many. Without one, load the model."""
        started = time.monotonic_ns()
        with logged_call("Ollama", request, socket=self._socket) as call:
            wanted = convert(await self._read(request), _EmbedRequest, _ACCEPTED_EMBED)
            unload = _is_zero(wanted.keep_alive)
            model = await self._asked(wanted)
            if not wanted.input:  # also ""
                name = await self._load(request, model, unload=unload)
                return json_response({"model": name, "embeddings": []})
            texts = texts_of(wanted.input, "input")
            truncate = Truncate.NONE if wanted.truncate is False else Truncate.END
            options = EmbedOptions(dimensions=wanted.dimensions or 0, truncate=truncate, model=model)
            call.texts, call.asked = len(texts), model
            reserve_answer(self._host, len(texts), options, as_text=True)
            answer = await while_connected(request, self._host.embed(texts, options, client=client_of(request)))
            call.count(answer.items, answer.space)
            tokens = sum(item.tokens for item in answer.items if isinstance(item, Embedding))
            return json_response(
                {
                    "model": tagged(await self._host.model(answer.space.model)),
                    "embeddings": await all_numbers(answer),
                    "total_duration": time.monotonic_ns() - started,
                    "load_duration": 0,
                    "prompt_eval_count": tokens,
                }
            )

    async def embeddings(self, request: Request) -> Response:
        """Embed one text. Without one, load the model."""
        with logged_call("Ollama", request, socket=self._socket) as call:
            wanted = convert(await self._read(request), _EmbeddingsRequest, _ACCEPTED_EMBEDDINGS)
            unload = _is_zero(wanted.keep_alive)
            model = await self._asked(wanted)
            if not wanted.prompt:
                await self._load(request, model, unload=unload)
                return json_response({"embedding": []})
            call.texts, call.asked = 1, model
            options = EmbedOptions(truncate=Truncate.END, model=model)
            answer = await while_connected(request, self._host.embed([wanted.prompt], options, client=client_of(request)))
            call.count(answer.items, answer.space)
            return json_response({"embedding": numbers(answer.items[0])})

    async def tags(self, request: Request) -> Response:
        """List the installed models."""
        models = await while_connected(request, self._host.models())
        return json_response({"models": [_listed(model) for model in models if model.installed]})

    async def ps(self, request: Request) -> Response:
        """List the models whose engines run."""
        models = await while_connected(request, self._host.models())
        on_cpu = self._host.info().accelerator == CPU.accelerator
        return json_response({"models": [_running(model, on_cpu=on_cpu) for model in models if model.loaded]})

    async def show(self, request: Request) -> Response:
        """Describe a model."""
        wanted = convert(await self._read(request), _ModelRequest, _ACCEPTED)
        name = await self._asked(wanted)
        return json_response(_shown(await while_connected(request, self._host.model(name))))

    async def pull(self, request: Request) -> Response:
        """Wait until a model is installed, and tell the progress."""
        wanted = convert(await self._read(request), _PullRequest, _ACCEPTED_PULL)
        lines = self._pulled(wanted)
        if wanted.stream is False:
            await while_connected(request, _drain(lines))
            return json_response({"status": "success"})
        return StreamingResponse(_told(lines), media_type="application/x-ndjson")

    async def version(self, _: Request) -> Response:
        """Tell the version of the daemon."""
        return json_response({"version": self._version})

    async def _read(self, request: Request) -> dict[str, Any]:
        # Ollama reads JSON of any type, and its documentation shows `curl -d`, which tells that of a form.
        return await read_object(request, self._limit, any_type=True)

    async def _asked(self, wanted: _ModelRequest) -> str:
        return await untagged(self._host, wanted.model or wanted.name or "")

    async def _load(self, request: Request, model: str, *, unload: bool) -> str:
        """Start the engine of a model, or stop it. Return the name of the model."""
        await while_connected(request, self._host.unload(model) if unload else self._host.warm_up(model))
        return tagged(await self._host.model(model))

    async def _pulled(self, wanted: _PullRequest) -> AsyncIterator[Mapping[str, object]]:
        """Yield the steps until a model is installed.

        Raises:
            RunedError: It cannot be installed.
        """
        yield {"status": "pulling manifest"}
        name = await self._asked(wanted)
        await self._host.pull(name)
        while not (model := await self._host.model(name)).installed:
            health = self._host.health(name)
            if health.status not in {Status.LOADING, Status.OK, Status.IDLE}:
                raise BackendUnavailableError(health.message)
            yield _step(health.message, model, health.bytes_done, health.bytes_total)
            await asyncio.sleep(_PULL_STEP)
        yield _step(f"pulling {model.name}", model, model.size_bytes, model.size_bytes)
        if model.licence:
            yield {"status": f"licence: {model.licence}"}
        yield {"status": "success"}


def _is_zero(keep_alive: object) -> bool:
    """Return whether a model shall be unloaded: 0, or a duration such as "0s".

    Raises:
        InvalidRequestError: It is neither a number nor a duration. Ollama refuses that, too.
    """
    if keep_alive is None:
        return False
    if isinstance(keep_alive, (int, float)) and not isinstance(keep_alive, bool):
        return not keep_alive
    if isinstance(keep_alive, str):
        with suppress(durationpy.DurationError, ValueError, OverflowError):
            return not durationpy.from_str(keep_alive)
    raise InvalidRequestError(
        'keep_alive has a value that cannot be used; accepted is a number of seconds, or a duration such as "10m"; below 0 '
        "means for ever",
        metadata={"field": "keep_alive"},
    )


async def _drain(lines: AsyncIterator[Mapping[str, object]]) -> None:
    async for _ in lines:
        pass


async def _told(lines: AsyncIterator[Mapping[str, object]]) -> AsyncIterator[bytes]:
    """Yield lines of JSON. An error becomes the last one, as the status of the answer has been sent."""
    try:
        async for line in lines:
            yield msgspec.json.encode(line) + b"\n"
    except RunedError as error:
        yield msgspec.json.encode({"error": error.message}) + b"\n"


def _details(model: ModelStatus) -> dict[str, object]:
    architecture = model.architecture or model.family
    return {
        "parent_model": "",
        "format": "gguf",
        "family": architecture,
        "families": [architecture],
        "parameter_size": "",
        "quantization_level": model.name[len(model.family) + 1 :].upper(),
    }


def _digest(model: ModelStatus) -> str:
    return model.sha256 or _NO_DIGEST


def _step(status: str, model: ModelStatus, done: int, total: int) -> dict[str, object]:
    """Describe a step of a pull. Ollama's clients draw a bar for each digest, and show the status of a step without one."""
    bar = {"digest": f"sha256:{_digest(model)}", "total": total, "completed": done} if total else {}
    return {"status": status, **bar}


def _listed(model: ModelStatus) -> dict[str, object]:
    name = tagged(model)
    return {"name": name, "model": name, "size": model.size_bytes, "digest": _digest(model), "details": _details(model)}


def _running(model: ModelStatus, *, on_cpu: bool) -> dict[str, object]:
    facts = _listed(model) | {"size": model.memory_bytes, "context_length": model.max_text_length}
    if on_cpu:
        facts["size_vram"] = 0
    if model.keep_alive_seconds and model.last_used_at:
        ends = min(model.last_used_at + model.keep_alive_seconds, _LATEST)
        facts["expires_at"] = datetime.fromtimestamp(ends, UTC).isoformat()
    return facts


def _shown(model: ModelStatus) -> dict[str, object]:
    architecture = model.architecture or model.family
    return {
        "license": model.licence,
        "modelfile": "",
        "parameters": "",
        "template": "",
        "details": _details(model),
        "model_info": {
            "general.architecture": architecture,
            f"{architecture}.embedding_length": model.vector_dim,
            f"{architecture}.context_length": model.context_length or model.max_text_length,
            f"{architecture}.pooling": model.pooling,
        },
        "capabilities": ["embedding"] if model.kind is ModelKind.EMBEDDING else ["rerank"],
    }
