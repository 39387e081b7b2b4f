"""The parts of a model whose engine is on another machine. Nothing is installed for it, and no process started."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from runed.backends.base import Tokens
from runed.backends.remote import Fallback, RemoteBackend, meet
from runed.backends.remote.fallback import Substitute
from runed.bootstrap.network import Transport
from runed.bootstrap.proxies import Proxies
from runed.daemon.choosing import Serving
from runed.domain.device import Device
from runed.domain.model_spec import ModelSpec
from runed.domain.requests import Embedding, EmbedOptions
from runed.errors import BackendUnavailableError
from runed.own_models import RemoteModel
from runed.paths import Paths

if TYPE_CHECKING:  # httpx and the scheduler, which are imported while the engine is asked
    import httpx

    from runed.scheduling.scheduler import Scheduler

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
        near = partial(_near, scheduler_of, spec.remote.fallback)
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


async def _near(scheduler_of: GetScheduler, name: str) -> Scheduler:
    """Return the scheduler of a fallback, which must be on this machine."""
    scheduler = await scheduler_of(name)
    if scheduler.backend.limits.flights:
        raise BackendUnavailableError("it is on another machine, too; name a model of this one")
    return scheduler


async def _compute(near: Callable[[], Awaitable[Scheduler]], client: str, texts: Sequence[str]) -> Substitute:
    """Compute texts with a fallback. They have their prompts already."""
    answer = await (await near()).embed(texts, EmbedOptions(), client=client)
    items = [item for item in answer.items if isinstance(item, Embedding)]
    return Substitute([item.vector for item in items], sum(item.tokens for item in items), answer.space.fingerprint)


async def _count(near: Callable[[], Awaitable[Scheduler]], texts: Sequence[str]) -> list[Tokens]:
    return await (await near()).backend.tokenize(texts)
