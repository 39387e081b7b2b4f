"""A broken, cut or hostile GGUF is refused with a clear message in bounded time, and never crashes the daemon."""

from __future__ import annotations

import re
import struct
import time
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runed.backends import gguf, gguf_head
from runed.backends.gguf import check_model, ranks, read_gguf, read_model
from runed.domain.model_spec import ModelKind
from runed.errors import ModelFileError
from tests.backends.support import QWEN3, TENSORS, build_gguf, gguf_string
from tests.bad_files import BAD_FILES, put_bad_file

TINY = Path(__file__).resolve().parent.parent / "fixtures" / "tiny-qwen3.f32.gguf"
TINY_HEADER = 12_000
"""Bytes that contain everything before the tensor data of the tiny Qwen3."""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.gguf"


def refuse(file: Path, data: bytes) -> str:
    file.write_bytes(data)
    with pytest.raises(ModelFileError) as caught:
        check_model(file)
    assert str(file) in caught.value.message
    assert "\n" not in caught.value.message
    return caught.value.message


def test_tiny_qwen3_is_read_whole(tiny_qwen3: Path) -> None:
    assert read_gguf(tiny_qwen3) == gguf.GGUFMetadata(
        architecture="qwen3",
        name="qwen3-embedding-random-tiny",
        dim=64,
        context_length=2048,
        pooling="last",
        file_pooling="last",
        file_type="F32",
        add_eos=True,
        eos_id=319,
        rope_freq_base=1e6,
        unknown_id=None,
        special_tokens=((319, "<|endoftext|>"),),
        vocabulary=320,
    )


def test_names_of_a_file_cannot_steer_the_terminal(file: Path) -> None:
    name = "\x1b]0;x\x07\n\x9b2J" + "n" * 1000
    file.write_bytes(build_gguf(QWEN3 | {"general.name": name}))
    assert read_gguf(file).name == r"\x1b]0;x\x07\n\x9b2J" + "n" * 246
    words = refuse(file, build_gguf(QWEN3 | {"general.architecture": "\x1b[2J"}))
    words += refuse(file, build_gguf(QWEN3 | {"qwen3.pooling_type": 9, "general.name": name}))
    assert not re.search(r"[\x00-\x1f\x7f-\x9f]", words)


@pytest.mark.parametrize("kind", BAD_FILES)
def test_anything_in_the_place_of_a_model_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    put_bad_file(kind, tmp_path / "model.gguf")
    with pytest.raises(ModelFileError, match=r"the model .*/model\.gguf "):
        check_model(tmp_path / "model.gguf")


def test_minilm_is_read_whole(minilm: Path) -> None:
    metadata = read_gguf(minilm)
    assert (metadata.architecture, metadata.dim, metadata.context_length) == ("bert", 384, 512)
    assert (metadata.pooling, metadata.file_type) == ("mean", "F16")
    assert metadata.unknown_id == 100
    assert {(0, "[PAD]"), (100, "[UNK]"), (101, "[CLS]"), (102, "[SEP]"), (103, "[MASK]")} < {*metadata.special_tokens}


@pytest.mark.parametrize(
    "vocabulary",
    [
        {},
        {"tokenizer.ggml.token_type": ["a", "b", "c"]},
        {"tokenizer.ggml.token_type": []},
        {"tokenizer.ggml.unknown_token_id": "none"},
        {"tokenizer.ggml.unknown_token_id": True},
    ],
)
def test_vocabulary_without_usable_types_has_no_special_tokens(file: Path, vocabulary: dict[str, Any]) -> None:
    file.write_bytes(build_gguf(QWEN3 | vocabulary))
    metadata = read_gguf(file)
    assert metadata.special_tokens == ()


def test_both_versions_are_read(file: Path) -> None:
    for version in (2, 3):
        file.write_bytes(build_gguf(version=version))
        assert read_gguf(file).file_type == "Q6_K"


def test_missing_file_is_told() -> None:
    with pytest.raises(ModelFileError, match=r"/nowhere/model.gguf cannot be read: No such file"):
        check_model(Path("/nowhere/model.gguf"))


def test_directory_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="Is a directory"):
        check_model(tmp_path)


@pytest.mark.parametrize("data", [b"", b"GG", b"<html>404 Not Found</html>", b"\x80\x02ctorch"])
def test_other_file_is_no_gguf(file: Path, data: bytes) -> None:
    assert "not a GGUF" in refuse(file, data)


