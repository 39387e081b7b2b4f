"""A site to download from, and a home to install into."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runed.bootstrap import Installation, Progress, install
from runed.domain.model_spec import ModelSpec
from runed.paths import Paths
from runed.settings import Settings
from tests.bootstrap.parts import IMPATIENT, Release, Wanted, check_magic
from tests.bootstrap.site import Site, running_site


@pytest.fixture
def site() -> Iterator[Site]:
    """A web server on loopback with nothing on it yet."""
    with running_site() as site:
        yield site


@pytest.fixture
def wanted(site: Site, tmp_path: Path) -> Wanted:
    """A file of the site to download."""
    return Wanted(site, tmp_path)


@pytest.fixture
def release(site: Site) -> Release:
    """The engine and the models of the site. A test changes the release, then publishes it."""
    return Release(site)


@pytest.fixture(scope="session")
def real_engine_archive(llama_server: Path) -> bytes:
    """The real engine packed as an official release: flat, with its links."""
    names = [path for path in llama_server.parent.iterdir() if ".so" in path.name]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as tar:
        for path in (llama_server, llama_server.with_name("llama-quantize"), *names):
            tar.add(path, f"llama-b1/{path.name}", recursive=False)
    return buffer.getvalue()


class Machine:
    """A home to install into, as often as a test likes.

    Attributes:
        settings: The settings of the next installation.
        paths: The paths of the home.
        progress: What was reported so far.
    """

    def __init__(self, home: Path) -> None:
        self.settings = Settings(home=home)
        self.paths = Paths(home)
        self.progress: list[Progress] = []

    async def install(
        self,
        manifest: str | None = None,
        *,
        wanted: ModelSpec | None = None,
        **settings: Any,  # noqa: ANN401 # the fields of Settings, each of its own type
    ) -> Installation:
        """Install by a manifest, with settings that stay."""
        if manifest is not None:
            settings["manifest"] = manifest
        self.settings = replace(self.settings, **settings)
        return await install(
            self.settings,
            self.paths,
            report=self.progress.append,
            check_model=check_magic,
            wanted=wanted,
            policy=IMPATIENT,
        )

    def audit(self) -> dict[str, Any]:
        """Return the content of installed.json."""
        document: dict[str, Any] = json.loads(self.paths.installed.read_bytes())
        return document

    def leftovers(self) -> list[str]:
        """Return the names of files that only an unfinished installation should leave behind."""
        patterns = ("models/*.partial*", "cache/*.download*", "bin/.llama-cpp*", "**/*.tmp")
        return sorted(path.name for pattern in patterns for path in self.paths.home.glob(pattern))


@pytest.fixture
def machine(home: Path) -> Machine:
    """An empty home."""
    return Machine(home)
