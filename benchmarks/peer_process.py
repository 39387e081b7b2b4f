"""One process of an application that embeds by a library. `benchmarks.peers` runs it, by the Python that has the library.

    python peer_process.py LIBRARY MODEL

The first line of the standard input is a list of texts in JSON. The process embeds the first one, and prints its vector. Each
further line is a number of texts and a number of seconds. It embeds lists of so many texts for so long, and prints how many.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import cycle, islice
from typing import Any, TypeAlias

Embed: TypeAlias = "Callable[[Sequence[str]], Iterable[Any]]"
"""Returns a vector for each text."""


def _runed(_: str) -> Embed:
    import runed  # noqa: PLC0415 # only this library is here

    client = runed.connect()
    return lambda texts: client.embed_batch(texts) if len(texts) > 1 else [client.embed(texts[0])]


def _fastembed(model: str) -> Embed:
    from fastembed import TextEmbedding  # type: ignore[import-not-found] # noqa: PLC0415 # only this library is here

    library = TextEmbedding("sentence-transformers/all-MiniLM-L6-v2", specific_model_path=model)
    return lambda texts: list(library.embed(texts))


def _sentence_transformers(model: str) -> Embed:
    from sentence_transformers import (  # type: ignore[import-not-found] # noqa: PLC0415 # only this library is here
        SentenceTransformer,
    )

    library = SentenceTransformer(model, device="cpu")
    return lambda texts: library.encode(texts, show_progress_bar=False)


LIBRARIES = {"runed": _runed, "fastembed": _fastembed, "sentence-transformers": _sentence_transformers}


def main(library: str, model: str) -> None:
    """Embed as the standard input asks, until it ends."""
    texts: list[str] = json.loads(sys.stdin.readline())
    embed = LIBRARIES[library](model)
    [vector] = embed(texts[:1])
    print(json.dumps([float(value) for value in vector]), flush=True)
    following = cycle(texts[1:])
    for line in sys.stdin:
        size, seconds = json.loads(line)
        began, answered = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            answered += sum(1 for _ in embed(list(islice(following, size))))
        print(json.dumps(answered / (time.perf_counter() - began)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