def test_other_versions_and_byte_orders_are_refused(file: Path) -> None:
    assert "version 1" in refuse(file, build_gguf(version=1))
    assert "version 4" in refuse(file, build_gguf(version=4))
    assert "big-endian" in refuse(file, b"GGUF" + struct.pack(">IQQ", 3, 1, 1))


def test_interrupted_download_is_seen_though_its_header_is_whole(file: Path) -> None:
    whole = build_gguf()
    assert "cut short" in refuse(file, whole[:-1])
    file.write_bytes(whole)
    check_model(file)


def test_every_cut_of_a_real_file_is_refused(file: Path) -> None:
    whole = TINY.read_bytes()
    for length in [*range(0, TINY_HEADER, 97), *range(TINY_HEADER, len(whole), 50_000), len(whole) - 1]:
        refuse(file, whole[:length])


@pytest.mark.slow
@settings(max_examples=300, deadline=20_000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, TINY_HEADER), st.integers(0, 255)), min_size=1, max_size=8))
def test_flipped_bytes_are_refused_or_harmless(file: Path, changes: list[tuple[int, int]]) -> None:
    data = bytearray(TINY.read_bytes())
    for position, value in changes:
        data[position] = value
    file.write_bytes(data)
    try:
        metadata = read_gguf(file)
    except ModelFileError:
        return
    assert 0 < metadata.dim <= 65_536
    assert metadata.context_length > 0


@settings(max_examples=200, deadline=20_000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=2000))
def test_garbage_after_the_magic_is_refused(file: Path, garbage: bytes) -> None:
    refuse(file, b"GGUF" + struct.pack("<I", 3) + garbage)


@pytest.mark.parametrize(
    ("tensors", "pairs"),
    [(2**63, 1), (1, 2**63), (100_001, 1), (1, 10_001)],
    ids=["tensors", "pairs", "too many tensors", "too many pairs"],
)
def test_absurd_counts_are_refused(file: Path, tensors: int, pairs: int) -> None:
    assert "claims" in refuse(file, b"GGUF" + struct.pack("<IQQ", 3, tensors, pairs) + bytes(1000))


@pytest.mark.parametrize("kind", [0, 8, 10], ids=["bytes", "strings", "integers"])
def test_array_longer_than_the_file_is_refused(file: Path, kind: int) -> None:
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + gguf_string("a") + struct.pack("<IIQ", 9, kind, 2**62)
    assert "cut short" in refuse(file, head + bytes(10_000))


@pytest.mark.slow
def test_sparse_file_of_empty_strings_ends_in_bounded_time_and_memory(file: Path) -> None:
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + gguf_string("a") + struct.pack("<IIQ", 9, 8, 2**40)
    file.write_bytes(head)
    with file.open("r+b") as handle:
        handle.truncate(2**40)  # a terabyte of zeros that takes no room
    started = time.process_time()  # of a processor, since a busy machine may need any time
    with pytest.raises(ModelFileError, match="header claims more than 67,108,864 bytes"):
        check_model(file)
    assert time.process_time() - started < 20


def test_nested_and_unknown_types_are_refused(file: Path) -> None:
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + gguf_string("a")
    assert "unknown type 9" in refuse(file, head + struct.pack("<IIQ", 9, 9, 1) + bytes(100))
    assert "unknown type 13" in refuse(file, head + struct.pack("<I", 13) + bytes(100))


def test_metadata_given_twice_is_refused(file: Path) -> None:
    pair = gguf_string("a") + struct.pack("<II", 4, 1)
    assert "'a' twice" in refuse(file, b"GGUF" + struct.pack("<IQQ", 3, 1, 2) + pair + pair + bytes(100))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("general.architecture", 7),
        ("general.alignment", 0),
        ("general.alignment", "32"),
        ("qwen3.embedding_length", 0),
        ("qwen3.embedding_length", 2**31),
        ("qwen3.context_length", "many"),
        ("qwen3.context_length", True),
        ("general.file_type", 1.5),
        ("tokenizer.ggml.eos_token_id", "end"),
    ],
)
def test_values_that_make_no_sense_are_refused(file: Path, key: str, value: object) -> None:
    assert "download it again" in refuse(file, build_gguf(QWEN3 | {key: value}))


@pytest.mark.parametrize("key", ["general.architecture", "qwen3.embedding_length", "qwen3.context_length"])
def test_missing_values_are_named(file: Path, key: str) -> None:
    pairs = {name: value for name, value in QWEN3.items() if name != key}
    assert key.rpartition(".")[2] in refuse(file, build_gguf(pairs))


