"""Installing engine and model: manifest, downloads, archives, verification."""

from runed.bootstrap.device_failures import DeviceFailures
from runed.bootstrap.install import Installation, install, load_failures, read_catalog
from runed.bootstrap.policy import DownloadPolicy
from runed.bootstrap.progress import Phase, Progress

__all__ = ["DeviceFailures", "DownloadPolicy", "Installation", "Phase", "Progress", "install", "load_failures", "read_catalog"]
