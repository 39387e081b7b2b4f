"""Installing engine and model: manifest, downloads, archives, verification."""

from runed.bootstrap.install import DownloadPolicy, Installation, Phase, Progress, install

__all__ = ["DownloadPolicy", "Installation", "Phase", "Progress", "install"]
