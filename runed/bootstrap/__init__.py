"""Installing engine and model: manifest, downloads, archives, verification."""

from runed.bootstrap.install import Installation, install
from runed.bootstrap.policy import DownloadPolicy
from runed.bootstrap.progress import Phase, Progress

__all__ = ["DownloadPolicy", "Installation", "Phase", "Progress", "install"]
