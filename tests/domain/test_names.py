"""Names of models: in letters of any case, by family or in full, by alias, and never a path."""

from __future__ import annotations

from pathlib import Path

import pytest

from runed.domain.model_spec import ModelKind, ModelSpec
from runed.domain.names import ModelNames, check_default, name_of_file, split_name
from runed.errors import SettingsError, UnknownModelError
from runed.model_names import MAX_NAME, check_name, is_name

QWEN = ModelSpec(family="qwen3-embedding-0.6b", variant="q6_K")
QWEN_F16 = ModelSpec(family="qwen3-embedding-0.6b", variant="f16")
BGE = ModelSpec(family="bge-m3", aliases=("BGE",))
RANKER = ModelSpec(family="bge-reranker-v2-m3", variant="q8_0", kind=ModelKind.RERANK)

BAD_NAMES = ["", ".", "..", "a/b", "../x", "a..b", ".a", "a.", "-a", "a b", "a\\b", "a\0", "é", "a" * (MAX_NAME + 1), "a\n"]


def make_names(**options: object) -> ModelNames:
    return ModelNames([QWEN, QWEN_F16, BGE, RANKER], **options)  # type: ignore[arg-type] # the tests' own options


@pytest.mark.parametrize("name", ["a", "bge-m3", "qwen3-embedding-0.6b.q6_K", "0", "A_b", "a" * MAX_NAME])
def test_names_are_letters_digits_and_three_marks(name: str) -> None:
    assert is_name(name)
    assert check_name(name, "here") == name


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_could_be_a_path_or_steer_a_terminal_is_no_name(name: str) -> None:
    assert not is_name(name)
    with pytest.raises(SettingsError, match=r"^here: "):
        check_name(name, "here")


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("all-MiniLM-L6-v2.f16.gguf", "all-minilm-l6-v2.f16"),
        ("My Model (1).Q8_0.GGUF", "my-model-1.q8_0"),
        ("weights", "weights"),
        ("日本.gguf", "model"),
        ("..gguf", "model"),
        (f"{'a' * 200}.gguf", "a" * MAX_NAME),
    ],
)
def test_a_file_gives_its_model_a_name(file: str, name: str) -> None:
    assert name_of_file(Path("/somewhere") / file) == name
    assert is_name(name)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("qwen3-embedding-0.6b.q6_K", ("qwen3-embedding-0.6b", "q6_K")),
        ("qwen3-embedding-0.6b", ("qwen3-embedding-0.6b", "")),
        ("all-minilm-l6-v2.f16", ("all-minilm-l6-v2", "f16")),
        ("nomic-embed-text-v1.5", ("nomic-embed-text-v1.5", "")),
        ("x.iq4_XS", ("x", "iq4_XS")),
    ],
)
def test_a_quantization_at_the_end_is_the_variant(name: str, parts: tuple[str, str]) -> None:
    assert split_name(name) == parts


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("", QWEN),
        ("qwen3-embedding-0.6b", QWEN),
        ("QWEN3-Embedding-0.6B.Q6_k", QWEN),
        ("qwen3-embedding-0.6b.F16", QWEN_F16),
        ("bge", BGE),
        ("Bge-M3", BGE),
        ("text-embedding-3-small", BGE),
        ("bge-reranker-v2-m3", RANKER),
    ],
)
def test_a_model_is_found_by_each_of_its_names(name: str, spec: ModelSpec) -> None:
    assert make_names(aliases={"text-embedding-3-small": "BGE-m3"}).find(name) is spec


@pytest.mark.parametrize("name", ["bge-m4", "../bge-m3", "bge-m3.gguf", "x" * 500, "\x1b[2J"])
def test_an_unknown_name_is_refused_with_the_names_that_exist(name: str) -> None:
    with pytest.raises(UnknownModelError) as refusal:
        make_names().find(name)
    assert "bge-reranker-v2-m3.q8_0" in refusal.value.message
    assert (
        refusal.value.metadata["models"]
        == "qwen3-embedding-0.6b.q6_K, qwen3-embedding-0.6b.f16, bge-m3, bge-reranker-v2-m3.q8_0"
    )
    assert len(refusal.value.message) < 320
    assert "\x1b" not in refusal.value.message
    with pytest.raises(UnknownModelError, match=r"^there is no model 'a\\x1b\[2J\\u202e'; "):
        make_names().find("a\x1b[2J\u202e")


