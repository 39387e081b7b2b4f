"""The number of an installation's looks at the files in place. A look runs the engine, and may hash a model of gigabytes."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from runed.bootstrap.audit import Audit
from runed.bootstrap.manifest import current_platform
from runed.locking import LockFile
from tests.bootstrap.conftest import Machine
from tests.bootstrap.parts import Release, archive
from tests.support import eventually

_opened: Counter[str] = Counter()


def _count(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and isinstance(arguments[0], str):
        _opened[arguments[0]] += 1


@pytest.fixture(scope="module", autouse=True)
def _hook() -> None:
    sys.addaudithook(_count)


@dataclass
class Looks:
    """The looks of one installation.

    Attributes:
        versions: The runs of `llama-server --version`.
        hashes: The readings of the file with the known hashes.
        reads: The openings of a model in place, to hash it.
    """

    versions: int = 0
    hashes: int = 0
    reads: int = 0


class Watched:
    """A machine and a release whose engine notes each of its runs."""

    def __init__(self, machine: Machine, release: Release) -> None:
        self.machine = machine
        self.release = release
        self.runs = machine.paths.home / "runs"
        script = f"#!/bin/sh\necho run >> {self.runs}\necho 'version: 4242 (fake)' >&2\n"
        release.engine = archive(("llama-b1/llama-server", script), ("llama-b1/llama-quantize", '#!/bin/sh\ncp "$2" "$3"\n'))

    @contextmanager
    def looks(self) -> Iterator[Looks]:
        """Count in the block."""
        looks = Looks()
        self.runs.write_text("")
        _opened.clear()
        yield looks
        paths = self.machine.paths
        looks.versions = len(self.runs.read_text().splitlines())
        looks.hashes = _opened[str(paths.cache / "verified.json")]
        looks.reads = sum(_opened[str(path)] for path in paths.models.glob("*.gguf"))

    def manifest(self, kind: str) -> str:
        """Publish, and return the manifest as a URL or as a file."""
        url = self.release.publish()
        if kind == "url":
            return url
        document = self.release.document()
        for name in self.release.models:
            document["models"][name]["url"] = f"{self.release.site.url}/models/{name}.gguf"
        document["platforms"][current_platform()]["llama_server"]["url"] = f"{self.release.site.url}/engine.tar.gz"
        path = self.machine.paths.home / "manifest.json"
        path.write_text(json.dumps(document))
        return str(path)


@pytest.fixture
def watched(machine: Machine, release: Release) -> Watched:
    return Watched(machine, release)


@pytest.mark.parametrize("kind", ["file", "url"])
async def test_an_installation_and_a_warm_start_look_once(watched: Watched, kind: str) -> None:
    manifest = watched.manifest(kind)
    with watched.looks() as fresh:
        await watched.machine.install(manifest)
    with watched.looks() as warm:
        await watched.machine.install()
    assert fresh == Looks(versions=1, hashes=1, reads=0)  # the hash of the new model
    assert warm == Looks(versions=1, hashes=1, reads=0)


@pytest.mark.parametrize("kind", ["file", "url"])
async def test_a_new_model_for_an_engine_in_place_runs_the_engine_once(watched: Watched, kind: str) -> None:
    await watched.machine.install(watched.manifest(kind))
    watched.release.derived, watched.release.default = {"derived": ("tiny", "Q6_K")}, "derived"
    with watched.looks() as looks:
        installation = await watched.machine.install(watched.manifest(kind))
    assert (installation.variant, installation.warnings) == ("derived", ())
    assert looks == Looks(versions=1, hashes=2, reads=0)  # the hashes of the source and of the new model


async def test_a_start_that_waited_for_another_looks_again(watched: Watched) -> None:
    manifest = watched.manifest("file")
    with LockFile(watched.machine.paths.install_lock) as lock, watched.looks() as looks:
        assert lock.try_acquire()
        waiting = asyncio.create_task(watched.machine.install(manifest))
        await eventually(lambda: bool(watched.machine.progress))
        message = watched.machine.progress[-1].message
        # The other process's work. It uses another home, since this one is locked.
        other = Machine(watched.machine.paths.home / "other")
        await other.install(manifest)
        for name in ("bin/llama-cpp", "models", "installed.json"):
            shutil.rmtree(watched.machine.paths.home / name, ignore_errors=True)
            (other.paths.home / name).rename(watched.machine.paths.home / name)
        lock.release()
        await waiting
    assert message.startswith("waiting for process ")
    assert looks.versions == 2  # the other's, and this one's after the wait
    assert looks.reads == 1  # it was verified there
    assert watched.release.site.count("/engine.tar.gz") == watched.release.site.count("/models/tiny.gguf") == 1


async def test_the_audit_tells_what_another_process_wrote(watched: Watched) -> None:
    audit = Audit(watched.machine.paths.installed, watched.machine.settings)
    await watched.machine.install(watched.manifest("file"))
    assert audit.reload()
    assert "tiny" in audit.installed.models
    assert not audit.reload()
