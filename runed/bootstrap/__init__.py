"""Installing engine and model: manifest, downloads, archives, verification."""

from runed.bootstrap.device_choice import DeviceChoice, keep_choice
from runed.bootstrap.device_failures import DeviceFailures
from runed.bootstrap.engine_comparison import EngineBuilds, EngineComparison, keep_comparison, read_comparison
from runed.bootstrap.install import Installation, install, install_for_comparison, load_failures, read_catalog
from runed.bootstrap.policy import DownloadPolicy
from runed.bootstrap.progress import Phase, Progress

__all__ = [
    "DeviceChoice",
    "DeviceFailures",
    "DownloadPolicy",
    "EngineBuilds",
    "EngineComparison",
    "Installation",
    "Phase",
    "Progress",
    "install",
    "install_for_comparison",
    "keep_choice",
    "keep_comparison",
    "load_failures",
    "read_catalog",
    "read_comparison",
]