def test_the_default_can_be_chosen_by_any_name() -> None:
    assert make_names(default="BGE").find("") is BGE
    with pytest.raises(SettingsError, match="default_model: there is no model 'nothing'"):
        make_names(default="nothing")


def test_the_first_model_that_embeds_is_the_default() -> None:
    assert ModelNames([RANKER, BGE]).default is BGE


def test_rerankers_are_told_apart() -> None:
    assert make_names().rerankers() == [RANKER]
    assert ModelNames([BGE]).rerankers() == []


def test_two_models_never_share_a_name() -> None:
    other = ModelSpec(family="other", aliases=("bge",))
    with pytest.raises(SettingsError, match="two models are called 'bge': bge-m3 and other"):
        ModelNames([BGE, other])
    with pytest.raises(SettingsError, match="two models are called 'bge'"):
        make_names(aliases={"bge": "qwen3-embedding-0.6b"})
    with pytest.raises(SettingsError, match="two models are called 'OTHER'"):
        ModelNames([ModelSpec(family="other"), ModelSpec(family="OTHER")])
    with pytest.raises(SettingsError, match="two models are called 'other'"):
        ModelNames([ModelSpec(family="other"), ModelSpec(family="other", licence="MIT")])


def test_an_alias_stands_for_a_model() -> None:
    with pytest.raises(SettingsError, match="the alias 'a' stands for 'b', which is no model"):
        make_names(aliases={"a": "b"})
    with pytest.raises(SettingsError, match="cannot be the name of a model"):
        make_names(aliases={"../a": "bge"})
    for order in ({"a": "b", "b": "bge"}, {"b": "bge", "a": "b"}):
        assert make_names(aliases=order).find("a") is BGE
    for circle in ({"a": "a"}, {"x": "bge", "a": "b", "b": "a"}):
        with pytest.raises(SettingsError, match=r"the alias 'a' stands for '[ab]', which is no model"):
            make_names(aliases=circle)


def test_an_error_repeats_only_the_beginning_of_a_long_name() -> None:
    long = "a" * 10_000
    for models, aliases in ([ModelSpec(family=long)], {}), ([BGE], {long: "bge"}), ([BGE], {"x": long}), ([BGE], {long: long}):
        with pytest.raises(SettingsError) as refusal:
            ModelNames(models, aliases=aliases)
        assert len(refusal.value.message) < 600


def test_a_reranker_is_never_the_default_model() -> None:
    with pytest.raises(SettingsError, match=r"bge-reranker-v2-m3\.q8_0 is a reranker and gives no vectors"):
        check_default(make_names(default="bge-reranker-v2-m3").default)


def test_the_names_of_a_model_are_told() -> None:
    names = make_names(aliases={"Best": "qwen3-embedding-0.6b"})
    assert names.aliases_of(QWEN) == ["best"]
    assert names.aliases_of(BGE) == ["bge"]
    assert names.variants_of(QWEN_F16) == [QWEN.name, QWEN_F16.name]


def test_a_model_that_is_called_like_a_family_is_itself() -> None:
    own = ModelSpec(family="qwen3-embedding-0.6b")
    names = ModelNames([QWEN, own])
    assert names.find("qwen3-embedding-0.6b") is own
    assert names.find("qwen3-embedding-0.6b.q6_K") is QWEN


def test_names_extend_others_if_each_means_what_it_meant() -> None:
    before = make_names()
    own = ModelSpec(family="mine")
    more = [QWEN, QWEN_F16, BGE, RANKER, own]
    assert ModelNames(more, aliases={"small": "mine"}).extends(before)
    assert not ModelNames(more, default="mine").extends(before)
    assert not ModelNames(more[1:]).extends(before)
    assert not ModelNames([*more, ModelSpec(family=QWEN.family)]).extends(before)
