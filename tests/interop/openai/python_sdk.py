"""Embeds with the official `openai` package as programs do, and prints the results as one JSON object.

Standard input is a JSON object with `url`, `token`, `socket` and `texts`.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable

import httpx2
import openai

given = json.load(sys.stdin)
texts: list[str] = given["texts"]


async def ask_async() -> list[list[float]]:
    async with openai.AsyncOpenAI(base_url=given["url"], api_key=given["token"]) as client:
        answers = await asyncio.gather(
            *(client.embeddings.create(input=text, model="text-embedding-ada-002") for text in texts)
        )
        return [answer.data[0].embedding for answer in answers]


def refusals(client: openai.OpenAI) -> list[list[str | None]]:
    """Return class, code and parameter of each error that bad calls raise."""
    wrong = client.with_options(api_key="wrong")
    calls: list[Callable[[], object]] = [
        lambda: client.embeddings.create(input=[1, 2, 3], model="text-embedding-ada-002"),
        lambda: client.embeddings.create(input=["fine", ""], model="text-embedding-ada-002"),
        lambda: client.embeddings.create(input="x", model="text-embedding-ada-002", dimensions=100_000),
        lambda: client.models.retrieve("no-such-model"),
        lambda: client.embeddings.create(input="x", model="no-such-model"),
        lambda: client.chat.completions.create(messages=[], model="text-embedding-ada-002"),
        lambda: wrong.embeddings.create(input="x", model="text-embedding-ada-002"),
    ]
    result: list[list[str | None]] = []
    for call in calls:
        try:
            call()
        except openai.APIStatusError as error:
            result.append([type(error).__name__, error.code, error.param])
    return result


with openai.OpenAI(base_url=given["url"], api_key=given["token"]) as client:
    answer = client.embeddings.create(input=texts, model="text-embedding-3-small")
    model, *_ = client.models.list().data
    output = {
        "base64": [item.embedding for item in answer.data],
        "floats": [
            item.embedding
            for item in client.embeddings.create(input=texts, model="text-embedding-ada-002", encoding_format="float").data
        ],
        "short": [
            item.embedding for item in client.embeddings.create(input=texts, model="text-embedding-ada-002", dimensions=32).data
        ],
        "query": client.embeddings.create(input=texts[0], model="text-embedding-ada-002", extra_body={"role": "query"})
        .data[0]
        .embedding,
        "async": asyncio.run(ask_async()),
        "models": [answer.model, model.id, client.models.retrieve(model.id).id],
        "tokens": answer.usage.prompt_tokens,
        "refusals": refusals(client),
    }

transport = httpx2.HTTPTransport(uds=given["socket"])
with openai.OpenAI(
    base_url="http://localhost/v1", api_key="any", http_client=openai.DefaultHttpxClient(transport=transport)
) as client:
    output["socket"] = [item.embedding for item in client.embeddings.create(input=texts, model="text-embedding-ada-002").data]

json.dump(output, sys.stdout)
