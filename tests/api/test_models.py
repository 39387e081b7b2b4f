"""Requests that name a model, and the calls about models, over every protocol."""

from __future__ import annotations

from typing import cast

import pytest
from google.protobuf.message import Message
from runed_proto.runed.v1 import runed_pb2 as pb

from tests.api.conftest import Served
from tests.support import PROTOCOLS

UNKNOWN: dict[str, Message] = {
    "Embed": pb.EmbedRequest(text="x", model="nothing"),
    "EmbedBatch": pb.EmbedBatchRequest(texts=["x", "y"], model="nothing"),
    "CountTokens": pb.CountTokensRequest(texts=["x"], model="nothing"),
    "Info": pb.InfoRequest(model="nothing"),
    "Health": pb.HealthRequest(model="nothing"),
    "WarmUp": pb.WarmUpRequest(model="nothing"),
    "LoadModel": pb.LoadModelRequest(model="nothing"),
    "UnloadModel": pb.UnloadModelRequest(model="nothing"),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("method", UNKNOWN)
async def test_an_unknown_model_is_refused_with_the_names_that_exist(method: str, protocol: str, served: Served) -> None:
    answer = await served.call(protocol, method, UNKNOWN[method])
    assert answer.refusal is not None
    assert (answer.refusal.code, answer.refusal.reason) == ("not_found", "UNKNOWN_MODEL")
    assert answer.refusal.metadata["models"] == "fake.f32, fake.q8_0, other"
    assert "fake.f32, fake.q8_0, other" in answer.refusal.message


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(("asked", "name"), [("", "fake.f32"), ("OTHER", "other"), ("fake.f32", "fake.f32")])
async def test_the_model_reaches_the_host_and_its_name_the_caller(asked: str, name: str, protocol: str, served: Served) -> None:
    one = cast("pb.EmbedResponse", (await served.call(protocol, "Embed", pb.EmbedRequest(text="x", model=asked))).message)
    batch = (await served.call(protocol, "EmbedBatch", pb.EmbedBatchRequest(texts=["x", "y"], model=asked))).message
    assert [call.options.model for call in served.host.asked] == [asked, asked]
    assert one.model == name
    assert cast("pb.EmbedBatchResponse", batch).model == name
    assert not any(embedding.model for embedding in cast("pb.EmbedBatchResponse", batch).embeddings)
    counted = (await served.call(protocol, "CountTokens", pb.CountTokensRequest(texts=["x"], model=asked))).message
    assert cast("pb.CountTokensResponse", counted).model == name
    info = (await served.call(protocol, "Info", pb.InfoRequest(model=asked))).message
    assert cast("pb.InfoResponse", info).model == name
    health = (await served.call(protocol, "Health", pb.HealthRequest(model=asked))).message
    assert cast("pb.HealthResponse", health).model == name


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_models_are_listed_loaded_and_unloaded(protocol: str, served: Served) -> None:
    listed = (await served.call(protocol, "ListModels", pb.ListModelsRequest())).message
    models = cast("pb.ListModelsResponse", listed)
    assert [model.name for model in models.models] == ["fake.f32", "fake.q8_0", "other"]
    assert (models.default_model, models.default_rerank_model) == ("fake.f32", "")
    assert models.models[1].kind == pb.Model.KIND_EMBEDDING
    loaded = (await served.call(protocol, "LoadModel", pb.LoadModelRequest(model="Other"))).message
    assert cast("pb.LoadModelResponse", loaded).model == models.models[2]
    unloaded = (await served.call(protocol, "UnloadModel", pb.UnloadModelRequest())).message
    assert cast("pb.UnloadModelResponse", unloaded).model.name == "fake.f32"