@pytest.mark.parametrize("pooling", [0, 9], ids=["none", "unknown"])
def test_model_that_gives_no_embedding_is_refused(file: Path, pooling: int) -> None:
    assert f"pooling type {pooling}" in refuse(file, build_gguf(QWEN3 | {"qwen3.pooling_type": pooling}))


BERT = {key.replace("qwen3", "bert"): "bert" if value == "qwen3" else value for key, value in QWEN3.items()}
UNTOLD = {key: value for key, value in BERT.items() if key != "bert.pooling_type"}


@pytest.mark.parametrize("head", ["cls.weight", "cls.output.weight"])
@pytest.mark.parametrize("pairs", [UNTOLD, BERT | {"bert.pooling_type": 4}], ids=["no pooling", "rank"])
def test_a_reranker_is_known_by_its_head(file: Path, pairs: dict[str, Any], head: str) -> None:
    """llama.cpp's converter writes no pooling type for bge-reranker-v2-m3."""
    file.write_bytes(build_gguf(pairs, [(head, *TENSORS[0][1:]), *TENSORS[1:]]))
    assert ranks(file)
    metadata = read_model(file, ModelKind.RERANK)
    assert (metadata.pooling, metadata.file_pooling) == ("rank", "rank")
    with pytest.raises(ModelFileError, match="it is a reranker, for which pooling 'mean' makes no sense"):
        read_gguf(file, pooling="mean")
    with pytest.raises(ModelFileError, match="cannot be used for embeddings, since it is a reranker"):
        read_model(file, ModelKind.EMBEDDING)


def test_a_model_that_pools_and_has_a_head_is_what_the_user_says(file: Path) -> None:
    file.write_bytes(build_gguf(BERT | {"bert.pooling_type": 1}, [("cls.weight", *TENSORS[0][1:]), *TENSORS[1:]]))
    assert not ranks(file)
    assert read_model(file, ModelKind.EMBEDDING).pooling == "mean"
    metadata = read_model(file, ModelKind.RERANK)
    assert (metadata.pooling, metadata.file_pooling) == ("rank", "mean")


def test_a_model_without_a_head_scores_nothing(file: Path) -> None:
    file.write_bytes(build_gguf(BERT | {"bert.pooling_type": 1}))
    with pytest.raises(ModelFileError, match='so it scores no documents; remove "kind": "rerank"'):
        read_model(file, ModelKind.RERANK)
    assert "the scores of this reranker would mean nothing" in refuse(file, build_gguf(BERT | {"bert.pooling_type": 4}))
    assert not ranks(file)
    assert not ranks(file.with_name("nothing.gguf"))


def test_a_reranker_that_lacks_its_question_is_refused(file: Path) -> None:
    """Early conversions of Qwen3-Reranker have no template. llama-server would put special tokens between the texts instead."""
    tensors = [("cls.output.weight", *TENSORS[0][1:]), *TENSORS[1:]]
    pairs = QWEN3 | {"qwen3.pooling_type": 4}
    assert "tokenizer.chat_template.rerank" in refuse(file, build_gguf(pairs, tensors))
    file.write_bytes(build_gguf(pairs | {"tokenizer.chat_template.rerank": "{query}{document}"}, tensors))
    assert read_model(file, ModelKind.RERANK).rerank_template == "{query}{document}"


def test_chat_model_is_refused_and_early_qwen3_embedding_is_not(file: Path) -> None:
    pairs = {name: value for name, value in QWEN3.items() if name != "qwen3.pooling_type"}
    assert "does not say how it pools" in refuse(file, build_gguf(pairs | {"general.name": "Qwen3 0.6B"}))
    file.write_bytes(build_gguf(pairs | {"general.name": "Qwen3 Embedding 0.6B"}))
    assert read_gguf(file).pooling == "last"


def test_own_pooling_takes_the_place_of_that_of_the_file(file: Path) -> None:
    file.write_bytes(build_gguf({name: value for name, value in QWEN3.items() if name != "qwen3.pooling_type"}))
    assert read_gguf(file, pooling="mean").pooling == "mean"
    file.write_bytes(build_gguf(QWEN3 | {"qwen3.pooling_type": 3}))
    assert read_gguf(file, pooling="cls").pooling == "cls"


