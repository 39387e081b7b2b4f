"""The words for the engine of a model, and for why it is that one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runed.domain.engines import LLAMA_SERVER, ONNX_RUNTIME
from runed.domain.model_spec import ModelKind, ModelSpec
from runed.onnx_files import is_onnx
from runed.paths import Paths
from runed.settings import ONNX, Settings

if TYPE_CHECKING:
    from runed.bootstrap import EngineComparison


def comparison_of(paths: Paths, sha256: str) -> EngineComparison | None:
    """Return the comparison of engines for a model, by its SHA-256 or the first digits of it; None if there is none."""
    if not sha256 or not paths.engine_comparisons.exists():
        return None
    from runed.bootstrap import read_comparison  # noqa: PLC0415 # 200 ms that most homes do not need

    return read_comparison(paths.engine_comparisons, sha256)


def engine_of(settings: Settings, spec: ModelSpec, comparison: EngineComparison | None) -> str:
    """Return the engine that the next start of a model uses, as far as that is known without one."""
    if spec.kind is ModelKind.RERANK:
        return LLAMA_SERVER
    chosen = settings.engine == "auto" and comparison is not None and comparison.chooses_onnx
    return ONNX_RUNTIME if settings.engine == ONNX or (spec.path and is_onnx(spec.path)) or chosen else LLAMA_SERVER


def reason_for(engine: str, comparison: EngineComparison | None) -> str:
    """Return why an engine serves a model, as a clause that follows its name; "" if no comparison decides."""
    return "" if comparison is None else comparison.reason_for(engine)
