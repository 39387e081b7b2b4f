"""The arguments that the parts of an installation share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from runed.bootstrap.audit import Audit
from runed.bootstrap.hub import Hub
from runed.bootstrap.manifest import Artefact
from runed.bootstrap.policy import DownloadPolicy
from runed.bootstrap.progress import Phase, ProgressReporter
from runed.bootstrap.proxies import Proxies
from runed.paths import Paths
from runed.settings import Settings


@dataclass(frozen=True, slots=True)
class InstallContext:
    """Settings, paths of the home, record of what is installed, progress, policy, proxies and hub for downloads."""

    settings: Settings
    paths: Paths
    audit: Audit
    reporter: ProgressReporter
    policy: DownloadPolicy
    proxies: Proxies
    hub: Hub

    async def download(self, artefact: Artefact, target: Path, phase: Phase, name: str) -> str:
        """Download a file, report the progress, and return its hash; see `runed.bootstrap.download`. `name` is for people."""
        from runed.bootstrap.download import download  # noqa: PLC0415 # httpx is memory that most starts never need

        step = "downloading" if artefact.path is None else "copying"
        size = f" ({artefact.size / 1e6:,.0f} MB)" if artefact.size else ""
        self.reporter.begin(phase, f"{step} {name}{size}", total=artefact.size, downloading=True)
        try:
            return await download(
                artefact,
                target,
                policy=self.policy,
                proxies=self.proxies,
                hub=self.hub,
                on_bytes=self.reporter.advance,
                on_retry=self.reporter.say,
            )
        finally:
            self.reporter.pause()
