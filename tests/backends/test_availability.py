"""What is told of ONNX Runtime without importing it: whether it is there, its version, and what it can do."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest

from runed.backends.gguf import read_gguf
from runed.backends.model_info import read_model_info
from runed.backends.onnx import availability
from runed.backends.onnx.graph_folder import BUILDER
from runed.domain.device import CPU
from runed.errors import SettingsError
from runed.extras import install_command
from tests.support import clean_environment, python_without


def told_by(python: Path | str, code: str) -> str:
    """Return what a program prints that has imported the module as `availability`."""
    code = f"from runed.backends.onnx import availability; {code}"
    done = subprocess.run([python, "-c", code], env=clean_environment(), capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_all_packages_are_here() -> None:
    assert availability.missing() == ""
    assert availability.engine_version() == f"onnxruntime-{version('onnxruntime')} (graph {BUILDER})"


@pytest.mark.parametrize(
    ("packages", "words"),
    [
        (["onnxruntime"], "onnxruntime"),
        (["onnx", "tokenizers"], "onnx and tokenizers"),
        (["onnxruntime", "onnx", "gguf"], "onnxruntime, onnx and gguf"),
    ],
)
def test_missing_packages_are_named_with_the_command_that_installs_them(
    tmp_path: Path, packages: list[str], words: str
) -> None:
    python = python_without(*packages, folder=tmp_path / "venv")
    expected = f"ONNX Runtime needs {words}, which this Python does not have; run `{install_command('onnx')}`"
    assert told_by(python, "print(availability.missing())") == expected


def test_nothing_of_it_is_imported() -> None:
    names = "{'onnx', 'onnxruntime', 'gguf', 'tokenizers', 'numpy'}"
    code = f"availability.missing(); availability.engine_version(); import sys; print({names} & sys.modules.keys())"
    assert told_by(sys.executable, code) == "set()"


def test_a_provider_that_the_package_lacks_is_refused_with_those_that_it_has() -> None:
    availability.check_provider("cpu")
    with pytest.raises(
        SettingsError, match=r"RUNED_ONNX_PROVIDER=dml: the installed ONNX Runtime can compute with cpu; set one"
    ):
        availability.check_provider("dml")


def test_a_package_that_cannot_list_its_providers_is_told(tmp_path: Path) -> None:
    python = python_without("onnxruntime", folder=tmp_path / "venv")
    code = "availability.check_provider('cuda')"
    with pytest.raises(subprocess.CalledProcessError) as caught:
        told_by(python, code)
    assert "ONNX Runtime does not list its providers (CalledProcessError); install it again" in caught.value.stderr


def test_a_provider_is_a_device_of_its_own() -> None:
    assert availability.device_of("cpu") == CPU
    assert str(availability.device_of("cuda")) == "cuda"


def test_encoders_may_have_a_graph_and_others_have_none(minilm: Path, tiny_qwen3: Path, reranker: Path) -> None:
    encoder = read_model_info(minilm)
    assert availability.objection(encoder) == ""
    assert availability.objection(read_model_info(tiny_qwen3)).startswith("no graph can be built for the architecture qwen3, ")
    assert availability.objection(read_model_info(reranker)).startswith("no graph can be built for the pooling rank, ")
    assert read_gguf(minilm).architecture in availability.objection(replace(encoder, architecture="other"))
