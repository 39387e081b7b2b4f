"""Embeds with the official `ollama` package and with `langchain-ollama` as programs do, and prints the results as JSON.

Standard input is a JSON object with `url`, `model` and `texts`.
"""

from __future__ import annotations

import asyncio
import json
import sys

import ollama
from langchain_ollama import OllamaEmbeddings

given = json.load(sys.stdin)
texts: list[str] = given["texts"]
model: str = given["model"]
client = ollama.Client(host=given["url"])


def refusal(name: str) -> list[object]:
    try:
        client.embed(name, texts)
    except ollama.ResponseError as error:
        return [error.status_code, error.error]
    return []


async def ask_async() -> list[list[float]]:
    answer = await ollama.AsyncClient(host=given["url"]).embed(model, texts)
    return [list(vector) for vector in answer.embeddings]


answer = client.embed(model, texts)
langchain = OllamaEmbeddings(model=model, base_url=given["url"], validate_model_on_init=True)
json.dump(
    {
        "embed": [list(vector) for vector in answer.embeddings],
        "tokens": answer.prompt_eval_count,
        "model": answer.model,
        "one": list(client.embeddings(model, texts[0]).embedding),
        "short": [list(vector) for vector in client.embed(model, texts, dimensions=32).embeddings],
        "async": asyncio.run(ask_async()),
        "listed": [each.model for each in client.list().models],
        "running": [each.model for each in client.ps().models],
        "capabilities": client.show(model).capabilities,
        "length": next(
            value for name, value in (client.show(model).modelinfo or {}).items() if name.endswith(".embedding_length")
        ),
        "pulled": [step.status for step in client.pull(model, stream=True)],
        "pulled at once": client.pull(model).status,
        "refusal": refusal("nothing:7b"),
        "langchain": langchain.embed_documents(texts),
        "langchain query": langchain.embed_query(texts[0]),
        "langchain async": asyncio.run(langchain.aembed_documents(texts)),
    },
    sys.stdout,
)
