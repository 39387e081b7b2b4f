"""Tells whether ONNX Runtime can be used here, and for which models. It imports none of its packages, which are large."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from importlib.util import find_spec

from runed.backends.onnx.graph_folder import ARCHITECTURES, BUILDER, POOLINGS
from runed.domain.device import CPU, Device
from runed.domain.model import ModelInfo
from runed.errors import SettingsError
from runed.extras import install_command

_PACKAGES = ("onnxruntime", "onnx", "gguf", "tokenizers")
"""The modules that the worker and the builder of graphs import."""

_DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml")
"""Distributions that have the module `onnxruntime`. One of them is installed."""

_PROVIDERS = {
    "CPUExecutionProvider": "cpu",
    "CUDAExecutionProvider": "cuda",
    "CoreMLExecutionProvider": "coreml",
    "DmlExecutionProvider": "dml",
}
"""The values of `RUNED_ONNX_PROVIDER` by the names that ONNX Runtime has for them."""

_LIST_PROVIDERS = "import onnxruntime; print(*onnxruntime.get_available_providers())"

_LIST_SECONDS = 60.0
"""Seconds that ONNX Runtime may take to list its providers. It loads libraries of devices, perhaps from a slow disk."""


def missing() -> str:
    """Return which packages are missing and how to install them, as a clause; "" if all are there."""
    absent = [name for name in _PACKAGES if find_spec(name) is None]
    if not absent:
        return ""
    names = " and ".join(filter(None, [", ".join(absent[:-1]), absent[-1]]))
    return f"ONNX Runtime needs {names}, which this Python does not have; run `{install_command('onnx')}`"


def engine_version() -> str:
    """Return the version of ONNX Runtime and of the graphs, which both decide on vectors, as in "onnxruntime-1.32.0 (graph 1)".

    Raises:
        PackageNotFoundError: It is not installed.
    """
    return f"onnxruntime-{_version()} (graph {BUILDER})"


def device_of(provider: str) -> Device:
    """Return what ONNX Runtime computes with.

    Args:
        provider: One of `runed.settings.PROVIDERS`.
    """
    return CPU if provider == "cpu" else Device(provider)


def check_provider(provider: str) -> None:
    """Check that ONNX Runtime can compute with a provider. For another one than the processors, that takes 0.3 s.

    Args:
        provider: One of `runed.settings.PROVIDERS`.

    Raises:
        SettingsError: The installed package cannot.
    """
    if provider == "cpu":
        return
    try:
        listed = subprocess.run(
            [sys.executable, "-P", "-c", _LIST_PROVIDERS], capture_output=True, text=True, timeout=_LIST_SECONDS, check=True
        ).stdout.split()
    except (subprocess.SubprocessError, OSError) as error:
        raise SettingsError(
            f"RUNED_ONNX_PROVIDER={provider}: ONNX Runtime does not list its providers ({type(error).__name__}); "
            f"install it again (`{install_command('onnx')}`), or set RUNED_ONNX_PROVIDER=cpu"
        ) from None
    known = [_PROVIDERS[name] for name in listed if name in _PROVIDERS]
    if provider not in known:
        raise SettingsError(
            f"RUNED_ONNX_PROVIDER={provider}: the installed ONNX Runtime can compute with {', '.join(known)}; "
            "set one of these, or install the package of ONNX Runtime that has it"
        )


def objection(model: ModelInfo) -> str:
    """Return why no graph can be built for a model, as a clause; "" if perhaps one can. The builder knows the rest."""
    if model.architecture not in ARCHITECTURES:
        return f"no graph can be built for the architecture {model.architecture}, only for {', '.join(sorted(ARCHITECTURES))}"
    if model.pooling not in POOLINGS:
        return f"no graph can be built for the pooling {model.pooling}, only for {', '.join(sorted(POOLINGS))}"
    return ""


def _version() -> str:
    for name in _DISTRIBUTIONS:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return version(next(iter(packages_distributions().get("onnxruntime", ["onnxruntime"]))))
