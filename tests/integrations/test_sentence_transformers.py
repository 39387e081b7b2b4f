"""The adapter that stands in for sentence-transformers."""

from __future__ import annotations

import importlib.util
import pickle
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

import runed
import runed.testing
from runed import errors
from runed.integrations.sentence_transformers import SentenceTransformer
from tests.support import Golden, RunningDaemon

TEXTS = ["green tea", "black tea", "a train"]


@pytest.fixture
def client(qwen_daemon: RunningDaemon) -> Iterator[runed.Client]:
    with runed.connect(socket_path=qwen_daemon.socket) as client:
        yield client


@pytest.fixture
def model(qwen_daemon: RunningDaemon) -> Iterator[SentenceTransformer]:
    with SentenceTransformer(socket_path=qwen_daemon.socket) as model:
        yield model


def test_a_text_gives_a_vector_and_a_list_gives_a_matrix(model: SentenceTransformer, client: runed.Client) -> None:
    vector = model.encode("green tea")
    assert vector.shape == (64,)
    assert vector.dtype == np.float32
    assert np.array_equal(vector, client.embed("green tea"))
    matrix = model.encode(TEXTS)
    assert matrix.shape == (3, 64)
    assert matrix.dtype == np.float32
    assert np.array_equal(matrix, client.embed_batch(TEXTS))
    assert model.encode(["green tea"]).shape == (1, 64)
    assert model.encode([]).shape == (0, 64)
    assert np.array_equal(model.encode(tuple(TEXTS)), matrix)
    assert np.array_equal(model.encode(np.array(TEXTS)), matrix)


def test_roles_are_applied(model: SentenceTransformer, client: runed.Client) -> None:
    query = client.embed_batch(TEXTS, role="query")
    assert not np.allclose(query, client.embed_batch(TEXTS))
    assert np.array_equal(model.encode_query(TEXTS), query)
    assert np.array_equal(model.encode(TEXTS, prompt_name="query"), query)
    assert np.array_equal(model.encode_query("green tea"), query[0])
    document = client.embed_batch(TEXTS, role="document")
    assert np.array_equal(model.encode_document(TEXTS), document)
    assert np.array_equal(model.encode(TEXTS, prompt_name="document"), document)


def test_a_prompt_of_ones_own_takes_the_place_of_the_models(model: SentenceTransformer, client: runed.Client) -> None:
    expected = client.embed_batch([f"Tea: {text}" for text in TEXTS])
    assert np.array_equal(model.encode(TEXTS, prompt="Tea: "), expected)
    assert np.array_equal(model.encode_query(TEXTS, prompt="Tea: "), expected)
    assert np.array_equal(model.encode_document("green tea", prompt="Tea: "), expected[0])


def test_its_prompts_are_those_that_the_daemon_puts_in_front(model: SentenceTransformer, qwen_daemon: RunningDaemon) -> None:
    prompts = model.prompts
    assert prompts["query"].startswith("Instruct: ")
    assert "{" not in prompts["query"]
    # Not equal to the bit: a text with a role is another text for the cache, and is computed again.
    assert np.allclose(model.encode(TEXTS, prompt=prompts["query"]), model.encode_query(TEXTS), atol=1e-5)
    asking = SentenceTransformer(instruction="Find teas", socket_path=qwen_daemon.socket)
    assert "Find teas" in asking.prompts["query"]
    assert np.allclose(asking.encode("green", prompt=asking.prompts["query"]), asking.encode_query("green"), atol=1e-5)


def test_fewer_dimensions(model: SentenceTransformer, client: runed.Client, qwen_daemon: RunningDaemon) -> None:
    expected = client.embed_batch(TEXTS, dimensions=32)
    assert np.array_equal(model.encode(TEXTS, truncate_dim=32), expected)
    small = SentenceTransformer(truncate_dim=32, socket_path=qwen_daemon.socket)
    assert small.get_sentence_embedding_dimension() == 32
    assert np.array_equal(small.encode(TEXTS), expected)
    assert small.encode(TEXTS, truncate_dim=48).shape == (3, 48)
    assert model.get_sentence_embedding_dimension() == 64
    assert model.get_max_seq_length() == model.max_seq_length == client.info().max_text_length


@pytest.mark.parametrize(("show", "count", "words"), [(False, 2100, 1), (True, 200, 11)])
def test_a_long_list_keeps_its_order(
    model: SentenceTransformer, client: runed.Client, capsys: pytest.CaptureFixture[str], *, show: bool, count: int, words: int
) -> None:
    # More texts than fit into a request. A stream gets texts of different lengths, which are not ready in order.
    texts = [f"{count} {number}" + " word" * (number * 7 % words) for number in range(count)]
    vectors = model.encode(texts, batch_size=7, show_progress_bar=show, normalize_embeddings=False, device="cpu")
    assert vectors.shape == (count, 64)
    assert np.array_equal(vectors, client.embed_batch(texts))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert ("Embedding" in captured.err) is show


