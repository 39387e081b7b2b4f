"""Facts that follow from a model's file and traits: prompts, dimensions, and the name of the space of its vectors."""

from __future__ import annotations

from dataclasses import replace

import pytest

from runed.domain import model as module
from runed.domain.device import CPU, Device
from runed.domain.model import (
    ModelInfo,
    ModelTraits,
    cache_space,
    dimensions_for,
    fingerprint,
    min_dimensions,
    prompt_for,
)
from runed.domain.requests import EmbedOptions, Role
from runed.errors import BadDimensionsError, BadInstructionError

QWEN = ModelInfo("sha256:12", "qwen", "qwen3", 64, 511, "last", "Q6_K", "ab" * 32)
TRAITS = ModelTraits(query_prompt="find {instruction}: ", document_prompt="text: ", default_instruction="it", min_dimensions=32)


def name(
    model: ModelInfo = QWEN,
    traits: ModelTraits = TRAITS,
    engine_version: str = "1",
    dimensions: int = 64,
    device: Device = CPU,
) -> str:
    return fingerprint(model, traits, engine_version=engine_version, dimensions=dimensions, device=device)


def test_fingerprint_stays_the_same_from_release_to_release() -> None:
    # With another name, kept vectors and caches on disk would seem to be of another space.
    assert name() == "fp1-8554eb2db49cfc9cd8ec1186"
    assert name(engine_version="11434 (abc1234)", traits=ModelTraits()) == "fp1-76f5ef8bb19549e760b2b782"
    assert name(engine_version="") == "fp1-486ec21c0568695c4baae019"
    assert name(device=Device("cuda", "CUDA0", "NVIDIA H100")) == "fp1-c9850eb41030c0374a3c89a2"


@pytest.mark.parametrize(
    "other",
    [
        name(replace(QWEN, sha256="cd" * 32)),
        name(replace(QWEN, file_type="F16")),
        name(replace(QWEN, pooling="mean")),
        name(engine_version="2"),
        name(engine_version="onnxruntime-1.32.0 (graph 1)"),
        name(engine_version="onnxruntime-1.32.0 (graph 2)"),
        name(dimensions=32),
        name(traits=replace(TRAITS, query_prompt="")),
        name(traits=replace(TRAITS, document_prompt="")),
        name(engine_version="1\x002", traits=ModelTraits()),
        name(device=Device("vulkan", "Vulkan0", "a")),
    ],
)
def test_fingerprint_depends_on_all_that_vectors_depend_on(other: str) -> None:
    assert other != name()


def test_fingerprint_depends_on_the_way_in_which_prompts_are_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    before = name()
    monkeypatch.setattr(module, "PROMPTS_VERSION", module.PROMPTS_VERSION + 1)
    assert name() != before


def test_fingerprint_does_not_depend_on_what_vectors_do_not() -> None:
    device = Device("vulkan", "Vulkan0", "a", 2, 1)
    assert name(device=device) == name(device=replace(device, name="Vulkan1", free_memory=0))
    assert name(device=device) != name(device=replace(device, description="b"))
    assert name(device=device) != name(device=replace(device, accelerator="cuda"))
    renamed = replace(QWEN, name="other", identity="sha256:34", max_tokens=9)
    assert name(renamed, replace(TRAITS, default_instruction="them", min_dimensions=16)) == name()


@pytest.mark.parametrize(
    ("options", "prompt"),
    [
        (EmbedOptions(), ""),
        (EmbedOptions(role=Role.DOCUMENT), "text: "),
        (EmbedOptions(role=Role.QUERY), "find it: "),
        (EmbedOptions(role=Role.QUERY, instruction="songs"), "find songs: "),
    ],
)
def test_prompt_follows_from_the_role(options: EmbedOptions, prompt: str) -> None:
    assert prompt_for(options, TRAITS) == prompt


@pytest.mark.parametrize(
    ("options", "traits", "why"),
    [
        (EmbedOptions(instruction="songs"), TRAITS, "an instruction is for queries; set the role to query"),
        (EmbedOptions(role=Role.DOCUMENT, instruction="songs"), TRAITS, "an instruction is for queries; set the role to query"),
        (
            EmbedOptions(role=Role.QUERY, instruction="songs"),
            ModelTraits(query_prompt="q: "),
            "this model takes no instruction .Info.query_prompt has no place for it.; leave it out$",
        ),
        (EmbedOptions(role=Role.QUERY, instruction=" \n"), TRAITS, "the instruction is only white space or has a NUL"),
        (
            EmbedOptions(role=Role.QUERY, instruction="x" * 4097),
            TRAITS,
            "the instruction has 4097 characters, the limit is 4096",
        ),
        (EmbedOptions(role=Role.QUERY, instruction="a\0b"), TRAITS, "the instruction is only white space or has a NUL"),
    ],
)
def test_instruction_that_cannot_be_followed_is_refused(options: EmbedOptions, traits: ModelTraits, why: str) -> None:
    with pytest.raises(BadInstructionError, match=f"^{why}"):
        prompt_for(options, traits)


@pytest.mark.parametrize(("asked", "dimensions"), [(0, 64), (64, 64), (63, 63), (32, 32)])
def test_dimensions_within_the_models_own_are_accepted(asked: int, dimensions: int) -> None:
    assert dimensions_for(EmbedOptions(dimensions=asked), QWEN, TRAITS) == dimensions


@pytest.mark.parametrize(
    ("asked", "traits", "least", "message"),
    [
        (31, TRAITS, 32, "this model gives vectors of 32 to 64 values, not of 31"),
        (65, TRAITS, 32, "this model gives vectors of 32 to 64 values, not of 65"),
        (63, ModelTraits(), 64, "this model gives vectors of 64 values and no others, not of 63; leave dimensions out"),
    ],
)
def test_other_dimensions_are_refused(asked: int, traits: ModelTraits, least: int, message: str) -> None:
    with pytest.raises(BadDimensionsError) as caught:
        dimensions_for(EmbedOptions(dimensions=asked), QWEN, traits)
    assert caught.value.message == message
    assert caught.value.metadata == {"dimensions": str(asked), "min": str(least), "max": "64"}


@pytest.mark.parametrize(("told", "least"), [(0, 64), (1, 1), (32, 32), (64, 64), (65, 64)])
def test_fewest_dimensions_are_never_more_than_the_models(told: int, least: int) -> None:
    assert min_dimensions(QWEN, ModelTraits(min_dimensions=told)) == least


def test_cached_vectors_that_were_computed_less_exactly_are_of_another_space() -> None:
    assert cache_space(QWEN, name()) != name()  # earlier releases kept vectors under the fingerprint alone
    assert cache_space(replace(QWEN, pooling="mean"), name()) == name()
