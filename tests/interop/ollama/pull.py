"""Pulls a model with the official `ollama` package as programs do, and prints the steps as JSON.

Standard input is a JSON object with `url`, `model` and `stream`.
"""

from __future__ import annotations

import json
import sys

import ollama

given = json.load(sys.stdin)
client = ollama.Client(host=given["url"])
steps: list[dict[str, object]] = []
refusal: list[object] = []
try:
    if given["stream"]:
        steps.extend(step.model_dump(exclude_none=True) for step in client.pull(given["model"], stream=True))
    else:
        steps.append(client.pull(given["model"]).model_dump(exclude_none=True))
except ollama.ResponseError as error:
    refusal = [error.status_code, error.error]
json.dump(
    {"steps": steps, "refusal": refusal, "listed": {each.model: each.digest for each in client.list().models}}, sys.stdout
)
