"""Writes the scores that transformers gives for the reranker of `tools/qwen3.py`, as the reference of the tests.

    python tools/qwen3_reranker_golden.py tests/fixtures/qwen3-reranker.golden.json

It needs transformers, PyTorch and gguf, of which the first two are no dependencies of the project. Any Python that has them can
run it.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import gguf
import torch
import transformers  # type: ignore[import-not-found] # as told above

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools import qwen3  # found through the line above, also by a Python that has no copy of the project

QUERIES = ("what is tea?", "Wie viele Menschen leben in Berlin?", "北京 weather", "a <|im_end|> in a query")

DOCUMENTS = (
    "Tea is a hot drink made of the leaves of Camellia sinensis.",
    "The train to Hamburg leaves at nine.",
    "Berlin has 3,520,031 registered inhabitants in an area of 891.82 square kilometers.",
    "Beijing (北京) is hot in July; in winter it is dry and cold.",
    "TEA",
    "?!",
    "Crème brûlée, jalapeño — 🙂 “quoted”",
    "a <think> of a document that writes special tokens <|im_end|>",
    "a line\nand another\tone",
    "word " * 60,
    "The quick brown fox jumps over the lazy dog. " * 25,
)
"""Documents. With a query, the last one has more tokens than the engine computes at once."""

NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""Names of the tensors of a block in transformers, by their names in a GGUF."""


def load_model(reader: gguf.GGUFReader) -> transformers.Qwen3ForCausalLM:
    """Make the language model of the weights of a GGUF. Its head for all words is the vocabulary, as in Qwen3-Reranker-0.6B."""
    weights = {tensor.name.removesuffix(".weight"): torch.tensor(tensor.data) for tensor in reader.tensors}
    embeddings = weights.pop("token_embd")
    del weights["cls.output"]
    renamed = {"model.embed_tokens.weight": embeddings, "lm_head.weight": embeddings}
    renamed["model.norm.weight"] = weights.pop("output_norm")
    for name, weight in weights.items():
        _, layer, part = name.split(".")
        renamed[f"model.layers.{layer}.{NAMES[part]}.weight"] = weight
    shape = qwen3.Shape()
    config = transformers.Qwen3Config(
        vocab_size=len(embeddings),
        hidden_size=shape.dim,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=shape.context,
        rope_theta=1_000_000.0,
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        use_sliding_window=False,
        attn_implementation="eager",
    )
    model = transformers.Qwen3ForCausalLM(config).eval()
    model.load_state_dict(renamed)
    return model


def load_tokenizer(reader: gguf.GGUFReader, folder: Path) -> transformers.Qwen2TokenizerFast:
    """Make the tokenizer of a GGUF. It writes two files into a folder."""
    fields = {name: field.contents() for name, field in reader.fields.items()}
    tokens = fields["tokenizer.ggml.tokens"]
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("\n".join(fields["tokenizer.ggml.merges"]) + "\n")
    tokenizer = transformers.Qwen2TokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer.add_special_tokens({"additional_special_tokens": list(qwen3.SPECIAL_TOKENS)})
    assert len(tokenizer) == len(tokens)
    return tokenizer


def main() -> None:
    """Score each document for each query, as the card of Qwen3-Reranker does."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "reranker.gguf"
        qwen3.write(path, qwen3.Shape(), single=True, rerank=True)
        reader = gguf.GGUFReader(path)
        model, tokenizer = load_model(reader), load_tokenizer(reader, Path(folder))
    answers = tokenizer.convert_tokens_to_ids(list(qwen3.ANSWERS))
    rows = []
    for query in QUERIES:
        for document in DOCUMENTS:
            before, middle = qwen3.RERANK_TEMPLATE.split("{query}")
            text = before + query + middle.replace("{document}", document)
            ids = torch.tensor([tokenizer(text)["input_ids"]])
            with torch.no_grad():
                logits = model(ids, use_cache=False).logits[0, -1, answers]
            score = float(torch.softmax(logits, 0)[0])
            count = ids.shape[1]
            rows.append({"query": query, "document": document, "score": score, "tokens": count, "total_tokens": count})
    made_by = f"transformers {transformers.__version__}, PyTorch {torch.__version__}, float32"
    Path(sys.argv[1]).write_text(json.dumps({"made_by": made_by, "pairs": rows}, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main()
