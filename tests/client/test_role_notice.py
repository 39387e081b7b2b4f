"""A role that adds nothing to a text is told once, at the line of the program that gave it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import runed
from tests.support import RunningDaemon, running_daemon


@pytest.fixture(scope="module")
def nameless_daemon(llama_server: Path, nameless: Path) -> Iterator[RunningDaemon]:
    with running_daemon(llama_server, nameless) as daemon:
        yield daemon


@pytest.fixture
def promptless(nameless_daemon: RunningDaemon) -> Iterator[runed.Client]:
    with runed.connect(socket_path=nameless_daemon.socket) as client:
        yield client


Call = Callable[[runed.Client, str], object]

CALLS: dict[str, Call] = {
    "embed": lambda client, role: client.embed("tea", role=role),  # type: ignore[arg-type] # a literal
    "embed_batch": lambda client, role: client.embed_batch(["tea"], role=role),  # type: ignore[arg-type] # as above
    "embed_items": lambda client, role: client.embed_items(["tea"], role=role),  # type: ignore[arg-type] # as above
    "embed_stream": lambda client, role: list(client.embed_stream([(1, "tea")], role=role)),  # type: ignore[arg-type] # as above
}


@pytest.mark.parametrize("role", ["query", "document"])
@pytest.mark.parametrize("call", CALLS)
def test_a_role_without_a_prompt_is_told_once(promptless: runed.Client, call: str, role: str) -> None:
    with pytest.warns(runed.RunedWarning, match=f'role="{role}" adds nothing: no prompt of own-encoder.f16 is') as told:
        CALLS[call](promptless, role)
    assert [warning.filename for warning in told] == [__file__]
    for again in ("query", "document"):
        CALLS[call](promptless, again)  # in this test run, a warning is an error


@pytest.mark.parametrize("role", ["query", "document"])
def test_a_family_that_was_trained_without_prompts_is_used_rightly(minilm_daemon: RunningDaemon, role: str) -> None:
    with runed.connect(socket_path=minilm_daemon.socket) as client:
        CALLS["embed"](client, role)
        assert client.info().prompts_unknown is False


def test_each_model_of_which_nobody_knows_prompts_is_told(
    home: Path, start_daemon: Callable[..., RunningDaemon], nameless: Path
) -> None:
    models = {
        "mini": {"path": str(nameless), "aliases": ["small"]},
        "other": {"path": str(nameless)},
        "bare": {"path": str(nameless), "query_prompt": ""},
    }
    (home / "config.json").write_text(json.dumps({"models": models}))
    daemon = start_daemon()
    daemon.wait_for("STATUS_OK")
    with runed.connect(socket_path=daemon.socket) as client:
        for model in ("mini", "other"):
            with pytest.warns(runed.RunedWarning, match=f"no prompt of {model} is known"):
                client.embed("tea", role="query", model=model)
        for name in ("mini", "small", "OTHER", "bare"):  # in this test run, a warning is an error
            client.embed("tea", role="query", model=name)
        client.embed("tea", role="query")  # the default model has a prompt


def test_no_role_no_warning(promptless: runed.Client) -> None:
    assert promptless.embed("tea").shape == (384,)


@pytest.mark.parametrize("role", ["query", "document"])
@pytest.mark.parametrize("call", CALLS)
def test_a_model_with_a_prompt_for_queries_alone_is_used_rightly(qwen_daemon: RunningDaemon, call: str, role: str) -> None:
    with warnings.catch_warnings(), runed.connect(socket_path=qwen_daemon.socket) as client:
        warnings.simplefilter("error")
        CALLS[call](client, role)


async def test_the_async_client_tells_it_too(nameless_daemon: RunningDaemon) -> None:
    async with await runed.connect_async(socket_path=nameless_daemon.socket) as client:
        with pytest.warns(runed.RunedWarning) as told:
            await client.embed("tea", role="query")
    assert [warning.filename for warning in told] == [__file__]
