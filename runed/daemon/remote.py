"""The parts of a model whose engine is on another machine. Nothing is installed for it, and no process started."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from runed.backends.base import Tokens
from runed.backends.remote import Fallback, RemoteBackend, meet
from runed.backends.remote.fallback import Substitute
from runed.bootstrap.network import Transport
from runed.bootstrap.proxies import Proxies, is_loopback_name
from runed.daemon.choosing import Serving
from runed.domain.device import Device
from runed.domain.model_spec import ModelSpec
from runed.domain.requests import Embedding, EmbedOptions
from runed.errors import SettingsError
from runed.own_models import RemoteModel
from runed.paths import Paths

if TYPE_CHECKING:  # httpx and the scheduler, which are imported while the engine is asked
    import httpx

    from runed.scheduling.scheduler import Scheduler

_PORTS = {"http": 80, "https": 443}
"""The ports of URLs that name none."""

GetScheduler = Callable[[str], Awaitable["Scheduler"]]
"""Returns the scheduler of a model by its name."""


@dataclass(frozen=True, slots=True)
class RemoteInstallation:
    """What takes the place of an `Installation`: no file is there.

    Attributes:
        spec: The description of the model.
        variant: Always "".
        warnings: Sentences for the user about what works, but not as requested.
        model: Always None, in place of the file.
    """

    spec: ModelSpec
    variant: str = ""
    warnings: tuple[str, ...] = ()
    model: None = None


def check_loop(spec: ModelSpec, port: tuple[str, int]) -> None:
    """Refuse a model whose engine would be this daemon itself. It looks names up, so do not call it in an event loop.

    Args:
        spec: The model.
        port: Host and port that this daemon listens on.

    Raises:
        SettingsError: Its texts would come back for ever.
    """
    assert spec.remote is not None
    parts = urlsplit(spec.remote.url)
    if (parts.port or _PORTS[parts.scheme]) != port[1]:
        return
    host = "localhost" if is_loopback_name(parts.hostname or "") else parts.hostname
    with suppress(OSError):  # the engine is asked soon, which tells it
        found = {ip_address(str(address[0])) for *_, address in socket.getaddrinfo(host, port[1], type=socket.SOCK_STREAM)}
        own = ip_address(port[0])
        if own in found or any(each.is_unspecified or (own.is_unspecified and _is_here(each)) for each in found):
            raise SettingsError(
                f"the url of {spec.name}, {spec.remote.url}, is the port of this daemon itself, so texts would come back to it "
                "for ever; name the url of another engine, or another port as RUNED_HTTP"
            )


def _is_here(address: IPv4Address | IPv6Address) -> bool:
    """Return whether an address is one of this machine: only to such ones can a socket be bound."""
    with socket.socket(socket.AF_INET if address.version == 4 else socket.AF_INET6, socket.SOCK_DGRAM) as probe:  # noqa: PLR2004 # IPv4
        try:
            probe.bind((str(address), 0))
        except OSError:
            return False
    return True


async def build_remote(
    spec: ModelSpec, paths: Paths, scheduler_of: GetScheduler
) -> tuple[RemoteBackend, RemoteInstallation, Serving]:
    """Look at the engine of a model. Return its backend, and what users are told of it.

    Args:
        spec: The model.
        paths: The files of the home.
        scheduler_of: Returns the scheduler of the fallback.

    Raises:
        BackendUnavailableError: The engine cannot be had, and its space is not known from earlier.
    """
    assert spec.remote is not None
    fallback = None
    if spec.remote.fallback:
        near = partial(scheduler_of, spec.remote.fallback)
        fallback = Fallback(spec.remote.fallback, partial(_compute, near, f"fallback of {spec.name}"), partial(_count, near))
    proxies = Proxies()
    backend = await meet(
        spec.remote,
        name=spec.name,
        record=paths.remote_space(spec.name),
        make_transport=partial(_make_transport, proxies),
        fallback=fallback,
    )
    url = spec.remote.url
    # What an engine tells of its version says nothing about its vectors.
    serving = Serving(engine=f"the engine at {url}", version="", device=Device("remote", description=url))
    return backend, RemoteInstallation(spec, warnings=tuple(proxies.warnings)), serving


def _make_transport(proxies: Proxies, remote: RemoteModel, limits: httpx.Limits) -> httpx.AsyncBaseTransport:
    return Transport(proxies, authorities=remote.ca_file, http2=True, limits=limits)


async def _compute(near: Callable[[], Awaitable[Scheduler]], client: str, texts: Sequence[str]) -> Substitute:
    """Compute texts with a fallback. They have their prompts already."""
    answer = await (await near()).embed(texts, EmbedOptions(), client=client)
    items = [item for item in answer.items if isinstance(item, Embedding)]
    return Substitute([item.vector for item in items], sum(item.tokens for item in items), answer.space.fingerprint)


async def _count(near: Callable[[], Awaitable[Scheduler]], texts: Sequence[str]) -> list[Tokens]:
    return await (await near()).backend.tokenize(texts)
