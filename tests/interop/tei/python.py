"""Embeds with `huggingface_hub` as programs for Text Embeddings Inference do, and prints the results as one JSON object.

Standard input is a JSON object with `url` and `texts`.
"""

from __future__ import annotations

import json
import sys

from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError

given = json.load(sys.stdin)
texts: list[str] = given["texts"]
client = InferenceClient(base_url=given["url"])
long = "word " * 3000


def refusal() -> list[object]:
    try:
        client.feature_extraction(long)
    except HfHubHTTPError as error:
        return [error.response.status_code, error.response.json()["error_type"]]
    return []


json.dump(
    {
        "one": client.feature_extraction(texts[0]).tolist(),
        "all": [client.feature_extraction(text, normalize=True).tolist()[0] for text in texts],
        "query": client.feature_extraction(texts[0], prompt_name="query").tolist(),
        "short": InferenceClient(model=f"{given['url']}/embed").feature_extraction(texts[0], dimensions=32).tolist(),
        "cut": len(client.feature_extraction(long, truncate=True, truncation_direction="right").tolist()[0]),
        "refusal": refusal(),
    },
    sys.stdout,
)
