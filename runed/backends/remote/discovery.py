"""Finds out what answers at the URL of an engine on another machine: its API, its model, and its limits."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Annotated, Any, TypeVar

import msgspec

from runed.backends.remote.answers import WrongAnswerError, read
from runed.backends.remote.http import KeyRefusedError, PassingError, RefusedError, RemoteHTTP
from runed.errors import BackendUnavailableError, printable
from runed.own_models import Api, RemoteModel

_VERSIONED = re.compile(r"/v[0-9]+$")
"""The end of a URL that means the OpenAI API."""

_SHOWN_MODELS = 10
"""The most models that an error lists."""

_SHORTER = {"vllm": 1}
"""Tokens that the longest text stays below what an engine tells. vLLM has hung at texts of exactly its maximum."""

_T = TypeVar("_T")

_Tokens = Annotated[int, msgspec.Meta(ge=0, le=2**31)]


class _Listed(msgspec.Struct):
    id: str
    owned_by: str = ""
    max_model_len: _Tokens | None = None


class _List(msgspec.Struct):
    data: list[_Listed] | None  # Ollama without models lists null


class _Info(msgspec.Struct):
    """The answer of `/info` of Text Embeddings Inference."""

    model_id: str
    max_input_length: _Tokens
    model_sha: str | None = None
    max_client_batch_size: _Tokens = 0
    model_type: Any = None


class _Settings(msgspec.Struct):
    n_ctx: _Tokens = 0


class _Props(msgspec.Struct):
    """The answer of `/props` of llama-server."""

    default_generation_settings: _Settings = msgspec.field(default_factory=_Settings)


class _Tag(msgspec.Struct):
    name: str
    digest: str = ""


class _Tags(msgspec.Struct):
    """The answer of `/api/tags` of Ollama."""

    models: list[_Tag] | None


@dataclass(frozen=True, slots=True)
class Found:
    """What answers at a URL.

    Attributes:
        api: Its API.
        base: The URL in front of the paths of that API.
        root: The URL in front of the other paths of the engine.
        model: The name of the model.
        engine: "vllm", "llamacpp", "tei", "runed", "ollama" or "infinity"; another word, or "", for any other engine.
        digest: What names the content of the model; "" if it is not told.
        max_tokens: The most tokens of a text; 0 if they are not told.
        batch: The most texts of a request; 0 if they are not told.
        tokenizes: Whether it counts tokens.
    """

    api: Api
    base: str
    root: str
    model: str
    engine: str = ""
    digest: str = ""
    max_tokens: int = 0
    batch: int = 0
    tokenizes: bool = False

    @property
    def cuts_silently(self) -> bool:
        """Whether it may cut a text that is too long and not tell it."""
        return self.engine in {"ollama", "infinity"}

    @property
    def tells_tokens(self) -> bool:
        """Whether what it tells as tokens are tokens. Infinity tells characters, unless it was set up otherwise."""
        return self.engine != "infinity"


async def discover(http: RemoteHTTP, remote: RemoteModel) -> Found:
    """Find out what answers.

    Raises:
        PassingError: Nothing answers now.
        BackendUnavailableError: It is none of the engines that can be used, or has several models.
    """
    url, is_versioned = remote.url, _VERSIONED.search(remote.url) is not None
    if remote.api != "openai" and not is_versioned:
        info = await _look(http, f"{url}/info", _Info)
        if info is not None and (remote.api == "tei" or not await _is_runed(http, url)):
            return _tei(url, info)
        if remote.api == "tei":
            raise _unknown(remote)
    for base in [url] if is_versioned else [f"{url}/v1", url]:
        listing = await _look(http, f"{base}/models", _List)
        if listing is not None:
            return await _openai(http, remote, base, listing.data or [])
    if not remote.model or not (is_versioned or remote.api == "openai"):
        raise _unknown(remote)
    return Found("openai", url, url, remote.model)  # a gateway that lists nothing; the probe tells whether it embeds


async def _is_runed(http: RemoteHTTP, root: str) -> bool:
    """Return whether a daemon of runed answers, which has both APIs."""
    listing = await _look(http, f"{root}/v1/models", _List)
    return listing is not None and any(model.owned_by == "runed" for model in listing.data or [])


def _tei(url: str, info: _Info) -> Found:
    if isinstance(info.model_type, dict) and not any(str(kind).lower() == "embedding" for kind in info.model_type):
        raise BackendUnavailableError(f"the model of {url} gives no vectors, since it classifies or reranks; name another url")
    return Found(
        "tei",
        url,
        url,
        printable(info.model_id),
        "tei",
        digest=info.model_sha or "",
        max_tokens=info.max_input_length,
        batch=info.max_client_batch_size,
        tokenizes=True,
    )


async def _openai(http: RemoteHTTP, remote: RemoteModel, base: str, listed: list[_Listed]) -> Found:
    named = {model.id: model for model in listed}
    engine = listed[0].owned_by if listed else ""
    name = remote.model or (printable(listed[0].id) if len(listed) == 1 or (listed and engine == "runed") else "")
    if not name:
        told = ", ".join(printable(model.id) for model in listed[:_SHOWN_MODELS]) or "none"
        raise BackendUnavailableError(f"{remote.url} has several models or lists none, so name one as model; it lists: {told}")
    root = _VERSIONED.sub("", base)
    found = Found("openai", base, root, name, engine)
    match engine:
        case "vllm":
            longest = (named[name].max_model_len if name in named else None) or 0
            return replace(found, max_tokens=max(0, longest - _SHORTER["vllm"]), tokenizes=True)
        case "llamacpp":
            props = await _look(http, f"{root}/props", _Props)
            return replace(found, max_tokens=props.default_generation_settings.n_ctx if props else 0, tokenizes=True)
        case "runed":
            info = await _look(http, f"{root}/info", _Info)
            if info is not None and info.model_id == name:  # that of the default model
                return replace(found, digest=info.model_sha or "", max_tokens=info.max_input_length, tokenizes=True)
        case _ if listed and all(":" in model.id for model in listed):  # as Ollama names models, which it says others own
            return await _ollama(http, found)
    return found


async def _ollama(http: RemoteHTTP, found: Found) -> Found:
    """Return what answers with its facts if it is Ollama."""
    try:
        tags = await _look(http, f"{found.root}/api/tags", _Tags)
    except (PassingError, BackendUnavailableError):  # another engine, whose gateway knows its own paths only
        tags = None
    if tags is None:
        return found
    digests = {tag.name: tag.digest for tag in tags.models or []}
    return replace(found, engine="ollama", digest=digests.get(found.model) or digests.get(f"{found.model}:latest", ""))


async def _look(http: RemoteHTTP, url: str, kind: type[_T]) -> _T | None:
    """Return the answer to a question that the engine need not know; None if it does not."""
    try:
        return read((await http.get(url)).body, kind)
    except (RefusedError, WrongAnswerError):
        return None
    except KeyRefusedError as error:
        if error.status == HTTPStatus.FORBIDDEN:  # a key that may only embed
            return None
        raise


def _unknown(remote: RemoteModel) -> BackendUnavailableError:
    return BackendUnavailableError(
        f"{remote.url} answers neither as the API of OpenAI nor as that of Text Embeddings Inference; check the url, which for "
        "the first one usually ends with /v1"
    )
