"""A model that is being served."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

from runed.backends.base import BackendState, BackendStatus
from runed.bootstrap import Installation
from runed.daemon.choosing import Serving
from runed.daemon.seats import Seat
from runed.domain.model_status import ModelStatus
from runed.domain.status import Info, LoadingPhase, ModelHealth, SettingInForce, Status
from runed.processes import resident_bytes

if TYPE_CHECKING:
    from runed.daemon.remote import RemoteInstallation
    from runed.scheduling.scheduler import Scheduler

Situation: TypeAlias = tuple[Status, LoadingPhase | None, str]
"""The status, phase and message of `Health`."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that is being served.

    Attributes:
        scheduler: Shares the model's engine among callers.
        installation: The files of engine and model, or the place of an engine on another machine.
        serving: The engine that serves it.
        seat: The room of the engine.
    """

    scheduler: Scheduler
    installation: Installation | RemoteInstallation
    serving: Serving
    seat: Seat

    @property
    def state(self) -> BackendState:
        """The state of the model's backend."""
        return self.seat.engine_state

    @property
    def situation(self) -> Situation:
        """The status, phase and message of `Health`."""
        state = self.state
        warnings = "; ".join(filter(None, [state.reason, *self.installation.warnings, *self.serving.warnings]))
        match state.status:
            case BackendStatus.READY:
                return Status.OK, None, warnings
            case BackendStatus.STARTING:
                message = state.reason or f"{self.serving.engine} loads the model"
                return Status.LOADING, LoadingPhase.STARTING_LLAMA_SERVER, message
            case BackendStatus.SILENT:
                return Status.LOADING, LoadingPhase.STARTING_LLAMA_SERVER, state.reason
            case BackendStatus.STOPPED:
                return Status.IDLE, None, warnings
            case BackendStatus.DEVICE_FAILED if self.serving.remember_failure:
                return Status.IDLE, None, f"{self.serving.part} failed, so the next text is computed without it"
            case BackendStatus.FAILED | BackendStatus.DEVICE_FAILED | BackendStatus.SPACE_CHANGED:
                return Status.DEGRADED, None, state.reason

    @property
    def space_changed(self) -> bool:
        """Whether an engine on another machine gives vectors of another space than those of the cache."""
        return self.state.status is BackendStatus.SPACE_CHANGED

    @property
    def device_failed(self) -> bool:
        """Whether another engine has to serve, since this one failed, or its device did."""
        # Each call asks, and for most machines there is only one engine.
        return self.serving.remember_failure is not None and self.state.status is BackendStatus.DEVICE_FAILED

    async def give_way(self) -> None:
        """Remember the failure, and end, so that another engine can serve."""
        if remember := self.serving.remember_failure:
            remember(self.state.reason)
        await self.scheduler.close(replaced=True)

    def status(self, known: ModelStatus) -> ModelStatus:
        """Describe the model to its users.

        Args:
            known: What is known of it without its file.
        """
        scheduler, model = self.scheduler, self.scheduler.backend.model
        return replace(
            known,
            size_bytes=self.seat.file_bytes,
            installed=True,
            loaded=self.state.status in {BackendStatus.READY, BackendStatus.STARTING, BackendStatus.SILENT},
            memory_bytes=self.seat.peak,
            last_used_at=int(scheduler.last_used),
            keep_alive_seconds=scheduler.idle.timeout,
            vector_dim=model.dim,
            min_dimensions=scheduler.min_dimensions,
            max_text_length=model.max_tokens,
            pooling=model.pooling,
            query_prompt=scheduler.traits.query_prompt,
            document_prompt=scheduler.traits.document_prompt,
            default_instruction=scheduler.traits.default_instruction,
            fingerprint=scheduler.fingerprint(model.dim),
            model_identity=model.identity,
            architecture=model.architecture,
            sha256=model.sha256,
        )

    def health(self, known: ModelHealth) -> ModelHealth:
        """Describe the present state of the model and its engine.

        Args:
            known: The state of the model for a caller.
        """
        scheduler, state, serving = self.scheduler, self.state, self.serving
        return replace(
            known,
            name=scheduler.name,
            variant=self.installation.variant,
            file=str(self.installation.model or ""),
            engine_version=serving.version,
            engine_reason=serving.reason,
            engine_path=str(state.program or ""),
            engine_pid=state.pid,
            accelerator=serving.device.accelerator,
            device=serving.device.description,
            slots=scheduler.backend.limits.texts,
            context=state.context,
            tuned_at=state.tuned_at,
            device_tuned_at=serving.chosen_at,
            memory_bytes=resident_bytes(state.pid) if state.pid else 0,
            keep_alive_seconds=scheduler.idle.timeout,
            seconds_until_sleep=scheduler.idle.remaining if state.pid else 0.0,
        )

    def describe(self, daemon: Info) -> Info:
        """Return the Info of a daemon that serves this model.

        Args:
            daemon: The facts about the daemon alone.
        """
        scheduler, model = self.scheduler, self.scheduler.backend.model
        return replace(
            daemon,
            model_identity=model.identity,
            vector_dim=model.dim,
            max_text_length=model.max_tokens,
            model=scheduler.name,
            model_name=model.name,
            model_variant=self.installation.variant,
            pooling=model.pooling,
            tuned_at=self.state.tuned_at,
            engine_version=self.serving.version,
            fingerprint=scheduler.fingerprint(model.dim),
            min_dimensions=scheduler.min_dimensions,
            query_prompt=scheduler.traits.query_prompt,
            document_prompt=scheduler.traits.document_prompt,
            default_instruction=scheduler.traits.default_instruction,
            prompts_unknown=scheduler.traits.prompts_unknown,
            centroid_set_version=scheduler.centroids.version,
            accelerator=self.serving.device.accelerator,
            device=self.serving.device.description,
            device_tuned_at=self.serving.chosen_at,
            restrictions=(*daemon.restrictions, *self.serving.restrictions),
            company_cosine=self.state.company_cosine,
            settings=(*daemon.settings, *self._engine_settings()),
        )

    def _engine_settings(self) -> Iterator[SettingInForce]:
        """Yield what the engine runs by, as far as it was chosen or measured for this model and machine."""
        state, device = self.state, self.serving.device
        chosen = "tuned" if self.serving.chosen_at else "default"
        yield SettingInForce("device", "", device.description or device.accelerator, chosen)
        yield SettingInForce("slots", "", str(self.scheduler.backend.limits.texts), "tuned" if state.tuned_at else "default")


def served_name(installation: Installation) -> str:
    """Return the full name of an installed model. It may be another variant than the one that was wanted."""
    return installation.variant or installation.spec.name
