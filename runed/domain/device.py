"""The device that an engine computes on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Device:
    """A device of the machine.

    Attributes:
        accelerator: The interface that the engine uses it by: "cuda", "rocm", "vulkan", "metal", "coreml" or "dml"; "cpu" for
            the processors.
        name: The engine's name of it, such as "Vulkan0"; "" for the processors.
        description: Its name for people, such as "NVIDIA H100 80GB HBM3"; "" for the processors.
        memory: Its memory in bytes; 0 if the engine does not tell.
        free_memory: The part of it that is free.
    """

    accelerator: str
    name: str = ""
    description: str = ""
    memory: int = 0
    free_memory: int = 0

    @property
    def is_cpu(self) -> bool:
        """Whether these are the processors."""
        return self.accelerator == "cpu"

    def __str__(self) -> str:
        return f"{self.accelerator}: {self.description}" if self.description else self.accelerator


CPU = Device("cpu")
"""The processors of the machine."""
