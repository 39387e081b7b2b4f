"""The models of the daemon: each has its own engine, which is looked for and started when the model is first asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from runed.bootstrap import Progress
from runed.daemon.bootstrapper import Bootstrapper
from runed.daemon.draining import Draining
from runed.daemon.seats import Seats
from runed.daemon.served_model import ServedModel, Situation
from runed.domain.model import ModelTraits
from runed.domain.model_spec import ModelKind, ModelSpec
from runed.domain.model_status import ModelStatus
from runed.domain.names import ModelNames
from runed.domain.status import ModelHealth, Status
from runed.errors import ModelBusyError, ModelNotInstalledError, UnknownModelError, WrongModelKindError

if TYPE_CHECKING:
    from runed.scheduling.scheduler import Scheduler

_BUSY_RETRY = 1.0
"""Seconds after which an unloading that was refused may be tried again."""


class Pool:
    """Has the models, or gets them.

    Args:
        names: Returns which models there are, and looks for added ones if none has the name. It may have to fetch a manifest.
        build: Gets engine and model and returns them, ready to be started. Its arguments are the model, None for the default
            one, and a function that takes the progress.
        is_installed: Returns whether the file of a model is on this machine.
        keep_alive: Seconds without a text after which an engine is stopped, for models without a time of their own.
        seats: The room for engines.
        draining: Tells whether the daemon takes calls.
        on_close: Closes what the models share, after the last of them.
        note: Is told whether the default model could not be had.

    Attributes:
        default: Gets the default model.
        seats: As above.
    """

    def __init__(
        self,
        *,
        names: Callable[[str], Awaitable[ModelNames]],
        build: Callable[[ModelSpec | None, Callable[[Progress], None]], Awaitable[ServedModel]],
        is_installed: Callable[[ModelSpec], bool],
        keep_alive: float,
        seats: Seats,
        draining: Draining,
        on_close: Callable[[], Awaitable[None]],
        note: Callable[[bool], None],
    ) -> None:
        self.default = Bootstrapper(lambda report: build(None, report), draining, note=note)
        self.seats = seats
        self._read_names = names
        self._build = build
        self._is_installed = is_installed
        self._keep_alive = keep_alive
        self._draining = draining
        self._on_close = on_close
        self._names: ModelNames | None = None
        self._others: dict[str, Bootstrapper] = {}

    def begin(self) -> None:
        """Begin to get the default model."""
        self.default.begin()

    async def scheduler(self, model: str, kind: ModelKind | None = ModelKind.EMBEDDING) -> Scheduler:
        """Return the scheduler of a model, as soon as it is there.

        Args:
            model: The name of the model; "" means the default one.
            kind: The purpose that it is needed for; None means its own.

        Raises:
            UnknownModelError: There is no model of this name.
            WrongModelKindError: It has another purpose.
            ModelNotInstalledError: Its file is not on this machine, and it is not the default model.
            ModelTooLargeError: There is never enough memory for it.
            RunedError: As for `Bootstrapper.scheduler`.
        """
        if not model and kind is not ModelKind.RERANK:
            return await self.default.scheduler()
        self._draining.check()
        names = await self.names(model)
        spec = names.find(model) if model else self._only_reranker(names)
        if kind is not None and spec.kind is not kind:
            raise WrongModelKindError(_how_to_use(spec), metadata={"model": spec.name})
        bootstrapper = self._bootstrapper(spec)
        scheduler = await bootstrapper.scheduler()
        if model.lower() == spec.name.lower() != scheduler.name.lower():
            raise ModelNotInstalledError(
                f"{spec.name} could not be made on this machine, and {scheduler.name} is there instead; name that one",
                metadata={"model": spec.name},
            )
        return scheduler

    async def unload(self, model: str) -> None:
        """Stop the engine of a model.

        Raises:
            UnknownModelError: There is no model of this name.
            ModelBusyError: It works.
        """
        if model:
            await self.names(model)
        if (served := self.served(model)) is None:
            return
        scheduler = served.scheduler
        if calls := sum(scheduler.demand.values()):
            raise ModelBusyError(
                f"{scheduler.name} works for {calls} calls; try again when they have their answers",
                metadata={"model": scheduler.name},
                retry_after=_BUSY_RETRY,
            )
        await scheduler.backend.stop()

    async def settle(self, model: str) -> None:
        """Wait until a model is known, but not for a download.

        Raises:
            UnknownModelError: There is no model of this name.
            ModelNotInstalledError: Its file is not on this machine, and it is not the default model.
        """
        bootstrapper = self._bootstrapper((await self.names(model)).find(model)) if model else self.default
        await bootstrapper.settle()

    async def pull(self, model: str) -> None:
        """Begin to install a model that is not there, also right after a try that failed. `situation` tells the progress.

        Raises:
            UnknownModelError: There is no model of this name.
            ShuttingDownError: The daemon drains.
        """
        self._draining.check()
        self._bootstrapper((await self.names(model)).find(model), install=True).try_again(at_once=True)

    def served(self, model: str) -> ServedModel | None:
        """Return a model that is there, or None.

        Args:
            model: Its name; "" means the default one.

        Raises:
            UnknownModelError: There is no model of this name.
        """
        bootstrapper = self._look(model)
        return None if bootstrapper is None else bootstrapper.model

    def situation(self, model: str) -> tuple[Situation, Progress | None]:
        """Return the state of a model for `Health`, and the progress of its installation if there is one.

        Raises:
            UnknownModelError: There is no model of this name.
        """
        if (bootstrapper := self._look(model)) is None:
            return (Status.IDLE, None, "the model was not asked for yet"), None
        situation = bootstrapper.situation
        installs = situation[0] is Status.LOADING and bootstrapper.model is None
        return situation, bootstrapper.progress if installs else None

    def all_served(self) -> list[ServedModel]:
        """Return the models that are there, the default one first."""
        return [bootstrapper.model for bootstrapper in self._bootstrappers() if bootstrapper.model is not None]

    def health(self) -> Sequence[ModelHealth]:
        """Describe the present state of the models that were asked for, the default one first."""
        return [_health(name, each) for name, each in [("", self.default), *self._others.items()]]

    async def list(self) -> list[ModelStatus]:
        """Describe all models that requests may name, the default one first, then by name."""
        names = await self.names()
        rest = sorted(name for name in names.specs if name != names.default.name)
        return [self._describe(names, names.specs[name]) for name in [names.default.name, *rest]]

    async def describe(self, model: str) -> ModelStatus:
        """Describe a model; "" means the default one.

        Raises:
            UnknownModelError: There is no model of this name.
        """
        names = await self.names(model)
        return self._describe(names, names.find(model))

    async def names(self, model: str = "") -> ModelNames:
        """Return the models that requests may name, one of which may have to have the given name.

        Raises:
            RunedError: They cannot be known, since the manifest cannot be had.
        """
        self._names = await self._read_names(model)
        return self._names

    def interrupt(self) -> None:
        """End everything that gets a model. Waiting calls go on at once."""
        for bootstrapper in self._bootstrappers():
            bootstrapper.interrupt()

    async def close(self) -> None:
        """End everything that was begun, including all engines."""
        await asyncio.gather(*(bootstrapper.close() for bootstrapper in self._bootstrappers()))
        await self._on_close()

    def _bootstrappers(self) -> Sequence[Bootstrapper]:
        return [self.default, *self._others.values()]

    def _only_reranker(self, names: ModelNames) -> ModelSpec:
        """Return the model that "" means in a request to rerank: the only installed one of its kind."""
        known = names.rerankers()
        installed = [spec for spec in known if self._is_installed(spec)]
        if len(installed) == 1:
            return installed[0]
        told = ", ".join(spec.name for spec in installed or known)
        if installed:
            message = f"several models rerank, so the request has to name one; there are {told}"
        else:
            pull = f"`runed pull NAME`, with one of: {told}; or " if told else ""
            message = f"no model that reranks is installed; run {pull}`runed add PATH` for a file of your own that reranks"
        raise UnknownModelError(message, metadata={"models": told})

    def _look(self, model: str) -> Bootstrapper | None:
        """Return what gets a model, or None if nobody has asked for the model."""
        if not model or self._names is None:
            return self.default
        spec = self._names.find(model)
        return self.default if spec is self._names.default else self._others.get(spec.name)

    def _bootstrapper(self, spec: ModelSpec, *, install: bool = False) -> Bootstrapper:
        """Return what gets a model. Begin to get it if its file is there, or if `install` allows to download it.

        Raises:
            ModelNotInstalledError: Its file is not there.
        """
        if (known := self._look(spec.name)) is not None:
            return known
        if not (install or self._is_installed(spec)):
            raise ModelNotInstalledError(
                f"{spec.name} is not installed; run `runed pull {spec.name}`", metadata={"model": spec.name}
            )
        bootstrapper = Bootstrapper(lambda report: self._build(spec, report), self._draining, starts=False)
        self._others[spec.name] = bootstrapper
        bootstrapper.begin()
        return bootstrapper

    def _describe(self, names: ModelNames, spec: ModelSpec) -> ModelStatus:
        traits = spec.own.over(spec.traits or ModelTraits())
        status = ModelStatus(
            name=spec.name,
            family=spec.family,
            variants=tuple(names.variants_of(spec)),
            aliases=tuple(names.aliases_of(spec)),
            kind=spec.kind,
            licence=spec.licence,
            size_bytes=spec.size,
            sha256=spec.sha256,
            installed=self._is_installed(spec),
            keep_alive_seconds=self._keep_alive if spec.keep_alive is None else spec.keep_alive,
            vector_dim=spec.dimensions,
            min_dimensions=min(traits.min_dimensions, spec.dimensions) or spec.dimensions,
            context_length=spec.context,
            pooling=spec.pooling,
            query_prompt=traits.query_prompt,
            document_prompt=traits.document_prompt,
            default_instruction=traits.default_instruction,
        )
        served = self.served(spec.name)
        return status if served is None else served.status(status)


def _how_to_use(spec: ModelSpec) -> str:
    """Return what a model is for, as the error of a call for something else."""
    if spec.kind is ModelKind.RERANK:
        own, other = "a reranker; use it by `runed rerank` or Rerank", "a model that embeds"
    else:
        own, other = "no reranker; use it by `runed embed` or Embed", "one"
    return f"{spec.name} is {own}, or name {other} here (`runed models` lists them)"


def _health(name: str, bootstrapper: Bootstrapper) -> ModelHealth:
    status, phase, message = bootstrapper.situation
    known = ModelHealth(name=name, status=status, phase=phase, message=message)
    return known if bootstrapper.model is None else bootstrapper.model.health(known)
