"""Our clients against daemons of other versions: nothing that both sides know is lost or misread."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import Message
from runed_proto.runed.v1 import runed_pb2 as pb

from runed.api.app import build_app
from runed.api.rpc.codecs import CODECS
from runed.api.rpc.refusals import Receive, Scope, Send
from runed.errors import InvalidRequestError
from runed.server import Server
from tests.conformance.contracts import class_of, newer, older
from tests.conformance.drivers import DRIVERS, Drivers
from tests.fakes.fake_host import DIM, FakeHost, vector_of

OLD, NEW = older(), newer()
LATER = class_of(NEW, "EmbedRequest")(later={"text": "x"}, later_numbers=[1.5], later_text="y").SerializeToString()

Json = Any
Codec = Any  # of connectrpc, whose own type knows nothing of Google's messages


class LaterError(InvalidRequestError):
    """An error with a reason that no client knows yet."""

    reason = "OF_NEXT_YEAR"


class NewerCodec:
    """A codec of the daemon. Each message, at each depth, also has fields that no client knows."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec

    def name(self) -> str:
        name: str = self._codec.name()
        return name

    def encode(self, message: Message) -> bytes:
        if self.name() == "json":
            document = json.loads(self._codec.encode(message))
            return json.dumps(_with_more(document)).encode()
        copy = type(message)()
        copy.CopyFrom(message)
        for part in _parts(copy):
            part.MergeFromString(LATER)
        if isinstance(copy, pb.HealthResponse):
            copy.MergeFromString(struct.pack("BB", 1 << 3, 99))  # a status that no client knows
        encoded: bytes = self._codec.encode(copy)
        return encoded

    def decode(self, data: bytes, message_class: type[Message]) -> Message:
        message: Message = self._codec.decode(data, message_class)
        return message


def _parts(message: Message) -> Iterator[Message]:
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None and not field.message_type.GetOptions().map_entry:
            for part in value if field.is_repeated else [value]:
                yield from _parts(part)


def _with_more(document: Json) -> Json:
    if isinstance(document, list):
        return [_with_more(value) for value in document]
    if isinstance(document, dict):
        more = {"later": {"text": "x"}, "laterNumbers": [1.5], "laterText": "y"}
        return {name: _with_more(value) for name, value in document.items() if name != "metadata"} | more
    return document


class OlderCodec:
    """A codec of the daemon that drops our own fields from requests and answers."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec

    def name(self) -> str:
        name: str = self._codec.name()
        return name

    def encode(self, message: Message) -> bytes:
        encoded: bytes = self._codec.encode(_without_ours(message))
        return encoded

    def decode(self, data: bytes, message_class: type[Message]) -> Message:
        return _without_ours(self._codec.decode(data, message_class))


def _without_ours(message: Message) -> Message:
    old = class_of(OLD, message.DESCRIPTOR.name).FromString(message.SerializeToString())
    old.DiscardUnknownFields()
    return type(message).FromString(old.SerializeToString())


@asynccontextmanager
async def other_daemon(path: Path, codec: Codec, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """Serve a fake host like a daemon of another version."""
    monkeypatch.setattr("runed.api.rpc.library.CODECS", [codec(known) for known in CODECS])
    # So that the library and the codec serve all calls, also those whose heads are known from other tests.
    monkeypatch.setattr("runed.api.rpc.unary._known_form", lambda *_: None)
    monkeypatch.setattr("runed.api.rpc.unary._form", lambda *_: None)
    app = build_app(FakeHost())

    async def without_our_methods(scope: Scope, receive: Receive, send: Send) -> None:
        method = scope["path"].rpartition("/")[2]
        known = method in OLD.services_by_name["RunedService"].methods_by_name
        await app(scope if known else scope | {"path": "/unknown"}, receive, send)

    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()
        server = Server(without_our_methods if codec is OlderCodec else app, sock)
        await server.start()
        try:
            yield
        finally:
            await server.stop(0)


async def ask(drivers: Drivers, language: str, protocol: str, path: Path, calls: dict[str, dict[str, Json]]) -> dict[str, Json]:
    """Send calls. The id of each ends with a colon and the call's name."""
    lines = [json.dumps({"id": id_, "call": id_.rpartition(":")[2], "args": args}) for id_, args in calls.items()]
    return await asyncio.to_thread(drivers.run, language, protocol, path, lines)


def floats(text: str, dimensions: int = DIM) -> list[float]:
    vector: list[float] = np.frombuffer(vector_of(text, dimensions), dtype="<f4").tolist()
    return vector


def vector_in(item: Json) -> list[float]:
    vector: list[float] = np.array(item["vector"], dtype=np.float32).tolist()
    return vector