@pytest.mark.parametrize("show", [False, True])
def test_the_text_at_fault_is_named(model: SentenceTransformer, qwen_daemon: RunningDaemon, *, show: bool) -> None:
    texts = ["a", "b", "word " * 3000]
    with pytest.raises(errors.TextTooLongError) as raised:
        model.encode(texts, show_progress_bar=show)
    assert raised.value.metadata["index"] == "2"
    with pytest.raises(errors.EmptyTextError):
        model.encode(["a", ""], show_progress_bar=show)
    cutting = SentenceTransformer(truncate="end", socket_path=qwen_daemon.socket)
    assert cutting.encode(texts, show_progress_bar=show).shape == (3, 64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"output_value": "token_embeddings"}, "output_value is 'token_embeddings'"),
        ({"output_value": None}, "output_value is None"),
        ({"precision": "int8"}, "precision is 'int8'"),
        ({"prompt_name": "passage"}, "prompt_name is 'passage'"),
        ({"prompt_name": "query", "prompt": "Tea: "}, "not both"),
    ],
)
def test_what_it_cannot_do_it_refuses(model: SentenceTransformer, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.encode(TEXTS, **arguments)  # type: ignore[arg-type] # on purpose


def test_what_it_does_not_know_it_refuses(model: SentenceTransformer) -> None:
    with pytest.raises(TypeError, match="pool"):
        model.encode(TEXTS, pool=None)  # type: ignore[call-arg] # on purpose
    with pytest.raises(TypeError, match="text 1 of the batch is a int"):
        model.encode(["a", 1])  # type: ignore[list-item] # on purpose
    with pytest.raises(ValueError, match="is a path"):
        SentenceTransformer("tests")


@pytest.mark.parametrize(
    "name", ["all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2", "all-minilm-l6-v2.f16", "ALL_MiniLM_L6_v2"]
)
def test_a_model_is_named_as_on_a_hub(name: str, minilm_daemon: RunningDaemon) -> None:
    with (
        SentenceTransformer(name, device="cuda:7", trust_remote_code=True, socket_path=minilm_daemon.socket) as model,
        runed.connect(socket_path=minilm_daemon.socket) as client,
    ):
        assert np.array_equal(model.encode(TEXTS), client.embed_batch(TEXTS))
        assert model.get_embedding_dimension() == 384
        assert model.max_seq_length == 512


def test_each_model_of_the_daemon_can_be_named_and_others_are_refused() -> None:
    with runed.testing.daemon(models=("bge-m3.f16", "e5-small")) as daemon:
        for name, served in (("BAAI/bge-m3", "bge-m3.f16"), ("intfloat/e5-small", "e5-small")):
            SentenceTransformer(name, home=daemon.home).encode(TEXTS)
            assert daemon.calls[-1].options["model"] == served
        for name in ("e5", "small", "BAAI/bge-m4", "bge-m3.q8_0"):
            with pytest.raises(errors.UnknownModelError, match=r"bge-m3\.f16, e5-small"):
                SentenceTransformer(name, home=daemon.home).encode(TEXTS)


def test_tensors_hold_the_same_numbers(model: SentenceTransformer) -> None:
    torch = pytest.importorskip("torch")
    vectors = model.encode(TEXTS)
    tensor = model.encode(TEXTS, convert_to_tensor=True)
    assert (tuple(tensor.shape), tensor.dtype) == ((3, 64), torch.float32)
    assert np.array_equal(tensor.numpy(), vectors)
    several = model.encode(TEXTS, convert_to_numpy=False)
    assert [torch.equal(each, row) for each, row in zip(several, tensor, strict=True)] == [True] * 3
    assert torch.equal(model.encode(TEXTS[0], convert_to_tensor=True), tensor[0])


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="PyTorch is installed")
def test_tensors_need_torch(model: SentenceTransformer) -> None:
    with pytest.raises(ModuleNotFoundError, match="torch"):
        model.encode(TEXTS, convert_to_tensor=True)
    with pytest.raises(ModuleNotFoundError, match="torch"):
        model.encode(TEXTS, convert_to_numpy=False)


def test_it_can_be_pickled(model: SentenceTransformer) -> None:
    twin = pickle.loads(pickle.dumps(model))
    assert np.array_equal(twin.encode(TEXTS), model.encode(TEXTS))


def test_it_gives_what_sentence_transformers_gives(minilm_daemon: RunningDaemon, minilm_golden: Golden) -> None:
    plain = [index for index, text in enumerate(minilm_golden.texts) if not any("\uac00" <= char <= "\ud7a3" for char in text)]
    vectors = SentenceTransformer(truncate="end", socket_path=minilm_daemon.socket).encode(minilm_golden.texts)
    assert minilm_golden.cosines(vectors)[plain].min() >= 0.9999


def test_similarity_ranks_by_meaning(minilm_daemon: RunningDaemon) -> None:
    with SentenceTransformer(socket_path=minilm_daemon.socket) as model:
        documents = model.encode_document(["Green tea is steeped at 80 degrees.", "The night train leaves at ten."])
        queries = model.encode_query(["How hot should the water be?", "When does it depart?"])
        similarities = model.similarity(queries, documents)
        assert similarities.shape == (2, 2)
        assert similarities.argmax(axis=1).tolist() == [0, 1]
        assert np.allclose(similarities.diagonal(), model.similarity_pairwise(queries, documents))
        assert np.allclose(model.similarity(queries[0], 3 * documents), similarities[:1], atol=1e-6)
        assert model.similarity(queries[0], np.zeros(384)) == 0


def test_it_needs_nothing_but_runed() -> None:
    code = "import sys, runed.integrations.sentence_transformers\nprint('torch' in sys.modules, 'rich' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False False\n"
