"""Tokenizers made of the vocabulary of a GGUF read all scripts as the reference implementation does, and nearly all as
llama-server does."""

from __future__ import annotations

import unicodedata
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from runed.backends.onnx import building
from runed.backends.onnx.graph_folder import TOKENIZER
from runed.backends.onnx.model_file import ModelFile, UnsupportedModelError
from runed.backends.onnx.tokenization import make_tokenizer
from tests.backends.scripts import CURIOSITIES, SENTENCES, SPECIAL, blocks
from tests.backends.support import MakeBackend
from tools import encoders
from tools.minilm import package_folder

TEXTS = SENTENCES | CURIOSITIES | SPECIAL

SHAPE = encoders.Shape(dim=32, layers=1, heads=2, feed_forward=32, context=512)

Read = Callable[[Sequence[str]], Awaitable[list[list[int]]]]

WORD_PIECE = {
    *("Bengali", "Hindi", "Tamil", "emoji"),  # llama.cpp removes all marks, BERT only those without width
    "Korean",  # llama.cpp takes the first part of a syllable only
    *("kinds of white space", "control characters"),  # three control characters are white space for llama.cpp
    "marks of pieces",  # U+2581 means the start of a word in llama.cpp
    "word of 102",  # BERT takes the unknown token
}
"""Texts that llama-server reads in another way than BERT."""

UNIGRAM = {
    "conjoining letters",  # the reference joins them up to 5 bytes
    "half width",  # as above
}
"""Texts that llama-server reads in another way than XLM-RoBERTa."""


