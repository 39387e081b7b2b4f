"""`embed_stream` against the real daemon with a real model."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest

import runed
from runed import errors
from runed.client.types import Vectors
from runed.lifecycle.spawn import stop_daemon
from runed.paths import Paths
from tests.support import Golden, RunningDaemon, process_gone, wait_until

TEXTS = [f"cup number {number} of green tea" for number in range(400)]


def in_order(results: Iterable[tuple[int, runed.Embedding | errors.RunedError]]) -> Vectors:
    """Return the vectors of texts that are numbered from 0 on."""
    vectors: dict[int, Vectors] = {}
    for number, outcome in results:
        assert isinstance(outcome, runed.Embedding)
        assert number not in vectors
        vectors[number] = outcome.vector
    return np.array([vectors[number] for number in range(len(vectors))])


def test_the_vectors_are_those_of_the_model(minilm_daemon: RunningDaemon, minilm_golden: Golden) -> None:
    with runed.connect(socket_path=minilm_daemon.socket) as client:
        results = list(client.embed_stream(enumerate(minilm_golden.texts)))
        fingerprint = client.info().fingerprint
        assert client.count_tokens(minilm_golden.texts) == minilm_golden.tokens
    assert minilm_golden.cosines(in_order(results)).min() >= 0.9999
    for number, outcome in results:
        assert isinstance(outcome, runed.Embedding)
        assert outcome.token_count == outcome.total_token_count == minilm_golden.tokens[number]
        assert outcome.fingerprint == fingerprint


async def test_by_asyncio_too(minilm_daemon: RunningDaemon, minilm_golden: Golden) -> None:
    async with await runed.connect_async(socket_path=minilm_daemon.socket) as client:
        results = [result async for result in client.embed_stream(enumerate(minilm_golden.texts))]
    assert minilm_golden.cosines(in_order(results)).min() >= 0.9999


def test_giving_up_frees_the_engine(minilm_daemon: RunningDaemon) -> None:
    with runed.connect(socket_path=minilm_daemon.socket) as client:
        results = client.embed_stream((number, f"{number} " * 100) for number in range(10_000))
        next(results)
        results.close()
        wait_until(lambda: client.health().in_flight_requests == 0)
        health = client.health()
        assert health.bulk.queued_texts == 0
        assert health.interactive.queued_texts == 0


@pytest.fixture
def spawning_home(home: Path, llama_server: Path, tiny_qwen3: Path) -> Iterator[Path]:
    """A home in which the client starts the daemon."""
    program = home / "runed"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m runed "$@"\n')
    program.chmod(0o700)
    config = {"version": 1, "runed_binary": str(program), "llama_server": str(llama_server), "model": str(tiny_qwen3)}
    (home / "config.json").write_text(json.dumps(config))
    yield home
    stop_daemon(Paths(home))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "drained"])
def test_a_daemon_that_ends_in_the_middle_costs_no_text(spawning_home: Path, number: signal.Signals) -> None:
    with runed.connect(home=spawning_home) as client:
        whole = client.embed_batch(TEXTS)
        first = client.health().pid
        results = client.embed_stream((index, text) for index, text in enumerate(TEXTS * 5))
        taken = [next(results)]
        os.kill(first, number)
        taken += results
        vectors = in_order(taken)
        assert wait_until(lambda: process_gone(first))
        assert client.health().pid != first
    assert vectors.shape == (2000, 64)
    for part in np.split(vectors, 5):
        assert np.sum(part * whole, axis=1).min() >= 0.9999
