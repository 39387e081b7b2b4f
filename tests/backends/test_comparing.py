"""Two engines are compared by tokens, vectors and speed; and both serve MiniLM alike."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from runed.backends.base import Tokens, pack
from runed.backends.comparing import DISPUTED, SCRIPTS, Trial, differ, least_cosine, try_engine
from runed.backends.llama import LlamaBackend
from runed.backends.measuring import Speed
from runed.backends.onnx.backend import OnnxBackend
from runed.backends.onnx.graphs import ensure_graph
from runed.bootstrap.disk import sha256_of
from runed.domain.model import ModelInfo
from runed.paths import Paths

SPEED = Speed(lone_seconds=0.01, batch_texts=8.0, batch_seconds=0.04, texts_per_second=200.0, tokens_per_second=3000.0)


def vectors(*angles: float) -> tuple[bytes, ...]:
    """Return a vector for each of `SCRIPTS`; the first ones are turned by angles."""
    turned = [*angles, *[0.0] * (len(SCRIPTS) - len(angles))]
    return tuple(np.array([np.cos(angle), np.sin(angle)], np.float32).tobytes() for angle in turned)


TOKENS = [pack([number, 2]) for number in range(len(SCRIPTS))]
OTHER = [pack([number, 3]) for number in range(len(DISPUTED))]


def trial(turned: Sequence[bytes] = (), tokens: Sequence[Tokens] = TOKENS, disputed: Sequence[Tokens] = OTHER) -> Trial:
    return Trial(tokens, disputed, tuple(turned) or vectors(), SPEED)


def model(file_type: str = "F16", special: str = "[SEP]") -> ModelInfo:
    return ModelInfo(
        identity="",
        name="",
        architecture="bert",
        dim=2,
        max_tokens=512,
        pooling="mean",
        file_type=file_type,
        sha256="",
        special_tokens=((102, special),),
    )


def test_engines_that_agree_have_no_objection() -> None:
    difference = differ(trial(), trial(), model())
    assert difference.cosine == pytest.approx(1.0)
    assert (difference.objection, difference.disputed) == ("", ())


@pytest.mark.parametrize("other", [pack([1, 2, 3]), pack([7, 2])], ids=["more", "others"])
def test_other_tokens_are_an_objection(other: Tokens) -> None:
    difference = differ(trial(), trial(tokens=[*TOKENS[:-1], other]), model())
    assert difference.objection == f"it splits 1 of {len(SCRIPTS) + len(DISPUTED)} test texts into other tokens"


def test_what_word_pieces_are_known_to_differ_in_is_told_and_for_others_an_objection() -> None:
    changed = trial(disputed=[pack([9]), *OTHER[1:-1], pack([9])])
    difference = differ(trial(), changed, model())
    assert (difference.objection, difference.disputed) == ("", ("Bengali", "words of over 100 letters"))
    assert differ(trial(), changed, model(special="</s>")).objection.startswith("it splits 2 of ")


@pytest.mark.parametrize(
    ("file_type", "angle", "fits"),
    [("F32", 0.01, True), ("F16", 0.02, False), ("Q8_0", 0.02, True), ("Q4_K_M", 0.1, True), ("", 0.2, False)],
)
def test_vectors_may_differ_more_where_an_engine_rounds(file_type: str, angle: float, *, fits: bool) -> None:
    difference = differ(trial(), trial(vectors(0.0, angle)), model(file_type))
    assert difference.cosine == pytest.approx(np.cos(angle), abs=1e-6)
    assert (difference.objection == "") is fits


def test_texts_that_are_too_long_for_one_engine_are_left_out() -> None:
    first, second = vectors(), (b"", *vectors(0.0, 0.5)[1:])
    assert least_cosine(first, second) == pytest.approx(np.cos(0.5), abs=1e-6)
    assert least_cosine(first[:1], [b""]) == 0.0


def test_vectors_without_a_cosine_count_as_different() -> None:
    nothing = np.zeros(2, np.float32).tobytes()
    assert least_cosine(vectors(), (nothing, *vectors()[1:])) == 0.0
    assert least_cosine(vectors(), (b"\0" * 12, *vectors()[1:])) == 0.0


async def test_both_engines_serve_minilm_alike(home: Path, llama_server: Path, minilm: Path) -> None:
    paths, sha256 = Paths(home), await sha256_of(minilm)
    await ensure_graph(minilm, sha256, paths)
    llama = LlamaBackend(executable=llama_server, model=minilm, model_sha256=sha256, paths=paths, ctx_size=2048)
    onnx = OnnxBackend(model=minilm, model_sha256=sha256, paths=paths, ctx_size=2048)
    first = await try_engine(llama, 0.1, engine="llama-server")
    assert llama.state.pid == 0, "it was stopped, since its memory is for the other one"
    second = await try_engine(onnx, 0.1, engine="ONNX Runtime")
    assert onnx.state.pid == 0
    assert first.tokens == second.tokens
    difference = differ(first, second, llama.model)
    assert (difference.objection, difference.disputed) == (
        "",
        ("Bengali", "Hindi", "Korean", "Tamil", "words of over 100 letters"),
    )
    assert difference.cosine >= 0.9999
    assert llama.model.max_tokens == onnx.model.max_tokens
    assert llama.model.sha256 == onnx.model.sha256
