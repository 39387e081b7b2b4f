"""What is known of a model that ONNX Runtime serves, before the worker runs."""

from __future__ import annotations

from pathlib import Path

from runed.backends.gguf import read_model
from runed.backends.model_info import model_info
from runed.backends.onnx.graph_folder import read_graph
from runed.domain.model import ModelInfo
from runed.domain.model_spec import ModelKind
from runed.errors import ModelFileError, printable
from runed.onnx_files import is_onnx

_CONTEXT_STEP = 256
"""`llama-server` rounds a context up to a multiple of it. The same setting means the same number of tokens here."""

_IN_GRAPH = "graph"
"""`ModelInfo.pooling` if the graph of a user's own file makes vectors of texts, in a way that nobody tells."""


def describe(model: Path, graph: Path, *, sha256: str, ctx_size: int, pooling: str) -> ModelInfo:
    """Describe a model.

    Args:
        model: The GGUF, or a user's own ONNX file.
        graph: The folder of its graph, which an ONNX file must have.
        sha256: The SHA-256 of the model, in hexadecimal.
        ctx_size: The most tokens of a text that the user wants.
        pooling: The pooling instead of that of the model, or "".

    Raises:
        ModelFileError: The model cannot be used.
    """
    context = -(-ctx_size // _CONTEXT_STEP) * _CONTEXT_STEP
    if not is_onnx(model):
        metadata = read_model(model, ModelKind.EMBEDDING, pooling=pooling)
        return model_info(model, metadata, sha256=sha256, context=context)
    found = read_graph(graph)
    if found is None:
        raise ModelFileError(f"the model {model} has not been read yet; run `runed install`")
    own_pooling = _IN_GRAPH if found.pooling == "none" else found.pooling
    return ModelInfo(
        identity=f"sha256:{sha256[:16]}",
        name=printable(found.name or model.stem),
        architecture=printable(found.architecture),
        dim=found.dim,
        max_tokens=min(context, found.max_tokens),
        pooling=own_pooling,
        file_pooling="" if pooling else own_pooling,
        file_type="F32",
        sha256=sha256,
        unknown_token=found.unknown_token,
        special_tokens=tuple((number, printable(text)) for number, text in found.special_tokens),
    )
