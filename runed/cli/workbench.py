"""The place where `runed bench` measures engines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from runed.bootstrap import Installation
from runed.cli.progress import ProgressDisplay
from runed.errors import SettingsError
from runed.paths import Paths
from runed.settings import Settings


@dataclass(frozen=True, slots=True)
class Workbench:
    """What all measurements of engines need.

    Attributes:
        settings: The settings.
        paths: The home.
        seconds: The time of one measurement.
        display: Shows the progress.
    """

    settings: Settings
    paths: Paths
    seconds: float
    display: ProgressDisplay


def program_of(installation: Installation) -> Path:
    """Return the `llama-server` that is to be measured.

    Raises:
        SettingsError: The model has none.
    """
    if installation.llama_server is None:
        raise SettingsError(
            f"only llama-server has settings and variants to measure, and ONNX Runtime serves {installation.model.name}; "
            "set RUNED_ENGINE=auto, or choose a model that is a GGUF"
        )
    return installation.llama_server
