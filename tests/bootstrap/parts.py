"""Engines, archives, models and manifests for the tests of the bootstrap."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from runed.bootstrap.download import download
from runed.bootstrap.hub import Hub
from runed.bootstrap.manifest import Artefact, current_platform
from runed.bootstrap.partial_files import partial_path, sidecar_path
from runed.bootstrap.policy import DownloadPolicy
from runed.bootstrap.proxies import Proxies
from runed.errors import ModelFileError, RunedError
from tests.bootstrap.site import Site

IMPATIENT = DownloadPolicy(
    attempts=3, worthwhile=20_000, first_wait=0.01, max_wait=0.05, max_retry_after=0.3, connect_timeout=5.0, stall_timeout=0.5
)
"""The real policy with shorter times."""

VERSION_SCRIPT = "#!/bin/sh\necho 'version: 4242 (fake)' >&2\n"
"""An engine that only tells its version."""

MODEL = b"GGUF" + bytes(range(256)) * 1200
"""Content of a model, large enough for several network reads. Only its first bytes look like a model."""


def sha256(data: bytes) -> str:
    """Return the hash of bytes."""
    return hashlib.sha256(data).hexdigest()


def file_sha256(path: Path) -> str:
    """Return the hash of a file."""
    return sha256(path.read_bytes())


def archive(*members: tuple[str, bytes | str] | tarfile.TarInfo) -> bytes:
    """Make a tar.gz. Text becomes a program, bytes become a plain file."""
    buffer = io.BytesIO()
    # Without a time, since an archive can be a parameter, which must be the same in all processes of a test run.
    compressed = gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=1, mtime=0)
    with compressed, tarfile.open(fileobj=compressed, mode="w") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            name, content = member
            info = tarfile.TarInfo(name)
            info.mode = 0o755 if isinstance(content, str) else 0o644
            data = content.encode() if isinstance(content, str) else content
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    """Make a member that is not a file: a link, a device or a pipe."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def check_magic(path: Path) -> None:
    """Check the first bytes of a model. The daemon reads the GGUF instead."""
    if not path.read_bytes().startswith(b"GGUF"):
        raise ModelFileError(f"{path.name} is not a GGUF")


@dataclass
class Release:
    """The files that a site offers, and their manifest.

    Attributes:
        site: The site.
        engine: The archive.
        models: The downloads by variant.
        derived: The derived models by variant: the source and the result.
        default: The default variant.
    """

    site: Site
    engine: bytes = field(default_factory=lambda: archive(("llama-b1/llama-server", VERSION_SCRIPT)))
    models: dict[str, bytes] = field(default_factory=lambda: {"tiny": MODEL})
    derived: dict[str, tuple[str, str]] = field(default_factory=dict)
    default: str = "tiny"

    def document(self) -> dict[str, Any]:
        """Return the manifest, with URLs relative to it."""
        models: dict[str, Any] = {
            name: {"url": f"models/{name}.gguf", "sha256": sha256(data), "size": len(data)}
            for name, data in self.models.items()
        }
        models |= {name: {"derive": {"from": source, "type": kind}} for name, (source, kind) in self.derived.items()}
        engine = {
            "url": "/engine.tar.gz",
            "sha256": sha256(self.engine),
            "size": len(self.engine),
            "extract": "tar.gz",
            "exec": "llama-b1/llama-server",
        }
        return {
            "version": 1,
            "platforms": {current_platform(): {"llama_server": engine}},
            "models": models,
            "default_model": self.default,
            "comment": "an unknown key",
        }

    def publish(self) -> str:
        """Put everything on the site, and return the manifest's URL."""
        self.site.files["/engine.tar.gz"] = self.engine
        for name, data in self.models.items():
            self.site.files[f"/models/{name}.gguf"] = data
        self.site.files["/manifest.json"] = json.dumps(self.document()).encode()
        return f"{self.site.url}/manifest.json"


CONTENT = bytes(range(256)) * 1200
"""Content of the file of `Wanted`."""

HALF = 150_000


class Wanted:
    """One file that a test downloads, possibly several times."""

    def __init__(self, site: Site, directory: Path) -> None:
        site.files["/f"] = CONTENT
        self.site = site
        self.artefact = Artefact(f"{site.url}/f", sha256(CONTENT), len(CONTENT))
        self.target = directory / "f"
        self.bytes: list[int] = []
        self.retries: list[str] = []

    async def download(self, policy: DownloadPolicy = IMPATIENT, hub: Hub = Hub()) -> str:  # noqa: B008 # immutable
        return await download(
            self.artefact,
            self.target,
            policy=policy,
            proxies=Proxies(),
            hub=hub,
            on_bytes=self.bytes.append,
            on_retry=self.retries.append,
        )

    async def fail(self, error: type[RunedError], match: str) -> None:
        """Download once, which must fail."""
        with pytest.raises(error, match=match):
            await self.download()
        assert not self.target.exists()

    def ranges(self) -> list[str]:
        """Return the ranges that were asked for."""
        return [request.range for request in self.site.requests]

    def files(self) -> list[str]:
        """Return the names of all files in the directory of the target."""
        return sorted(path.name for path in self.target.parent.iterdir())

    def check_complete(self) -> None:
        """Check that the file is in place, and nothing else."""
        assert self.target.read_bytes() == CONTENT
        assert not partial_path(self.target).exists()
        assert not sidecar_path(self.target).exists()
