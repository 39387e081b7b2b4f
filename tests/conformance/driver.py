"""The conformance driver of Python. It reads calls from standard input and writes results to standard output, as JSON lines.

    python tests/conformance/driver.py (--socket PATH | --connect) [--protocol connect]

With `--connect`, the driver finds or starts the daemon as every client does. The public client speaks only Connect. The drivers
of the other languages (`clients/go/internal/conformance`, `clients/ts/test/conformance.ts`) read the same calls and write the
same results. `table.py` tells how they are compared.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

import runed
from runed.errors import RunedError

Args = dict[str, Any]
Result = dict[str, Any]


def main() -> None:
    """Answer each line until the input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--socket")
    place.add_argument("--connect", action="store_true")
    parser.add_argument("--protocol", choices=["connect"], default="connect")
    arguments = parser.parse_args()
    with runed.connect(socket_path=arguments.socket) as client:
        for line in sys.stdin:
            call = json.loads(line)
            answer = {"id": call["id"]} | _answer(client, call["call"], call.get("args", {}))
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()


def _answer(client: runed.Client, name: str, args: Args) -> Result:
    if (milliseconds := args.pop("timeout_ms", None)) is not None:
        args["timeout"] = milliseconds / 1000
    try:
        return {"result": _CALLS[name](client, args)}
    except RunedError as error:
        return {"error": _error(error)}


def _embed(client: runed.Client, args: Args) -> Result:
    """Embed one text by two calls. `embed` returns the vector alone; the other call returns the details and the same vector."""
    text = _text(args.pop("text"))
    with_route = args.pop("with_route", False)
    vector = client.embed(text, **args)
    (item,) = client.embed_items([text], with_route=with_route, **args)
    assert isinstance(item, runed.Embedding)
    assert np.array_equal(item.vector, vector)
    return _item(item)


def _embed_batch(client: runed.Client, args: Args) -> Result:
    texts = _texts(args)
    vectors = client.embed_batch(texts, **args)
    return {"items": [{"vector": vector.tolist()} for vector in vectors]}


def _embed_items(client: runed.Client, args: Args) -> Result:
    return {"items": [_item(item) for item in client.embed_items(_texts(args), **args)]}


def _embed_stream(client: runed.Client, args: Args) -> Result:
    items = [(key, _text(text)) for key, text in args.pop("items")]
    return {"items": {key: _item(item) for key, item in client.embed_stream(items, **args)}}


def _count_tokens(client: runed.Client, args: Args) -> Result:
    return {"counts": client.count_tokens(_texts(args), **args)}


def _rerank(client: runed.Client, args: Args) -> Result:
    documents = [_text(text) for text in args.pop("documents")]
    fields = ("index", "score", "document", "token_count", "total_token_count", "truncated")
    results = client.rerank(args.pop("query"), documents, **args)
    return {"results": [{name: getattr(result, name) for name in fields} for result in results]}


def _warm_up(client: runed.Client, args: Args) -> Result:
    client.warm_up(**args)
    return {}


def _info(client: runed.Client, args: Args) -> Result:
    return dataclasses.asdict(client.info(**args))


def _health(client: runed.Client, args: Args) -> Result:
    health = client.health(**args)
    phase = None if health.phase is None else f"PHASE_{health.phase.name}"
    return dataclasses.asdict(health) | {"status": f"STATUS_{health.status.name}", "phase": phase}


def _set_centroids(client: runed.Client, args: Args) -> Result:
    return dataclasses.asdict(client.set_centroids(**args))


_CALLS: Mapping[str, Callable[[runed.Client, Args], Result]] = {
    "embed": _embed,
    "embed_batch": _embed_batch,
    "embed_items": _embed_items,
    "embed_stream": _embed_stream,
    "count_tokens": _count_tokens,
    "rerank": _rerank,
    "warm_up": _warm_up,
    "info": _info,
    "health": _health,
    "set_centroids": _set_centroids,
}


def _texts(args: Args) -> list[str]:
    return [_text(text) for text in args.pop("texts")]


def _text(text: str | dict[str, Any]) -> str:
    """Return a text. The table may write a long one as a part and the number of its repetitions."""
    return text if isinstance(text, str) else text["repeat"] * text["times"]


def _item(item: runed.Embedding | RunedError) -> Result:
    if isinstance(item, RunedError):
        return {"error": _error(item)}
    fields = {field.name: getattr(item, field.name) for field in dataclasses.fields(item)}
    return fields | {"vector": item.vector.tolist()}


def _error(error: RunedError) -> Result:
    return {"reason": error.reason, "metadata": error.metadata}


if __name__ == "__main__":
    main()
