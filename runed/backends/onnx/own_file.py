"""Describes a user's own ONNX file, as sentence-transformers exports it: `model.onnx` or `onnx/model.onnx` of a model's folder.

Only the tokenizer is copied, since padding and cutting are not its task here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime as ort
from tokenizers import Tokenizer

from runed.backends.onnx.graph_folder import TOKENIZER, GraphInfo
from runed.backends.onnx.model_file import UnsupportedModelError
from runed.files import read_record
from runed.onnx_files import model_folder

_INPUTS = frozenset({"input_ids", "attention_mask", "token_type_ids", "position_ids"})
"""Inputs that the worker can give."""

_TOKENS = ("token_embeddings", "last_hidden_state")
_SENTENCE = "sentence_embedding"
"""Names that exporters give to outputs: one vector a token, and one vector a text."""

_MODULES = frozenset({"Transformer", "Pooling", "Normalize"})
"""Modules of sentence-transformers that token vectors and pooling stand for."""

_POOLINGS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_lasttoken": "last"}

_OFFSET_TYPES = frozenset({"camembert", "longformer", "mpnet", "roberta", "xlm-roberta", "xlm-roberta-xl"})
"""Models whose positions begin after the padding token's number."""

_MOST_TOKENS = 1_000_000
"""A larger length means in these files that nobody set it."""


def describe_own_file(model: Path, folder: Path, pooling: str) -> GraphInfo:
    """Read what stands beside an ONNX file, and compute one short text to learn the form of its vectors.

    Args:
        model: The file.
        folder: The folder to write the tokenizer to.
        pooling: The pooling instead of that of the model, or "".

    Raises:
        ModelFileError: It has no tokenizer.
        OSError: The tokenizer cannot be written.
        UnsupportedModelError: Something is missing, or not as the worker needs it.
    """
    root = model_folder(model)
    tokenizer = _tokenizer(root / TOKENIZER)
    tokenizer.save(str(folder / TOKENIZER), pretty=False)
    config = read_record(root / "config.json", dict[str, Any]) or {}
    session = _session(model)
    modules = _modules(root)
    output, pooling = _output(model, session, modules, pooling)
    return GraphInfo(
        architecture=str(config.get("model_type", "onnx")),
        dim=_dim(session, output, tokenizer.encode("a").ids, rank=2 if pooling == "none" else 3),
        max_tokens=_max_tokens(root, config),
        pooling=pooling,
        normalized=False,
        inputs=[value.name for value in session.get_inputs()],
        output=output,
        pad_id=_number(config.get("pad_token_id"), 0),
        unknown_token=_unknown_token(tokenizer),
        special_tokens=[
            (number, token.content) for number, token in tokenizer.get_added_tokens_decoder().items() if token.special
        ],
        name=str(config.get("_name_or_path", "")).rpartition("/")[2],
        model=str(model.absolute()),  # not where a link leads to, since the weights lie beside the link
    )


def _tokenizer(path: Path) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001 # the library raises nothing narrower
        raise UnsupportedModelError(f"{path} cannot be used: {error}") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _unknown_token(tokenizer: Tokenizer) -> int | None:
    model = msgspec.json.decode(tokenizer.to_str(), type=dict[str, Any])["model"]
    text, number = model.get("unk_token"), model.get("unk_id")
    return tokenizer.token_to_id(text) if isinstance(text, str) else number


