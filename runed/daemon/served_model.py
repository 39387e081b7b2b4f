"""A model that is being served."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

from runed.backends.base import BackendState, BackendStatus
from runed.bootstrap import DeviceFailures, Installation
from runed.domain.status import Info, LoadingPhase, Status

if TYPE_CHECKING:
    from runed.scheduling.scheduler import Scheduler

Situation: TypeAlias = tuple[Status, LoadingPhase | None, str]
"""The status, phase and message of `Health`."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that is being served.

    Attributes:
        scheduler: Shares the model's engine among callers.
        installation: The files of engine and model.
        failures: The devices that failed on this machine.
    """

    scheduler: Scheduler
    installation: Installation
    failures: DeviceFailures

    @property
    def state(self) -> BackendState:
        """The state of the model's backend."""
        return self.scheduler.backend.state

    @property
    def situation(self) -> Situation:
        """The status, phase and message of `Health`."""
        state = self.state
        warnings = "; ".join(filter(None, [state.reason, *self.installation.warnings]))
        match state.status:
            case BackendStatus.READY:
                return Status.OK, None, warnings
            case BackendStatus.STARTING:
                return Status.LOADING, LoadingPhase.STARTING_LLAMA_SERVER, "llama-server loads the model"
            case BackendStatus.SILENT:
                return Status.LOADING, LoadingPhase.STARTING_LLAMA_SERVER, state.reason
            case BackendStatus.STOPPED:
                return Status.IDLE, None, warnings
            case BackendStatus.FAILED:
                return Status.DEGRADED, None, state.reason
            case BackendStatus.DEVICE_FAILED:
                return Status.IDLE, None, f"{self.installation.device} failed, so the next text is computed without it"

    @property
    def device_failed(self) -> bool:
        """Whether another engine has to serve, since the device of this one failed."""
        # Each call asks, and most machines compute on their processors.
        return self.installation.device_use is not None and self.state.status is BackendStatus.DEVICE_FAILED

    async def give_way(self) -> None:
        """Remember the failure of the device, and end, so that another engine can serve."""
        if use := self.installation.device_use:
            self.failures.remember(use, self.state.reason)
        await self.scheduler.close(replaced=True)

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
            model_name=model.name,
            model_variant=self.installation.variant,
            pooling=model.pooling,
            tuned_at=self.state.tuned_at,
            engine_version=self.installation.engine_version,
            fingerprint=scheduler.fingerprint(model.dim),
            min_dimensions=scheduler.min_dimensions,
            query_prompt=scheduler.traits.query_prompt,
            document_prompt=scheduler.traits.document_prompt,
            default_instruction=scheduler.traits.default_instruction,
            centroid_set_version=scheduler.centroids.version,
            accelerator=self.installation.device.accelerator,
            device=self.installation.device.description,
            device_tuned_at=self.installation.device_chosen_at,
            company_cosine=self.state.company_cosine,
        )
