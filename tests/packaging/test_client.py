"""`runed-client` is the client without the daemon, and a release of `runed` is the rest."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import grimp
import pytest
from packaging.requirements import Requirement

from runed.version import __version__
from tests.packaging.environments import build, environment, read_metadata
from tests.support import RunningDaemon
from tools.thin import CLIENT, leave_client_out

ROOT = Path(__file__).resolve().parents[2]

EMBED = """
import runed
with runed.connect() as client:
    print(client.embed("hello").shape)
"""


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the client."""
    return build(CLIENT, tmp_path_factory.mktemp("client"), "--wheel")


@pytest.fixture(scope="module")
def rest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of `runed` as a release has it, made as `make release` makes it."""
    folder = tmp_path_factory.mktemp("rest")
    argv = [sys.executable, "-m", "build", "--no-isolation", "--sdist", "--outdir", str(folder), str(ROOT)]
    subprocess.run(argv, check=True, capture_output=True, timeout=100)
    [archive] = folder.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    tree = folder / archive.name.removesuffix(".tar.gz")
    leave_client_out(tree)
    return build(tree, folder / "dist")


@pytest.fixture(scope="module")
def alone(client: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with nothing but the client."""
    return environment(tmp_path_factory.mktemp("alone"), client)


@pytest.fixture
def program(client: Path, rest: Path, tmp_path: Path) -> Path:
    """The `runed` of an environment with a release of both distributions."""
    return environment(tmp_path / "daemon", client, rest).parent / "runed"


def names_of(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as file:
        return {name for name in file.namelist() if ".dist-info/" not in name}


def run(python: Path, code: str, folder: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run code in an environment, outside the source tree."""
    environ = {"PATH": os.defpath} | environ
    argv = [str(python), "-I", "-c", code]
    return subprocess.run(argv, cwd=folder, env=environ, capture_output=True, text=True, check=False, timeout=90)


def test_the_client_has_what_its_modules_import_and_nothing_else() -> None:
    graph = grimp.build_graph("runed")
    adapters = {name for name in graph.modules if name.startswith("runed.integrations.")} - {"runed.integrations.ray_serve"}
    clients = {name for name in graph.modules if name.startswith("runed.client")}
    needed = clients | adapters
    for name in clients | adapters:
        needed |= graph.find_upstream_modules(name)
    included = set()
    for path in tomllib.loads((CLIENT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"][
        "force-include"
    ]:
        place = (CLIENT / path).resolve()
        included |= {place} if place.is_file() else set(place.rglob("*.py"))
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in included
        if path.is_relative_to(ROOT / "runed") and path.suffix == ".py"
    }
    packages = {name.rpartition(".")[0] for name in needed}
    assert modules - {"runed.integrations.ray_serve"} == needed | packages


def test_its_requirements_are_those_of_runed() -> None:
    def requirements(place: Path) -> dict[str, Requirement]:
        project = tomllib.loads((place / "pyproject.toml").read_text())["project"]
        texts = itertools.chain(project["dependencies"], *project["optional-dependencies"].values())
        return {requirement.name: requirement for requirement in map(Requirement, texts)}

    whole = requirements(ROOT)
    assert requirements(CLIENT).items() <= whole.items()


@pytest.mark.slow
class TestWheels:
    def test_no_file_is_missing_or_in_both(self, client: Path, rest: Path) -> None:
        assert not names_of(client) & names_of(rest)
        source = {
            str(path.relative_to(ROOT))
            for path in (ROOT / "runed").rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
        assert {name for name in names_of(client) | names_of(rest) if name.startswith("runed/")} == source
        assert f"runed-client=={__version__}" in read_metadata(rest).get_all("Requires-Dist", [])
        assert read_metadata(rest)["Version"] == read_metadata(client)["Version"] == __version__

    def test_the_client_alone_embeds(self, alone: Path, minilm_daemon: RunningDaemon, tmp_path: Path) -> None:
        done = run(alone, EMBED, tmp_path, HOME=str(minilm_daemon.home), RUNED_HOME=str(minilm_daemon.home))
        assert done.returncode == 0, done.stderr
        assert "(384,)" in done.stdout
        streams = """
import asyncio, runed
with runed.connect() as client:
    print(len(list(client.embed_stream(enumerate(["a", "b"])))))
async def main():
    async with runed.connect_async() as client:
        print(len([each async for each in client.embed_stream(enumerate(["a", "b", "c"]))]))
asyncio.run(main())
"""
        done = run(alone, streams, tmp_path, HOME=str(minilm_daemon.home), RUNED_HOME=str(minilm_daemon.home))
        assert done.stdout.split() == ["2", "3"], done.stderr

    def test_the_client_alone_says_how_to_get_a_daemon(self, alone: Path, home: Path) -> None:
        done = run(alone, "import runed\nruned.connect()", home, HOME=str(home), RUNED_HOME=str(home), PATH=str(alone.parent))
        assert done.returncode == 1
        assert "DaemonStartError" in done.stderr
        assert "pip install runed" in done.stderr

    def test_the_client_alone_says_what_stubs_need(self, alone: Path, home: Path) -> None:
        done = run(alone, "import runed\nruned.http_client()", home, RUNED_HOME=str(home))
        assert done.stderr.endswith('ImportError: pyqwest is not installed; run: pip install "runed-client[stubs]"\n')

    def test_the_client_alone_starts_the_runed_of_the_path(
        self, alone: Path, program: Path, home: Path, llama_server: Path, tiny_qwen3: Path
    ) -> None:
        environ = {
            "HOME": str(home),
            "RUNED_HOME": str(home),
            "RUNED_LLAMA_SERVER": str(llama_server),
            "RUNED_MODEL": str(tiny_qwen3),
            "PATH": f"{program.parent}:{os.defpath}",
        }
        assert shutil.which("runed", path=environ["PATH"]) == str(program)
        try:
            done = run(alone, EMBED, home, **environ)
            assert done.returncode == 0, done.stderr
            assert "(64,)" in done.stdout
            status = subprocess.run([program, "status"], env=environ, capture_output=True, text=True, check=False, timeout=60)
            assert "qwen3-embedding-random-tiny" in status.stdout, status.stderr
        finally:
            stopped = subprocess.run([program, "stop"], env=environ, capture_output=True, text=True, check=False, timeout=60)
        assert stopped.returncode == 0, stopped.stderr
