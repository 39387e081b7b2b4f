"""Calls a daemon that refuses with the official `openai` package. Prints the tries and the error as one JSON object.

Standard input is a JSON object with `socket`, the socket of `tests.fakes.fake_host`.
"""

from __future__ import annotations

import json
import sys
import time

import httpx2
import openai

given = json.load(sys.stdin)
asked: list[httpx2.Request] = []
output: dict[str, list[object]] = {}

http = httpx2.Client(transport=httpx2.HTTPTransport(uds=given["socket"]), event_hooks={"request": [asked.append]})
with openai.OpenAI(base_url="http://localhost/v1", api_key="any", http_client=http, max_retries=1) as client:
    for reason in ("QUEUE_FULL", "BACKEND_FAULT"):
        asked.clear()
        started = time.monotonic()
        try:
            client.embeddings.create(input=f"fail:{reason}", model="text-embedding-ada-002")
        except openai.APIStatusError as error:
            output[reason] = [type(error).__name__, len(asked), time.monotonic() - started >= 1.5]  # the daemon's time

json.dump(output, sys.stdout)
