"""The export of MiniLM that the benchmarks give to other libraries computes MiniLM."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
from tokenizers import Tokenizer

from tests.support import Golden
from tools.minilm import package_folder
from tools.minilm_onnx import export


def test_the_export_agrees_with_the_reference_vectors(minilm: Path, minilm_golden: Golden, tmp_path: Path) -> None:
    export(package_folder(), tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer.enable_padding()
    tokenizer.no_truncation()
    encodings = tokenizer.encode_batch(minilm_golden.texts)
    ids, mask = (np.array([getattr(encoding, part) for encoding in encodings]) for part in ("ids", "attention_mask"))
    session = ort.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    [states] = session.run(["last_hidden_state"], inputs)
    vectors = np.einsum("nt,ntd->nd", mask, states)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert minilm_golden.cosines(vectors.astype(np.float32)).min() >= 0.99999
