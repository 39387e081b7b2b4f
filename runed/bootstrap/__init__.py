"""Installing engine and model: manifest, downloads, archives, verification."""

from runed.bootstrap.device_choice import DeviceChoice, keep_choice
from runed.bootstrap.device_failures import DeviceFailures
from runed.bootstrap.install import Installation, install, install_for_comparison, load_failures
from runed.bootstrap.policy import DownloadPolicy
from runed.bootstrap.progress import Phase, Progress

__all__ = [
    "DeviceChoice",
    "DeviceFailures",
    "DownloadPolicy",
    "Installation",
    "Phase",
    "Progress",
    "install",
    "install_for_comparison",
    "keep_choice",
    "load_failures",
]
