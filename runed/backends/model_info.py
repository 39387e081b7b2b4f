"""What the file of a model tells, in the words that all engines share."""

from __future__ import annotations

from pathlib import Path

from runed.backends.gguf import GGUFMetadata, read_gguf, read_model
from runed.domain.model import RANK, ModelInfo, reads_last
from runed.domain.model_spec import ModelKind
from runed.errors import printable


def read_model_info(path: Path, *, kind: ModelKind | None = None, pooling: str = "") -> ModelInfo:
    """Read a GGUF that no engine serves yet. Its hash is not computed, and stays empty.

    Args:
        path: The file.
        kind: The wanted kind; None takes any.
        pooling: The pooling instead of that of the file, or "".

    Raises:
        ModelFileError: The file cannot be used, or is of another kind.
    """
    metadata = read_gguf(path, pooling=pooling) if kind is None else read_model(path, kind, pooling=pooling)
    return model_info(path, metadata, sha256="", context=metadata.context_length)


def model_info(path: Path, metadata: GGUFMetadata, *, sha256: str, context: int) -> ModelInfo:
    """Describe a model that an engine serves.

    Args:
        path: The file.
        metadata: Its metadata.
        sha256: Its SHA-256, in hexadecimal.
        context: The tokens of the engine's context that one text may use.
    """
    longest = min(context, metadata.context_length)
    return ModelInfo(
        identity=f"sha256:{sha256[:16]}",
        name=metadata.name or printable(path.stem),
        architecture=metadata.architecture,
        dim=1 if metadata.pooling == RANK else metadata.dim,
        # Measured: a model that reads the last token needs one free token of the context.
        max_tokens=longest - 1 if reads_last(metadata.pooling, metadata.architecture) else longest,
        pooling=metadata.pooling,
        file_pooling=metadata.file_pooling,
        file_type=metadata.file_type,
        sha256=sha256,
        unknown_token=metadata.unknown_id,
        special_tokens=metadata.special_tokens,
        origins=metadata.origins,
    )
