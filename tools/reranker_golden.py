"""Writes the scores that transformers gives for the cross-encoder of `tools/reranker.py`, as the reference of the tests.

    python -m tools.reranker --transformers build/minilm-reranker
    python tools/reranker_golden.py build/minilm-reranker tests/fixtures/minilm-reranker.golden.json

It needs transformers and PyTorch, which are no dependencies of the project. Any Python that has them can run it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch  # type: ignore[import-not-found] # as told above
import transformers  # type: ignore[import-not-found] # as told above

MAX_TOKENS = 512

QUERIES = ("what is tea?", "Wie viele Menschen leben in Berlin?", "北京 weather", "unaffable [SEP] naïve", "a")

DOCUMENTS = (
    "Tea is a hot drink made of the leaves of Camellia sinensis.",
    "The train to Hamburg leaves at nine.",
    "Berlin has 3,520,031 registered inhabitants in an area of 891.82 square kilometers.",
    "Beijing (北京) is hot in July; in winter it is dry and cold.",
    "TEA",
    "?!",
    "Crème brûlée, jalapeño — 🙂 “quoted”",
    "[CLS] of a document [SEP] that writes special tokens",
    "a line\nand another\tone",
    "word " * 300,
    "The quick brown fox jumps over the lazy dog. " * 80,
)
"""Documents. With a query, the last one has more than `MAX_TOKENS` tokens, so that its end is cut off."""


def main() -> None:
    """Score each document for each query."""
    folder, output = map(Path, sys.argv[1:])
    tokenizer = transformers.BertTokenizer.from_pretrained(folder)
    model = transformers.BertForSequenceClassification.from_pretrained(folder).eval()
    rows = []
    for query in QUERIES:
        for document in DOCUMENTS:
            # Without the first step of `tokenize`: special tokens that a text writes are plain text, as the engine reads them.
            words = map(tokenizer.basic_tokenizer.tokenize, (query, document))
            read = [[piece for word in text for piece in tokenizer.wordpiece_tokenizer.tokenize(word)] for text in words]
            query_ids, document_ids = map(tokenizer.convert_tokens_to_ids, read)
            total = len(query_ids) + len(document_ids) + 3
            kept = document_ids[: MAX_TOKENS - len(query_ids) - 3]
            sep = tokenizer.sep_token_id
            ids = torch.tensor([[tokenizer.cls_token_id, *query_ids, sep, *kept, sep]])
            with torch.no_grad():
                score = float(model(ids).logits[0, 0])
            rows.append({"query": query, "document": document, "score": score, "tokens": ids.shape[1], "total_tokens": total})
    made_by = f"transformers {transformers.__version__}, PyTorch {torch.__version__}, float32"
    output.write_text(json.dumps({"made_by": made_by, "pairs": rows}, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main()
