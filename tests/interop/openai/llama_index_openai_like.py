"""Embeds with LlamaIndex's OpenAI-like embedding as programs do, and prints the results as one JSON object.

Standard input is a JSON object with `url`, `token` and `texts`.
"""

from __future__ import annotations

import asyncio
import json
import sys

from llama_index.embeddings.openai_like import OpenAILikeEmbedding

given = json.load(sys.stdin)
texts: list[str] = given["texts"]

model = OpenAILikeEmbedding(model_name="text-embedding-3-large", api_base=given["url"], api_key=given["token"])
short = OpenAILikeEmbedding(model_name="text-embedding-3-large", api_base=given["url"], api_key=given["token"], dimensions=32)
output = {
    "documents": model.get_text_embedding_batch(texts),
    "query": model.get_query_embedding(texts[0]),
    "async": asyncio.run(model.aget_text_embedding_batch(texts)),
    "short": short.get_text_embedding_batch(texts),
}
json.dump(output, sys.stdout)