def read_tokens(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    return [encoding.ids for encoding in tokenizer.encode_batch(texts)]


async def find_differences(tokenizer: Tokenizer, theirs: Read, characters: str, join: Callable[[str], str]) -> str:
    """Return the characters that are read in different ways, each alone in its text."""
    texts = [join(characters)]
    if read_tokens(tokenizer, texts) == await theirs(texts):
        return ""
    if len(characters) == 1:
        return characters
    half = len(characters) // 2
    first = await find_differences(tokenizer, theirs, characters[:half], join)
    return first + await find_differences(tokenizer, theirs, characters[half:], join)


def alone(characters: str) -> str:
    return " ".join(characters)


def within_words(characters: str) -> str:
    return " ".join(f"a{each}b" for each in characters)


def is_known(character: str) -> bool:
    """Return whether a character is one that BERT and llama.cpp are known to read in different ways."""
    hangul = unicodedata.name(character, "").startswith("HANGUL SYLLABLE")
    return hangul or unicodedata.category(character) in {"Mc", "Me"} or character in "\x0b\x0c\x85\N{LOWER ONE EIGHTH BLOCK}"


@pytest.fixture(scope="session")
def word_piece(minilm: Path) -> Tokenizer:
    return make_tokenizer(ModelFile(minilm))


@pytest.fixture(scope="session")
def xlm_roberta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("encoder") / "xlm-roberta.gguf"
    encoders.write(path, "xlm-roberta", SHAPE)
    return path


def reader(make_backend: MakeBackend, model: Path) -> Read:
    """Return the tokenizer of llama-server."""
    backend = make_backend(model=model)

    async def read(texts: Sequence[str]) -> list[list[int]]:
        return [each.tolist() for each in await backend.tokenize(texts)]

    return read


def test_word_piece_is_that_of_the_reference(word_piece: Tokenizer) -> None:
    reference = Tokenizer.from_file(str(package_folder() / "tokenizer.json"))
    reference.no_padding()
    reference.no_truncation()
    texts = [text for name, text in TEXTS.items() if name != "brackets"]  # it has [unused1], a special token of this GGUF only
    every = [characters for _, characters in blocks()]
    for some in (texts, list(map(alone, every)), list(map(within_words, every))):
        assert read_tokens(word_piece, some) == read_tokens(reference, some)


async def test_word_piece_reads_texts_as_llama_server_does(
    word_piece: Tokenizer, make_backend: MakeBackend, minilm: Path
) -> None:
    theirs = await reader(make_backend, minilm)(list(TEXTS.values()))
    ours = read_tokens(word_piece, list(TEXTS.values()))
    assert {name for name, *both in zip(TEXTS, ours, theirs, strict=True) if both[0] != both[1]} == WORD_PIECE


@pytest.mark.slow
@pytest.mark.parametrize("join", [alone, within_words])
async def test_word_piece_reads_all_characters_as_llama_server_does(
    word_piece: Tokenizer, make_backend: MakeBackend, minilm: Path, join: Callable[[str], str]
) -> None:
    theirs = reader(make_backend, minilm)
    found = ""
    for _, characters in blocks():
        known = "".join(each for each in characters if not is_known(each))
        found += await find_differences(word_piece, theirs, known, join) if known else ""
    # Marks and punctuation that came to Unicode lately: 506 with the Unicode 14 of Python 3.11, more with that of later ones.
    assert {unicodedata.category(each)[0] for each in found} <= {"M", "C", "P", "S"}
    assert len(found) < 700


async def test_unigram_reads_texts_as_llama_server_does(xlm_roberta: Path, make_backend: MakeBackend) -> None:
    theirs = await reader(make_backend, xlm_roberta)(list(TEXTS.values()))
    ours = read_tokens(make_tokenizer(ModelFile(xlm_roberta)), list(TEXTS.values()))
    assert {name for name, *both in zip(TEXTS, ours, theirs, strict=True) if both[0] != both[1]} == UNIGRAM


@pytest.mark.slow
@pytest.mark.parametrize("join", [alone, within_words])
async def test_unigram_reads_all_characters_as_llama_server_does(
    xlm_roberta: Path, make_backend: MakeBackend, join: Callable[[str], str]
) -> None:
    tokenizer, theirs = make_tokenizer(ModelFile(xlm_roberta)), reader(make_backend, xlm_roberta)
    for _, characters in blocks():
        assert await find_differences(tokenizer, theirs, characters, join) == ""


def test_special_tokens_in_a_text_are_read_as_such(word_piece: Tokenizer, xlm_roberta: Path) -> None:
    assert word_piece.encode("a[SEP]b [MASK]").tokens == ["[CLS]", "a", "[SEP]", "b", "[MASK]", "[SEP]"]
    assert word_piece.encode("").tokens == ["[CLS]", "[SEP]"]
    unigram = make_tokenizer(ModelFile(xlm_roberta))
    assert unigram.encode("a</s>b").tokens == ["<s>", "▁a", "</s>", "▁b", "</s>"]


def test_a_very_long_word_is_read_quickly(word_piece: Tokenizer) -> None:
    assert word_piece.encode("x" * 1_000_000).tokens == ["[CLS]", "[UNK]", "[SEP]"]


def test_tokenizer_of_a_folder_neither_pads_nor_cuts(minilm_graph: Path) -> None:
    tokenizer = Tokenizer.from_file(str(minilm_graph / TOKENIZER))
    assert (tokenizer.padding, tokenizer.truncation) == (None, None)


def test_case_is_kept_if_the_file_says_so(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    encoders.write(path, "bert", SHAPE, metadata={"tokenizer.ggml.normalizer.lowercase": False})
    tokenizer = make_tokenizer(ModelFile(path))
    assert tokenizer.encode("Été").tokens == ["[CLS]", "[UNK]", "[SEP]"]
    assert tokenizer.encode("ete").tokens != tokenizer.encode("Été").tokens


@pytest.mark.parametrize(
    ("kind", "metadata", "told"),
    [
        ("xlm-roberta", {"tokenizer.ggml.remove_extra_whitespaces": False}, "its tokenizer keeps runs of spaces"),
        ("xlm-roberta", {"tokenizer.ggml.model": "gpt2"}, "its tokenizer is of the kind 'gpt2'"),
        ("bert", {"tokenizer.ggml.unknown_token_id": 10**6}, "its unknown token 1000000 is not in its vocabulary"),
    ],
)
def test_other_tokenizers_are_refused(
    kind: encoders.Kind, metadata: dict[str, encoders.Value], told: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.gguf"
    encoders.write(path, kind, SHAPE, metadata=metadata)
    with pytest.raises(UnsupportedModelError, match=told):
        building.build(path, tmp_path / "graph")
