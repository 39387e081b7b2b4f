"""Installing engine and model: manifest, downloads, archives, verification."""

from runed.bootstrap.install import DownloadPolicy, Installation, Phase, Progress, install
from runed.bootstrap.manifest import ModelTraits

__all__ = ["DownloadPolicy", "Installation", "ModelTraits", "Phase", "Progress", "install"]
