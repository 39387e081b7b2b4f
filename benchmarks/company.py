"""Check that a vector does not depend on the texts that are computed beside it."""

from __future__ import annotations

import asyncio
from random import Random

import numpy as np
from numpy.typing import NDArray

import runed
from benchmarks.lab import Daemon, Lab, say
from benchmarks.results import Row


def measure_company(lab: Lab) -> list[Row]:
    """Embed texts of all lengths in three ways: one by one, by concurrent calls, and as one list in another order."""
    random = Random(lab.fresh(1))
    texts = [lab.model.text_of(length, random) for length in lab.model.long]
    with Daemon(lab.model, RUNED_CACHE_SIZE="0") as daemon, daemon.connect() as client:
        tokens = client.count_tokens(texts)
        alone = np.stack([client.embed(text) for text in texts]).astype(np.float64)  # whose norms are 1 but for rounding
        order = list(range(len(texts)))
        random.shuffle(order)
        worst = {
            "concurrent calls": _worst(alone, asyncio.run(_concurrently(daemon, texts))),
            "one list": _worst(alone[order], client.embed_batch([texts[index] for index in order]).astype(np.float64)),
        }
    bar = lab.model.bars.company
    say(f"  company: {', '.join(f'{name} {1 - cosine:.1e} below 1' for name, cosine in worst.items())}")
    return [
        Row(
            f"the same text alone and in company, {len(texts)} texts of {min(tokens)} to {max(tokens)} tokens: worst cosine",
            f"{min(worst.values()):.7f}",
            "-",
            "-",
            f"at least {bar}",
            min(worst.values()) >= bar,
        )
    ]


async def _concurrently(daemon: Daemon, texts: list[str]) -> NDArray[np.float64]:
    async with await runed.connect_async(socket_path=daemon.target.socket) as client:
        return np.stack(await asyncio.gather(*(client.embed(text) for text in texts))).astype(np.float64)


def _worst(alone: NDArray[np.float64], company: NDArray[np.float64]) -> float:
    one, other = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in (alone, company))
    return float(np.einsum("ij,ij->i", one, other).min())
