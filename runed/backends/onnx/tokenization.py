"""Makes a tokenizer of the vocabulary of a GGUF.

Special tokens that stand in a text are read as such, as llama-server does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from gguf import TokenType
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from runed.backends.onnx.model_file import ModelFile, UnsupportedModelError
from runed.errors import quoted

_WORD_START = "\N{LOWER ONE EIGHTH BLOCK}"
"""What a GGUF writes before a piece that begins a word."""

_SPECIAL_TYPES = (TokenType.UNKNOWN, TokenType.CONTROL, TokenType.USER_DEFINED)

_BRACKETED = re.compile(r"\[\w+\]")
"""What early conversions leave as it is, such as "[unused1]", even if it is no special token."""

_LONGEST_WORD = 100
"""Characters of a word beyond which the reference implementation takes the unknown token."""


def make_tokenizer(file: ModelFile) -> Tokenizer:
    """Return the tokenizer of a model. It neither pads nor cuts, and adds the special tokens around a text.

    Raises:
        UnsupportedModelError: The file has another kind of tokenizer, or a broken one.
    """
    kind = file.value("tokenizer.ggml.model", str)
    if kind not in _MAKERS:
        raise UnsupportedModelError(f"its tokenizer is of the kind {quoted(kind)}")
    texts = file.head.strings("tokenizer.ggml.tokens")
    types = file.head.numbers("tokenizer.ggml.token_type").tolist()
    if len(set(texts)) < len(texts) or len(types) != len(texts):
        raise UnsupportedModelError("its vocabulary has a token twice, or does not tell the type of each")
    tokenizer = _MAKERS[kind](file, texts, types)
    tokenizer.add_special_tokens(
        [
            AddedToken(text, normalized=False, special=True)
            for text, type_ in zip(texts, types, strict=True)
            if type_ in _SPECIAL_TYPES
        ]
    )
    return tokenizer


def pad_id(file: ModelFile) -> int:
    """Return the token that fills the rows of shorter texts."""
    return file.value("tokenizer.ggml.padding_token_id", int, 0)


def _word_piece(file: ModelFile, texts: list[str], types: list[int]) -> Tokenizer:
    """Return the tokenizer of BERT. llama.cpp marks pieces that begin a word, and BERT those that go on with one."""

    def spelled(text: str, type_: int) -> str:
        if type_ in _SPECIAL_TYPES or _BRACKETED.fullmatch(text):
            return text
        return text[1:] if text.startswith(_WORD_START) else f"##{text}"

    vocabulary = {spelled(*pair): number for number, pair in enumerate(zip(texts, types, strict=True))}
    if len(vocabulary) < len(texts):
        raise UnsupportedModelError("its vocabulary has a piece twice")
    unknown = texts[_special(file, "unknown", 100, texts)]
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=unknown, max_input_chars_per_word=_LONGEST_WORD))
    lower = file.value("tokenizer.ggml.normalizer.lowercase", bool, default=True)  # a default of a file's value
    strip = file.value("tokenizer.ggml.normalizer.strip_accents", bool, lower)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lower, strip_accents=strip)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    first, last = _special(file, "bos", 101, texts), _special(file, "seperator", 102, texts)  # spelled so in GGUF
    tokenizer.post_processor = _frame(texts, [first], [last])
    return tokenizer


def _unigram(file: ModelFile, texts: list[str], types: list[int]) -> Tokenizer:
    """Return the tokenizer of XLM-RoBERTa."""
    if not file.value("tokenizer.ggml.remove_extra_whitespaces", bool, default=False):  # as above
        raise UnsupportedModelError("its tokenizer keeps runs of spaces")
    scores = file.head.numbers("tokenizer.ggml.scores").tolist()
    lowest = min(score for score, type_ in zip(scores, types, strict=True) if type_ == TokenType.NORMAL)
    # An unused token would lower the score of unknown characters. With a space in it, it is found in no text.
    pieces = [
        (f" {text}", lowest) if type_ == TokenType.UNUSED else (text, score)
        for text, score, type_ in zip(texts, scores, types, strict=True)
    ]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=_special(file, "unknown", 2, texts), byte_fallback=False))
    if charsmap := file.head.numbers("tokenizer.ggml.precompiled_charsmap").tobytes():
        tokenizer.normalizer = normalizers.Precompiled(charsmap)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.Metaspace(_WORD_START, prepend_scheme="always")]
    )
    tokenizer.decoder = decoders.Metaspace(_WORD_START)
    first = (
        [_special(file, "bos", 0, texts)] if file.value("tokenizer.ggml.add_bos_token", bool, default=False) else []
    )  # as above
    last = (
        [_special(file, "eos", 1, texts)] if file.value("tokenizer.ggml.add_eos_token", bool, default=True) else []
    )  # as above
    tokenizer.post_processor = _frame(texts, first, last)
    return tokenizer


_MAKERS = {"bert": _word_piece, "t5": _unigram}
"""Makers of a tokenizer, by the name that GGUF has for its kind."""


def _special(file: ModelFile, name: str, default: int, texts: list[str]) -> int:
    number = file.value(f"tokenizer.ggml.{name}_token_id", int, default)
    if number >= len(texts):
        raise UnsupportedModelError(f"its {name} token {number} is not in its vocabulary")
    return number


def _frame(texts: list[str], first: Iterable[int], last: Iterable[int]) -> processors.TemplateProcessing:
    """Return what puts special tokens around a text."""
    before, after = [texts[number] for number in first], [texts[number] for number in last]
    special = [(texts[number], number) for number in (*first, *last)]
    return processors.TemplateProcessing(single=[*before, "$A", *after], pair=None, special_tokens=special)