def test_answers_of_a_newer_daemon_are_newer_at_every_depth() -> None:
    batch = pb.EmbedBatchResponse(embeddings=[pb.EmbedResponse(error=pb.ItemError(reason="R"))])
    binary, written = (NewerCodec(codec).encode(batch) for codec in CODECS)
    answer: Any = class_of(NEW, "EmbedBatchResponse").FromString(binary)
    document = json.loads(written)
    [embedding], [written_embedding] = answer.embeddings, document["embeddings"]
    for part in (answer, embedding, embedding.error):
        assert (part.later.text, part.later_text) == ("x", "y")
    for part in (document, written_embedding, written_embedding["error"]):
        assert (part["later"], part["laterText"]) == ({"text": "x"}, "y")
    assert embedding.error.reason == written_embedding["error"]["reason"] == "R"


@pytest.mark.parametrize(("language", "protocol"), DRIVERS)
async def test_client_reads_the_answers_of_a_newer_daemon(
    language: str, protocol: str, drivers: Drivers, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: dict[str, dict[str, Json]] = {
        "embed": {"text": "one"},
        "embed_batch": {"texts": ["one", "two"]},
        "embed_items": {"texts": ["one", "", "fail:OF_NEXT_YEAR"]},
        "embed_stream": {"items": [["a", "one"], ["b", "two"]]},
        "count_tokens": {"texts": ["one", "two"]},
        "warm_up": {},
        "info": {},
        "health": {},
        "refused:embed": {"text": "fail:OF_NEXT_YEAR"},
    }
    async with other_daemon(home / "s", NewerCodec, monkeypatch):
        answers = await ask(drivers, language, protocol, home / "s", calls)
    assert vector_in(answers["embed"]["result"]) == floats("one")
    assert [vector_in(item) for item in answers["embed_batch"]["result"]["items"]] == [floats("one"), floats("two")]
    first, *failed = answers["embed_items"]["result"]["items"]
    assert vector_in(first) == floats("one")
    assert [item["error"]["reason"] for item in failed] == ["EMPTY_TEXT", "OF_NEXT_YEAR"]
    streamed = answers["embed_stream"]["result"]["items"]
    assert {key: vector_in(item) for key, item in streamed.items()} == {"a": floats("one"), "b": floats("two")}
    assert answers["count_tokens"]["result"]["counts"] == [3, 3]
    assert answers["warm_up"]["result"] == {}
    assert (answers["info"]["result"]["vector_dim"], answers["info"]["result"]["fingerprint"]) == (DIM, "fp")
    assert answers["health"]["result"]["pid"] == 2
    assert answers["refused:embed"]["error"]["reason"] == "OF_NEXT_YEAR"


@pytest.mark.parametrize(("language", "protocol"), DRIVERS)
async def test_client_gets_from_an_older_daemon_what_that_knows_and_nothing_else(
    language: str, protocol: str, drivers: Drivers, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: dict[str, dict[str, Json]] = {
        "embed_batch": {"texts": ["one", "two"]},
        "info": {},
        "health": {},
        "refused:embed_batch": {"texts": ["one", ""]},
        # An older daemon would ignore these options, and return other vectors.
        "dimensions:embed_batch": {"texts": ["one"], "dimensions": 4},
        "role:embed_batch": {"texts": ["one"], "role": "query"},
        "truncate:embed_batch": {"texts": ["one"], "truncate": "end"},
        "embed_items": {"texts": ["one"]},
        "model:embed": {"text": "one", "model": "other"},
        "model:embed_batch": {"texts": ["one"], "model": "other"},
        "model:info": {"model": "other"},
        "model:health": {"model": "other"},
        "model:set_centroids": {"vectors": [[1.0] * DIM], "model": "other"},
        "model:warm_up": {"model": "other"},
        # An older daemon lacks these methods.
        "embed_stream": {"items": [["a", "one"]]},
        "count_tokens": {"texts": ["one"]},
        "warm_up": {},
    }
    async with other_daemon(home / "s", OlderCodec, monkeypatch):
        answers = await ask(drivers, language, protocol, home / "s", calls)
    assert [vector_in(item) for item in answers["embed_batch"]["result"]["items"]] == [floats("one"), floats("two")]
    assert answers["info"]["result"]["vector_dim"] == DIM
    assert not answers["info"]["result"]["fingerprint"]  # otherwise it would not be an older one
    assert answers["health"]["result"]["status"] == "STATUS_OK"
    assert answers["refused:embed_batch"]["error"]["reason"] == "EMPTY_TEXT"
    refused = [
        "dimensions:embed_batch",
        "role:embed_batch",
        "truncate:embed_batch",
        "embed_items",
        "model:embed",
        "model:embed_batch",
        "model:info",
        "model:health",
        "model:set_centroids",
        "model:warm_up",
        "embed_stream",
        "count_tokens",
        "warm_up",
    ]
    assert {id_: answers[id_].get("error", {}).get("reason") for id_ in refused} == dict.fromkeys(refused, "UNIMPLEMENTED")


@pytest.mark.parametrize("option", ["--wait", "--warm"])
async def test_command_waits_for_an_older_daemon_that_cannot_be_warmed_up(
    option: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, "-m", "runed", "ensure", option, "--timeout", "60"]
    async with other_daemon(home / "embedding.sock", OlderCodec, monkeypatch):
        done = await asyncio.to_thread(
            subprocess.run, command, env={**os.environ, "RUNED_HOME": str(home)}, capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("already running")