def test_vectors_have_the_width_of_the_last_layer(file: Path) -> None:
    """EmbeddingGemma 2 computes with 512 values and gives vectors of 768."""
    file.write_bytes(build_gguf(QWEN3 | {"qwen3.embedding_length": 512}))
    assert read_gguf(file).dim == 512
    file.write_bytes(build_gguf(QWEN3 | {"qwen3.embedding_length": 512, "qwen3.embedding_length_out": 768}))
    assert read_gguf(file).dim == 768
    assert "embedding_length_out" in refuse(file, build_gguf(QWEN3 | {"qwen3.embedding_length_out": 0}))


def test_further_names_of_a_model_are_read(file: Path) -> None:
    address = "https://example.com/intfloat/e5-base-v2"
    file.write_bytes(build_gguf(QWEN3 | {"general.base_model.0.repo_url": address, "general.basename": "e5\x1b"}))
    assert read_gguf(file).origins == (r"e5\x1b", address)


def test_old_conversion_that_appends_no_eos_is_refused(file: Path) -> None:
    assert "add_eos_token" in refuse(file, build_gguf(QWEN3 | {"tokenizer.ggml.add_eos_token": False}))


def test_qwen3_without_its_rope_base_is_refused(file: Path) -> None:
    pairs = {name: value for name, value in QWEN3.items() if name != "qwen3.rope.freq_base"}
    assert "qwen3.rope.freq_base" in refuse(file, build_gguf(pairs))


def test_file_with_only_a_vocabulary_is_refused(file: Path) -> None:
    assert "holds no tensors" in refuse(file, build_gguf(tensors=()))


@pytest.mark.parametrize(
    ("tensor", "told"),
    [
        (("misplaced", (64,), 0, 8), "alignment"),
        (("ragged", (100, 3), 14, 0), "does not fit its type"),
        (("deep", (1, 1, 1, 1, 1), 0, 0), "5 dimensions"),
        (("vast", (2**62, 2**62, 2**62, 2**62), 0, 0), "cut short"),
        (("away", (1,), 0, 2**62), "cut short"),
        (("of an unknown type, away", (1,), 999, 2**40), "cut short"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_tensor_that_does_not_fit_is_refused(file: Path, tensor: tuple[str, tuple[int, ...], int, int], told: str) -> None:
    assert told in refuse(file, build_gguf(tensors=[*TENSORS, tensor]))


def test_tensor_of_a_type_that_is_newer_than_runed_is_left_to_the_engine(file: Path) -> None:
    file.write_bytes(build_gguf(tensors=[*TENSORS, ("new", (64,), 999, 512)]))
    check_model(file)


def test_tables_agree_with_the_gguf_package() -> None:
    for kind, size in gguf_head._TENSOR_TYPES.items():
        assert GGML_QUANT_SIZES[GGMLQuantizationType(kind)] == size
    for kind, name in gguf._FILE_TYPES.items():
        assert LlamaFileType(kind).name in {f"MOSTLY_{name}", f"ALL_{name}"}


def test_head_has_arrays_and_the_places_of_tensors(minilm: Path) -> None:
    head, reader = gguf_head.read_head(minilm), GGUFReader(minilm)
    for key in ("tokenizer.ggml.tokens", "tokenizer.ggml.token_type"):
        expected = reader.fields[key].contents()
        assert head.count(key) == len(expected) == 30_522
        assert (head.strings(key) or head.numbers(key).tolist()) == expected
    assert head.strings("tokenizer.ggml.tokens", [101, 0]) == ["[CLS]", "[PAD]"]
    assert head.strings("missing") == []
    assert head.numbers("missing").size == head.count("missing") == 0
    assert list(head.tensors) == [tensor.name for tensor in reader.tensors]
    for tensor in reader.tensors:
        place = head.tensors[tensor.name]
        assert (place.start, place.size, place.kind) == (tensor.data_offset, tensor.n_bytes, tensor.tensor_type)
        assert place.shape == tuple(reversed(tensor.shape.tolist()))


def test_tensor_that_is_named_twice_is_refused(file: Path) -> None:
    assert "gives the tensor 'token_embd.weight' twice" in refuse(file, build_gguf(tensors=[*TENSORS, *TENSORS]))


def test_large_vocabulary_is_read_quickly(file: Path) -> None:
    file.write_bytes(build_gguf(QWEN3 | {"tokenizer.ggml.tokens": [f"token {number}" for number in range(150_000)]}))
    started = time.process_time()
    read_gguf(file)
    assert time.process_time() - started < 2