def _session(model: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 # as above
        raise UnsupportedModelError(f"it cannot be loaded: {error}") from None
    names = {value.name for value in session.get_inputs()}
    if not {"input_ids", "attention_mask"} <= names <= _INPUTS:
        raise UnsupportedModelError(
            f"its inputs are {', '.join(sorted(names))}, and runed can give {', '.join(sorted(_INPUTS))}; "
            "export it for feature extraction"
        )
    return session


def _modules(root: Path) -> dict[str, str]:
    """Return the folder of each module of sentence-transformers, by the module's class."""
    modules = read_record(root / "modules.json", list[dict[str, Any]]) or [{"type": "Pooling", "path": "1_Pooling"}]
    return {str(module.get("type", "")).rpartition(".")[2]: str(module.get("path", "")) for module in modules}


def _output(model: Path, session: ort.InferenceSession, modules: dict[str, str], pooling: str) -> tuple[str, str]:
    """Return the output to use, and how to pool it: "none" if it is one vector a text."""
    ranks = {value.name: len(value.shape or ()) for value in session.get_outputs()}
    more = sorted(modules.keys() - _MODULES)
    tokens = next((name for name in (*_TOKENS, *ranks) if ranks.get(name) == 3), None)  # noqa: PLR2004 # texts, tokens, values
    if tokens and not more:
        pooling = pooling or _pooling(model, modules)
        if pooling:
            return tokens, pooling
    if _SENTENCE in ranks and not pooling:
        return _SENTENCE, "none"
    if more:
        raise UnsupportedModelError(f"it has no output {_SENTENCE}, and the module {more[0]} would come after its tokens")
    raise UnsupportedModelError(
        "nothing beside it tells how to pool its tokens (1_Pooling/config.json); name it: "
        "`runed add PATH --name NAME --pooling mean`"
    )


def _pooling(model: Path, modules: dict[str, str]) -> str:
    """Return the pooling that the files beside a model tell; "" if they tell none."""
    folder = modules.get("Pooling")
    places = [root / folder / "config.json" for root in (model.parent, model.parent.parent)] if folder else []
    config = next((found for path in places if (found := read_record(path, dict[str, Any])) is not None), {})
    modes = sorted(key for key, value in config.items() if key.startswith("pooling_mode_") and value is True)
    named = config.get("pooling_mode")
    if isinstance(named, str) and not modes:
        modes = [named]
    if len(modes) == 1:
        mode = _POOLINGS.get(modes[0], modes[0])
        if mode in _POOLINGS.values():
            return mode
    if modes:
        raise UnsupportedModelError(f"it pools by {' and '.join(modes)}, and runed by mean, cls or last")
    return ""


def _dim(session: ort.InferenceSession, output: str, ids: list[int], *, rank: int) -> int:
    """Return the number of values of a vector. Compute the vectors of one text for it."""
    count = len(ids)
    given = {
        "input_ids": ids,
        "attention_mask": [1] * count,
        "token_type_ids": [0] * count,
        "position_ids": list(range(count)),
    }
    types = {"tensor(int32)": np.int32, "tensor(int64)": np.int64}
    try:
        feed = {value.name: np.array([given[value.name]], types[value.type]) for value in session.get_inputs()}
        vectors = session.run([output], feed)[0]
    except Exception as error:  # noqa: BLE001 # as above
        raise UnsupportedModelError(f"a text cannot be computed: {error}") from None
    if vectors.ndim != rank or vectors.dtype != np.float32:
        raise UnsupportedModelError(
            f"its output {output} has the type {vectors.dtype} and {vectors.ndim} dimensions; export it with float32 and {rank}"
        )
    return int(vectors.shape[-1])


def _max_tokens(root: Path, config: dict[str, Any]) -> int:
    """Return the most tokens of a text: what the positions allow, or else what the tokenizer is set to."""
    positions = _number(config.get("max_position_embeddings"), 0)
    if positions and config.get("model_type") in _OFFSET_TYPES:
        positions -= _number(config.get("pad_token_id"), 1) + 1
    if positions > 0:
        return positions
    for name, key in (("sentence_bert_config.json", "max_seq_length"), ("tokenizer_config.json", "model_max_length")):
        length = _number((read_record(root / name, dict[str, Any]) or {}).get(key), 0)
        if 0 < length < _MOST_TOKENS:
            return length
    raise UnsupportedModelError(
        f"nothing in {root} tells how many tokens a text may have; write a sentence_bert_config.json with max_seq_length"
    )


def _number(value: Any, default: int) -> int:  # noqa: ANN401 # a value of JSON
    return value if isinstance(value, int) and not isinstance(value, bool) else default
