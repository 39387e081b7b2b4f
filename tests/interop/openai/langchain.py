"""Embeds with `langchain-openai` as programs do, and prints the results as one JSON object.

Standard input is a JSON object with `url`, `token` and `texts`.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from langchain_openai import OpenAIEmbeddings

given = json.load(sys.stdin)
texts: list[str] = given["texts"]


def embeddings(**options: Any) -> OpenAIEmbeddings:  # noqa: ANN401 # the options are the package's
    return OpenAIEmbeddings(
        base_url=given["url"], api_key=given["token"], check_embedding_ctx_length=False, chunk_size=2, **options
    )


plain = embeddings()
output = {
    "documents": plain.embed_documents(texts),
    "query": plain.embed_query(texts[0]),
    "async": asyncio.run(plain.aembed_documents(texts)),
    "short": embeddings(dimensions=32).embed_documents(texts),
    "query_role": embeddings(model_kwargs={"extra_body": {"role": "query"}}).embed_query(texts[0]),
}
json.dump(output, sys.stdout)
