"""The place where `runed bench` measures engines."""

from __future__ import annotations

from dataclasses import dataclass

from runed.cli.progress import ProgressDisplay
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
